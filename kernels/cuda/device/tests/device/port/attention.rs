//! Pages and attention.

use super::{Port, reads, writes};
use half::bf16;
use std::marker::PhantomData;
use weft_cuda_device::{Argument, Buffer};
use weft_cuda_kernels::attention::{self, Grid, Item, Layer, Path, Shape, Step};
use weft_cuda_kernels::on_host::{Element, KvElement};
use weft_kernels::{AttentionSeq, KvFormat, KvLayer};

/// Keys and values of one layer, and for e4m3 the scales of its heads.
pub(crate) struct Pages<Kv> {
    /// Keys, values.
    pages: [Buffer; 2],
    scales: Option<[Buffer; 2]>,
    blocks: usize,
    element: PhantomData<Kv>,
}

impl<Kv: KvElement> Pages<Kv> {
    /// `blocks` pages of zero. `scales`: of the keys and of the values of each head; used for e4m3 alone.
    pub(crate) fn new(port: &Port, layer: &Layer, blocks: usize, scales: [&[f32]; 2]) -> Self {
        let bytes = layer.page_elements(blocks, size_of::<Kv>()).unwrap() * size_of::<Kv>();
        let pages = [(); 2].map(|()| {
            let pages = port.device.allocate(bytes).unwrap();
            port.stream.fill(pages.all(), 0).unwrap();
            pages
        });
        let scales = Kv::IS_SCALED.then(|| scales.map(|scales| port.put(scales)));
        Self { pages, scales, blocks, element: PhantomData }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.pages.iter().map(Buffer::bytes).sum()
    }

    fn scales(&self) -> [Argument<'_>; 2] {
        self.scales.as_ref().map_or([Argument::Null; 2], |scales| scales.each_ref().map(reads))
    }
}

/// Of the port; its shapes have no window and no soft cap.
pub(super) fn layer([heads, kv_heads, head_dim]: [usize; 3], block_size: usize, scale: f32) -> Layer {
    Layer { heads, kv_heads, head_dim, block_size, block_rows: None, window: None, scale, soft_cap: None }
}

/// The tables of a step, on the device.
struct Tables {
    step: Step,
    block_tables: Buffer,
}

/// Items and their number.
struct Items<'a> {
    items: &'a [Item],
    at: Buffer,
    count: Buffer,
}

impl Port {
    fn tables(&self, layer: &Layer, path: Path, rows: usize, blocks: usize, seqs: &[AttentionSeq<'_>]) -> Tables {
        let step = Step::new(layer, path, rows, blocks, seqs).unwrap_or_else(|error| panic!("{error}"));
        Tables { block_tables: self.put(&step.block_tables), step }
    }

    /// None where there are no items.
    fn items<'a>(&self, items: &'a [Item]) -> Option<Items<'a>> {
        let on_device = || Items { items, at: self.put(items), count: self.put(&[items.len() as u32]) };
        (!items.is_empty()).then(on_device)
    }

    /// Stores `k` and `v`, `[rows, kv_heads, head_dim]`.
    pub(crate) fn kv_write<X: Element + bytemuck::Pod, Kv: KvElement>(
        &self,
        layer: &Layer,
        [k, v]: [&[X]; 2],
        seqs: &[AttentionSeq<'_>],
        pages: &Pages<Kv>,
    ) {
        let (width, q_width) = (layer.kv_heads * layer.head_dim, layer.heads * layer.head_dim);
        let tables = self.tables(layer, Path::Prefill, k.len() / width, pages.blocks, seqs);
        let shape = layer.shape(tables.step.table_stride, [q_width; 2]).unwrap();
        let (k_at, v_at, stride) = (self.put(k), self.put(v), Argument::I32(width as i32));
        let ([k_scale, v_scale], [k_pages, v_pages]) = (pages.scales(), pages.pages.each_ref().map(writes));
        for of in [&tables.step.prefill, &tables.step.decode].into_iter().filter_map(|items| self.items(items)) {
            // One block more than there are items, as in a graph that was captured for a larger batch.
            let Grid { grid, shared_bytes } = attention::write_grid(of.items.len() + 1);
            let arguments = [
                reads(&k_at),
                reads(&v_at),
                stride,
                stride,
                reads(&of.at),
                reads(&of.count),
                reads(&tables.block_tables),
                Argument::Bytes(bytemuck::bytes_of(&shape)),
                k_pages,
                v_pages,
                k_scale,
                v_scale,
            ];
            let kernel = format!("weft_kv_write_{}_{}", X::SUFFIX, Kv::SUFFIX);
            self.run(&kernel, (grid, attention::THREADS, shared_bytes), &arguments, &[]);
        }
    }

    /// `q` and `out` are `[rows, heads, head_dim]`.
    pub(crate) fn attend<X: Element + bytemuck::Pod, Kv: KvElement>(
        &self,
        layer: &Layer,
        path: Path,
        q: &[X],
        seqs: &[AttentionSeq<'_>],
        pages: &Pages<Kv>,
        out: &mut [X],
    ) {
        let width = layer.heads * layer.head_dim;
        let tables = self.tables(layer, path, q.len().checked_div(width).unwrap_or(0), pages.blocks, seqs);
        let shape = layer.shape(tables.step.table_stride, [width; 2]).unwrap();
        let (q, out_at) = (self.put(q), self.put(out));
        let launches = Launches { port: self, layer, tables: &tables, shape, q: &q, pages, out: &out_at };
        if let Some(items) = self.items(&tables.step.prefill) {
            launches.prefill::<X>(&items);
        }
        if let Some(items) = self.items(&tables.step.decode) {
            launches.decode::<X>(&items);
        }
        out.copy_from_slice(&self.get::<X>(&out_at));
    }
}

/// What both kinds of launches are given.
struct Launches<'a, Kv> {
    port: &'a Port,
    layer: &'a Layer,
    tables: &'a Tables,
    shape: Shape,
    q: &'a Buffer,
    pages: &'a Pages<Kv>,
    out: &'a Buffer,
}

