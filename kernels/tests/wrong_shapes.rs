//! Wrong shapes stop with a message that names the operation and both shapes, before anything is written.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use weft_kernels::{
    AttentionSeq, CpuOptions, Kernels, KvFormat, KvLayer, LoraSegment, LoraTarget, WeightFormat, cpu, reference,
};

/// Both implementations refuse with this message.
fn refuses(message: &str, call: impl Fn(&dyn Kernels)) {
    for kernels in [reference(), cpu(CpuOptions { threads: 2, isa: None })] {
        let panic = catch_unwind(AssertUnwindSafe(|| call(&*kernels))).expect_err("the call went through");
        let got = panic.downcast_ref::<String>().map_or("", String::as_str);
        assert_eq!(got, message, "{}", kernels.isa());
    }
}

fn target(kernels: &dyn Kernels, out_offset: usize) -> LoraTarget {
    LoraTarget {
        a: kernels.pack_lora_a(&[1.0; 8], 2, 4, WeightFormat::F32),
        b: kernels.pack_lora_b(&[1.0; 6], 3, 2, WeightFormat::F32),
        rank: 2,
        scale: 1.0,
        out_offset,
        out_features: 3,
    }
}

#[test]
fn a_weight_of_another_size() {
    refuses("pack_linear: 5 values given for a matrix [2, 3]", |kernels| {
        kernels.pack_linear(&[0.0; 5], 2, 3, WeightFormat::F32);
    });
}

#[test]
fn a_linear_whose_rows_do_not_match() {
    refuses("linear: x has 9 values and out 4, for a weight [2, 3]", |kernels| {
        let weight = kernels.pack_linear(&[0.0; 6], 2, 3, WeightFormat::F32);
        kernels.linear(&[0.0; 9], &weight, &mut [0.0; 4]);
    });
}

#[test]
fn adapters_beyond_the_output_or_the_rows_and_in_each_others_way() {
    let call = |kernels: &dyn Kernels, offset: usize, ranges: &[std::ops::Range<usize>]| {
        let targets = [target(kernels, offset)];
        let segments: Vec<_> =
            ranges.iter().map(|rows| LoraSegment { rows: rows.clone(), targets: &targets }).collect();
        kernels.lora(&[0.0; 12], 4, &segments, &mut [0.0; 15], 5);
    };
    refuses("lora: columns 3 + 3 reach beyond out_stride 5", |kernels| call(kernels, 3, std::slice::from_ref(&(0..1))));
    refuses("lora: rows 2..4 of 3", |kernels| call(kernels, 0, std::slice::from_ref(&(2..4))));
    refuses("lora: rows 1..3 overlap rows up to 2", |kernels| call(kernels, 0, &[1..3, 0..2]));
}

#[test]
fn an_adapter_for_another_width() {
    refuses(
        "lora: rank 2, in_features 6, out_features 3 do not fit LoraMatrix([2, 4], F32) and LoraMatrix([3, 2], F32)",
        |kernels| {
            let targets = [target(kernels, 0)];
            kernels.lora(&[0.0; 6], 6, &[LoraSegment { rows: 0..1, targets: &targets }], &mut [0.0; 3], 3);
        },
    );
}

#[test]
fn pages_that_do_not_exist_or_do_not_reach() {
    let layer = |kernels: &dyn Kernels| kernels.new_kv(2, 4, 1, 2, KvFormat::F32);
    let seq = |start: usize, blocks: &'static [u32]| [AttentionSeq { rows: 0..1, start, blocks }];
    refuses("write_kv: block 2 of a layer with 2 blocks", |kernels| {
        kernels.write_kv(&[0.0; 2], &[0.0; 2], &seq(0, &[2]), &mut layer(kernels));
    });
    refuses("attention: 1 blocks of 4 do not cover position 5", |kernels| {
        kernels.attention(&[0.0; 2], 1, 1.0, &seq(4, &[0]), &layer(kernels), &mut [0.0; 2]);
    });
    refuses("attention: q has 6 values, out 6, heads 3, for KvLayer(2 x [2, 4, 1], F32)", |kernels| {
        let layer = kernels.new_kv(2, 4, 2, 1, KvFormat::F32);
        kernels.attention(&[0.0; 6], 3, 1.0, &[], &layer, &mut [0.0; 6]);
    });
}

#[test]
fn pages_of_another_implementation() {
    let seqs = [AttentionSeq { rows: 0..1, start: 0, blocks: &[0] }];
    let layer = || KvLayer::elsewhere(2, [4, 1, 2], KvFormat::F32, 64, Box::new(7u8));
    assert_eq!((layer().bytes(), layer().format(), layer().pages::<u8>()), (64, KvFormat::F32, Some(&7)));
    assert!(layer().pages::<u16>().is_none() && reference().new_kv(2, 4, 1, 2, KvFormat::F32).pages::<u8>().is_none());
    refuses("kv layer: its 2 blocks lie elsewhere: made by another implementation", |kernels| {
        kernels.write_kv(&[0.0; 2], &[0.0; 2], &seqs, &mut layer());
    });
    refuses("kv layer: its 2 blocks lie elsewhere: made by another implementation", |kernels| {
        kernels.attention(&[0.0; 2], 1, 1.0, &seqs, &layer(), &mut [0.0; 2]);
    });
}

#[test]
fn rows_of_another_width() {
    refuses("rms_norm: x has 5 values, the others [5], for a weight [2]", |kernels| {
        kernels.rms_norm(&[0.0; 5], &[1.0; 2], 1e-5, &mut [0.0; 5]);
    });
    refuses("add_rms_norm: x has 4 values, the others [2, 4], for a weight [2]", |kernels| {
        kernels.add_rms_norm(&mut [0.0; 2], &[0.0; 4], &[1.0; 2], 1e-5, &mut [0.0; 4]);
    });
    refuses("rope: x has 8 values for [1, 1, 4], inv_freq has 2", |kernels| {
        kernels.rope(&mut [0.0; 8], 1, 4, &[0], &[1.0; 2], 1.0);
    });
    refuses("silu_mul: gate_up has 6 values and out 4, for inter 2", |kernels| {
        kernels.silu_mul(&[0.0; 6], 2, &mut [0.0; 4]);
    });
}

#[test]
fn weights_packed_by_another_implementation() {
    let cpu: Arc<dyn Kernels> = cpu(CpuOptions { threads: 1, isa: None });
    let weight = cpu.pack_linear(&[0.0; 6], 2, 3, WeightFormat::F32);
    let panic = catch_unwind(AssertUnwindSafe(|| reference().linear(&[0.0; 3], &weight, &mut [0.0; 2])));
    let message = *panic.unwrap_err().downcast::<String>().unwrap();
    let want = "linear: matrix [2, 3] was packed as Panels by another implementation, this one reads RowMajor";
    assert_eq!(message, want);
}
