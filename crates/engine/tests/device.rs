//! The device engine over the shim: the CUDA kernels, streams, copies and graphs, run on this processor for the tiny models.

#[path = "device/attention.rs"]
mod attention;
#[path = "device/blocks.rs"]
mod blocks;
mod common;
#[path = "device/dora.rs"]
mod dora;
#[path = "device/draws.rs"]
mod draws;
#[path = "device/kv.rs"]
mod kv;
#[path = "device/rounded.rs"]
mod rounded;
#[path = "device/sharded.rs"]
mod sharded;
#[path = "device/streamed.rs"]
mod streamed;
#[path = "device/weights.rs"]
mod weights;

use common::{
    BLOCK_SIZE, Case, ExpectedLogits, base_shape, blob, difference, golden, golden_dir, greedy, prefill, tiny,
};
use weft_base_model::BaseModel;
use weft_cuda_device::record::{Kind, Record};
use weft_cuda_device::{Device, Options, shim};
use weft_engine::device::{
    DeviceEngine, DeviceOptions, Format, KvFormat, PoolBlocks, Precision, PreparedAdapter, WeightFormat,
};
use weft_engine::{LogitsWanted, Problem, SeqStep, SlotId, StepBatch};

/// As for the processor's kernels (`golden_logits.rs`).
const F32_TOLERANCE: f32 = 2e-4;

fn device(seed: u64) -> Device {
    device_of(shim::Options { seed, ..shim::Options::default() })
}

fn device_of(shim: shim::Options) -> Device {
    let driver = shim::Shim::new(&shim);
    let options = Options { pool_bytes: 64 << 20, pinned_bytes: 16 << 20, block_bytes: 256, pinned_block_bytes: 256 };
    Device::new(driver, &options).unwrap()
}

fn options(seed: u64) -> DeviceOptions {
    DeviceOptions {
        device: device(seed),
        precision: Precision::F32,
        weights: WeightFormat::Precision,
        kv: KvFormat::Precision,
        adapters: Format::F32,
        batch_invariant: false,
        blocks: PoolBlocks::Exactly(1024),
        block_size: BLOCK_SIZE,
        rows_max: 96,
        logits_rows_max: 96,
        sequences_max: 16,
        adapter_blocks_max: 512,
        stream_bytes: 0,
        rank_max: 64,
        graphs: true,
    }
}

fn install(engine: &mut DeviceEngine, case: &Case, model: &BaseModel) -> Option<SlotId> {
    let folder = golden_dir().join(case.adapter.as_ref()?);
    let prepared = engine.preparer().prepare(&blob(&folder, &model.config)).expect("the adapter fits");
    Some(put(engine, prepared))
}

/// Into the last free blocks; the first ones are for keys.
fn put(engine: &mut DeviceEngine, prepared: PreparedAdapter) -> SlotId {
    let blocks = engine.find_blocks(&prepared).expect("there is room");
    engine.install(prepared, &blocks).expect("they are free")
}

/// Root of the squares of all differences over that of all values.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let square = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x) * f64::from(x)).sum::<f64>();
    let error = square(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    (error / square(&mut expected.iter().copied())).sqrt()
}

/// The logits of one token for each sequence, each in a block of its own, after `before` in that block.
fn decode(engine: &mut DeviceEngine, seqs: &[(u32, usize, Option<SlotId>)]) -> Vec<Vec<f32>> {
    let step = |(at, &(token, start, slot)): (usize, &(u32, usize, Option<SlotId>))| SeqStep {
        tokens: vec![token],
        start,
        blocks: vec![2 * at as u32, 2 * at as u32 + 1],
        slot,
        logits: LogitsWanted::Last,
        draw: None,
    };
    let batch = StepBatch { seqs: seqs.iter().enumerate().map(step).collect() };
    let output = engine.step(&batch).unwrap();
    for (found, (.., slot)) in output.seqs.iter().zip(seqs) {
        assert_eq!(found.adapter, slot.and_then(|slot| engine.slot_digest(slot)));
    }
    output.seqs.into_iter().map(|seq| seq.logits).collect()
}

