//! A launch of the LoRA kernel over tables in device memory, as an engine makes it.

use crate::support::put;
use half::bf16;
use weft_cuda_device::{Argument, Buffer, Counts, Device, Error, Launch, Stream, View};
use weft_cuda_kernels::on_host;
use weft_cuda_kernels::pack::Format;
use weft_cuda_kernels::table::{self, Item, Path, Target};
use weft_kernels::conformance::Random;

/// An adapter in a slot of device memory.
pub(crate) struct Slot {
    pub(crate) memory: Buffer,
    pub(crate) a: Vec<bf16>,
    pub(crate) b: Vec<bf16>,
    pub(crate) rank: usize,
}

pub(crate) const IN: usize = 40;
pub(crate) const OUT: usize = 24;
pub(crate) const ROWS: usize = 4;

pub(crate) fn random_values<T>(random: &mut Random, len: usize, of: impl Fn(f32) -> T) -> Vec<T> {
    (0..len).map(|_| of(random.normal())).collect()
}

impl Slot {
    pub(crate) fn bytes(rank: usize) -> usize {
        2 * rank * (IN + OUT)
    }

    pub(crate) fn new(device: &Device, stream: &Stream, random: &mut Random, rank: usize) -> Self {
        let values = random_values(random, rank * (IN + OUT), bf16::from_f32);
        let bits: Vec<u16> = values.iter().map(|value| value.to_bits()).collect();
        let (a, b) = (values[..rank * IN].to_vec(), values[rank * IN..].to_vec());
        Self { memory: put(device, stream, &bits), a, b, rank }
    }

    pub(crate) fn target(&self) -> Target {
        let a = self.memory.address();
        let b = a + (2 * self.rank * IN) as u64;
        Target { a, b, rank: self.rank as u32, scale: 0.5, out_offset: 0, out_features: OUT as u32 }
    }
}

/// A step of one row for each adapter, with the tables that a graph reads.
pub(crate) struct Step {
    pub(crate) x: Buffer,
    pub(crate) out: Buffer,
    pub(crate) table: Buffer,
    pub(crate) kernel: &'static str,
}

const ITEMS: usize = 0;
const TARGETS: usize = ITEMS + ROWS * size_of::<Item>();
const COUNT: usize = TARGETS + ROWS * size_of::<Target>();
pub(crate) const TABLE_BYTES: usize = COUNT + 4;

/// What lies in `Step::table`: row `i` uses `slots[i]`.
pub(crate) fn table(slots: &[&Slot]) -> Vec<u8> {
    let mut bytes = vec![0u8; TABLE_BYTES];
    for (row, slot) in slots.iter().enumerate() {
        let Target { a, b, rank, scale, out_offset, out_features } = slot.target();
        let words = [row as u32, 1, row as u32, 1].map(u32::to_ne_bytes).concat();
        bytes[ITEMS + row * 16..][..16].copy_from_slice(&words);
        let addresses = [a, b].map(u64::to_ne_bytes).concat();
        let rest = [rank, scale.to_bits(), out_offset, out_features].map(u32::to_ne_bytes).concat();
        bytes[TARGETS + row * 32..][..32].copy_from_slice(&[addresses, rest].concat());
    }
    bytes[COUNT..].copy_from_slice(&(slots.len() as u32).to_ne_bytes());
    bytes
}

impl Step {
    pub(crate) fn new(device: &Device, stream: &Stream, random: &mut Random) -> (Self, Vec<f32>) {
        let x = random_values(random, ROWS * IN, |value| value);
        let out = vec![0.0f32; ROWS * OUT];
        let step = Self {
            x: put(device, stream, &x),
            out: put(device, stream, &out),
            table: put(device, stream, &[0u8; TABLE_BYTES]),
            kernel: "weft_lora_decode_f32_bf16",
        };
        (step, x)
    }

    /// `slots`: all memory that the table may point to.
    pub(crate) fn launch(&self, stream: &Stream, slots: &[View<'_>], counts: Counts) -> Result<(), Error> {
        let shape = table::shape(Path::Decode, ROWS, 64, OUT, 8).unwrap();
        let part = |from: usize, to: usize| self.table.part(from..to).unwrap().reads();
        let arguments = [
            self.x.all().reads().into(),
            Argument::I32(IN as i32),
            self.out.all().writes().into(),
            Argument::I32(OUT as i32),
            part(ITEMS, TARGETS).into(),
            part(TARGETS, COUNT).into(),
            part(COUNT, TABLE_BYTES).into(),
            Argument::I32(shape.shrunk_stride as i32),
            Argument::I32(shape.columns_per_block as i32),
        ];
        let through_tables: Vec<_> = slots.iter().map(|slot| slot.reads().in_parts()).collect();
        let launch = Launch {
            kernel: self.kernel,
            grid: shape.grid,
            threads: table::THREADS,
            shared_bytes: shape.shared_bytes,
            arguments: &arguments,
            through_tables: &through_tables,
            counts,
        };
        // SAFETY: the parameters of segmented_lora.cu; the table names rows of x and out, and slots.
        unsafe { stream.launch(&launch) }
    }
}

/// The same by the kernels' own test harness.
pub(crate) fn expected(x: &[f32], slots: &[&Slot], out: &mut [f32]) {
    let device = on_host::Device { order: weft_cuda_kernels::host::Order::FORWARDS, multiprocessors: 8 };
    let packed: Vec<[&[u8]; 2]> =
        slots.iter().map(|slot| [bytemuck::cast_slice(&slot.a), bytemuck::cast_slice(&slot.b)]).collect();
    let segments: Vec<_> = slots
        .iter()
        .zip(&packed)
        .enumerate()
        .map(|(row, (slot, [a, b]))| {
            let adapter = on_host::Adapter { a, b, rank: slot.rank, scale: 0.5, out_offset: 0, out_features: OUT };
            (row..row + 1, vec![adapter])
        })
        .collect();
    let kind = on_host::LoraKind { format: Format::Bf16, batch_invariant: false };
    device.lora::<f32>(x, IN, &segments, out, OUT, kind).unwrap();
}
