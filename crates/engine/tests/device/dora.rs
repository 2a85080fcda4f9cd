//! DoRA on the device, against the processor's engine.

use super::rounded::Rounding;
use super::*;
use weft_engine::{Dtype, StepOutput};

/// Prompts of DoRA, plain adapters and the base, in one step; `install` puts an adapter into the engine that the batch is for.
fn mixed(mut install: impl FnMut(&Case) -> Option<SlotId>) -> StepBatch {
    let golden = golden();
    let names = ["dora", "rank8", "base/tiny/long", "dora_patterns", "rank64", "dora_f16"];
    let seq = |(at, name): (usize, &str)| {
        let case = golden.case(name);
        prefill(&case.prompt, install(case), at as u32 * 4, LogitsWanted::All)
    };
    StepBatch { seqs: names.into_iter().enumerate().map(seq).collect() }
}

fn logits(output: StepOutput) -> Vec<Vec<f32>> {
    output.seqs.into_iter().map(|seq| seq.logits).collect()
}

#[test]
fn a_mixed_step_gives_the_logits_of_processors() {
    let model = tiny("tiny");
    let mut processor = common::engine(&model, Dtype::F32, 128);
    let batch = mixed(|case| common::install(&mut processor, case, &model.config));
    let expected = logits(processor.step(&batch).unwrap());
    let room = DeviceOptions { rows_max: 128, logits_rows_max: 128, ..options(6) };
    let mut engine = DeviceEngine::new(&model, room).unwrap();
    let batch = mixed(|case| install(&mut engine, case, &model));
    for (at, (found, expected)) in logits(engine.step(&batch).unwrap()).iter().zip(&expected).enumerate() {
        assert!(difference(found, expected) < F32_TOLERANCE, "sequence {at}: off by {}", difference(found, expected));
    }
}

/// Factors follow from the weights that the device has: rounded ones.
#[test]
fn factors_are_those_of_codes() {
    let codes = Some(rounded::Codes::Int8(Some(32)));
    let rounding = Rounding { in_bf16: false, kv_in_e4m3: false, weights: [codes; 2], inputs: [codes; 2] };
    let model = tiny("tiny");
    for name in ["dora", "dora_patterns"] {
        let golden = golden();
        let case = golden.case(name);
        let mut engine =
            DeviceEngine::new(&model, DeviceOptions { weights: WeightFormat::Int8, ..options(1) }).unwrap();
        let batch = |slot| StepBatch { seqs: vec![prefill(&case.prompt, slot, 2, LogitsWanted::All)] };
        let slot = install(&mut engine, case, &model);
        let found = engine.step(&batch(slot)).unwrap().seqs.remove(0).logits;
        let mut reference = rounded::engine(&model, rounding, 16);
        let slot = common::install(&mut reference, case, &model.config);
        let expected = reference.step(&batch(slot)).unwrap().seqs.remove(0).logits;
        let error = relative_error(&found, &expected);
        assert!(error < 3e-3, "{name}: {error}");
    }
}

/// One graph serves any DoRA adapters, beside plain ones and the base; a batch without any has no launch for them.
#[test]
fn graphs_give_the_bits_of_launches_whichever_adapters_have_magnitudes() {
    let golden = golden();
    let model = tiny("tiny");
    for (precision, adapters) in
        [(Precision::F32, Format::F32), (Precision::Bf16, Format::Bf16), (Precision::Bf16, Format::Int8)]
    {
        let options = |graphs| DeviceOptions { precision, adapters, graphs, ..options(u64::from(graphs)) };
        let replaying = options(true);
        let device = replaying.device.clone();
        let mut with = DeviceEngine::new(&model, replaying).unwrap();
        let mut without = DeviceEngine::new(&model, options(false)).unwrap();
        let slots: Vec<[Option<SlotId>; 2]> = ["dora", "dora_patterns", "rank8", "rank64"]
            .map(|name| [&mut with, &mut without].map(|engine| install(engine, golden.case(name), &model)))
            .into_iter()
            .chain([[None, None]])
            .collect();
        for (turn, rows) in [[0, 2, 4, 1], [2, 4, 3, 4], [1, 3, 4, 2], [3, 2, 4, 4], [4, 1, 2, 0]].iter().enumerate() {
            let of = |side: usize| -> Vec<(u32, usize, Option<SlotId>)> {
                rows.iter().map(|&slot| ((slot * 31 + turn * 7) as u32, 0, slots[slot][side])).collect()
            };
            let launched = decode(&mut without, &of(1));
            assert_eq!(decode(&mut with, &of(0)), launched, "turn {turn}");
            device.start_records();
            assert_eq!(decode(&mut with, &of(0)), launched, "turn {turn} again");
            let scales = |record: &&Record| matches!(&record.kind, Kind::Launch { kernel, .. } if kernel.starts_with("weft_scale_columns"));
            let has_dora = rows.iter().any(|&slot| slot < 2);
            let launches = if has_dora { 4 * model.config.layers } else { 0 };
            assert_eq!(device.stop_records().iter().filter(scales).count(), launches, "turn {turn}");
        }
        // Single rows of adapters, with DoRA and without.
        assert_eq!(with.graphs(), 2);
    }
}

/// Magnitudes change what an adapter does, and the factors are part of what it takes.
#[test]
fn magnitudes_are_not_left_out() {
    let (golden, model) = (golden(), tiny("tiny"));
    let case = golden.case("dora");
    let mut engine = DeviceEngine::new(&model, options(9)).unwrap();
    let plain = engine.preparer().prepare(&common::without_dora(case, &model.config)).unwrap();
    let folder = golden_dir().join(case.adapter.as_ref().unwrap());
    let dora = engine.preparer().prepare(&blob(&folder, &model.config)).unwrap();
    assert!(dora.matrix_bytes() > plain.matrix_bytes());
    let [plain, dora] = [plain, dora].map(|adapter| super::put(&mut engine, adapter));
    let rows = decode(&mut engine, &[(7, 0, Some(plain)), (7, 0, Some(dora))]);
    assert!(difference(&rows[0], &rows[1]) > 1e-2);

    let engine = DeviceEngine::without_meaning(&model.config, options(2)).unwrap();
    let error = engine.preparer().prepare(&blob(&folder, &model.config)).err().unwrap().to_string();
    assert!(error.contains("weights of the base"), "{error}");
}
