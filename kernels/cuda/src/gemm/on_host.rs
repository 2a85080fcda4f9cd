//! Products with quantised weights in the shim.

use super::pack::{self, Packed, Piece};
use super::{Call, Error as Refused, Groups, Inputs, STEP, THREADS, Weights, codes, launch};
use crate::arguments;
use crate::host::{self, Launch};
use crate::on_host::{Device, Element};
use half::{bf16, f16};
use std::ffi::c_void;
use weft_kernels::{PackedLinear, WeightFormat};

/// A product that was refused, or that did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Before anything was launched.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// By the shim.
    #[error(transparent)]
    Launch(#[from] host::Error),
}

/// Memory that begins at a multiple of 16 bytes, as all that a device allocates does.
#[derive(Clone, Debug)]
pub struct Aligned(Vec<Piece>);

impl Aligned {
    fn zeroed(bytes: usize) -> Self {
        Self(vec![Piece::default(); bytes.div_ceil(16)])
    }

    fn of<T: Element>(values: &[T]) -> Self {
        let mut to = Self::zeroed(size_of_val(values));
        // SAFETY: elements are plain numbers, and there is room for them.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), to.0.as_mut_ptr().cast(), values.len()) };
        to
    }

    fn address(&mut self) -> u64 {
        self.0.as_mut_ptr() as u64
    }
}

/// Inputs `[rows, depth]` in device memory.
#[derive(Clone, Debug)]
pub struct X {
    /// How they are stored.
    pub inputs: Inputs,
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub depth: usize,
    /// Elements or codes.
    values: Aligned,
    /// Per row, or `[depth / 32, rows rounded up to 8]`; empty without codes.
    scales: Vec<f32>,
}

impl X {
    /// Inputs in bf16.
    #[must_use]
    pub fn bf16(values: &[bf16], depth: usize) -> Self {
        Self::plain(Inputs::Bf16, values, depth)
    }

    /// Inputs in f16.
    #[must_use]
    pub fn f16(values: &[f16], depth: usize) -> Self {
        Self::plain(Inputs::F16, values, depth)
    }

    fn plain<T: Element>(inputs: Inputs, values: &[T], depth: usize) -> Self {
        Self { inputs, rows: values.len() / depth, depth, values: Aligned::of(values), scales: Vec::new() }
    }

    /// The codes, of inputs that have them.
    #[must_use]
    pub fn codes(&self) -> Vec<u8> {
        let bytes = self.values.0.iter().flat_map(|piece| piece.0).flat_map(u32::to_le_bytes);
        bytes.take(self.rows * self.depth).collect()
    }

    /// The scale of an input.
    ///
    /// # Panics
    ///
    /// When inputs have no codes.
    #[must_use]
    pub fn scale(&self, row: usize, input: usize) -> f32 {
        match self.inputs {
            Inputs::Int8Groups => self.scales[input / 32 * self.rows.next_multiple_of(8) + row],
            _ => self.scales[row],
        }
    }
}

