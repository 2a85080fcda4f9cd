//! The activations of a step: a few buffers that stay, and the views of them that a step uses.
//!
//! A candle op that returns a new tensor would map, zero and unmap fresh memory at every site (at 512 rows some hundred
//! megabytes per step); the ops here write into buffers instead. Their addresses stay between steps, which is also what
//! a captured CUDA graph needs.

use crate::shape::Shape;
use candle_core::{DType, Device, Result, Tensor};

/// Buffers for up to `capacity` rows; grown when a step brings more, never shrunk (the step's token budget bounds them).
pub(crate) struct Workspace {
    device: Device,
    capacity: usize,
    buffers: Option<Buffers>,
}

struct Buffers {
    stream: Tensor,
    delta: Tensor,
    qkv: Tensor,
    attention: Tensor,
    gate_up: Tensor,
    activated: Tensor,
}

/// The first `rows` rows of every buffer, each contiguous.
pub(crate) struct Activations {
    /// `[2, rows, hidden]`: the residual stream, then its norm. One tensor, because one op writes both.
    pub(crate) stream: Tensor,
    /// `[rows, hidden]`: second part of `stream`.
    pub(crate) normed: Tensor,
    /// `[rows, hidden]`: what a block adds to the residual stream.
    pub(crate) delta: Tensor,
    /// `[rows, qkv_width]`.
    pub(crate) qkv: Tensor,
    /// `[rows, q_width]`.
    pub(crate) attention: Tensor,
    /// `[rows, 2 * intermediate]`.
    pub(crate) gate_up: Tensor,
    /// `[rows, intermediate]`.
    pub(crate) activated: Tensor,
}

impl Workspace {
    pub(crate) fn new(device: Device) -> Self {
        Self { device, capacity: 0, buffers: None }
    }

    pub(crate) fn rows(&mut self, rows: usize, shape: &Shape) -> Result<Activations> {
        let buffers = match &mut self.buffers {
            Some(buffers) if rows <= self.capacity => buffers,
            stale => {
                // Freed before the larger ones are made.
                *stale = None;
                self.capacity = rows.next_power_of_two();
                stale.insert(Buffers::new(self.capacity, shape, &self.device)?)
            }
        };
        let hidden = shape.hidden;
        let view = |buffer: &Tensor, width: usize| buffer.narrow(0, 0, rows * width)?.reshape((rows, width));
        Ok(Activations {
            stream: buffers.stream.narrow(0, 0, 2 * rows * hidden)?.reshape((2, rows, hidden))?,
            normed: buffers.stream.narrow(0, rows * hidden, rows * hidden)?.reshape((rows, hidden))?,
            delta: view(&buffers.delta, hidden)?,
            qkv: view(&buffers.qkv, shape.qkv_width())?,
            attention: view(&buffers.attention, shape.q_width())?,
            gate_up: view(&buffers.gate_up, 2 * shape.intermediate)?,
            activated: view(&buffers.activated, shape.intermediate)?,
        })
    }
}

impl Buffers {
    fn new(rows: usize, shape: &Shape, device: &Device) -> Result<Self> {
        let zeros = |width: usize| Tensor::zeros(rows * width, DType::F32, device);
        Ok(Self {
            stream: zeros(2 * shape.hidden)?,
            delta: zeros(shape.hidden)?,
            qkv: zeros(shape.qkv_width())?,
            attention: zeros(shape.q_width())?,
            gate_up: zeros(2 * shape.intermediate)?,
            activated: zeros(shape.intermediate)?,
        })
    }
}
