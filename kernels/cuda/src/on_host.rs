//! The kernels as the port of `weft-kernels`, in the shim: what the conformance suite judges.

mod attention;

use crate::arguments;
use crate::attention::{Choice as AttentionChoice, Error as AttentionError, Path as AttentionPath};
use crate::gemm;
use crate::host::{Error, Launch, Order};
use crate::pack::{self, Format, Half};
use crate::table::{self, Choice, Item, Target};
pub use attention::{Call, E4m3, KvElement, Pages};
use half::{bf16, f16};
use std::ops::Range;
use std::sync::Arc;
use weft_kernels::{
    AttentionSeq, Kernels, KvFormat, KvLayer, LoraMatrix, LoraSegment, LoraTarget, PackedLinear, WeightFormat,
    reference,
};

/// A number that kernels read and write.
pub trait Element: Copy + Send + Sync + 'static {
    /// How names of kernels end.
    const SUFFIX: &'static str;
    /// To nearest even.
    fn from_f32(value: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
}

impl Element for f32 {
    const SUFFIX: &'static str = "f32";
    fn from_f32(value: f32) -> Self {
        value
    }
    fn to_f32(self) -> f32 {
        self
    }
}

impl Element for bf16 {
    const SUFFIX: &'static str = "bf16";
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

impl Element for f16 {
    const SUFFIX: &'static str = "f16";
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

/// An adapter's change to one linear, as it lies in a slot.
#[derive(Clone, Copy, Debug)]
pub struct Adapter<'a> {
    /// A `[rank, in]`, from [`pack::half`].
    pub a: &'a [u8],
    /// B `[out_features, rank]`.
    pub b: &'a [u8],
    /// The actual rank.
    pub rank: usize,
    /// Multiplies A x.
    pub scale: f32,
    /// First output column.
    pub out_offset: usize,
    /// Columns.
    pub out_features: usize,
}

/// Rows of a step, and what changes them.
pub type LoraRows<'a> = (Range<usize>, Vec<Adapter<'a>>);

/// Which kernels a launch of adapters may choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoraKind {
    /// How A and B are stored.
    pub format: Format,
    /// As in [`Choice`].
    pub batch_invariant: bool,
}

/// What did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoraError {
    /// No launch can be made for these shapes.
    #[error(transparent)]
    Table(#[from] table::Error),
    /// The launch failed.
    #[error(transparent)]
    Launch(#[from] Error),
}

/// Runs kernels in the shim.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// Order of execution.
    pub order: Order,
    /// What the device to imitate has; columns are split by it.
    pub multiprocessors: usize,
}