#[test]
fn every_case_gives_the_logits_of_transformers_and_peft() {
    let expected = ExpectedLogits::load();
    let mut seen = 0;
    for (seed, case) in golden().cases.iter().enumerate() {
        let model = tiny(&case.model);
        // Codes of 8 bits take turns. Those of e4m3 are off by up to a sixteenth of each value, in A and in B.
        let (codes, of_codes) = if seed % 2 == 0 { (Format::Int8, 0.05) } else { (Format::Fp8, 0.25) };
        for (precision, adapters, relative) in [
            (Precision::F32, Format::F32, 1e-5),
            (Precision::Bf16, Format::Bf16, 0.03),
            (Precision::Bf16, codes, of_codes),
        ] {
            let options = DeviceOptions { precision, adapters, ..options(seed as u64) };
            let mut engine = DeviceEngine::new(&model, options).unwrap();
            let slot = install(&mut engine, case, &model);
            let batch = StepBatch { seqs: vec![prefill(&case.prompt, slot, 2, LogitsWanted::All)] };
            let (found, expected) = (engine.step(&batch).unwrap().seqs.remove(0).logits, expected.of(case));
            let error = relative_error(&found, &expected);
            // DoRA rounds outputs once more, after a product with factors.
            let relative = if case.name.contains("dora") { 1.5 * relative } else { relative };
            assert!(error < relative, "{} in {precision:?} with {adapters:?}: relative error {error}", case.name);
            if precision == Precision::F32 {
                let worst = difference(&found, &expected);
                assert!(worst < F32_TOLERANCE, "{}: off by {worst}", case.name);
            }
        }
        seen += 1;
    }
    assert!(seen >= 25, "the fixtures shrank to {seen}");
}

#[test]
fn greedy_text_is_the_same_by_graphs_and_by_launches() {
    for case in golden().cases.iter().filter(|case| ["base", "rank4", "rank64"].contains(&case.name.as_str())) {
        let model = tiny(&case.model);
        for graphs in [true, false] {
            let mut engine = DeviceEngine::new(&model, DeviceOptions { graphs, ..options(7) }).unwrap();
            let slot = install(&mut engine, case, &model);
            let blocks: Vec<u32> = (0..(case.prompt.len() + 16).div_ceil(BLOCK_SIZE) as u32).rev().collect();
            let mut tokens = case.prompt.clone();
            let mut computed = 0;
            for _ in 0..16 {
                let seq = SeqStep {
                    tokens: tokens[computed..].to_vec(),
                    start: computed,
                    blocks: blocks.clone(),
                    slot,
                    logits: LogitsWanted::Last,
                    draw: None,
                };
                computed = tokens.len();
                tokens.push(greedy(&engine.step(&StepBatch { seqs: vec![seq] }).unwrap().seqs[0].logits));
            }
            assert_eq!(&tokens[case.prompt.len()..], &case.greedy[..16], "{} with graphs: {graphs}", case.name);
            // One for each power of two of blocks that the context came to.
            assert!(if graphs { (1..=3).contains(&engine.graphs()) } else { engine.graphs() == 0 });
        }
    }
}

#[test]
fn adapters_of_different_ranks_and_the_base_share_one_step() {
    let golden = golden();
    let expected = ExpectedLogits::load();
    for batch in &golden.batches {
        let cases: Vec<&Case> = batch.cases.iter().map(|name| golden.case(name)).collect();
        let model = tiny(&cases[0].model);
        let mut engine =
            DeviceEngine::new(&model, DeviceOptions { rows_max: 512, logits_rows_max: 512, ..options(3) }).unwrap();
        let mut step = StepBatch::default();
        for (index, case) in cases.iter().enumerate().take(16) {
            let slot = install(&mut engine, case, &model);
            step.seqs.push(prefill(&case.prompt, slot, index as u32 * 4, LogitsWanted::All));
        }
        for (case, out) in cases.iter().zip(engine.step(&step).unwrap().seqs) {
            let worst = difference(&out.logits, &expected.of(case));
            assert!(worst < F32_TOLERANCE, "{} of {}: off by {worst}", case.name, batch.name);
        }
    }
}

