//! Adapters without blocks: they run from pinned memory, layer by layer.

use super::*;
use weft_cuda_device::driver::Direction;
use weft_engine::device::block_bytes;
use weft_kernels::conformance::Random;

const STREAM_BYTES: usize = 1 << 20;
const NAMES: [&str; 4] = ["rank64", "all_linear", "rank4", "dora"];

fn engine_on(device: Device, options: DeviceOptions) -> DeviceEngine {
    let options = DeviceOptions { device, stream_bytes: STREAM_BYTES, ..options };
    DeviceEngine::new(&tiny("tiny"), options).unwrap()
}

fn engine(seed: u64) -> DeviceEngine {
    engine_on(device(seed), options(seed))
}

fn prepared(engine: &DeviceEngine, name: &str) -> PreparedAdapter {
    let folder = golden_dir().join(golden().case(name).adapter.as_ref().unwrap());
    engine.preparer().prepare(&blob(&folder, &tiny("tiny").config)).unwrap()
}

/// The case's prompt in blocks of its own.
fn prompt(name: &str, at: usize, slot: Option<SlotId>, logits: LogitsWanted) -> SeqStep {
    let tokens = golden().case(name).prompt.clone();
    let first = 16 * at as u32;
    let blocks = (first..first + tokens.len().div_ceil(BLOCK_SIZE) as u32).collect();
    SeqStep { tokens, start: 0, blocks, slot, logits, draw: None }
}

/// The bits of prompts of all adapters together and of tokens behind them, twice.
fn bits(engine: &mut DeviceEngine, slots: [SlotId; 4]) -> Vec<Vec<f32>> {
    let seqs = NAMES.iter().zip(slots).enumerate();
    let seqs = seqs.map(|(at, (name, slot))| prompt(name, at, Some(slot), LogitsWanted::All)).collect();
    let mut found: Vec<Vec<f32>> =
        engine.step(&StepBatch { seqs }).unwrap().seqs.into_iter().map(|seq| seq.logits).collect();
    for token in 1..3 {
        let next = |(at, (name, slot)): (usize, (&&str, SlotId))| {
            let mut seq = prompt(name, at, Some(slot), LogitsWanted::Last);
            seq.start = seq.tokens.len() + token as usize - 1;
            seq.tokens = vec![token];
            seq.blocks = (16 * at as u32..16 * at as u32 + 16).collect();
            seq
        };
        let output = engine.step(&StepBatch { seqs: NAMES.iter().zip(slots).enumerate().map(next).collect() }).unwrap();
        for (seq, slot) in output.seqs.iter().zip(slots) {
            assert_eq!(seq.adapter, engine.slot_digest(slot), "the answer says whose matrices it went through");
        }
        found.extend(output.seqs.into_iter().map(|seq| seq.logits));
    }
    found
}

#[test]
fn a_row_has_the_bits_that_it_has_with_its_adapter_in_blocks() {
    let (golden, expected) = (golden(), ExpectedLogits::load());
    for seed in 0..6 {
        let mut engine = engine(seed);
        let prepared = NAMES.map(|name| prepared(&engine, name));
        let streamed = prepared.clone().map(|adapter| engine.stream(adapter).expect("there is room"));
        let found = bits(&mut engine, streamed);
        for (name, found) in NAMES.iter().zip(&found) {
            let worst = difference(found, &expected.of(golden.case(name)));
            assert!(worst < F32_TOLERANCE, "{name}, seed {seed}: off by {worst}");
        }
        // Two get blocks, two stay as they are.
        let [first, second] = [0, 1].map(|at| put(&mut engine, prepared[at].clone()));
        assert!(found == bits(&mut engine, [first, second, streamed[2], streamed[3]]), "seed {seed}");
        for slot in streamed {
            assert!(engine.remove(slot).is_some());
        }
        let [third, fourth] = [2, 3].map(|at| put(&mut engine, prepared[at].clone()));
        assert!(found == bits(&mut engine, [first, second, third, fourth]), "seed {seed}");
    }
}

#[test]
fn steps_with_streamed_adapters_are_launched_and_copy_each_layer_once() {
    let device = device(1);
    let mut engine = engine_on(device.clone(), options(1));
    let adapter = prepared(&engine, "all_linear");
    let (bytes, slot) = (adapter.matrix_bytes(), engine.stream(adapter.clone()).unwrap());
    let uploaded = |engine: &mut DeviceEngine, slot| {
        device.start_records();
        decode(engine, &[(5, 0, Some(slot)), (7, 0, Some(slot)), (9, 0, None)]);
        let records = device.stop_records();
        let layers = records.iter().filter(|record| record.stream == "layers");
        let copies = layers.filter(|record| record.kind == Kind::Copy(Direction::Upload));
        let sizes: Vec<u64> = copies.map(|record| record.counts.written_bytes).collect();
        (sizes, records.iter().any(|record| record.in_graph))
    };
    for _ in 0..3 {
        let (sizes, replayed) = uploaded(&mut engine, slot);
        assert_eq!(sizes.len(), 3, "one for each layer");
        let total: u64 = sizes.iter().sum();
        assert!(total <= bytes && bytes < total + 64, "{total} of {bytes}: but for gaps between layers");
        assert!(!replayed);
    }
    engine.remove(slot).unwrap();
    let slot = put(&mut engine, adapter);
    for _ in 0..2 {
        uploaded(&mut engine, slot);
    }
    assert_eq!(uploaded(&mut engine, slot), (Vec::new(), true), "in blocks its steps are replayed");
}