impl Device {
    /// `weft_lora_{decode,mixed,prefill}`: `x [rows, in_features]`, `out [rows, out_stride]`, segments as in [`LoraSegment`].
    ///
    /// # Errors
    ///
    /// When a rank exceeds [`table::RANK_MAX`], there are too many rows for a launch, or the launch fails.
    ///
    /// # Panics
    ///
    /// When slices do not have their shapes.
    pub fn lora<X: Element>(
        &self,
        x: &[X],
        in_features: usize,
        segments: &[LoraRows<'_>],
        out: &mut [X],
        out_stride: usize,
        LoraKind { format, batch_invariant }: LoraKind,
    ) -> Result<(), LoraError> {
        let mut targets: Vec<Target> = Vec::new();
        let mut ranges = Vec::new();
        for (rows, adapters) in segments {
            assert!(rows.end * in_features <= x.len() && rows.end * out_stride <= out.len(), "lora: rows {rows:?}");
            let first = targets.len();
            for adapter in adapters {
                let lengths =
                    [format.bytes(adapter.rank, in_features), format.bytes(adapter.rank, adapter.out_features)];
                assert!(
                    [adapter.a.len(), adapter.b.len()] == lengths,
                    "lora: a and b have other lengths than {lengths:?}"
                );
                let is_aligned =
                    |half: &[u8]| half.is_empty() || (half.as_ptr() as usize).is_multiple_of(format.alignment());
                assert!(
                    is_aligned(adapter.a) && is_aligned(adapter.b),
                    "lora: a and b begin off {} bytes",
                    format.alignment()
                );
                assert!(adapter.out_offset + adapter.out_features <= out_stride, "lora: columns beyond {out_stride}");
                targets.push(Target {
                    a: adapter.a.as_ptr() as u64,
                    b: adapter.b.as_ptr() as u64,
                    rank: adapter.rank as u32,
                    scale: adapter.scale,
                    out_offset: adapter.out_offset as u32,
                    out_features: adapter.out_features as u32,
                });
            }
            ranges.push((rows.clone(), first..targets.len()));
        }
        let rank_max = targets.iter().map(|target| target.rank as usize).max().unwrap_or(0);
        let activations = format_of::<X>();
        let choice = Choice { activations, batch_invariant, rank_max };
        let (path, items) = table::items(&ranges, choice);
        if items.is_empty() {
            return Ok(());
        }
        // One block more than there are items, as in a graph that was captured for a larger batch.
        let shape = table::shape(path, items.len() + 1, rank_max, out_stride, self.multiprocessors)?;
        let kernel = table::kernel(path, activations, format)?;
        let (x, out, items_at): (*const X, *mut X, *const Item) = (x.as_ptr(), out.as_mut_ptr(), items.as_ptr());
        let (targets, count): (*const Target, u32) = (targets.as_ptr(), items.len() as u32);
        let count: *const u32 = &raw const count;
        let (in_features, out_stride) = (in_features as i32, out_stride as i32);
        let (stride, columns) = (shape.shrunk_stride as i32, shape.columns_per_block as i32);
        let mut arguments = arguments![x, in_features, out, out_stride, items_at, targets, count, stride, columns];
        let launch = self.launch(&kernel, shape.grid, table::THREADS, shape.shared_bytes);
        // SAFETY: the parameters of segmented_lora.cuh; the slices have the shapes that were checked above and outlive the call.
        Ok(unsafe { launch.run(&mut arguments) }?)
    }

    /// `weft_rms_norm`, or with a residual `weft_add_rms_norm`; all slices `[rows, weight.len()]`.
    ///
    /// # Errors
    ///
    /// When the launch fails.
    pub fn rms_norm<X: Element>(
        &self,
        residual: Option<&mut [X]>,
        x: &[X],
        weight: &[X],
        eps: f32,
        out: &mut [X],
    ) -> Result<(), Error> {
        let width = weight.len();
        assert!(x.len() == out.len() && residual.as_ref().is_none_or(|residual| residual.len() == x.len()));
        let grid = [x.len().checked_div(width).unwrap_or(0) as u32, 1, 1];
        if grid[0] == 0 {
            return Ok(());
        }
        let (x, weight, out): (*const X, *const X, *mut X) = (x.as_ptr(), weight.as_ptr(), out.as_mut_ptr());
        let width = width as i32;
        if let Some(residual) = residual {
            let residual: *mut X = residual.as_mut_ptr();
            let kernel = format!("weft_add_rms_norm_{}", X::SUFFIX);
            let mut arguments = arguments![residual, x, weight, eps, out, width];
            // SAFETY: the parameters of rms_norm.cu; the slices have the shapes that were checked above.
            unsafe { self.launch(&kernel, grid, 256, 0).run(&mut arguments) }
        } else {
            let kernel = format!("weft_rms_norm_{}", X::SUFFIX);
            let mut arguments = arguments![x, weight, eps, out, width];
            // SAFETY: as above.
            unsafe { self.launch(&kernel, grid, 256, 0).run(&mut arguments) }
        }
    }

    /// `weft_rope`; `x` has rows of `row_stride` elements that begin with `[heads, head_dim]`.
    ///
    /// # Errors
    ///
    /// When the launch fails.
    pub fn rope<X: Element>(
        &self,
        x: &mut [X],
        [heads, head_dim, row_stride]: [usize; 3],
        positions: &[u32],
        inv_freq: &[f32],
        attention_factor: f32,
    ) -> Result<(), Error> {
        assert!(heads * head_dim <= row_stride && x.len() == positions.len() * row_stride);
        assert!(head_dim == 2 * inv_freq.len() && inv_freq.len() <= 256);
        if x.is_empty() {
            return Ok(());
        }
        let grid = [positions.len() as u32, 1, 1];
        let (x, positions, inv_freq): (*mut X, *const u32, *const f32) =
            (x.as_mut_ptr(), positions.as_ptr(), inv_freq.as_ptr());
        let kernel = format!("weft_rope_{}", X::SUFFIX);
        let (heads, head_dim, row_stride) = (heads as i32, head_dim as i32, row_stride as i32);
        let mut arguments = arguments![x, heads, head_dim, row_stride, positions, inv_freq, attention_factor];
        // SAFETY: the parameters of rope.cu; the slices have the shapes that were checked above.
        unsafe { self.launch(&kernel, grid, 128, 0).run(&mut arguments) }
    }

    /// `weft_silu_mul`; `gate_up [rows, 2 * inter]`, `out [rows, inter]`.
    ///
    /// # Errors
    ///
    /// When the launch fails.
    pub fn silu_mul<X: Element>(&self, gate_up: &[X], inter: usize, out: &mut [X]) -> Result<(), Error> {
        assert!(gate_up.len() == 2 * out.len() && out.len().is_multiple_of(inter.max(1)));
        if out.is_empty() {
            return Ok(());
        }
        let grid = [inter.div_ceil(2048) as u32, (out.len() / inter) as u32, 1];
        let (gate_up, out): (*const X, *mut X) = (gate_up.as_ptr(), out.as_mut_ptr());
        let kernel = format!("weft_silu_mul_{}", X::SUFFIX);
        let inter = inter as i32;
        let mut arguments = arguments![gate_up, out, inter];
        // SAFETY: the parameters of silu_mul.cu; the slices have the shapes that were checked above.
        unsafe { self.launch(&kernel, grid, 256, 0).run(&mut arguments) }
    }

    fn launch<'a>(&self, kernel: &'a str, grid: [u32; 3], threads: u32, shared_bytes: usize) -> Launch<'a> {
        Launch { kernel, grid, threads, shared_bytes, order: self.order }
    }
}

