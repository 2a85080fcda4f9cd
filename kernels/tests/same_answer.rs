//! The same bits from any number of threads, and from every fused instruction set in `F32`.

use std::sync::Arc;
use weft_kernels::conformance::Random;
use weft_kernels::{
    AttentionSeq, CpuOptions, Isa, Kernels, KvFormat, LoraSegment, LoraTarget, WeightFormat, cpu, reference,
};

const ROWS: usize = 37;
const INPUTS: usize = 200;
const OUTPUTS: usize = 150;
const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 20;
const BLOCKS: [u32; 3] = [2, 0, 1];

fn kernels(isa: Isa, threads: usize) -> Arc<dyn Kernels> {
    cpu(CpuOptions { threads, isa: Some(isa) })
}

fn available() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
}

/// One of everything, chained, so that any difference shows.
fn everything(kernels: &dyn Kernels, format: WeightFormat) -> Vec<u32> {
    let random = &mut Random::new(7);
    let x = random.normals(ROWS * INPUTS);
    let weight = kernels.pack_linear(&random.normals(OUTPUTS * INPUTS), OUTPUTS, INPUTS, format);
    let mut out = vec![0.0; ROWS * OUTPUTS];
    kernels.linear(&x, &weight, &mut out);

    let targets: Vec<LoraTarget> = [(12, 0, 100), (3, 100, 50)]
        .into_iter()
        .map(|(rank, out_offset, out_features)| LoraTarget {
            a: kernels.pack_lora_a(&random.normals(rank * INPUTS), rank, INPUTS, format),
            b: kernels.pack_lora_b(&random.normals(out_features * rank), out_features, rank, format),
            rank,
            scale: 0.5,
            out_offset,
            out_features,
        })
        .collect();
    let segments = [0..5, 9..37].map(|rows| LoraSegment { rows, targets: &targets });
    kernels.lora(&x, INPUTS, &segments, &mut out, OUTPUTS);

    let norm_weight = random.normals(OUTPUTS);
    let mut residual = random.normals(ROWS * OUTPUTS);
    let mut normed = vec![0.0; ROWS * OUTPUTS];
    kernels.add_rms_norm(&mut residual, &out, &norm_weight, 1e-5, &mut normed);

    let mut q = normed[..ROWS * HEADS * HEAD_DIM].to_vec();
    let positions: Vec<u32> = (0..ROWS as u32).collect();
    let inv_freq: Vec<f32> = (0..HEAD_DIM / 2).map(|i| 0.5f32.powi(i as i32)).collect();
    kernels.rope(&mut q, HEADS, HEAD_DIM, &positions, &inv_freq, 1.0);

    // Sets differ in how they multiply bf16.
    let kv_format = match format {
        WeightFormat::Bf16 => KvFormat::Bf16,
        _ => KvFormat::F32,
    };
    let mut kv = kernels.new_kv(3, 16, KV_HEADS, HEAD_DIM, kv_format);
    let width = ROWS * KV_HEADS * HEAD_DIM;
    let seqs = [AttentionSeq { rows: 0..ROWS, start: 0, blocks: &BLOCKS }];
    kernels.write_kv(&normed[..width], &normed[width..2 * width], &seqs, &mut kv);
    let mut attended = vec![0.0; q.len()];
    kernels.attention(&q, HEADS, 0.25, &seqs, &kv, &mut attended);

    let mut gated = vec![0.0; attended.len() / 2];
    kernels.silu_mul(&attended, HEADS * HEAD_DIM / 2, &mut gated);
    [out, residual, normed, q, attended, gated].concat().into_iter().map(f32::to_bits).collect()
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for isa in available() {
        for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Q4] {
            let one = everything(&*kernels(isa, 1), format);
            for threads in [2, 5] {
                assert!(one == everything(&*kernels(isa, threads), format), "{isa:?} {format:?} {threads} threads");
            }
        }
    }
}

#[test]
fn fused_instruction_sets_agree_in_every_bit_in_f32_and_integers() {
    let fused: Vec<Isa> = available().into_iter().filter(|isa| *isa != Isa::Portable).collect();
    for format in [WeightFormat::F32, WeightFormat::Int8, WeightFormat::Q4] {
        for pair in fused.windows(2) {
            let [a, b] = [0, 1].map(|i| everything(&*kernels(pair[i], 1), format));
            assert!(a == b, "{:?} and {:?} differ in {format:?}", pair[0], pair[1]);
        }
    }
}

#[test]
fn the_chain_is_not_trivial() {
    // The tests above compare bits; this one makes sure that the bits mean something.
    let got = everything(&*kernels(Isa::detect(), 2), WeightFormat::F32);
    let want = everything(&*reference(), WeightFormat::F32);
    for (got, want) in got.iter().zip(&want).map(|(a, b)| (f32::from_bits(*a), f32::from_bits(*b))) {
        assert!((got - want).abs() <= 1e-4 * (1.0 + want.abs()), "{got} should be {want}");
    }
    assert!(want.iter().filter(|bits| **bits != 0).count() > want.len() / 2);
}

#[test]
fn names_of_instruction_sets_read_back() {
    for isa in Isa::ALL {
        assert_eq!(isa.as_str().parse(), Ok(isa));
    }
    let error = "sse9".parse::<Isa>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "isa \"sse9\" is none of portable, avx2, avx512, avx512-vnni, avx512-bf16, neon, neon-dot"
    );
}
