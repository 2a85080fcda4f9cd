//! The kernels as the port of `weft-kernels` over a device: what the conformance suite judges on any driver.
//!
//! Each call puts its slices on the device, launches, waits and takes the result back. Shapes of launches are those of `weft-cuda-kernels`, as an
//! engine has them. Linears with float weights and packing are the reference's: there are no kernels for them.

mod attention;
mod lora;
mod products;
mod rows;
mod sampling;

pub(crate) use attention::Pages;
pub(crate) use sampling::Draw;

use crate::support::{get, put};
use half::bf16;
use std::sync::Arc;
use weft_cuda_device::driver::Driver;
use weft_cuda_device::{Access, Argument, Buffer, Counts, Device, Launch, Options, Stream};
use weft_cuda_kernels::on_host::Element;
use weft_kernels::{
    AttentionSeq, Kernels, KvFormat, KvLayer, LoraMatrix, LoraSegment, PackedLinear, WeightFormat, reference,
};

/// Enough for any case of the suite.
const OPTIONS: Options =
    Options { pool_bytes: 64 << 20, pinned_bytes: 64 << 20, block_bytes: 256, pinned_block_bytes: 256 };

/// Runs kernels on a device.
pub(crate) struct Port {
    device: Device,
    stream: Stream,
}

impl Port {
    pub(crate) fn new(driver: Arc<dyn Driver>) -> Self {
        let device = Device::new(driver, &OPTIONS).unwrap();
        let stream = device.stream("port").unwrap();
        Self { device, stream }
    }

    fn multiprocessors(&self) -> usize {
        self.device.properties().multiprocessors
    }

    fn put<T: bytemuck::NoUninit>(&self, values: &[T]) -> Buffer {
        put(&self.device, &self.stream, values)
    }

    fn get<T: bytemuck::AnyBitPattern + bytemuck::NoUninit>(&self, buffer: &Buffer) -> Vec<T> {
        get(&self.device, &self.stream, buffer).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Memory that a kernel writes, with something in it that is no number.
    fn room(&self, bytes: usize) -> Buffer {
        let room = self.device.allocate(bytes).unwrap();
        self.stream.fill(room.all(), 0xff).unwrap();
        room
    }

    /// A launch, and until it is over. `through_tables`: memory that it reaches by addresses in device memory.
    fn run(
        &self,
        kernel: &str,
        (grid, threads, shared_bytes): ([u32; 3], u32, usize),
        arguments: &[Argument<'_>],
        through_tables: &[Access<'_>],
    ) {
        let counts = Counts::default();
        let launch = Launch { kernel, grid, threads, shared_bytes, arguments, through_tables, counts };
        // SAFETY: whoever calls it has the kernel's parameters before it, and slices with the shapes that it needs; they are waited for.
        let launched = unsafe { self.stream.launch(&launch) };
        launched.and_then(|()| self.stream.synchronize()).unwrap_or_else(|error| panic!("{error}"));
    }
}

fn reads(buffer: &Buffer) -> Argument<'_> {
    buffer.all().reads().into()
}

fn writes(buffer: &Buffer) -> Argument<'_> {
    buffer.all().writes().into()
}

/// Activations in f32, but for those of adapters, which are rounded to `X` and back. `batch_invariant` as in [`weft_cuda_kernels::table::Choice`].
pub(crate) fn kernels_in<X: Element + bytemuck::Pod>(
    driver: Arc<dyn Driver>,
    batch_invariant: bool,
) -> Arc<dyn Kernels> {
    let port = Port::new(driver);
    Arc::new(OnDevice { port, reference: reference(), lora: OnDevice::lora_in::<X>, batch_invariant })
}

/// All activations in f32.
pub(crate) fn kernels(driver: Arc<dyn Driver>) -> Arc<dyn Kernels> {
    kernels_in::<f32>(driver, true)
}

type Lora = fn(&OnDevice, &[f32], usize, &[LoraSegment<'_>], &mut [f32], usize);

struct OnDevice {
    port: Port,
    reference: Arc<dyn Kernels>,
    lora: Lora,
    batch_invariant: bool,
}

impl Kernels for OnDevice {
    fn isa(&self) -> &'static str {
        "cuda"
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
            WeightFormat::Int8 | WeightFormat::Q4 => self.port.linear(x, w, out),
            WeightFormat::F32 | WeightFormat::Bf16 => self.reference.linear(x, w, out),
        }
    }

    fn lora(&self, x: &[f32], in_features: usize, segments: &[LoraSegment<'_>], out: &mut [f32], out_stride: usize) {
        (self.lora)(self, x, in_features, segments, out, out_stride);
    }

    fn new_kv(&self, blocks: usize, block_size: usize, kv_heads: usize, head_dim: usize, format: KvFormat) -> KvLayer {
        let shape = [block_size, kv_heads, head_dim];
        let layer = attention::layer([kv_heads, kv_heads, head_dim], block_size, 1.0);
        let no_scales = [&[][..], &[]];
        match format {
            KvFormat::F32 => {
                let pages = Pages::<f32>::new(&self.port, &layer, blocks, no_scales);
                KvLayer::elsewhere(blocks, shape, format, pages.bytes(), Box::new(pages))
            }
            KvFormat::Bf16 => {
                let pages = Pages::<bf16>::new(&self.port, &layer, blocks, no_scales);
                KvLayer::elsewhere(blocks, shape, format, pages.bytes(), Box::new(pages))
            }
        }
    }

    fn write_kv(&self, k: &[f32], v: &[f32], seqs: &[AttentionSeq<'_>], kv: &mut KvLayer) {
        attention::write_kv(&self.port, k, v, seqs, kv);
    }

    fn attention(&self, q: &[f32], heads: usize, scale: f32, seqs: &[AttentionSeq<'_>], kv: &KvLayer, out: &mut [f32]) {
        attention::attention(&self.port, (q, heads, scale), seqs, kv, out);
    }

    fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        self.port.rms_norm(None, x, weight, eps, out);
    }

    fn add_rms_norm(&self, residual: &mut [f32], x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        self.port.rms_norm(Some(residual), x, weight, eps, out);
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
        self.port.rope(x, [heads, head_dim], positions, inv_freq, attention_factor);
    }

    fn silu_mul(&self, gate_up: &[f32], inter: usize, out: &mut [f32]) {
        self.port.silu_mul(gate_up, inter, out);
    }
}
