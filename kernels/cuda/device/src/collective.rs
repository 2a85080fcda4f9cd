//! Several devices that share a model: sums and gathers over their ranks.

use crate::device::Device;
use crate::driver::{StreamId, Type};
use crate::error::Error;
use crate::memory::View;
use crate::record::{Counts, Kind};
use crate::stream::Stream;
use std::fmt;
use std::sync::Arc;

/// The port: NCCL, or the shim's ranks. Every rank calls the same operations in the same order, each on its own device.
pub trait Collective: Send + Sync + fmt::Debug {
    /// How many there are.
    fn ranks(&self) -> usize;

    /// Which one this is, from zero.
    fn rank(&self) -> usize;

    /// Enqueues: `to [count]` becomes the sum of all ranks' `from [count]`, the same bits on each. `to` may be `from`.
    ///
    /// # Errors
    ///
    /// As [`crate::driver::Driver::enqueue`].
    ///
    /// # Safety
    ///
    /// The addresses are those of `count` numbers each in memory of this rank's device.
    unsafe fn all_reduce(&self, stream: StreamId, from: u64, to: u64, count: usize, of: Type) -> Result<(), Error>;

    /// Enqueues: `to [ranks, count]` becomes the ranks' `from [count]`, in order. `from` may be this rank's row of `to`.
    ///
    /// # Errors
    ///
    /// As [`crate::driver::Driver::enqueue`].
    ///
    /// # Safety
    ///
    /// The addresses are those of `count` and `ranks * count` numbers in memory of this rank's device.
    unsafe fn all_gather(&self, stream: StreamId, from: u64, to: u64, count: usize, of: Type) -> Result<(), Error>;

    /// Ends this rank's part for good: what waits for other ranks ends with an error, and so does every later call. Does not wait. For any thread, also
    /// while another one waits. To set all ranks free, call it for each.
    fn end(&self);
}

/// This device among others.
#[derive(Clone, Debug)]
pub struct Group {
    device: Device,
    collective: Arc<dyn Collective>,
}

impl Group {
    /// The ranks that `collective` connects, which is of this device.
    #[must_use]
    pub fn new(device: &Device, collective: Arc<dyn Collective>) -> Self {
        Self { device: device.clone(), collective }
    }

    /// How many ranks.
    #[must_use]
    pub fn ranks(&self) -> usize {
        self.collective.ranks()
    }

    /// Which one this is, from zero.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.collective.rank()
    }

    /// The device of this rank.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// See [`Collective::end`]: what to do for every rank once one has failed, so that no other waits for it.
    pub fn end(&self) {
        self.collective.end();
    }

    /// `to` becomes the sum over the ranks' `from`, of all numbers in the view; the same bits on each rank. `to` may be `from`.
    ///
    /// On the shim ranks are added in order, in f32, and rounded once. NCCL adds in an order of its own.
    ///
    /// # Errors
    ///
    /// When sizes do not fit, or views overlap in part; what the driver says. Ranks that do not come show when the stream is waited for.
    pub fn all_reduce(&self, stream: &Stream, from: View<'_>, to: View<'_>, of: Type) -> Result<(), Error> {
        let count = self.checked("all_reduce", stream, from, to, of, [1, 0])?;
        if count == 0 {
            return Ok(());
        }
        // SAFETY: both views have the count, and are of this device.
        let enqueue = || unsafe { self.collective.all_reduce(stream.id(), from.address(), to.address(), count, of) };
        let counts = Counts {
            read_bytes: from.bytes() as u64,
            written_bytes: to.bytes() as u64,
            operations: (count * (self.ranks() - 1)) as u64,
        };
        stream.enqueue_by(
            enqueue,
            || Kind::AllReduce,
            counts,
            |kept| {
                kept.buffers.extend([from.buffer.clone(), to.buffer.clone()]);
            },
        )
    }

    /// `to [ranks, ..]` becomes the ranks' `from`, in order. `from` may be this rank's row of `to`.
    ///
    /// # Errors
    ///
    /// As [`Group::all_reduce`].
    pub fn all_gather(&self, stream: &Stream, from: View<'_>, to: View<'_>, of: Type) -> Result<(), Error> {
        let count = self.checked("all_gather", stream, from, to, of, [self.ranks(), self.rank()])?;
        if count == 0 {
            return Ok(());
        }
        // SAFETY: the views have the counts, and are of this device.
        let enqueue = || unsafe { self.collective.all_gather(stream.id(), from.address(), to.address(), count, of) };
        let counts = Counts { read_bytes: from.bytes() as u64, written_bytes: to.bytes() as u64, operations: 0 };
        stream.enqueue_by(
            enqueue,
            || Kind::AllGather,
            counts,
            |kept| {
                kept.buffers.extend([from.buffer.clone(), to.buffer.clone()]);
            },
        )
    }

    /// How many numbers `from` has. `to` has `rows` times as many; `from` lies apart, or is row `own` of it.
    fn checked(
        &self,
        on: &str,
        stream: &Stream,
        from: View<'_>,
        to: View<'_>,
        of: Type,
        [rows, own]: [usize; 2],
    ) -> Result<usize, Error> {
        let device = &self.device.0;
        stream.same_device(stream.is_of(device) && from.buffer.is_of(device) && to.buffer.is_of(device))?;
        if !from.bytes().is_multiple_of(of.bytes()) {
            return Err(Error::value(
                on,
                "from",
                format!("{} bytes", from.bytes()),
                format!("a multiple of {}", of.bytes()),
            ));
        }
        if to.bytes() != rows * from.bytes() {
            return Err(Error::value(on, "to", format!("{} bytes", to.bytes()), format!("{}", rows * from.bytes())));
        }
        let (read, written) = (from.range(), to.range());
        let overlaps = read.start < written.end && written.start < read.end;
        if overlaps && read.start != written.start + (own * from.bytes()) as u64 {
            return Err(Error::value(
                on,
                "to",
                format!("{:#x}", written.start),
                "apart from `from`, or with it in its place",
            ));
        }
        Ok(from.bytes() / of.bytes())
    }
}
