//! Pages and attention in the shim.

use super::{Device, Element};
use crate::arguments;
use crate::attention::{self, Error, Grid, Item, Layer, Path, Shape, Step};
use crate::e4m3;
use half::{bf16, f16};
use std::marker::PhantomData;
use weft_kernels::{AttentionSeq, KvFormat, KvLayer};

/// A number that pages hold.
pub trait KvElement: Copy + Send + Sync + 'static {
    /// How names of kernels end.
    const SUFFIX: &'static str;
    /// Whether values are codes times the scale of their head.
    const IS_SCALED: bool = false;
    /// To nearest even.
    fn from_f32(value: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
}

macro_rules! kv_element {
    ($($element:ty),*) => { $(
        impl KvElement for $element {
            const SUFFIX: &'static str = <Self as Element>::SUFFIX;
            fn from_f32(value: f32) -> Self {
                Element::from_f32(value)
            }
            fn to_f32(self) -> f32 {
                Element::to_f32(self)
            }
        }
    )* };
}
kv_element!(f32, bf16, f16);

/// `__nv_fp8_e4m3`, as in [`crate::e4m3`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct E4m3(pub u8);

impl KvElement for E4m3 {
    const SUFFIX: &'static str = "e4m3";
    const IS_SCALED: bool = true;

    fn from_f32(value: f32) -> Self {
        Self(e4m3::encode(value))
    }

    fn to_f32(self) -> f32 {
        e4m3::decode(self.0)
    }
}

/// What a device's allocations are aligned to, at the least.
#[derive(Clone, Copy)]
#[repr(C, align(16))]
struct Piece([u8; 16]);

/// Keys and values of one layer, each `[blocks, block_rows, page_stride]`, and for e4m3 the scales of its heads.
pub struct Pages<Kv> {
    k: Vec<Piece>,
    v: Vec<Piece>,
    blocks: usize,
    shape: [usize; 3],
    block_rows: usize,
    k_scale: Vec<f32>,
    v_scale: Vec<f32>,
    element: PhantomData<Kv>,
}

impl<Kv: KvElement> Pages<Kv> {
    /// `blocks` pages of zero for `layer`. `scales`: of the keys and of the values of each head; used for e4m3 alone.
    ///
    /// # Errors
    ///
    /// When there are too many, or a scale is missing or not above zero.
    pub fn new(layer: &Layer, blocks: usize, [k_scale, v_scale]: [&[f32]; 2]) -> Result<Self, Error> {
        let elements = layer.page_elements(blocks, size_of::<Kv>())?;
        if Kv::IS_SCALED {
            attention::length("k_scale", k_scale.len(), layer.kv_heads)?;
            attention::length("v_scale", v_scale.len(), layer.kv_heads)?;
            for (field, scales) in [("k_scale", k_scale), ("v_scale", v_scale)] {
                if let Some(&value) = scales.iter().find(|scale| !(scale.is_finite() && **scale > 0.0)) {
                    return Err(Error::Factor { field, value });
                }
            }
        }
        let pieces = vec![Piece([0; 16]); elements * size_of::<Kv>() / 16];
        Ok(Self {
            k: pieces.clone(),
            v: pieces,
            blocks,
            shape: [layer.block_size, layer.kv_heads, layer.head_dim],
            block_rows: layer.rows_of_block(),
            k_scale: k_scale.to_vec(),
            v_scale: v_scale.to_vec(),
            element: PhantomData,
        })
    }

