//! Products of activations and weights, checked before they are enqueued.

use crate::device::Inner;
use crate::driver::{self, Type};
use crate::error::Error;
use crate::memory::{Buffer, View};
use crate::record::Counts;
use std::sync::Arc;

/// `out = x w^T`, or plus what `out` holds. Sums are f32, whatever the types.
///
/// Shapes, all row-major: `x [rows, inputs]` with `x_stride` elements from row to row, `w [outputs, inputs]` without gaps, `out [rows, outputs]`
/// with `out_stride`. A device may sum in another order for another number of rows; two calls of the same shape and alignment agree.
#[derive(Clone, Copy, Debug)]
pub struct Matmul<'a> {
    /// Rows of x and out, at least 1.
    pub rows: usize,
    /// Columns of x and w, at least 1.
    pub inputs: usize,
    /// Rows of w, columns of out, at least 1.
    pub outputs: usize,
    /// Activations.
    pub x: View<'a>,
    /// At least `inputs`.
    pub x_stride: usize,
    /// Weights.
    pub w: View<'a>,
    /// Of x and w.
    pub of: Type,
    /// The result.
    pub out: View<'a>,
    /// At least `outputs`.
    pub out_stride: usize,
    /// As `of`, or f32.
    pub out_of: Type,
    /// Whether to add to what is there.
    pub adds: bool,
}

impl Matmul<'_> {
    pub(crate) fn checked(&self, workspace: &Buffer, device: &Arc<Inner>) -> Result<driver::Matmul, Error> {
        const ON: &str = "matmul";
        // What cublasLt takes: sizes are 32-bit in its kernels.
        const MOST: usize = i32::MAX as usize;
        let sizes = [("rows", self.rows), ("inputs", self.inputs), ("outputs", self.outputs)];
        for (field, value) in sizes {
            if value == 0 || value > MOST {
                return Err(Error::value(ON, field, value, format!("1 to {MOST}")));
            }
        }
        let strides = [("x_stride", self.x_stride, self.inputs), ("out_stride", self.out_stride, self.outputs)];
        for (field, value, least) in strides {
            if value < least || value > MOST {
                return Err(Error::value(ON, field, value, format!("{least} to {MOST}")));
            }
        }
        if self.out_of != self.of && self.out_of != Type::F32 {
            let limit = format!("{:?} or F32", self.of);
            return Err(Error::value(ON, "out_of", format!("{:?}", self.out_of), limit));
        }
        let views = [
            ("x", self.x, self.of, self.rows, self.x_stride, self.inputs),
            ("w", self.w, self.of, self.outputs, self.inputs, self.inputs),
            ("out", self.out, self.out_of, self.rows, self.out_stride, self.outputs),
        ];
        for (field, view, of, rows, stride, columns) in views {
            let elements = (rows - 1).checked_mul(stride).and_then(|before| before.checked_add(columns));
            let wanted = elements.and_then(|elements| elements.checked_mul(of.bytes())).unwrap_or(usize::MAX);
            if view.bytes() < wanted {
                let value = format!("of {} bytes", view.bytes());
                return Err(Error::value(ON, field, value, format!("of {wanted} bytes at least")));
            }
            if view.address() % of.bytes() as u64 != 0 {
                let value = format!("at {:#x}", view.address());
                return Err(Error::value(ON, field, value, format!("at a multiple of {}", of.bytes())));
            }
            if !view.buffer.is_of(device) {
                return Err(Error::value(ON, field, "of another device", "of this device"));
            }
        }
        let (out, x, w) = (self.out.range(), self.x.range(), self.w.range());
        if [x, w].iter().any(|read| read.start < out.end && out.start < read.end) {
            return Err(Error::value(ON, "out", format!("at {:#x}", out.start), "apart from x and w"));
        }
        Ok(driver::Matmul {
            rows: self.rows,
            inputs: self.inputs,
            outputs: self.outputs,
            x: self.x.address(),
            x_stride: self.x_stride,
            w: self.w.address(),
            of: self.of,
            out: self.out.address(),
            out_stride: self.out_stride,
            out_of: self.out_of,
            adds: self.adds,
            workspace: workspace.address(),
            workspace_bytes: workspace.bytes(),
        })
    }

    pub(crate) fn counts(&self) -> Counts {
        let [rows, inputs, outputs] = [self.rows, self.inputs, self.outputs].map(|size| size as u64);
        let (of, out_of) = (self.of.bytes() as u64, self.out_of.bytes() as u64);
        let out_bytes = rows * outputs * out_of;
        Counts {
            read_bytes: (rows + outputs) * inputs * of + if self.adds { out_bytes } else { 0 },
            written_bytes: out_bytes,
            operations: 2 * rows * inputs * outputs,
        }
    }
}