/// In bf16 several rows of one adapter are the tensor cores', and no rank that the engine takes keeps a step from being a graph.
#[test]
fn graphs_give_the_bits_of_launches_in_every_format() {
    let golden = golden();
    let model = tiny("tiny");
    let formats =
        [(Format::Bf16, false, 768), (Format::Bf16, true, 64), (Format::Int8, false, 512), (Format::Fp8, false, 600)];
    for (adapters, batch_invariant, rank_max) in formats {
        let options = |graphs| DeviceOptions {
            precision: Precision::Bf16,
            adapters,
            batch_invariant,
            rank_max,
            graphs,
            ..options(u64::from(graphs))
        };
        let mut sides = [true, false].map(|graphs| DeviceEngine::new(&model, options(graphs)).unwrap());
        let slots = ["rank16", "rank64"].map(|name| {
            let [with, without] = &mut sides;
            [with, without].map(|engine| install(engine, golden.case(name), &model))
        });
        for (turn, rows) in
            [[0, 0, 0, 0], [0, 0, 0, 1], [0, 1, 2, 2], [1, 1, 1, 1], [0, 0, 0, 0]].into_iter().enumerate()
        {
            let of = |side: usize| -> Vec<(u32, usize, Option<SlotId>)> {
                let slot = |which: usize| slots.get(which).and_then(|slot| slot[side]);
                (0..4).map(|row| (row as u32 + 7 * turn as u32, turn, slot(rows[row]))).collect()
            };
            let [with, without] = &mut sides;
            assert_eq!(
                decode(with, &of(0)),
                decode(without, &of(1)),
                "{adapters:?} with ranks up to {rank_max}, turn {turn}"
            );
        }
        assert!(sides[0].graphs() >= 2, "{adapters:?}: {} graphs", sides[0].graphs());
    }
}

/// Three rows are replayed as four, unless there is room for three rows of logits alone.
#[test]
fn padding_takes_no_more_logits_than_there_is_room_for() {
    let model = tiny("tiny");
    let seqs = [(1, 0, None), (2, 0, None), (3, 0, None)];
    let [three, four] = [3, 4].map(|logits_rows_max| {
        let mut engine = DeviceEngine::new(&model, DeviceOptions { logits_rows_max, ..options(4) }).unwrap();
        // The first is launched and captured, the second replayed.
        let (launched, replayed) = (decode(&mut engine, &seqs), decode(&mut engine, &seqs));
        assert_eq!((engine.graphs(), &launched), (1, &replayed));
        launched
    });
    assert_eq!(three, four);
}

/// The first decoding step with an adapter is a replay: its graph was made before any adapter came.
#[test]
fn a_warm_engine_replays_the_first_steps_of_adapters() {
    let golden = golden();
    let model = tiny("tiny");
    for (precision, adapters) in [(Precision::F32, Format::F32), (Precision::Bf16, Format::Int8)] {
        let device = device(3);
        let options = DeviceOptions { device: device.clone(), precision, adapters, sequences_max: 4, ..options(3) };
        let mut engine = DeviceEngine::new(&model, options).unwrap();
        engine.warm_up().unwrap();
        let made = engine.graphs();
        let slots = ["rank4", "rank64"].map(|name| install(&mut engine, golden.case(name), &model));
        // Until their copies are over.
        decode(&mut engine, &[(5, 0, slots[0]), (6, 0, slots[1])]);
        for seqs in [
            vec![(7, 0, slots[0])],
            vec![(7, 0, slots[0]), (8, 0, slots[1]), (9, 0, None)],
            // Four rows of one.
            vec![(7, 0, slots[1]); 4],
        ] {
            device.start_records();
            decode(&mut engine, &seqs);
            let replays = device.stop_records().iter().filter(|record| record.kind == Kind::Replay).count();
            assert_eq!(replays, 1, "{} sequences in {precision:?}", seqs.len());
        }
        assert_eq!(engine.graphs(), made);
    }
}

