//! Keys and values in e4m3.

use super::rounded::Rounding;
use super::*;

fn in_bf16(kv: KvFormat, seed: u64) -> DeviceOptions {
    DeviceOptions { precision: Precision::Bf16, adapters: Format::Bf16, kv, ..options(seed) }
}

/// Of the same engine with numbers rounded alike, added up in another order: rarely, one lies between two codes and goes to the other.
const SAME_ROUNDING: f64 = 0.03;
/// Of pages in bf16. Each key and value is off by a sixteenth at most, which is much for models as small, and with logits as far apart, as these.
const LOOSE: f64 = 0.2;

#[test]
fn pages_of_half_the_bytes_give_the_logits_of_keys_and_values_with_three_bits() {
    let expected = ExpectedLogits::load();
    for name in ["base/tiny/long", "base/tiny-llama3/long", "base/tiny-untied/long", "rank16", "mlp_only"] {
        let golden = golden();
        let case = golden.case(name);
        let model = tiny(&case.model);
        let mut bytes = Vec::new();
        let [bf16, e4m3] = [KvFormat::Precision, KvFormat::Fp8].map(|kv| {
            let mut engine = DeviceEngine::new(&model, in_bf16(kv, 1)).unwrap();
            bytes.push(engine.pool_bytes());
            let slot = install(&mut engine, case, &model);
            let batch = StepBatch { seqs: vec![prefill(&case.prompt, slot, 2, LogitsWanted::All)] };
            engine.step(&batch).unwrap().seqs.remove(0).logits
        });
        // Rows of a page are filled up to 16 bytes: 24 features of one byte take 32.
        let each = |bytes: usize| (model.config.head_dim * bytes).next_multiple_of(16) as u64;
        assert_eq!(bytes[0] * each(1), bytes[1] * each(2));

        let mut reference = rounded::engine(&model, Rounding { kv_in_e4m3: true, ..Rounding::BF16 }, 16);
        let slot = common::install(&mut reference, case, &model.config);
        let batch = StepBatch { seqs: vec![prefill(&case.prompt, slot, 2, LogitsWanted::All)] };
        let reference = reference.step(&batch).unwrap().seqs.remove(0).logits;
        let [same, from_bf16, from_f32] =
            [&reference, &bf16, &expected.of(case)].map(|expected| relative_error(&e4m3, expected));
        println!("{name}: {same:.4} from the same rounding, {from_bf16:.4} from bf16, {from_f32:.4} from f32");
        assert!(same < SAME_ROUNDING, "{name}: {same} from the same rounding");
        assert!(from_bf16 < LOOSE && from_f32 < LOOSE, "{name}: {from_bf16} from bf16, {from_f32} from f32");
        assert!(3.0 * same < from_bf16, "{name}: {same} from the same rounding, {from_bf16} without");
    }
}

/// Prompts cut anywhere, blocks that others had before, and the scale of values where several splits are added up.
#[test]
fn a_context_has_the_same_bits_however_it_came_into_its_blocks() {
    let mut model = tiny("tiny");
    model.config.context_length = 1024;
    let tokens: Vec<u32> = (0..271).map(|at| (at * 37 + at / 7) % 256).collect();
    // Of the last token: alone in its step, behind so many others that it has two splits.
    let chunks = |blocks: &[u32], chunk: usize| -> Vec<StepBatch> {
        let seq = |start: usize| SeqStep {
            tokens: tokens[start..tokens.len().min(start + chunk)].to_vec(),
            start,
            blocks: blocks.to_vec(),
            slot: None,
            logits: LogitsWanted::Last,
            draw: None,
        };
        (0..tokens.len()).step_by(chunk).map(|start| StepBatch { seqs: vec![seq(start)] }).collect()
    };
    let in_order: Vec<u32> = (0..17).collect();
    let reversed: Vec<u32> = (10..27).rev().collect();
    let mut engine = DeviceEngine::new(&model, in_bf16(KvFormat::Fp8, 2)).unwrap();
    let mut last = |blocks: &[u32], chunk: usize| {
        let mut logits = Vec::new();
        for batch in chunks(blocks, chunk) {
            logits = engine.step(&batch).unwrap().seqs.remove(0).logits;
        }
        logits
    };
    let first = last(&in_order, 90);
    // Blocks that the first sequence had serve the second, in another order and from other chunks.
    assert_eq!(last(&reversed, 54), first);

    let mut reference = rounded::engine(&model, Rounding { kv_in_e4m3: true, ..Rounding::BF16 }, 32);
    let mut expected = Vec::new();
    for batch in chunks(&in_order, 90) {
        expected = reference.step(&batch).unwrap().seqs.remove(0).logits;
    }
    let error = relative_error(&first, &expected);
    println!("after {} tokens: {error:.4} from the same rounding", tokens.len());
    // Of one row. Tensor cores round weights of values besides, which the reference does not.
    assert!(error < 2.0 * SAME_ROUNDING, "{error}");
}

#[test]
fn graphs_give_the_bits_of_launches() {
    let golden = golden();
    let model = tiny("tiny");
    let mut sides = [true, false].map(|graphs| {
        let mut engine = DeviceEngine::new(&model, DeviceOptions { graphs, ..in_bf16(KvFormat::Fp8, 5) }).unwrap();
        let slot = install(&mut engine, golden.case("rank16"), &model);
        (engine, slot)
    });
    for turn in 0..4 {
        let [replayed, launched] = &mut sides;
        let [replayed, launched] = [replayed, launched]
            .map(|(engine, slot)| decode(engine, &[(3 + turn as u32, turn, None), (9, turn, *slot), (11, turn, None)]));
        assert_eq!(replayed, launched, "turn {turn}");
    }
    assert!(sides[0].0.graphs() > 0 && sides[1].0.graphs() == 0);
}