impl Device {
    /// `weft_quantise_*`: `x [rows, depth]` to codes.
    ///
    /// # Errors
    ///
    /// When depth is no multiple of 32, rows are not whole, `to` has no codes, or the launch fails.
    pub fn quantise<T: Element>(&self, x: &[T], depth: usize, to: Inputs) -> Result<X, Error> {
        if depth == 0 || !depth.is_multiple_of(32) {
            return Err(Refused::Field { field: "depth", value: depth, limit: "a multiple of 32" }.into());
        }
        let rows = x.len() / depth;
        Refused::length("x", x.len(), rows * depth)?;
        let stride = rows.next_multiple_of(8);
        let (name, scales, grid) = match to {
            Inputs::Int8Groups => ("int8_groups", depth / 32 * stride, [stride as u32, depth.div_ceil(2048) as u32, 1]),
            Inputs::Int8Rows => ("int8_rows", rows, [rows as u32, 1, 1]),
            Inputs::E4m3Rows => ("fp8_rows", rows, [rows as u32, 1, 1]),
            Inputs::Bf16 | Inputs::F16 => {
                return Err(Refused::Field { field: "bytes of a code", value: 2, limit: "1" }.into());
            }
        };
        let mut made =
            X { inputs: to, rows, depth, values: Aligned::zeroed(rows * depth), scales: vec![f32::NAN; scales] };
        if rows == 0 {
            return Ok(made);
        }
        let mut x = Aligned::of(x);
        let (x_at, codes, scales): (u64, u64, *mut f32) =
            (x.address(), made.values.address(), made.scales.as_mut_ptr());
        let kernel = format!("weft_quantise_{name}_{}", T::SUFFIX);
        let (rows, depth, stride) = (rows as i32, depth as i32, stride as i32);
        let mut for_groups = arguments![x_at, rows, depth, codes, scales, stride];
        let mut for_rows = arguments![x_at, depth, codes, scales];
        let arguments: &mut [*mut c_void] = if to == Inputs::Int8Groups { &mut for_groups } else { &mut for_rows };
        // SAFETY: the parameters of quantise.cu; codes and scales have room for what the grid writes.
        unsafe {
            Launch { kernel: &kernel, grid, threads: THREADS, shared_bytes: 0, order: self.order }.run(arguments)
        }?;
        Ok(made)
    }

    /// `weft_gemm_*`: `out [rows, out_stride] = x wᵀ` in its first columns; the others stay as they are.
    ///
    /// # Errors
    ///
    /// When shapes do not fit, no kernel does it, or a launch fails.
    pub fn gemm<O: Element>(&self, weights: &Packed, x: &mut X, out: &mut [O], out_stride: usize) -> Result<(), Error> {
        let Packed { columns, depth, .. } = *weights;
        if x.depth != depth {
            return Err(Refused::Length { field: "a row of x", found: x.depth, expected: depth }.into());
        }
        if out_stride < columns || i32::try_from(out_stride).is_err() {
            return Err(Refused::Field { field: "out_stride", value: out_stride, limit: "columns to 2^31 - 1" }.into());
        }
        Refused::length("out", out.len(), x.rows * out_stride)?;
        let shape = launch(weights.weights, x.inputs, [x.rows, columns, depth], self.multiprocessors)?;
        let mut partials = Aligned::zeroed(shape.partial_bytes);
        let address_or_null = |scales: &[f32]| if scales.is_empty() { 0 } else { scales.as_ptr() as u64 };
        let call = Call {
            out: out.as_mut_ptr() as u64,
            partials: if shape.partial_bytes == 0 { 0 } else { partials.address() },
            column_scales: address_or_null(&weights.column_scales),
            row_scales: if x.inputs == Inputs::Int8Groups { 0 } else { address_or_null(&x.scales) },
            rows: x.rows as i32,
            columns: columns as i32,
            depth: depth as i32,
            splits: shape.splits as i32,
            out_stride: out_stride as i32,
            out_type: match O::SUFFIX {
                "f32" => 0,
                "bf16" => 1,
                _ => 2,
            },
        };
        let (codes, scales): (*const Piece, *const Piece) = (weights.codes.as_ptr(), weights.scales.as_ptr());
        let x_at = x.values.address();
        let groups =
            Groups { codes: x_at, scales: x.scales.as_ptr() as u64, stride: x.rows.next_multiple_of(8) as i32 };
        let group_shift = match weights.weights {
            Weights::Four { group } => (group / 32).trailing_zeros().cast_signed(),
            _ => 0,
        };
        let mut arguments = match (weights.weights, x.inputs) {
            (Weights::Four { .. }, Inputs::Int8Groups) => arguments![codes, scales, group_shift, groups, call].to_vec(),
            (Weights::Four { .. }, _) => arguments![codes, scales, group_shift, x_at, call].to_vec(),
            (Weights::Int8Groups, _) => arguments![codes, scales, groups, call].to_vec(),
            (Weights::Int8Channels | Weights::E4m3, _) => arguments![codes, x_at, call].to_vec(),
        };
        let launch = |kernel, grid| Launch { kernel, grid, threads: THREADS, shared_bytes: 0, order: self.order };
        // SAFETY: the parameters of gemm_*.cu; weights are packed for these sizes, x, out and partials have theirs.
        unsafe { launch(&shape.kernel, shape.grid).run(&mut arguments) }?;
        if let Some((kernel, grid)) = shape.finish {
            // SAFETY: as above.
            unsafe { launch(kernel, grid).run(&mut arguments![call]) }?;
        }
        Ok(())
    }
}