/// What is on its way when it is not wanted any more harms nobody.
#[test]
fn adapters_and_engines_may_go_while_they_are_copied() {
    let golden = golden();
    let expected = ExpectedLogits::load();
    let case = golden.case("all_linear");
    let model = tiny(&case.model);
    for seed in 0..6 {
        let device = device(seed);
        for _ in 0..3 {
            let mut engine =
                DeviceEngine::new(&model, DeviceOptions { device: device.clone(), ..options(seed) }).unwrap();
            // Never used, and gone at once: its pinned memory is the next one's.
            for _ in 0..3 {
                let slot = install(&mut engine, golden.case("rank64"), &model).unwrap();
                drop(engine.remove(slot).unwrap());
            }
            let slots = [install(&mut engine, golden.case("rank8"), &model), install(&mut engine, case, &model)];
            let batch = StepBatch {
                seqs: vec![
                    prefill(&case.prompt, slots[1], 2, LogitsWanted::All),
                    prefill(&case.prompt, slots[0], 20, LogitsWanted::Last),
                    prefill(&case.prompt, None, 40, LogitsWanted::None),
                ],
            };
            let found = engine.step(&batch).unwrap().seqs.remove(0).logits;
            assert!(difference(&found, &expected.of(case)) < F32_TOLERANCE, "seed {seed}");
            install(&mut engine, golden.case("rank16"), &model);
            drop(engine);
        }
    }
}

/// Adapters come and go, ranks differ, batches grow and shrink: the same few graphs serve all of it, with the bits of single launches.
#[test]
fn graphs_outlive_the_adapters_that_they_were_captured_with() {
    let golden = golden();
    let model = tiny("tiny");
    let mut with = DeviceEngine::new(&model, options(1)).unwrap();
    let mut without = DeviceEngine::new(&model, DeviceOptions { graphs: false, ..options(2) }).unwrap();
    let names = ["rank4", "rank8", "rank16", "rank64", "all_linear", "mlp_only"];
    let mut slots: Vec<[Option<SlotId>; 2]> = vec![[None, None]];
    for name in names {
        slots.push([&mut with, &mut without].map(|engine| install(engine, golden.case(name), &model)));
    }
    for (turn, rows) in [1, 3, 7, 4, 8, 2, 5, 8].into_iter().enumerate() {
        if turn == 4 {
            // Another adapter where one was.
            for (side, engine) in [&mut with, &mut without].into_iter().enumerate() {
                engine.remove(slots[4][side].unwrap()).unwrap();
                slots[4][side] = install(engine, golden.case("patterns"), &model);
            }
        }
        let of = |side: usize| -> Vec<(u32, usize, Option<SlotId>)> {
            (0..rows)
                .map(|row| ((row * 31 + turn * 7) as u32 % 256, turn, slots[(row + turn) % slots.len()][side]))
                .collect()
        };
        let (graph, single) = (decode(&mut with, &of(0)), decode(&mut without, &of(1)));
        assert_eq!(graph, single, "turn {turn}, {rows} rows");
    }
    // Steps of one token of the base, and of adapters in 1, 2, 4 and 8 rows at most, by one of two kernels.
    assert!(with.graphs() <= 9, "{} graphs", with.graphs());
    assert_eq!(without.graphs(), 0);
}

#[test]
fn a_step_may_begin_while_its_adapter_is_on_its_way() {
    let golden = golden();
    let expected = ExpectedLogits::load();
    let case = golden.case("all_linear");
    let model = tiny(&case.model);
    for seed in 0..12 {
        let mut engine = DeviceEngine::new(&model, options(seed)).unwrap();
        for _ in 0..3 {
            let slot = install(&mut engine, case, &model);
            let batch = StepBatch { seqs: vec![prefill(&case.prompt, slot, 2, LogitsWanted::All)] };
            let found = engine.step(&batch).unwrap().seqs.remove(0).logits;
            assert!(difference(&found, &expected.of(case)) < F32_TOLERANCE, "seed {seed}");
            engine.remove(slot.unwrap()).unwrap();
        }
    }
}

