//! What attention over prompts costs: what a launch states, what the kernel touches.

use crate::support::{get, put, shim};
use half::bf16;
use std::collections::BTreeSet;
use weft_cuda_device::record::Kind;
use weft_cuda_device::{Argument, Counts, Launch};
use weft_cuda_kernels::attention::{self, Layer, Path, Step};
use weft_cuda_kernels::within;
use weft_kernels::AttentionSeq;
use weft_kernels::conformance::Random;

const LAYER: Layer = Layer {
    heads: 6,
    kv_heads: 2,
    head_dim: 40,
    block_size: 16,
    block_rows: Some(50),
    window: None,
    scale: 0.1,
    soft_cap: None,
};

/// Two sequences, one of which has three positions in common with nothing, over both kernels: the bytes that are stated are those that are
/// touched of queries, keys, values and results, each once.
#[test]
fn bytes_of_a_launch_are_those_that_it_touches() {
    for (path, kv_bytes, window) in
        [(Path::Prefill, 2, None), (Path::Tensor, 2, None), (Path::Tensor, 2, Some(20)), (Path::Tensor, 1, Some(70))]
    {
        let layer = Layer { window, ..LAYER };
        let (rows, blocks, width) = (85, 9, layer.heads * layer.head_dim);
        let seqs = [
            AttentionSeq { rows: 0..80, start: 7, blocks: &[8, 0, 3, 1, 7, 5] },
            AttentionSeq { rows: 80..85, start: 2, blocks: &[4] },
        ];
        let step = Step::new(&layer, path, rows, blocks, &seqs).unwrap();
        let work = step.prefill_work(&layer, [2, kv_bytes]);
        let described = layer.shape(step.table_stride, [width; 2]).unwrap();

        let (shim, device) = shim(3);
        let (stream, random) = (device.stream("compute").unwrap(), &mut Random::new(8));
        let mut numbers =
            |len: usize| -> Vec<u16> { (0..len).map(|_| bf16::from_f32(random.normal()).to_bits()).collect() };
        let q = put(&device, &stream, &numbers(rows * width));
        let page_bytes = layer.page_elements(blocks, kv_bytes).unwrap() * kv_bytes;
        // As codes of e4m3 these are 1.
        let mut page = || if kv_bytes == 1 { vec![0x3838; page_bytes / 2] } else { numbers(page_bytes / 2) };
        let [keys, values] = [page(), page()].map(|page| put(&device, &stream, &page));
        let scales = put(&device, &stream, &[0.5f32; 2]);
        let items = put(&device, &stream, &step.prefill);
        let count = put(&device, &stream, &[step.prefill.len() as u32]);
        let tables = put(&device, &stream, &step.block_tables);
        let out = put(&device, &stream, &vec![0u16; rows * width]);

        let attention::Grid { grid, shared_bytes } =
            attention::prefill_grid(&layer, path, step.prefill.len(), kv_bytes);
        let kernel = path.kernel(&layer, if kv_bytes == 1 { "bf16_e4m3" } else { "bf16_bf16" });
        let [k_scale, v_scale] = [(); 2].map(|()| match kv_bytes {
            1 => Argument::from(scales.all().reads().in_parts()),
            _ => Argument::Null,
        });
        let launch = Launch {
            kernel: &kernel,
            grid,
            threads: attention::THREADS,
            shared_bytes,
            arguments: &[
                q.all().reads().in_parts().into(),
                items.all().reads().into(),
                count.all().reads().into(),
                tables.all().reads().into(),
                Argument::Bytes(bytemuck::bytes_of(&described)),
                keys.all().reads().in_parts().into(),
                values.all().reads().in_parts().into(),
                k_scale,
                v_scale,
                out.all().writes().in_parts().into(),
            ],
            through_tables: &[],
            counts: Counts {
                read_bytes: work.read_bytes as u64,
                written_bytes: work.written_bytes as u64,
                operations: work.operations as u64,
            },
        };
        device.start_records();
        shim.start_measuring();
        // SAFETY: the parameters of attention_prefill.cu and attention_tensor.cu; the tables name rows of q and out, and blocks of the pages.
        unsafe { stream.launch(&launch) }.unwrap();
        stream.synchronize().unwrap();
        let (records, measured) = (device.stop_records(), shim.stop_measuring());
        assert_eq!(records.len(), 1);
        assert!(matches!(&records[0].kind, Kind::Launch { kernel: found, .. } if *found == kernel));
        assert_eq!(records[0].counts, launch.counts);
        let results: Vec<u16> = get(&device, &stream, &out).unwrap();
        assert!(results.iter().all(|bits| bf16::from_bits(*bits).to_f32().is_finite()));
        if !within::sees_accesses() {
            continue;
        }
        let [measured] = &measured[..] else { panic!("{} launches", measured.len()) };
        let of =
            [&q, &keys, &values].map(|buffer| buffer.address() as usize..buffer.address() as usize + buffer.bytes());
        let bytes_of = |line: &within::Touched| {
            let (at, bits) = (line.at, line.read);
            (0..64).filter(move |bit| bits >> bit & 1 == 1).map(move |bit| at + bit).collect::<Vec<_>>()
        };
        let read: BTreeSet<usize> = measured.touched.iter().flat_map(bytes_of).collect();
        let read = read.iter().filter(|at| of.iter().any(|range| range.contains(at))).count();
        assert_eq!(read, work.read_bytes, "{path:?}, {window:?}");
        assert_eq!(measured.written_bytes as usize, work.written_bytes, "{path:?}, {window:?}");
    }
}