/// A product of the port as the kernels take it: filled up with zeroes to shapes that they have.
#[derive(Clone, Debug)]
pub struct FilledUp {
    /// The weights, in codes.
    pub weights: Packed,
    /// `[rows, depth]`.
    pub x: Vec<f32>,
    /// Not zero.
    pub rows: usize,
    outputs: usize,
}

impl FilledUp {
    /// A product with weights in codes; none if `out` is empty.
    ///
    /// # Panics
    ///
    /// When weights are floats, or were packed by another implementation than the reference.
    #[must_use]
    pub fn new(x: &[f32], w: &PackedLinear, out: &[f32]) -> Option<Self> {
        let (inputs, outputs) = (w.in_features(), w.out_features());
        if out.is_empty() {
            return None;
        }
        let (depth, columns) = (inputs.next_multiple_of(STEP).max(STEP), outputs.next_multiple_of(8));
        let rows = out.len() / outputs;
        let mut weights = vec![0.0f32; columns * depth];
        let mut inputs_of = vec![0.0f32; rows * depth];
        for column in 0..outputs {
            let is_read = w.read_row(column, 0, &mut weights[column * depth..][..inputs]);
            assert!(is_read, "linear: rows of codes can be read");
            // The same in the last group as in the port: a code of zero, which is the minimum where there is one.
            if w.format() == WeightFormat::Q4 && inputs > 0 {
                let last = &mut weights[column * depth..][(inputs - 1) / STEP * STEP..depth];
                let here = inputs - (depth - last.len());
                let least = last[..here].iter().copied().fold(f32::INFINITY, f32::min);
                last[here..].fill(least);
            }
        }
        for row in 0..rows {
            inputs_of[row * depth..][..inputs].copy_from_slice(&x[row * inputs..][..inputs]);
        }
        let packed = match w.format() {
            WeightFormat::Int8 => {
                let (of, scales) = codes::int8(&weights, STEP);
                pack::int8_groups([columns, depth], &of, &scales)
            }
            WeightFormat::Q4 => {
                let of = codes::four(&weights);
                pack::four([columns, depth], STEP, &of.codes, &of.scales, &of.mins)
            }
            WeightFormat::F32 | WeightFormat::Bf16 => panic!("linear: weights are no codes"),
        };
        Some(Self { weights: packed.unwrap_or_else(|error| panic!("{error}")), x: inputs_of, rows, outputs })
    }

    /// What of a result `[rows, columns]` was asked for.
    pub fn take(&self, wide: &[f32], out: &mut [f32]) {
        for (out, wide) in out.chunks_exact_mut(self.outputs).zip(wide.chunks_exact(self.weights.columns)) {
            out.copy_from_slice(&wide[..self.outputs]);
        }
    }
}

/// `linear` of the port, for weights in codes: with inputs in codes too, as its formats are defined.
///
/// # Panics
///
/// With the shim's message when a launch fails, or when weights are floats.
pub(crate) fn linear(device: Device, x: &[f32], w: &PackedLinear, out: &mut [f32]) {
    let Some(product) = FilledUp::new(x, w, out) else { return };
    let Packed { columns, depth, .. } = product.weights;
    let mut x = device.quantise(&product.x, depth, Inputs::Int8Groups).unwrap_or_else(|error| panic!("{error}"));
    let mut wide = vec![0.0f32; product.rows * columns];
    device.gemm(&product.weights, &mut x, &mut wide, columns).unwrap_or_else(|error| panic!("{error}"));
    product.take(&wide, out);
}