impl<Kv: KvElement> Launches<'_, Kv> {
    fn suffix<X: Element>() -> String {
        format!("{}_{}", X::SUFFIX, Kv::SUFFIX)
    }

    fn run(&self, kernel: &str, Grid { grid, shared_bytes }: Grid, items: &Items<'_>, rest: &[Argument<'_>]) {
        let [k_scale, v_scale] = self.pages.scales();
        let [k_pages, v_pages] = self.pages.pages.each_ref().map(reads);
        let first = [
            reads(self.q),
            reads(&items.at),
            reads(&items.count),
            reads(&self.tables.block_tables),
            Argument::Bytes(bytemuck::bytes_of(&self.shape)),
            k_pages,
            v_pages,
            k_scale,
            v_scale,
        ];
        self.port.run(kernel, (grid, attention::THREADS, shared_bytes), &[&first[..], rest].concat(), &[]);
    }

    fn prefill<X: Element>(&self, items: &Items<'_>) {
        let path = self.tables.step.path;
        let grid = attention::prefill_grid(self.layer, path, items.items.len() + 1, size_of::<Kv>());
        self.run(&path.kernel(self.layer, &Self::suffix::<X>()), grid, items, &[writes(self.out)]);
    }

    fn decode<X: Element>(&self, items: &Items<'_>) {
        let (layer, step, count) = (self.layer, &self.tables.step, items.items.len() + 1);
        let positions = step.table_stride * layer.block_size;
        let grid = attention::decode_grid(layer, count, positions, size_of::<Kv>(), self.port.multiprocessors());
        let results = step.partials * layer.heads;
        let (values, sums) = (self.port.room(4 * results * layer.head_dim), self.port.room(8 * results));
        let block_heads = Argument::I32(attention::decode_block_heads(layer) as i32);
        let kernel = format!("weft_attention_decode_{}", Self::suffix::<X>());
        self.run(&kernel, grid, items, &[block_heads, writes(&values), writes(&sums), writes(self.out)]);
        let Grid { grid, shared_bytes } = attention::combine_grid(layer, count);
        let arguments = [
            reads(&items.at),
            reads(&items.count),
            Argument::Bytes(bytemuck::bytes_of(&self.shape)),
            self.pages.scales()[1],
            reads(&values),
            reads(&sums),
            writes(self.out),
        ];
        let kernel = format!("weft_attention_combine_{}", X::SUFFIX);
        self.port.run(&kernel, (grid, attention::THREADS, shared_bytes), &arguments, &[]);
    }
}

pub(super) fn write_kv(port: &Port, k: &[f32], v: &[f32], seqs: &[AttentionSeq<'_>], kv: &mut KvLayer) {
    let layer = layer([kv.kv_heads(), kv.kv_heads(), kv.head_dim()], kv.block_size(), 1.0);
    match kv.format() {
        KvFormat::F32 => port.kv_write(&layer, [k, v], seqs, kv.pages::<Pages<f32>>().unwrap()),
        KvFormat::Bf16 => port.kv_write(&layer, [k, v], seqs, kv.pages::<Pages<bf16>>().unwrap()),
    }
}

pub(super) fn attention(
    port: &Port,
    (q, heads, scale): (&[f32], usize, f32),
    seqs: &[AttentionSeq<'_>],
    kv: &KvLayer,
    out: &mut [f32],
) {
    let layer = layer([heads, kv.kv_heads(), kv.head_dim()], kv.block_size(), scale);
    match kv.format() {
        KvFormat::F32 => port.attend(&layer, Path::Prefill, q, seqs, kv.pages::<Pages<f32>>().unwrap(), out),
        KvFormat::Bf16 => port.attend(&layer, Path::Prefill, q, seqs, kv.pages::<Pages<bf16>>().unwrap(), out),
    }
}
