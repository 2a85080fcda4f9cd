//! What a device does with others that share its model: sums after the two halves of a layer, logits brought together.

use super::agreement::Agreement;
use super::shard::Shard;
use super::step::Step;
use crate::Error;
use std::sync::Arc;
use weft_cuda_device::{Argument, Buffer, Counts, Device, Group, Launch, Type, View};
use weft_cuda_kernels::columns;

/// A device among others.
pub(crate) struct Ranks {
    pub(crate) shard: Shard,
    pub(crate) group: Group,
    pub(crate) agreement: Arc<Agreement>,
}

/// What it needs for that in device memory: f32 `[ranks, rows, columns]`, for a piece of the logits.
pub(crate) struct Gathered(Buffer);

impl Ranks {
    /// The one that chooses tokens and returns logits.
    pub(crate) fn is_first(&self) -> bool {
        self.shard.rank == 0
    }

    /// Whether it is so on all ranks.
    pub(crate) fn all(&self, is_so: bool) -> Result<bool, Error> {
        Ok(self.agreement.least(usize::from(is_so))? == 1)
    }

    pub(crate) fn gathered(&self, device: &Device, rows: usize, vocabulary: usize) -> Result<Gathered, Error> {
        let all = rows * self.shard.columns(vocabulary) * self.shard.ranks;
        Ok(Gathered(device.allocate(all * size_of::<f32>())?))
    }
}

/// As a step uses it.
#[derive(Clone, Copy)]
pub(crate) struct Together<'a> {
    pub(crate) ranks: &'a Ranks,
    pub(crate) gathered: &'a Gathered,
}

impl Together<'_> {
    fn gathered(&self, rows: usize, vocabulary: usize) -> Result<View<'_>, Error> {
        let shard = self.ranks.shard;
        Ok(self.gathered.0.part(0..rows * shard.columns(vocabulary) * shard.ranks * size_of::<f32>())?)
    }

    /// Where this rank's columns of `rows` rows of logits belong.
    fn own(&self, rows: usize, vocabulary: usize) -> Result<View<'_>, Error> {
        let shard = self.ranks.shard;
        let bytes = rows * shard.columns(vocabulary) * size_of::<f32>();
        Ok(self.gathered(rows, vocabulary)?.part(shard.rank * bytes..(shard.rank + 1) * bytes)?)
    }
}

impl Step<'_> {
    /// Whether this device is the one that answers.
    pub(super) fn answers(&self) -> bool {
        self.together.is_none_or(|together| together.ranks.is_first())
    }

    /// Adds up what the ranks have of a site's outputs.
    pub(super) fn add_up(&self, out: View<'_>) -> Result<(), Error> {
        match self.together {
            Some(Together { ranks, .. }) => Ok(ranks.group.all_reduce(self.stream, out, out, self.precision.of())?),
            None => Ok(()),
        }
    }

    /// Logits of `rows` rows `x`, after the last norm, where answers are read.
    pub(super) fn logits(&self, x: View<'_>, rows: usize) -> Result<(), Error> {
        let (hidden, vocabulary) = (self.shape.hidden, self.shape.vocabulary);
        let logits = self.buffers.logits(rows)?;
        let Some(together) = self.together else {
            return self.product(&self.weights.head, rows, [hidden, vocabulary], x, (logits, Type::F32));
        };
        let each = together.ranks.shard.columns(vocabulary);
        let (own, all) = (together.own(rows, vocabulary)?, together.gathered(rows, vocabulary)?);
        self.product(&self.weights.head, rows, [hidden, each], x, (own, Type::F32))?;
        together.ranks.group.all_gather(self.stream, own, all, Type::F32)?;
        if !together.ranks.is_first() {
            return Ok(());
        }
        self.launch(&Launch {
            kernel: "weft_join_columns_f32",
            grid: columns::join_grid(rows, vocabulary),
            threads: columns::THREADS,
            shared_bytes: 0,
            arguments: &[
                all.reads().in_parts().into(),
                Argument::I32(each as i32),
                logits.writes().into(),
                Argument::I32(vocabulary as i32),
            ],
            through_tables: &[],
            counts: Counts { read_bytes: logits.bytes() as u64, written_bytes: logits.bytes() as u64, operations: 0 },
        })
    }
}