/// What a step enqueues does not grow with the number of adapters or with their ranks.
#[test]
fn launches_of_a_step_are_counted() {
    let golden = golden();
    let model = tiny("tiny");
    let device_options = options(5);
    let device = device_options.device.clone();
    let mut engine = DeviceEngine::new(&model, device_options).unwrap();
    let slots: Vec<_> =
        ["rank4", "rank64", "all_linear"].map(|name| install(&mut engine, golden.case(name), &model)).to_vec();
    let records = |engine: &mut DeviceEngine, slots: &[Option<SlotId>]| -> Vec<Record> {
        let seqs: Vec<_> = slots.iter().map(|&slot| (5, 0, slot)).collect();
        // The first captures.
        decode(engine, &seqs);
        device.start_records();
        decode(engine, &seqs);
        device.stop_records()
    };
    let count = |records: &[Record], wanted: &dyn Fn(&Kind) -> bool| records.iter().filter(|r| wanted(&r.kind)).count();
    let lora = |kind: &Kind| matches!(kind, Kind::Launch { kernel, .. } if kernel.starts_with("weft_lora"));
    let (layers, sites) = (model.config.layers, 4);
    let base = records(&mut engine, &[None; 4]);
    let several = records(&mut engine, &[slots[0], slots[1], slots[2], None]);
    let one = records(&mut engine, &[slots[0], None, None, None]);
    for (records, adapters) in [(&base, 0), (&several, layers * sites), (&one, layers * sites)] {
        assert_eq!(count(records, &|kind| matches!(kind, Kind::Replay)), 1);
        assert_eq!(count(records, &lora), adapters);
        assert_eq!(count(records, &|kind| matches!(kind, Kind::Matmul { .. })), layers * sites + 1);
        // Tables in, logits out: nothing else of a decoding step is a call of the host.
        assert_eq!(records.iter().filter(|record| !record.in_graph).count(), 3);
    }
    let weights: u64 = base
        .iter()
        .filter_map(|record| match record.kind {
            Kind::Matmul { inputs, outputs, .. } => Some((inputs * outputs * size_of::<f32>()) as u64),
            _ => None,
        })
        .sum();
    assert_eq!(weights, engine.weight_bytes(), "each weight once");
}