    /// Memory of keys and values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        16 * (self.k.len() + self.v.len())
    }

    /// The stored key and value of one position of a head, `[head_dim]` each, scaled.
    ///
    /// # Panics
    ///
    /// When there is no such block.
    #[must_use]
    pub fn at(&self, block: usize, kv_head: usize, slot: usize) -> [Vec<f32>; 2] {
        let [block_size, kv_heads, head_dim] = self.shape;
        assert!(kv_head < kv_heads && slot < block_size, "position {slot} of head {kv_head}");
        let row = block * self.block_rows + kv_head * block_size + slot;
        let start = row * attention::page_stride(head_dim, size_of::<Kv>());
        let row = |pieces: &[Piece], scales: &[f32]| {
            assert!((start + head_dim) * size_of::<Kv>() <= size_of_val(pieces), "position {slot} of block {block}");
            let element = |i| {
                // SAFETY: within the pages, as was checked, which are aligned for any element; any bits are one.
                let element: Kv = unsafe { pieces.as_ptr().cast::<Kv>().add(start + i).read() };
                element.to_f32() * if Kv::IS_SCALED { scales[kv_head] } else { 1.0 }
            };
            (0..head_dim).map(element).collect()
        };
        [row(&self.k, &self.k_scale), row(&self.v, &self.v_scale)]
    }

    fn check(&self, layer: &Layer) -> Result<(), Error> {
        let [block_size, kv_heads, head_dim] = self.shape;
        attention::length("block_size of the pages", block_size, layer.block_size)?;
        attention::length("kv_heads of the pages", kv_heads, layer.kv_heads)?;
        attention::length("block_rows of the pages", self.block_rows, layer.rows_of_block())?;
        attention::length("head_dim of the pages", head_dim, layer.head_dim)
    }

    fn scales(&self) -> [*const f32; 2] {
        if Kv::IS_SCALED { [self.k_scale.as_ptr(), self.v_scale.as_ptr()] } else { [std::ptr::null(); 2] }
    }
}

/// The rows of a call, and where they begin.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Of the model.
    pub layer: &'a Layer,
    /// Rows of the step.
    pub rows: usize,
    /// Elements between rows: of k and v when they are written, else of q and out.
    pub strides: [usize; 2],
    /// Their sequences.
    pub seqs: &'a [AttentionSeq<'a>],
}

impl Call<'_> {
    /// Whether slices hold `rows` rows that are `width` wide.
    fn check(&self, fields: [&'static str; 2], lens: [usize; 2], width: usize) -> Result<(), Error> {
        for i in 0..2 {
            // Zero rows need nothing; otherwise the last row ends with its width.
            let needed = self.rows.checked_sub(1).map_or(0, |before| before * self.strides[i] + width);
            attention::stride(fields[i], self.strides[i], width)?;
            if lens[i] < needed {
                return Err(Error::Length { field: fields[i], len: lens[i], needed });
            }
        }
        Ok(())
    }
}

impl Device {
    /// `weft_kv_write`: stores `k` and `v`, `[rows, kv_heads, head_dim]` with the strides of the call.
    ///
    /// # Errors
    ///
    /// When shapes do not fit or the launch fails.
    pub fn kv_write<X: Element, Kv: KvElement>(
        &self,
        call: &Call<'_>,
        k: &[X],
        v: &[X],
        pages: &mut Pages<Kv>,
    ) -> Result<(), Error> {
        let layer = call.layer;
        layer.check()?;
        pages.check(layer)?;
        call.check(["k", "v"], [k.len(), v.len()], layer.kv_heads * layer.head_dim)?;
        let step = Step::new(layer, Path::Prefill, call.rows, pages.blocks, call.seqs)?;
        let width = layer.heads * layer.head_dim;
        let shape = layer.shape(step.table_stride, [width, width])?;
        let [k_scale, v_scale] = pages.scales();
        let (k, v): (*const X, *const X) = (k.as_ptr(), v.as_ptr());
        let (k_pages, v_pages): (*mut Kv, *mut Kv) = (pages.k.as_mut_ptr().cast(), pages.v.as_mut_ptr().cast());
        let tables: *const u32 = step.block_tables.as_ptr();
        let [k_stride, v_stride] = call.strides.map(|stride| stride as i32);
        for items in [&step.prefill, &step.decode].into_iter().filter(|items| !items.is_empty()) {
            // One block more than there are items, as in a graph that was captured for a larger batch.
            let Grid { grid, shared_bytes } = attention::write_grid(items.len() + 1);
            let (at, count): (*const Item, u32) = (items.as_ptr(), items.len() as u32);
            let count: *const u32 = &raw const count;
            let kernel = format!("weft_kv_write_{}_{}", X::SUFFIX, Kv::SUFFIX);
            let mut arguments =
                arguments![k, v, k_stride, v_stride, at, count, tables, shape, k_pages, v_pages, k_scale, v_scale];
            // SAFETY: the parameters of kv_write.cu; slices, blocks and positions were checked above and outlive the call.
            unsafe { self.launch(&kernel, grid, attention::THREADS, shared_bytes).run(&mut arguments) }?;
        }
        Ok(())
    }

