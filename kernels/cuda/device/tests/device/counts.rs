//! What a decode step costs: the launches that were recorded, the bytes that their callers state, the bytes that the kernels touch, and the model.

use crate::support::{put, shim};
use half::bf16;
use std::collections::BTreeSet;
use weft_cuda_device::record::{Kind, Record};
use weft_cuda_device::{Argument, Buffer, Counts, Device, Error, Launch, Stream};
use weft_cuda_kernels::model::{Model, Site};
use weft_cuda_kernels::pack::Format;
use weft_cuda_kernels::table::{self, Choice, Item, Path, Segment, Shape};
use weft_cuda_kernels::within;
use weft_kernels::conformance::Random;

const TINY: Model = Model {
    layers: 2,
    sites: &[
        Site { name: "qkv", inputs: 64, outputs: &[64, 16, 16] },
        Site { name: "o", inputs: 64, outputs: &[64] },
        Site { name: "gate_up", inputs: 64, outputs: &[300, 300] },
        Site { name: "down", inputs: 300, outputs: &[64] },
    ],
    head: 1000 * 64,
    bytes_per_weight: 2,
};
const MULTIPROCESSORS: usize = 8;
const KERNEL: &str = "weft_lora_decode_f32_bf16";

/// A site of a layer in a step: its table, its rows and the slots of its adapters.
struct Prepared {
    inputs: usize,
    out_stride: usize,
    shape: Shape,
    x: Buffer,
    out: Buffer,
    items: Buffer,
    targets: Buffer,
    count: Buffer,
    slots: Buffer,
    /// What the launch must read of the slots.
    adapter_bytes: usize,
}

fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

impl Prepared {
    /// One row for each rank, each with an adapter of its own.
    fn new(device: &Device, stream: &Stream, random: &mut Random, site: &Site, ranks: &[usize]) -> Self {
        let (inputs, targets_of_row, rows) = (site.inputs, site.outputs.len(), ranks.len());
        let out_stride: usize = site.outputs.iter().sum();
        let segments: Vec<Segment> =
            (0..rows).map(|row| (row..row + 1, row * targets_of_row..(row + 1) * targets_of_row)).collect();
        let rank_max = ranks.iter().copied().max().unwrap();
        let choice = Choice { activations: Format::F32, batch_invariant: false, rank_max };
        let (path, items) = table::items(&segments, choice);
        assert_eq!(path, Path::Decode);
        let shape = table::shape(path, items.len(), rank_max, out_stride, MULTIPROCESSORS).unwrap();
        let values: usize = ranks.iter().map(|rank| rank * (targets_of_row * inputs + out_stride)).sum();
        let bits: Vec<u16> = (0..values).map(|_| bf16::from_f32(random.normal()).to_bits()).collect();
        let slots = put(device, stream, &bits);
        let (mut targets, mut at) = (Vec::new(), slots.address());
        for rank in ranks {
            let mut offset = 0;
            for outputs in site.outputs {
                let b = at + (2 * rank * inputs) as u64;
                targets.extend([at, b].into_iter().flat_map(u64::to_ne_bytes));
                targets.extend(words(&[*rank as u32, 1.0f32.to_bits(), offset as u32, *outputs as u32]));
                at = b + (2 * outputs * rank) as u64;
                offset += outputs;
            }
        }
        let item = |item: &Item| words(&[item.first_row, item.rows, item.first_target, item.targets]);
        let x: Vec<f32> = (0..rows * inputs).map(|_| random.normal()).collect();
        Self {
            inputs,
            out_stride,
            shape,
            x: put(device, stream, &x),
            out: put(device, stream, &vec![0.0f32; rows * out_stride]),
            items: put(device, stream, &items.iter().flat_map(item).collect::<Vec<u8>>()),
            targets: put(device, stream, &targets),
            count: put(device, stream, &[items.len() as u32]),
            slots,
            adapter_bytes: 2 * values,
        }
    }

    fn launch(&self, stream: &Stream) -> Result<(), Error> {
        let arguments = [
            self.x.all().reads().into(),
            Argument::I32(self.inputs as i32),
            self.out.all().writes().into(),
            Argument::I32(self.out_stride as i32),
            self.items.all().reads().into(),
            self.targets.all().reads().into(),
            self.count.all().reads().into(),
            Argument::I32(self.shape.shrunk_stride as i32),
            Argument::I32(self.shape.columns_per_block as i32),
        ];
        // Of the adapters alone: what the model counts.
        let counts = Counts { read_bytes: self.adapter_bytes as u64, ..Counts::default() };
        let launch = Launch {
            kernel: KERNEL,
            grid: self.shape.grid,
            threads: table::THREADS,
            shared_bytes: self.shape.shared_bytes,
            arguments: &arguments,
            through_tables: &[self.slots.all().reads().in_parts()],
            counts,
        };
        // SAFETY: the parameters of segmented_lora.cu; the tables name rows of x and out, and the slots.
        unsafe { stream.launch(&launch) }
    }
}