#[test]
fn what_cannot_be_computed_is_refused_and_nothing_is_lost() {
    let golden = golden();
    let model = tiny("tiny");
    let mut engine =
        DeviceEngine::new(&model, DeviceOptions { blocks: PoolBlocks::Exactly(64), ..options(0) }).unwrap();
    let shape = base_shape(&model.config);
    assert_eq!(shape.layers, model.config.layers);
    let refused = |engine: &mut DeviceEngine, seqs: Vec<SeqStep>| engine.step(&StepBatch { seqs }).unwrap_err();
    let error = refused(&mut engine, vec![prefill(&[1; 97], None, 0, LogitsWanted::Last)]);
    assert_eq!(error.to_string(), "the batch has 97 rows, the engine was made for 96");
    let error = refused(&mut engine, vec![prefill(&[1, 260], None, 0, LogitsWanted::Last)]);
    assert!(matches!(error, weft_engine::Error::Sequence { sequence: 0, problem: Problem::Token { token: 260, .. } }));

    let says = |options| DeviceEngine::new(&model, options).err().unwrap().to_string();
    let odd = says(DeviceOptions { precision: Precision::Bf16, adapters: Format::F32, ..options(0) });
    assert!(odd.starts_with("adapters is "), "{odd}");
    assert!(says(DeviceOptions { kv: KvFormat::Fp8, ..options(0) }).starts_with("kv is "), "f32 with pages in e4m3");
    assert_eq!(says(DeviceOptions { rank_max: 769, ..options(0) }), "rank_max is 769, allowed is 1 to 768");
    assert_eq!(says(DeviceOptions { rows_max: 65_536, ..options(0) }), "rows_max is 65536, allowed is 1 to 65535");
    assert_eq!(
        says(DeviceOptions { logits_rows_max: 97, ..options(0) }),
        "logits_rows_max is 97, allowed is 1 to rows_max"
    );

    // Ranks beyond the engine's are named.
    let prepare = |engine: &DeviceEngine, name: &str| {
        let folder = golden_dir().join(golden.case(name).adapter.as_ref().unwrap());
        engine.preparer().prepare(&blob(&folder, &model.config))
    };
    let small = DeviceEngine::new(&model, DeviceOptions { rank_max: 8, ..options(0) }).unwrap();
    let error = prepare(&small, "rank16").err().unwrap().to_string();
    assert!(error.contains("rank is 16, the device takes up to 8"), "{error}");

    // Blocks fill up, and what was removed leaves its own.
    let prepared = prepare(&engine, "rank16").unwrap();
    let each: usize = prepared.runs().iter().sum();
    let mut slots = Vec::new();
    while let Some(blocks) = engine.find_blocks(&prepared) {
        assert_eq!(blocks.len(), each);
        slots.push((engine.install(prepared.clone(), &blocks).unwrap(), blocks));
    }
    assert!(slots.len() > 1 && slots.len() >= 64 / each - 1, "{} of {each} blocks", slots.len());
    let mut given: Vec<u32> = slots.iter().flat_map(|(_, blocks)| blocks.clone()).collect();
    given.sort_unstable();
    given.dedup();
    assert_eq!(given.len(), slots.len() * each, "no block has two adapters");
    let (first, blocks) = slots[0].clone();
    engine.remove(first).unwrap();
    // Other blocks than it needs are told, and change nothing.
    let taken = slots[1].1[0];
    let mut wrong = |blocks: &[u32], why: &str| {
        let error = engine.install(prepared.clone(), blocks).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    wrong(&blocks[1..], &format!("they are {}, not {each}", each - 1));
    wrong(&[&blocks[1..], &[64]].concat(), "block 64 is beyond the pool of 64");
    wrong(&[&blocks[1..], &[taken]].concat(), &format!("block {taken} has an adapter"));
    wrong(&[&blocks[1..], &[blocks[1]]].concat(), &format!("block {} comes twice", blocks[1]));
    let slot = engine.install(prepared.clone(), &blocks).unwrap();
    assert_eq!(engine.slot_digest(slot), Some(prepared.digest()));
    assert!(engine.slot_digest(first).is_none(), "an id is never valid again");
    // Nor do keys get where an adapter is.
    let seq = SeqStep { blocks: vec![taken], ..prefill(&[1], None, 0, LogitsWanted::Last) };
    let error = refused(&mut engine, vec![seq]);
    assert!(
        matches!(error, weft_engine::Error::Sequence { problem: Problem::BlockTaken { block }, .. } if block == taken)
    );
    let stale = refused(&mut engine, vec![prefill(&[1], Some(first), 0, LogitsWanted::Last)]);
    assert!(matches!(stale, weft_engine::Error::Sequence { problem: Problem::Slot { .. }, .. }), "{stale}");

    // A device that is too small says so before anything runs.
    let tiny_device = {
        let driver = shim::Shim::new(&shim::Options::default());
        Device::new(
            driver,
            &Options { pool_bytes: 1 << 20, pinned_bytes: 8 << 20, block_bytes: 256, pinned_block_bytes: 256 },
        )
        .unwrap()
    };
    let error = DeviceEngine::new(&model, DeviceOptions { device: tiny_device, ..options(0) }).err().unwrap();
    assert_eq!(error.kind(), weft_fault::Kind::Unavailable, "{error}");
}