    /// `weft_attention_prefill` or `weft_attention_tensor`, `weft_attention_decode` and `weft_attention_combine`: `q` and `out` are
    /// `[rows, heads, head_dim]` with the strides of the call. Rows without a sequence stay as they are.
    ///
    /// # Errors
    ///
    /// When shapes do not fit or a launch fails.
    pub fn attention<X: Element, Kv: KvElement>(
        &self,
        call: &Call<'_>,
        path: Path,
        q: &[X],
        pages: &Pages<Kv>,
        out: &mut [X],
    ) -> Result<(), Error> {
        let layer = call.layer;
        layer.check()?;
        pages.check(layer)?;
        call.check(["q", "out"], [q.len(), out.len()], layer.heads * layer.head_dim)?;
        let step = Step::new(layer, path, call.rows, pages.blocks, call.seqs)?;
        let shape = layer.shape(step.table_stride, call.strides)?;
        let to = Launched { device: self, layer, step: &step, shape, q: q.as_ptr(), out: out.as_mut_ptr(), pages };
        if !step.prefill.is_empty() {
            to.prefill()?;
        }
        if !step.decode.is_empty() {
            to.decode()?;
        }
        Ok(())
    }
}

/// What both kinds of launches are given.
struct Launched<'a, X, Kv> {
    device: &'a Device,
    layer: &'a Layer,
    step: &'a Step,
    shape: Shape,
    q: *const X,
    out: *mut X,
    pages: &'a Pages<Kv>,
}

impl<X: Element, Kv: KvElement> Launched<'_, X, Kv> {
    fn suffix() -> String {
        format!("{}_{}", X::SUFFIX, Kv::SUFFIX)
    }

    fn pages(&self) -> [*const Kv; 2] {
        [self.pages.k.as_ptr().cast(), self.pages.v.as_ptr().cast()]
    }

    fn prefill(&self) -> Result<(), Error> {
        let (q, out, shape, items) = (self.q, self.out, self.shape, &self.step.prefill);
        let ([k_pages, v_pages], [k_scale, v_scale]) = (self.pages(), self.pages.scales());
        let (at, tables, count) = (items.as_ptr(), self.step.block_tables.as_ptr(), items.len() as u32);
        let count: *const u32 = &raw const count;
        let path = self.step.path;
        let Grid { grid, shared_bytes } = attention::prefill_grid(self.layer, path, items.len() + 1, size_of::<Kv>());
        let kernel = path.kernel(self.layer, &Self::suffix());
        let mut arguments = arguments![q, at, count, tables, shape, k_pages, v_pages, k_scale, v_scale, out];
        // SAFETY: the parameters of attention_prefill.cu and attention_tensor.cu; `attention` has checked slices, blocks and positions.
        unsafe { self.device.launch(&kernel, grid, attention::THREADS, shared_bytes).run(&mut arguments) }?;
        Ok(())
    }

    fn decode(&self) -> Result<(), Error> {
        let (q, out, shape, items) = (self.q, self.out, self.shape, &self.step.decode);
        let ([k_pages, v_pages], [k_scale, v_scale]) = (self.pages(), self.pages.scales());
        let (at, tables, count) = (items.as_ptr(), self.step.block_tables.as_ptr(), items.len() as u32);
        let count: *const u32 = &raw const count;
        let positions = self.step.table_stride * self.layer.block_size;
        let (bytes, multiprocessors) = (size_of::<Kv>(), self.device.multiprocessors);
        let decode = attention::decode_grid(self.layer, items.len() + 1, positions, bytes, multiprocessors);
        let block_heads = attention::decode_block_heads(self.layer) as i32;
        let results = self.step.partials * self.layer.heads;
        let (mut values, mut sums) = (vec![f32::NAN; results * self.layer.head_dim], vec![f32::NAN; 2 * results]);
        let (values, sums): (*mut f32, *mut f32) = (values.as_mut_ptr(), sums.as_mut_ptr());
        let kernel = format!("weft_attention_decode_{}", Self::suffix());
        let mut arguments =
            arguments![q, at, count, tables, shape, k_pages, v_pages, k_scale, v_scale, block_heads, values, sums, out];
        let launch = self.device.launch(&kernel, decode.grid, attention::THREADS, decode.shared_bytes);
        // SAFETY: the parameters of attention_decode.cu; `attention` has checked slices, blocks and positions, and there is room for the
        // results of all splits of the items.
        unsafe { launch.run(&mut arguments) }?;
        let Grid { grid, shared_bytes } = attention::combine_grid(self.layer, items.len() + 1);
        let kernel = format!("weft_attention_combine_{}", X::SUFFIX);
        let mut arguments = arguments![at, count, shape, v_scale, values, sums, out];
        // SAFETY: as above; the results were written by the launch before.
        unsafe { self.device.launch(&kernel, grid, attention::THREADS, shared_bytes).run(&mut arguments) }?;
        Ok(())
    }
}