/// Whatever comes and goes: those that have room run, and no two have the same.
#[test]
fn adapters_have_room_within_the_bytes_of_a_step() {
    let random = &mut Random::new(3);
    let mut engine = engine(2);
    let prepared = NAMES.map(|name| prepared(&engine, name));
    let stream_bytes = prepared.iter().map(|adapter| adapter.matrix_bytes() as usize).sum::<usize>();
    engine = DeviceEngine::new(&tiny("tiny"), DeviceOptions { stream_bytes, ..options(2) }).unwrap();
    let prepared = NAMES.map(|name| self::prepared(&engine, name));
    let first = [0, 1, 2, 3].map(|which| {
        let alone = engine.stream(prepared[which].clone()).unwrap();
        let seqs = vec![prompt(NAMES[which], 0, Some(alone), LogitsWanted::Last)];
        let logits = engine.step(&StepBatch { seqs }).unwrap().seqs.remove(0).logits;
        engine.remove(alone).unwrap();
        logits
    });
    let (mut there, mut refused): (Vec<(usize, SlotId)>, usize) = (Vec::new(), 0);
    for _ in 0..400 {
        let which = random.below(NAMES.len());
        let used: u64 = there.iter().map(|(which, _)| prepared[*which].matrix_bytes()).sum();
        match engine.stream(prepared[which].clone()) {
            Some(slot) => there.push((which, slot)),
            None => {
                refused += 1;
                // Places hold twice an equal part of it, in pieces.
                let most = stream_bytes as u64 / 2;
                assert!(used + prepared[which].matrix_bytes() > most, "{used} of {stream_bytes} are in use");
            }
        }
        if there.len() > 6 || random.below(3) == 0 {
            let (_, slot) = there.swap_remove(random.below(there.len()));
            assert!(engine.remove(slot).is_some() && engine.remove(slot).is_none());
        }
    }
    assert!(refused > 20, "{refused}");
    there.truncate(6);
    let seqs = there.iter().enumerate();
    let seqs = seqs.map(|(at, &(which, slot))| prompt(NAMES[which], at, Some(slot), LogitsWanted::Last)).collect();
    for (found, (which, _)) in engine.step(&StepBatch { seqs }).unwrap().seqs.into_iter().zip(&there) {
        assert!(difference(&found.logits, &first[*which]) < F32_TOLERANCE);
    }
}

#[test]
fn without_bytes_for_it_every_adapter_needs_blocks() {
    let mut engine = DeviceEngine::new(&tiny("tiny"), options(0)).unwrap();
    let adapter = prepared(&engine, "rank4");
    assert!(engine.stream(adapter.clone()).is_none());
    put(&mut engine, adapter);
}

/// A batch that is refused leaves nothing that the next one would meet.
#[test]
fn a_refused_sequence_disturbs_no_copy() {
    let mut engine = engine(4);
    let adapter = prepared(&engine, "rank64");
    let slot = engine.stream(adapter).unwrap();
    let right = prompt("rank64", 0, Some(slot), LogitsWanted::Last);
    let wrong = SeqStep { blocks: vec![u32::MAX], ..prompt("rank64", 1, Some(slot), LogitsWanted::Last) };
    let expected = engine.step(&StepBatch { seqs: vec![right.clone()] }).unwrap().seqs.remove(0).logits;
    assert!(engine.step(&StepBatch { seqs: vec![right.clone(), wrong] }).is_err());
    assert_eq!(engine.step(&StepBatch { seqs: vec![right] }).unwrap().seqs.remove(0).logits, expected);
}

/// On the device a streamed adapter takes two of its layers, not all of them.
#[test]
fn streaming_takes_little_of_the_device() {
    let free = |stream_bytes: usize| {
        let device = device(5);
        let options = DeviceOptions { device: device.clone(), stream_bytes, ..options(5) };
        let _engine = DeviceEngine::new(&tiny("tiny"), options).unwrap();
        device.usage().free
    };
    let (layers, block) = (3, block_bytes(&tiny("tiny").config, BLOCK_SIZE, KvFormat::Precision, Precision::F32));
    let taken = free(0) - free(STREAM_BYTES);
    assert!(taken.abs_diff(4 * STREAM_BYTES / layers) < block, "{taken}");
}