fn adapter_bytes(records: &[Record]) -> u64 {
    records.iter().map(|record| record.counts.read_bytes).sum()
}

#[test]
fn a_step_costs_what_the_model_says() {
    let ranks = [8, 16, 3, 40];
    let (shim, device) = shim(5);
    let (stream, random) = (device.stream("compute").unwrap(), &mut Random::new(5));
    let sites: Vec<Prepared> = (0..TINY.layers)
        .flat_map(|_| TINY.sites)
        .map(|site| Prepared::new(&device, &stream, random, site, &ranks))
        .collect();
    let step = || sites.iter().try_for_each(|site| site.launch(&stream));
    let model = TINY.decode(&ranks, Format::Bf16, MULTIPROCESSORS).unwrap();

    device.start_records();
    shim.start_measuring();
    step().unwrap();
    stream.synchronize().unwrap();
    let (records, measured) = (device.stop_records(), shim.stop_measuring());
    assert_eq!(records.len(), model.launches);
    assert_eq!(adapter_bytes(&records), model.adapter_bytes as u64);
    for (record, site) in records.iter().zip(&sites) {
        let kind = Kind::Launch {
            kernel: KERNEL.to_owned(),
            grid: site.shape.grid,
            threads: table::THREADS,
            shared_bytes: site.shape.shared_bytes,
        };
        assert_eq!((&record.kind, record.stream.as_str(), record.in_graph), (&kind, "compute", false));
    }

    // A graph of the step is one call, and does the same.
    let graph = stream.capture(step).unwrap();
    device.start_records();
    graph.replay(&stream).unwrap();
    stream.synchronize().unwrap();
    let replayed = device.stop_records();
    assert_eq!(replayed[0].kind, Kind::Replay);
    let as_called: Vec<_> = replayed[1..].iter().map(|record| Record { in_graph: false, ..record.clone() }).collect();
    assert_eq!(as_called, records);

    if !within::sees_accesses() {
        return;
    }
    // What the kernels touch of the slots is what was stated: each byte of each adapter, and nothing between.
    assert_eq!(measured.len(), sites.len());
    for (measured, site) in measured.iter().zip(&sites) {
        let slots = site.slots.address() as usize..site.slots.address() as usize + site.slots.bytes();
        let bytes_of = |line: &within::Touched| {
            let (at, bits) = (line.at, line.read);
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| at + bit).collect::<Vec<_>>()
        };
        let read: BTreeSet<usize> =
            measured.touched.iter().flat_map(bytes_of).filter(|at| slots.contains(at)).collect();
        assert_eq!(read.len(), site.adapter_bytes);
        assert_eq!(measured.written_bytes as usize, site.out.bytes());
        // Adapters, x, the columns that it adds to, and its tables.
        let tables = site.items.bytes() + site.targets.bytes() + site.count.bytes();
        let all = site.adapter_bytes + site.x.bytes() + site.out.bytes() + tables;
        assert_eq!(measured.read_bytes as usize, all);
    }
}

#[test]
fn copies_and_products_count_themselves() {
    let (_, device) = shim(0);
    let stream = device.stream("s").unwrap();
    let pinned = device.allocate_pinned(64).unwrap();
    let buffers = [0, 1, 2].map(|_| device.allocate(64).unwrap());
    let [x, w, out] = buffers.each_ref().map(Buffer::all);
    device.start_records();
    stream.upload(&pinned, 0..64, x).unwrap();
    stream.copy(x, w).unwrap();
    stream.download(w, &pinned, 0..64).unwrap();
    let matmul = weft_cuda_device::Matmul {
        rows: 2,
        inputs: 8,
        outputs: 4,
        x,
        x_stride: 8,
        w,
        of: weft_cuda_device::Type::Bf16,
        out,
        out_stride: 4,
        out_of: weft_cuda_device::Type::F32,
        adds: true,
    };
    stream.matmul(&matmul).unwrap();
    let counts: Vec<_> = device.stop_records().iter().map(|record| record.counts).collect();
    let of = |read_bytes, written_bytes, operations| Counts { read_bytes, written_bytes, operations };
    assert_eq!(counts, [of(0, 64, 0), of(64, 64, 0), of(64, 0, 0), of(2 * (16 + 32) + 32, 32, 128)]);
}
