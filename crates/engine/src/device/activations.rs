//! The activations of a step. Their addresses stay, as captured graphs need.

use super::options::StepRoom;
use super::precision::Precision;
use crate::Error;
use crate::shape::Shape;
use weft_cuda_device::{Buffer, Device, View};
use weft_cuda_kernels::attention;

/// Rows of a step: all of them, or a part that was gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Activations {
    pub(crate) rows: usize,
    pub(crate) is_part: bool,
}

/// Room for `rows_max` rows of each; shapes as in `workspace`, residual stream and norm apart.
pub(crate) struct Buffers {
    widths: Widths,
    bytes: usize,
    residual: [Buffer; 2],
    attention: [Buffer; 2],
    // These begin anew once rows were gathered, and need no second place.
    normed: Buffer,
    delta: Buffer,
    qkv: Buffer,
    gate_up: Buffer,
    activated: Buffer,
    /// f32.
    logits: Buffer,
    /// f32: results of the splits of decoding rows.
    pub(crate) partials: Buffer,
    pub(crate) sums: Buffer,
}

#[derive(Clone, Copy)]
struct Widths {
    hidden: usize,
    q: usize,
    qkv: usize,
    intermediate: usize,
    vocabulary: usize,
}

impl Buffers {
    pub(crate) fn new(device: &Device, shape: &Shape, precision: Precision, room: &StepRoom) -> Result<Self, Error> {
        let bytes = precision.bytes();
        let rows = |width: usize| device.allocate(room.rows_max * width * bytes);
        let partials =
            attention::partials_max(room.sequences_max, shape.context, None) * shape.heads * size_of::<f32>();
        let twice = |width: usize| Ok::<_, weft_cuda_device::Error>([rows(width)?, rows(width)?]);
        Ok(Self {
            widths: Widths {
                hidden: shape.hidden,
                q: shape.q_width(),
                qkv: shape.qkv_width(),
                intermediate: shape.intermediate,
                vocabulary: shape.vocabulary,
            },
            bytes,
            residual: twice(shape.hidden)?,
            attention: twice(shape.q_width())?,
            normed: rows(shape.hidden)?,
            delta: rows(shape.hidden)?,
            qkv: rows(shape.qkv_width())?,
            gate_up: rows(2 * shape.intermediate)?,
            activated: rows(shape.intermediate)?,
            logits: device.allocate(room.logits_rows_max * shape.vocabulary * size_of::<f32>())?,
            partials: device.allocate(partials * shape.head_dim)?,
            sums: device.allocate(2 * partials)?,
        })
    }

    /// Everything that a padded row may read before it was written becomes zero.
    pub(crate) fn clear(&self, stream: &weft_cuda_device::Stream) -> Result<(), Error> {
        for buffer in self.attention.iter().chain(&self.residual) {
            stream.fill(buffer.all(), 0)?;
        }
        Ok(())
    }

    fn view<'a>(&self, buffer: &'a Buffer, x: &Activations, width: usize) -> Result<View<'a>, Error> {
        Ok(buffer.part(0..x.rows * width * self.bytes)?)
    }

    pub(crate) fn residual(&self, x: &Activations) -> Result<View<'_>, Error> {
        self.view(&self.residual[usize::from(x.is_part)], x, self.widths.hidden)
    }

    pub(crate) fn attention(&self, x: &Activations) -> Result<View<'_>, Error> {
        self.view(&self.attention[usize::from(x.is_part)], x, self.widths.q)
    }

    pub(crate) fn normed(&self, x: &Activations) -> Result<View<'_>, Error> {
        self.view(&self.normed, x, self.widths.hidden)
    }

    pub(crate) fn delta(&self, x: &Activations) -> Result<View<'_>, Error> {
        self.view(&self.delta, x, self.widths.hidden)
    }

    pub(crate) fn qkv(&self, x: &Activations) -> Result<View<'_>, Error> {
        self.view(&self.qkv, x, self.widths.qkv)
    }

    pub(crate) fn gate_up(&self, x: &Activations) -> Result<View<'_>, Error> {
        self.view(&self.gate_up, x, 2 * self.widths.intermediate)
    }

    pub(crate) fn activated(&self, x: &Activations) -> Result<View<'_>, Error> {
        self.view(&self.activated, x, self.widths.intermediate)
    }

    /// `[rows, vocabulary]`.
    pub(crate) fn logits(&self, rows: usize) -> Result<View<'_>, Error> {
        Ok(self.logits.part(0..rows * self.widths.vocabulary * size_of::<f32>())?)
    }
}