/// The port over the shim, with activations in f32. Linears with float weights and packing are the reference's: there are no kernels for them.
///
/// # Panics
///
/// Its methods panic with the shim's message when a launch fails, so that a race fails the suite.
#[must_use]
pub fn kernels(device: Device) -> Arc<dyn Kernels> {
    kernels_in::<f32>(device, true)
}

/// The same with the activations of adapters, and queries and results of attention, rounded to `X` and back: what tensor cores take.
/// `batch_invariant` as in [`Choice`].
#[must_use]
pub fn kernels_in<X: Element>(device: Device, batch_invariant: bool) -> Arc<dyn Kernels> {
    let (lora, attention): (Lora, Attention) = (OnHost::lora_in::<X>, attention::attention::<X>);
    Arc::new(OnHost { device, reference: reference(), lora, attention, activations: format_of::<X>(), batch_invariant })
}

/// The format of activations in `X`.
///
/// # Panics
///
/// For an element of no format, which no kernel takes.
#[must_use]
pub fn format_of<X: Element>() -> Format {
    let format = Format::ALL.into_iter().find(|format| format.suffix() == X::SUFFIX);
    format.expect("invariant: kernels have elements of these formats")
}

type Attention = fn(
    &Device,
    AttentionPath,
    &[f32],
    (usize, f32),
    &[AttentionSeq<'_>],
    &KvLayer,
    &mut [f32],
) -> Result<(), AttentionError>;
type Lora = fn(&OnHost, &[f32], usize, &[LoraSegment<'_>], &mut [f32], usize);

struct OnHost {
    device: Device,
    reference: Arc<dyn Kernels>,
    lora: Lora,
    attention: Attention,
    activations: Format,
    batch_invariant: bool,
}

/// What the reference packed, as it lies in a slot.
///
/// # Panics
///
/// When another implementation packed it.
#[must_use]
pub fn slot(matrix: &LoraMatrix, half: Half, rank: usize) -> Vec<u8> {
    if let Some((codes, mut scales)) = matrix.to_codes() {
        scales.resize(scales.len().next_multiple_of(4), 0.0);
        let scales = scales.iter().flat_map(|scale| scale.to_le_bytes());
        return scales.chain(codes.iter().map(|code| code.to_le_bytes()[0])).collect();
    }
    let values = matrix.to_row_major().expect("packed by this object");
    pack::half(&values, half, rank, slot_format(matrix)).unwrap_or_else(|error| panic!("{error}"))
}

/// How it lies there.
#[must_use]
pub fn slot_format(matrix: &LoraMatrix) -> Format {
    match matrix.format() {
        WeightFormat::F32 => Format::F32,
        WeightFormat::Bf16 => Format::Bf16,
        WeightFormat::Int8 | WeightFormat::Q4 => Format::Int8,
    }
}

impl OnHost {
    fn lora_in<X: Element>(
        &self,
        x: &[f32],
        in_features: usize,
        segments: &[LoraSegment<'_>],
        out: &mut [f32],
        out_stride: usize,
    ) {
        let Some(format) =
            segments.iter().flat_map(|segment| segment.targets).map(|target| slot_format(&target.a)).next()
        else {
            return;
        };
        let halves = |target: &LoraTarget| {
            (
                slot(&target.a, Half::Shrink(in_features), target.rank),
                slot(&target.b, Half::Grow(target.out_features), target.rank),
            )
        };
        let slots: Vec<Vec<(Vec<u8>, Vec<u8>)>> =
            segments.iter().map(|segment| segment.targets.iter().map(halves).collect()).collect();
        let segments: Vec<LoraRows<'_>> = segments
            .iter()
            .zip(&slots)
            .map(|(segment, slots)| {
                let adapters = segment.targets.iter().zip(slots).map(|(target, (a, b))| Adapter {
                    a,
                    b,
                    rank: target.rank,
                    scale: target.scale,
                    out_offset: target.out_offset,
                    out_features: target.out_features,
                });
                (segment.rows.clone(), adapters.collect())
            })
            .collect();
        let rounded = |values: &[f32]| -> Vec<X> { values.iter().copied().map(X::from_f32).collect() };
        let (before, x) = (rounded(out), rounded(x));
        let mut after = before.clone();
        let kind = LoraKind { format, batch_invariant: self.batch_invariant };
        self.device
            .lora(&x, in_features, &segments, &mut after, out_stride, kind)
            .unwrap_or_else(|error| panic!("{error}"));
        // What the kernel leaves alone stays, unrounded.
        for ((to, after), before) in out.iter_mut().zip(after).zip(before) {
            if after.to_f32().to_bits() != before.to_f32().to_bits() {
                *to = after.to_f32();
            }
        }
    }
}

impl Kernels for OnHost {
    fn isa(&self) -> &'static str {
        "cuda-on-host"
    }

    fn pack_linear(&self, weight: &[f32], outputs: usize, inputs: usize, format: WeightFormat) -> PackedLinear {
        self.reference.pack_linear(weight, outputs, inputs, format)
    }

    fn pack_lora_a(&self, a: &[f32], rank: usize, in_features: usize, format: WeightFormat) -> LoraMatrix {
        self.reference.pack_lora_a(a, rank, in_features, format)
    }

    fn pack_lora_b(&self, b: &[f32], out_features: usize, rank: usize, format: WeightFormat) -> LoraMatrix {
        self.reference.pack_lora_b(b, out_features, rank, format)
    }

    fn linear(&self, x: &[f32], w: &PackedLinear, out: &mut [f32]) {
        match w.format() {
            WeightFormat::Int8 | WeightFormat::Q4 => gemm::on_host::linear(self.device, x, w, out),
            WeightFormat::F32 | WeightFormat::Bf16 => self.reference.linear(x, w, out),
        }
    }

    fn lora(&self, x: &[f32], in_features: usize, segments: &[LoraSegment<'_>], out: &mut [f32], out_stride: usize) {
        (self.lora)(self, x, in_features, segments, out, out_stride);
    }

    fn new_kv(&self, blocks: usize, block_size: usize, kv_heads: usize, head_dim: usize, format: KvFormat) -> KvLayer {
        attention::new_kv(blocks, [block_size, kv_heads, head_dim], format)
    }

    fn write_kv(&self, k: &[f32], v: &[f32], seqs: &[AttentionSeq<'_>], kv: &mut KvLayer) {
        attention::write_kv(&self.device, k, v, seqs, kv).unwrap_or_else(|error| panic!("{error}"));
    }

    fn attention(&self, q: &[f32], heads: usize, scale: f32, seqs: &[AttentionSeq<'_>], kv: &KvLayer, out: &mut [f32]) {
        let (activations, batch_invariant) = (self.activations, self.batch_invariant);
        let path = AttentionPath::of(AttentionChoice { activations, batch_invariant });
        (self.attention)(&self.device, path, q, (heads, scale), seqs, kv, out)
            .unwrap_or_else(|error| panic!("{error}"));
    }

    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        self.device.rms_norm(None, x, weight, eps, out).unwrap_or_else(|error| panic!("{error}"));
    }

    fn add_rms_norm(&self, residual: &mut [f32], x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        self.device.rms_norm(Some(residual), x, weight, eps, out).unwrap_or_else(|error| panic!("{error}"));
    }

    fn rope(
        &self,
        x: &mut [f32],
        heads: usize,
        head_dim: usize,
        positions: &[u32],
        inv_freq: &[f32],
        attention_factor: f32,
    ) {
        self.device
            .rope(x, [heads, head_dim, heads * head_dim], positions, inv_freq, attention_factor)
            .unwrap_or_else(|error| panic!("{error}"));
    }

    fn silu_mul(&self, gate_up: &[f32], inter: usize, out: &mut [f32]) {
        self.device.silu_mul(gate_up, inter, out).unwrap_or_else(|error| panic!("{error}"));
    }
}
