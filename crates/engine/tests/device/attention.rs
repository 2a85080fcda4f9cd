//! Which kernel attention over prompts takes, and that its answer does not depend on how a prompt is cut.

use super::*;

/// Kernels of attention over prompts that were launched, and the operations that they state.
pub(crate) fn launched(records: &[Record]) -> Vec<(&str, u64)> {
    let launches = records.iter().filter_map(|record| match &record.kind {
        Kind::Launch { kernel, .. } => Some((kernel.as_str(), record.counts.operations)),
        _ => None,
    });
    let starts = ["weft_attention_tensor", "weft_attention_prefill"];
    launches.filter(|(kernel, _)| starts.iter().any(|start| kernel.starts_with(start))).collect()
}

/// These tokens from `start` on, of a sequence in blocks from `first_block` on.
fn part(tokens: &[u32], start: usize, first_block: u32) -> SeqStep {
    let blocks = (start + tokens.len()).div_ceil(BLOCK_SIZE) as u32;
    SeqStep {
        tokens: tokens.to_vec(),
        start,
        blocks: (first_block..first_block + blocks).collect(),
        slot: None,
        logits: LogitsWanted::All,
        draw: None,
    }
}

fn in_bf16(kv: KvFormat, batch_invariant: bool) -> DeviceOptions {
    DeviceOptions { precision: Precision::Bf16, adapters: Format::Bf16, kv, batch_invariant, ..options(1) }
}

#[test]
fn prompts_go_by_tensor_cores_unless_a_row_must_have_the_same_bits_in_every_step() {
    let model = tiny("tiny");
    let (layers, width) = (model.config.layers, model.config.heads * model.config.head_dim);
    for (options, wanted) in [
        (in_bf16(KvFormat::Precision, false), "weft_attention_tensor_64_bf16_bf16"),
        (in_bf16(KvFormat::Fp8, false), "weft_attention_tensor_64_bf16_e4m3"),
        (in_bf16(KvFormat::Precision, true), "weft_attention_prefill_bf16_bf16"),
        (options(1), "weft_attention_prefill_f32_f32"),
    ] {
        let device = options.device.clone();
        let mut engine = DeviceEngine::new(&model, options).unwrap();
        device.start_records();
        engine.warm_up().unwrap();
        let warm = device.stop_records();
        // Once in each layer: the kernel is loaded before there is a request.
        assert_eq!(launched(&warm).iter().filter(|(kernel, _)| *kernel == wanted).count(), layers, "{wanted}");
        assert_eq!(launched(&warm).len(), layers, "{wanted}");

        // A row that is its sequence's only one is decoding's.
        let seqs = vec![part(&[3; 37], 0, 0), part(&[5], 0, 4), part(&[7; 20], 0, 6)];
        device.start_records();
        engine.step(&StepBatch { seqs }).unwrap();
        let records = device.stop_records();
        let pairs = 37 * 38 / 2 + 20 * 21 / 2;
        assert_eq!(launched(&records), vec![(wanted, (4 * width * pairs) as u64); layers]);
        let is_decoding = |record: &&Record| matches!(&record.kind, Kind::Launch { kernel, .. } if kernel.starts_with("weft_attention_decode"));
        assert_eq!(records.iter().filter(is_decoding).count(), layers, "{wanted}");
    }
}

/// Steps of two tokens of a sequence or more, alone and beside others.
#[test]
fn a_prompt_on_tensor_cores_has_the_same_bits_however_it_is_cut() {
    let mut model = tiny("tiny");
    model.config.context_length = 512;
    let tokens: Vec<u32> = (0..150).map(|at| (at * 37 + at / 7) % 256).collect();
    for kv in [KvFormat::Precision, KvFormat::Fp8] {
        let options = DeviceOptions { rows_max: 256, logits_rows_max: 256, ..in_bf16(kv, false) };
        let mut engine = DeviceEngine::new(&model, options).unwrap();
        let mut logits = |cuts: &[usize], beside: usize| {
            let (mut all, mut at) = (Vec::new(), 0);
            for cut in cuts {
                let mut seqs = vec![part(&tokens[at..at + cut], at, 30)];
                seqs.extend((0..beside).map(|other| part(&[9; 21], 0, 10 * other as u32)));
                all.extend(engine.step(&StepBatch { seqs }).unwrap().seqs.remove(0).logits);
                at += cut;
            }
            all
        };
        let whole = logits(&[150], 0);
        assert!(whole.iter().all(|logit| logit.is_finite()));
        assert_eq!(logits(&[2, 70, 78], 0), whole, "{kv:?}");
        assert_eq!(logits(&[33, 64, 53], 2), whole, "{kv:?}");
    }
}