/// The pages of the port; its shapes have no window and no soft cap.
fn layer([heads, kv_heads, head_dim]: [usize; 3], block_size: usize, scale: f32) -> Layer {
    Layer { heads, kv_heads, head_dim, block_size, block_rows: None, window: None, scale, soft_cap: None }
}

pub(super) fn new_kv(blocks: usize, shape: [usize; 3], format: KvFormat) -> KvLayer {
    fn pages<Kv: KvElement>(blocks: usize, shape: [usize; 3], format: KvFormat) -> KvLayer {
        let [block_size, kv_heads, head_dim] = shape;
        let layer = layer([kv_heads, kv_heads, head_dim], block_size, 1.0);
        let pages = Pages::<Kv>::new(&layer, blocks, [&[], &[]]).unwrap_or_else(|error| panic!("{error}"));
        KvLayer::elsewhere(blocks, shape, format, pages.bytes(), Box::new(pages))
    }
    match format {
        KvFormat::F32 => pages::<f32>(blocks, shape, format),
        KvFormat::Bf16 => pages::<bf16>(blocks, shape, format),
    }
}

pub(super) fn write_kv(
    device: &Device,
    k: &[f32],
    v: &[f32],
    seqs: &[AttentionSeq<'_>],
    kv: &mut KvLayer,
) -> Result<(), Error> {
    let (kv_heads, head_dim) = (kv.kv_heads(), kv.head_dim());
    let layer = layer([kv_heads, kv_heads, head_dim], kv.block_size(), 1.0);
    let width = kv_heads * head_dim;
    let call = Call { layer: &layer, rows: k.len() / width, strides: [width; 2], seqs };
    match kv.format() {
        KvFormat::F32 => device.kv_write(&call, k, v, kv.pages_mut::<Pages<f32>>().expect("pages of this object")),
        KvFormat::Bf16 => device.kv_write(&call, k, v, kv.pages_mut::<Pages<bf16>>().expect("pages of this object")),
    }
}

/// With queries and results rounded to `X`. `path`: of the rows of prompts.
pub(super) fn attention<X: Element>(
    device: &Device,
    path: Path,
    q: &[f32],
    (heads, scale): (usize, f32),
    seqs: &[AttentionSeq<'_>],
    kv: &KvLayer,
    out: &mut [f32],
) -> Result<(), Error> {
    let layer = layer([heads, kv.kv_heads(), kv.head_dim()], kv.block_size(), scale);
    let width = heads * kv.head_dim();
    let call = Call { layer: &layer, rows: q.len().checked_div(width).unwrap_or(0), strides: [width; 2], seqs };
    let q: Vec<X> = q.iter().copied().map(X::from_f32).collect();
    let mut results = vec![X::from_f32(0.0); q.len()];
    match kv.format() {
        KvFormat::F32 => {
            device.attention(&call, path, &q, kv.pages::<Pages<f32>>().expect("pages of this object"), &mut results)
        }
        KvFormat::Bf16 => {
            device.attention(&call, path, &q, kv.pages::<Pages<bf16>>().expect("pages of this object"), &mut results)
        }
    }?;
    for at in seqs.iter().flat_map(|seq| seq.rows.start * width..seq.rows.end * width) {
        out[at] = results[at].to_f32();
    }
    Ok(())
}
