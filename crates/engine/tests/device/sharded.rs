//! One engine over several shims, against the engine on one.

use super::*;
use safetensors::tensor::{Dtype, TensorView};
use std::sync::Arc;
use std::time::{Duration, Instant};
use weft_cuda_device::Group;
use weft_cuda_device::shim::{Options as ShimOptions, Shim, ranks};
use weft_cuda_kernels::model::{Model, Site};
use weft_engine::device::{ShardedAdapter, ShardedEngine};
use weft_engine::sampling::{Sampler, SamplingParams};
use weft_engine::{Error, StepOutput};
use weft_kernels::conformance::Random;

/// How long a rank waits for another one. Nothing here takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Each rank's device, in an order of its own.
fn groups(count: usize, shim: impl Fn(usize) -> (ShimOptions, Options)) -> Vec<Group> {
    let (shims, sizes): (Vec<Arc<Shim>>, Vec<Options>) = (0..count)
        .map(|rank| {
            let (shim, sizes) = shim(rank);
            (Shim::new(&shim), sizes)
        })
        .unzip();
    let devices = shims.iter().zip(&sizes).map(|(shim, sizes)| Device::new(Arc::clone(shim) as _, sizes).unwrap());
    devices.zip(ranks(&shims, PATIENCE)).map(|(device, rank)| Group::new(&device, rank)).collect()
}

const SIZES: Options =
    Options { pool_bytes: 24 << 20, pinned_bytes: 4 << 20, block_bytes: 256, pinned_block_bytes: 256 };

fn shims(count: usize, seed: u64, capability: (i32, i32)) -> Vec<Group> {
    let shim = |rank: usize| ShimOptions { seed: 31 * seed + rank as u64, capability, ..ShimOptions::default() };
    groups(count, |rank| (shim(rank), SIZES))
}

fn sharded(model: &BaseModel, count: usize, options: &DeviceOptions) -> ShardedEngine {
    let capability = options.device.properties().capability;
    ShardedEngine::new(model, options, shims(count, 7, capability)).unwrap()
}

/// Either engine, for steps that are the same for both.
enum Side {
    One(Box<DeviceEngine>),
    Several(Box<ShardedEngine>),
}

impl Side {
    fn install(&mut self, blob: &[u8]) -> SlotId {
        match self {
            Self::One(engine) => {
                let prepared = engine.preparer().prepare(blob).unwrap();
                super::put(engine, prepared)
            }
            Self::Several(engine) => {
                let prepared = engine.preparer().prepare(blob).unwrap();
                put(engine, &prepared)
            }
        }
    }

    fn step(&mut self, batch: &StepBatch) -> StepOutput {
        match self {
            Self::One(engine) => engine.step(batch).unwrap(),
            Self::Several(engine) => engine.step(batch).unwrap(),
        }
    }

    fn logits(&mut self, batch: &StepBatch) -> Vec<f32> {
        self.step(batch).seqs.into_iter().flat_map(|seq| seq.logits).collect()
    }
}

/// Into the last free blocks.
fn put(engine: &mut ShardedEngine, adapter: &ShardedAdapter) -> SlotId {
    let blocks = engine.find_blocks(adapter).expect("there is room");
    engine.install(adapter, &blocks).expect("they are free")
}

fn golden_blob(name: &str, model: &BaseModel) -> Vec<u8> {
    blob(&golden_dir().join(golden().case(name).adapter.as_ref().unwrap()), &model.config)
}

/// Layers, heads of queries and of keys, inputs and outputs: whatever 4 ranks can share, in groups of 32 inputs. Drawn at random.
fn wide() -> (tempfile::TempDir, BaseModel) {
    let (from, folder) = (golden_dir().join("tiny"), tempfile::tempdir().unwrap());
    let mut config = std::fs::read_to_string(from.join("config.json")).unwrap();
    for (was, is) in [
        ("\"intermediate_size\": 96", "\"intermediate_size\": 256"),
        ("\"num_attention_heads\": 4", "\"num_attention_heads\": 8"),
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4"),
        ("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 2"),
    ] {
        assert!(config.contains(was), "{was}");
        config = config.replace(was, is);
    }
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    for entry in std::fs::read_dir(&from).unwrap().flatten() {
        let name = entry.file_name();
        if name != "config.json" && name != "model.safetensors" {
            std::fs::copy(entry.path(), folder.path().join(name)).unwrap();
        }
    }
    let mut shapes =
        vec![("model.embed_tokens.weight".to_owned(), vec![260, 64]), ("model.norm.weight".to_owned(), vec![64])];
    for layer in 0..2 {
        let of_layer = [
            ("input_layernorm", vec![64]),
            ("post_attention_layernorm", vec![64]),
            ("self_attn.q_proj", vec![128, 64]),
            ("self_attn.k_proj", vec![64, 64]),
            ("self_attn.v_proj", vec![64, 64]),
            ("self_attn.o_proj", vec![64, 128]),
            ("mlp.gate_proj", vec![256, 64]),
            ("mlp.up_proj", vec![256, 64]),
            ("mlp.down_proj", vec![64, 256]),
        ];
        shapes.extend(of_layer.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    let mut random = Random::new(17);
    let value = |random: &mut Random, shape: &[usize]| match shape {
        [_, inputs] => random.normal() * 1.5 / (*inputs as f32).sqrt(),
        _ => 1.0 + 0.1 * random.normal(),
    };
    write(&folder.path().join("model.safetensors"), &shapes, |shape| value(&mut random, shape));
    let model = common::open(folder.path());
    (folder, model)
}

fn write(path: &std::path::Path, shapes: &[(String, Vec<usize>)], value: impl FnMut(&[usize]) -> f32) {
    std::fs::write(path, serialized(shapes, value)).unwrap();
}

fn serialized(shapes: &[(String, Vec<usize>)], mut value: impl FnMut(&[usize]) -> f32) -> Vec<u8> {
    let tensors: Vec<_> = shapes
        .iter()
        .map(|(name, shape)| {
            let values = (0..shape.iter().product()).flat_map(|_| value(shape).to_le_bytes());
            (name, shape, values.collect::<Vec<u8>>())
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(Dtype::F32, (*shape).clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// An adapter on all seven linears of the wide model.
fn wide_adapter(model: &BaseModel, rank: usize, has_dora: bool) -> Vec<u8> {
    let mut shapes = Vec::new();
    for layer in 0..2 {
        for (name, outputs, inputs) in [
            ("self_attn.q_proj", 128, 64),
            ("self_attn.k_proj", 64, 64),
            ("self_attn.v_proj", 64, 64),
            ("self_attn.o_proj", 64, 128),
            ("mlp.gate_proj", 256, 64),
            ("mlp.up_proj", 256, 64),
            ("mlp.down_proj", 64, 256),
        ] {
            let module = format!("base_model.model.model.layers.{layer}.{name}");
            shapes.push((format!("{module}.lora_A.weight"), vec![rank, inputs]));
            shapes.push((format!("{module}.lora_B.weight"), vec![outputs, rank]));
            if has_dora {
                shapes.push((format!("{module}.lora_magnitude_vector"), vec![outputs]));
            }
        }
    }
    let mut random = Random::new(40 + rank as u64);
    let value = |shape: &[usize]| match shape {
        [_, inputs] => random.normal() / (*inputs as f32).sqrt(),
        // About what rows of the base have.
        _ => 1.5 + 0.2 * random.normal(),
    };
    let weights = serialized(&shapes, value);
    let path = golden_dir().join("adapters/dora/adapter_config.json");
    let config = std::fs::read_to_string(path).unwrap();
    let config = config.replace("\"r\": 8", &format!("\"r\": {rank}"));
    let config = config.replace("\"use_dora\": true", &format!("\"use_dora\": {has_dora}"));
    common::blob_of(config.as_bytes(), &weights, &model.config)
}

/// A step with prompts, a second one that goes on with two of them and decodes the others, and decoding steps: base, ranks of all sizes, DoRA.
fn course(slots: &[Option<SlotId>], wants: LogitsWanted) -> Vec<StepBatch> {
    let length = |of: usize| 5 + 3 * of;
    let token = |of: usize, position: usize| ((7 * of + 3 * position * position + 11) % 250) as u32;
    let seq = |of: usize, range: std::ops::Range<usize>| SeqStep {
        tokens: range.clone().map(|position| token(of, position)).collect(),
        start: range.start,
        blocks: vec![2 * of as u32 + 1, 2 * of as u32],
        slot: slots[of],
        logits: wants,
        draw: None,
    };
    let prompts = (0..slots.len()).map(|of| seq(of, 0..length(of))).collect();
    let mixed =
        |of: usize| if of < 2 { seq(of, length(of)..length(of) + 3) } else { seq(of, length(of)..length(of) + 1) };
    let mixed = (0..slots.len()).map(mixed).collect();
    let mut steps = vec![StepBatch { seqs: prompts }, StepBatch { seqs: mixed }];
    for step in 0..3 {
        let at = |of: usize| length(of) + step + if of < 2 { 3 } else { 1 };
        steps.push(StepBatch { seqs: (0..slots.len()).map(|of| seq(of, at(of)..at(of) + 1)).collect() });
    }
    steps
}

/// The logits of transformers and PEFT, of every golden case whose model two devices can share; `dora` cases among them.
#[test]
fn two_devices_give_the_logits_of_transformers_and_peft() {
    let expected = ExpectedLogits::load();
    let mut seen = 0;
    let model = tiny("tiny");
    for case in golden().cases.iter().filter(|case| case.model == "tiny") {
        let mut engine = sharded(&model, 2, &options(1));
        let slot = case.adapter.as_ref().map(|_| {
            let prepared = engine.preparer().prepare(&golden_blob(&case.name, &model)).unwrap();
            let slot = put(&mut engine, &prepared);
            assert_eq!(engine.slot_digest(slot), Some(prepared.digest()));
            slot
        });
        let batch = StepBatch { seqs: vec![prefill(&case.prompt, slot, 2, LogitsWanted::All)] };
        let output = engine.step(&batch).unwrap().seqs.remove(0);
        assert_eq!(output.adapter, slot.and_then(|slot| engine.slot_digest(slot)));
        let worst = difference(&output.logits, &expected.of(case));
        assert!(worst < F32_TOLERANCE, "{}: off by {worst}", case.name);
        seen += 1;
    }
    assert!(seen >= 20, "the fixtures shrank to {seen}");
}

/// What a sum in parts may change, as a share (root mean square) of the logits of one device. In bf16 each part is rounded before they are added up,
/// which moves an activation by a unit in its last place here and there; with codes for inputs, such a move makes another code. A scale of a whole
/// row of inputs becomes one of the rank's part of it: as exact, and other codes throughout.
struct Bound {
    precision: Precision,
    weights: WeightFormat,
    kv: KvFormat,
    adapters: Format,
    capability: (i32, i32),
    most: f64,
}

fn bounds() -> Vec<Bound> {
    let plain = |precision, adapters, most| Bound {
        precision,
        weights: WeightFormat::Precision,
        kv: KvFormat::Precision,
        adapters,
        capability: (8, 0),
        most,
    };
    let codes = |weights, kv, adapters, capability, most| Bound {
        precision: Precision::Bf16,
        weights,
        kv,
        adapters,
        capability,
        most,
    };
    vec![
        plain(Precision::F32, Format::F32, 1e-5),
        plain(Precision::F32, Format::Int8, 1e-5),
        plain(Precision::Bf16, Format::Bf16, 0.025),
        plain(Precision::Bf16, Format::Fp8, 0.025),
        Bound { weights: WeightFormat::Int8, ..plain(Precision::F32, Format::F32, 1e-3) },
        codes(WeightFormat::Int8, KvFormat::Precision, Format::Int8, (8, 0), 0.04),
        codes(WeightFormat::Int8Channels, KvFormat::Precision, Format::Bf16, (8, 0), 0.05),
        codes(WeightFormat::Four, KvFormat::Fp8, Format::Bf16, (8, 0), 0.045),
        codes(WeightFormat::Fp8, KvFormat::Fp8, Format::Fp8, (8, 0), 0.04),
        codes(WeightFormat::Fp8, KvFormat::Precision, Format::Bf16, (8, 9), 0.12),
    ]
}

#[test]
fn two_devices_give_the_logits_of_one_in_every_format() {
    give_the_logits_of_one(2, &bounds());
}

#[test]
fn four_devices_give_the_logits_of_one() {
    let some = |bound: &Bound| bound.precision == Precision::F32 || bound.weights == WeightFormat::Int8Channels;
    give_the_logits_of_one(4, &bounds().into_iter().filter(some).collect::<Vec<_>>());
}

fn give_the_logits_of_one(ranks: usize, bounds: &[Bound]) {
    let (_folder, model) = wide();
    let adapters = [wide_adapter(&model, 4, false), wide_adapter(&model, 21, false), wide_adapter(&model, 8, true)];
    for bound in bounds {
        let &Bound { precision, weights, kv, adapters: format, capability, most } = bound;
        let device = device_of(ShimOptions { seed: 5, capability, ..ShimOptions::default() });
        let options = DeviceOptions { device, precision, weights, kv, adapters: format, ..options(3) };
        let several = sharded(&model, ranks, &options);
        let one = DeviceEngine::new(&model, options).unwrap();
        let [expected, found] = [Side::One(Box::new(one)), Side::Several(Box::new(several))].map(|mut side| {
            let mut slots = vec![None];
            slots.extend(adapters.iter().map(|blob| Some(side.install(blob))));
            slots.push(slots[1]);
            let course = course(&slots, LogitsWanted::All);
            course[..3].iter().map(|batch| side.logits(batch)).collect::<Vec<_>>()
        });
        for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let error = relative_error(found, expected);
            let what =
                format!("{weights:?} in {precision:?}, kv {kv:?}, adapters {format:?}, {capability:?}, {ranks} ranks");
            println!("{what}, step {step}: {error:.6}");
            assert!(error < most, "{what}, step {step}: {error}");
        }
    }
}

#[test]
fn graphs_give_the_bits_of_launches() {
    let (_folder, model) = wide();
    let adapters = [wide_adapter(&model, 4, false), wide_adapter(&model, 8, true)];
    for (precision, weights, format) in [
        (Precision::F32, WeightFormat::Precision, Format::F32),
        (Precision::Bf16, WeightFormat::Int8, Format::Int8),
        (Precision::Bf16, WeightFormat::Four, Format::Bf16),
    ] {
        let mut sides = [true, false].map(|graphs| {
            sharded(&model, 2, &DeviceOptions { precision, weights, adapters: format, graphs, ..options(3) })
        });
        let [replayed, launched] = &mut sides;
        let slots = adapters.each_ref().map(|blob| {
            let [one, other] = [&mut *replayed, &mut *launched].map(|engine| {
                let prepared = engine.preparer().prepare(blob).unwrap();
                put(engine, &prepared)
            });
            assert_eq!(one, other);
            Some(one)
        });
        let course = course(&[None, slots[0], slots[1]], LogitsWanted::Last);
        for (turn, batch) in course.iter().chain(&course[2..]).enumerate() {
            let [replayed, launched] = [&mut *replayed, &mut *launched].map(|engine| engine.step(batch).unwrap().seqs);
            assert_eq!(replayed, launched, "{weights:?}, turn {turn}");
        }
        assert!(replayed.graphs() > 0 && launched.graphs() == 0);
    }
}

/// The wide model as the prediction of a device's bytes takes it.
const WIDE: Model = Model {
    layers: 2,
    sites: &[
        Site { name: "qkv", inputs: 64, outputs: &[128, 64, 64] },
        Site { name: "o", inputs: 128, outputs: &[64] },
        Site { name: "gate_up", inputs: 64, outputs: &[256, 256] },
        Site { name: "down", inputs: 256, outputs: &[64] },
    ],
    head: 260 * 64,
    bytes_per_weight: 4,
};

/// Two sums a layer, one gather for each piece of the logits, and nothing else that ranks wait for. What follows the gather is the first one's alone.
#[test]
fn collectives_of_a_step_are_counted() {
    let (_folder, model) = wide();
    let (layers, hidden) = (model.config.layers, model.config.hidden_size);
    let adapters = [wide_adapter(&model, 4, false), wide_adapter(&model, 8, true)];
    for ranks in [2, 4] {
        let groups = shims(ranks, 3, (8, 0));
        let devices: Vec<Device> = groups.iter().map(|group| group.device().clone()).collect();
        let options = DeviceOptions { logits_rows_max: 8, ..options(3) };
        let mut engine = ShardedEngine::new(&model, &options, groups).unwrap();
        let slots = adapters.each_ref().map(|blob| {
            let prepared = engine.preparer().prepare(blob).unwrap();
            Some(put(&mut engine, &prepared))
        });
        let slots = [None, slots[0], slots[1]];
        // 24 rows of prompts with all logits are three pieces.
        let all = course(&slots, LogitsWanted::All);
        let last = course(&slots, LogitsWanted::Last);
        // Rows in all layers but the last, and wanted rows in that. A step that is captured has rows for the next power of two.
        for (what, batch, rows, wanted, pieces, replays) in [
            ("prompts", &all[0], 24, 24, 3, 0),
            ("prompts' ends", &last[0], 24, 3, 1, 0),
            ("mixed", &last[1], 7, 3, 1, 0),
            ("captured", &last[2], 4, 4, 1, 0),
            ("replayed", &last[2], 4, 4, 1, 1),
        ] {
            devices.iter().for_each(Device::start_records);
            engine.step(batch).unwrap();
            let records: Vec<Vec<Record>> = devices.iter().map(Device::stop_records).collect();
            for (rank, records) in records.iter().enumerate() {
                let of = |kind: &Kind| records.iter().filter(|record| record.kind == *kind).collect::<Vec<_>>();
                let sums = of(&Kind::AllReduce).into_iter().map(|sum| sum.counts.read_bytes).collect::<Vec<_>>();
                let bytes = |rows: usize| (rows * hidden * size_of::<f32>()) as u64;
                let expected = [vec![bytes(rows); 2 * (layers - 1)], vec![bytes(wanted); 2]].concat();
                assert_eq!(sums, expected, "{what}: {ranks} ranks, rank {rank}");
                if what == "replayed" {
                    let share = WIDE.share(ranks, &[4; 4], Format::F32);
                    assert_eq!((share.sums, share.summed_bytes as u64), (sums.len(), sums.iter().sum()));
                }
                assert_eq!(of(&Kind::AllGather).len(), pieces, "{what}: {ranks} ranks, rank {rank}");
                assert_eq!(of(&Kind::Replay).len(), replays, "{what}: rank {rank}");
                let joins = records.iter().filter(
                    |record| matches!(&record.kind, Kind::Launch { kernel, .. } if kernel == "weft_join_columns_f32"),
                );
                assert_eq!(joins.count(), if rank == 0 { pieces } else { 0 }, "{what}: rank {rank}");
                let downloads = of(&Kind::Copy(weft_cuda_device::driver::Direction::Download)).len();
                assert!(if rank == 0 { downloads > 0 } else { downloads == 0 }, "{what}: rank {rank} has {downloads}");
            }
        }
    }
}

/// Each rank has the kernel for its heads, or the other where bits must not depend on the step.
#[test]
fn ranks_take_tensor_cores_for_prompts() {
    let model = tiny("tiny");
    for (batch_invariant, wanted) in
        [(false, "weft_attention_tensor_64_bf16_bf16"), (true, "weft_attention_prefill_bf16_bf16")]
    {
        let groups = shims(2, 3, (8, 0));
        let devices: Vec<Device> = groups.iter().map(|group| group.device().clone()).collect();
        let options =
            DeviceOptions { precision: Precision::Bf16, adapters: Format::Bf16, batch_invariant, ..options(3) };
        let mut engine = ShardedEngine::new(&model, &options, groups).unwrap();
        devices.iter().for_each(Device::start_records);
        engine.step(&StepBatch { seqs: vec![prefill(&[9; 30], None, 0, LogitsWanted::Last)] }).unwrap();
        for device in &devices {
            let records = device.stop_records();
            let heads = model.config.heads / 2;
            let operations = (4 * heads * model.config.head_dim * 30 * 31 / 2) as u64;
            assert_eq!(attention::launched(&records), vec![(wanted, operations); model.config.layers]);
        }
    }
}

/// Copies end at other times on other devices: whether a step is replayed is for all to know.
#[test]
fn ranks_replay_a_step_together_or_not_at_all() {
    let model = tiny("tiny");
    let blob = golden_blob("rank64", &model);
    let (mut replayed, mut launched) = (0, 0);
    for seed in 0..8 {
        let groups = shims(2, seed, (8, 0));
        let devices: Vec<Device> = groups.iter().map(|group| group.device().clone()).collect();
        let mut engine = ShardedEngine::new(&model, &options(seed), groups).unwrap();
        let prepared = engine.preparer().prepare(&blob).unwrap();
        let mut logits: Vec<Vec<f32>> = Vec::new();
        for _ in 0..6 {
            let slot = put(&mut engine, &prepared);
            for _ in 0..3 {
                let batch = StepBatch { seqs: vec![prefill(&[9], Some(slot), 0, LogitsWanted::Last)] };
                devices.iter().for_each(Device::start_records);
                logits.push(engine.step(&batch).unwrap().seqs.remove(0).logits);
                let replays = devices
                    .iter()
                    .map(|device| device.stop_records().iter().filter(|record| record.kind == Kind::Replay).count());
                let replays: Vec<usize> = replays.collect();
                assert_eq!(replays[0], replays[1], "seed {seed}");
                *(if replays[0] == 1 { &mut replayed } else { &mut launched }) += 1;
            }
            assert_eq!(engine.remove(slot).unwrap().digest(), prepared.digest());
        }
        assert!(logits.iter().all(|row| *row == logits[0]), "seed {seed}");
    }
    assert!(replayed > 20 && launched > 20, "{replayed} replayed, {launched} launched: the test shows nothing");
}

#[test]
fn tokens_are_those_that_one_device_draws() {
    let model = tiny("tiny");
    let adapter = golden_blob("rank16", &model);
    let one = DeviceEngine::new(&model, DeviceOptions { logits_rows_max: 4, ..options(2) }).unwrap();
    let several = sharded(&model, 2, &DeviceOptions { logits_rows_max: 4, ..options(2) });
    let mut drawn = [Side::One(Box::new(one)), Side::Several(Box::new(several))].map(|mut side| {
        let slot = side.install(&adapter);
        let mut drawn = Vec::new();
        for step in 0..4u64 {
            let seq = |of: usize| {
                let params = SamplingParams {
                    temperature: [0.0, 0.8, 1.3][of % 3],
                    top_p: if of.is_multiple_of(2) { 1.0 } else { 0.9 },
                    repetition_penalty: if of > 3 { 1.2 } else { 1.0 },
                    seed: 100 + of as u64,
                    ..SamplingParams::default()
                };
                let tokens: Vec<u32> = (0..if step == 0 { 3 + of } else { 1 }).map(|at| (5 * of + at) as u32).collect();
                let sampler = Sampler::new(params, &tokens);
                let draw = Some(sampler.draw(step, of % 4, None));
                let start = if step == 0 { 0 } else { 2 + of + step as usize };
                let (slot, blocks) = ((of % 2 == 1).then_some(slot), vec![2 * of as u32, 2 * of as u32 + 1]);
                SeqStep { tokens, start, blocks, slot, logits: LogitsWanted::Last, draw }
            };
            drawn.extend(side.step(&StepBatch { seqs: (0..6).map(seq).collect() }).seqs);
        }
        drawn
    });
    let [one, several] = &mut drawn;
    for (at, (one, several)) in one.iter().zip(several).enumerate() {
        let [one, several] = [one, several].map(|seq| seq.drawn.clone().unwrap().unwrap());
        assert_eq!(several.token, one.token, "draw {at}");
        assert!((several.logprob - one.logprob).abs() < 1e-4, "draw {at}");
        let ids = |top: &[(u32, f32)]| top.iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert_eq!(ids(&several.top), ids(&one.top), "draw {at}");
    }
}

/// What one device refuses all refuse, and go on together.
#[test]
fn what_is_refused_leaves_the_ranks_in_step() {
    let model = tiny("tiny");
    let mut engine = sharded(&model, 2, &DeviceOptions { blocks: PoolBlocks::Exactly(80), ..options(0) });
    let good = StepBatch { seqs: vec![prefill(&[1, 2, 3], None, 0, LogitsWanted::Last)] };
    let expected = engine.step(&good).unwrap().seqs;
    let refused = |engine: &mut ShardedEngine, seqs: Vec<SeqStep>| {
        let error = engine.step(&StepBatch { seqs }).unwrap_err();
        assert!(!error.is_fatal(), "{error}");
        assert_eq!(engine.step(&good).unwrap().seqs, expected);
        error
    };
    let error = refused(&mut engine, vec![prefill(&[1; 97], None, 0, LogitsWanted::Last)]);
    assert_eq!(error.to_string(), "the batch has 97 rows, the engine was made for 96");
    let error = refused(&mut engine, vec![prefill(&[1, 260], None, 0, LogitsWanted::Last)]);
    assert!(matches!(error, Error::Sequence { sequence: 0, problem: Problem::Token { token: 260, .. } }));
    // Only the first rank draws; all hold draws against its limits.
    let mut seq = prefill(&[1], None, 0, LogitsWanted::Last);
    seq.draw = Some(Sampler::new(SamplingParams::default(), &[]).draw(0, 33, None));
    assert!(matches!(refused(&mut engine, vec![seq]), Error::Sequence { problem: Problem::Draw { .. }, .. }));
    assert!(engine.step(&StepBatch::default()).unwrap().seqs.is_empty());

    let prepared = engine.preparer().prepare(&golden_blob("rank16", &model)).unwrap();
    let mut slots = Vec::new();
    while let Some(blocks) = engine.find_blocks(&prepared) {
        slots.push(engine.install(&prepared, &blocks).unwrap());
    }
    assert!(slots.len() > 1);
    let taken: Vec<u32> = (0..prepared.runs().iter().sum::<usize>() as u32).map(|block| 79 - block).rev().collect();
    let error = engine.install(&prepared, &taken).unwrap_err();
    assert!(matches!(error, Error::AdapterBlocks { .. }), "{error}");
    assert!(!error.is_fatal());
    let of_adapter = StepBatch { seqs: vec![prefill(&[1, 2, 3], Some(slots[0]), 0, LogitsWanted::Last)] };
    let with = engine.step(&of_adapter).unwrap().seqs;
    engine.remove(slots.pop().unwrap()).unwrap();
    slots.push(put(&mut engine, &prepared));
    assert_eq!(engine.step(&of_adapter).unwrap().seqs, with);
    let last = *slots.last().unwrap();
    assert!(engine.remove(last).is_some() && engine.remove(last).is_none(), "an id is never valid again");
    let stale = refused(&mut engine, vec![prefill(&[1], Some(last), 0, LogitsWanted::Last)]);
    assert!(matches!(stale, Error::Sequence { problem: Problem::Slot { .. }, .. }), "{stale}");

    // Parts for four devices are no adapter for two.
    let (_folder, wide) = wide();
    let four = sharded(&wide, 4, &options(0)).preparer().prepare(&wide_adapter(&wide, 4, false)).unwrap();
    assert!(matches!(engine.install(&four, &[0]).unwrap_err(), Error::OtherKind));
    assert_eq!(engine.step(&good).unwrap().seqs, expected);
}

#[test]
fn a_model_that_devices_cannot_share_is_refused_by_name() {
    let says = |model: &str, count: usize, options: DeviceOptions| {
        let error = ShardedEngine::new(&tiny(model), &options, shims(count, 0, (8, 0))).err().unwrap();
        assert_eq!(error.kind(), weft_fault::Kind::Invalid, "{error}");
        error.to_string()
    };
    assert_eq!(says("tiny-untied", 2, options(0)), "heads is 3, allowed for 2 ranks is a multiple of 2");
    assert_eq!(says("tiny", 4, options(0)), "kv_heads is 2, allowed for 4 ranks is a multiple of 4");
    let int8 = DeviceOptions { weights: WeightFormat::Int8, ..options(0) };
    assert_eq!(says("tiny", 2, int8), "intermediate_size is 96, allowed for 2 ranks is a multiple of 64");
    let mut groups = shims(2, 0, (8, 0));
    groups.reverse();
    let error = ShardedEngine::new(&tiny("tiny"), &options(0), groups).err().unwrap();
    assert_eq!(error.to_string(), "rank is 1, allowed is its place among the groups");
    let mixed = groups_of(|rank| ShimOptions { capability: (8, 9 * rank as i32), ..ShimOptions::default() });
    let error = ShardedEngine::new(&tiny("tiny"), &options(0), mixed).err().unwrap();
    assert_eq!(error.to_string(), "capability is 89, allowed is that of the first device");
}

fn groups_of(shim: impl Fn(usize) -> ShimOptions) -> Vec<Group> {
    groups(2, |rank| (shim(rank), SIZES))
}

/// All have as many blocks as the fullest has room for, and both of them use all of those.
#[test]
fn the_device_with_the_least_room_decides() {
    let model = tiny("tiny");
    let up_to = DeviceOptions { blocks: PoolBlocks::UpTo(100_000), ..options(0) };
    let blocks = |pools: [usize; 2]| {
        let sizes = |rank: usize| Options { pool_bytes: pools[rank] << 20, ..SIZES };
        let mut engine =
            ShardedEngine::new(&model, &up_to, groups(2, |rank| (ShimOptions::default(), sizes(rank)))).unwrap();
        let last = engine.kv_blocks() as u32 - 1;
        let seq = SeqStep { blocks: vec![last], ..prefill(&[4, 5], None, 0, LogitsWanted::Last) };
        engine.step(&StepBatch { seqs: vec![seq] }).unwrap();
        engine.kv_blocks()
    };
    let (small, large) = (blocks([32, 32]), blocks([64, 64]));
    assert!(small < large);
    assert_eq!([blocks([64, 32]), blocks([32, 64])], [small; 2]);
    let sizes = |rank: usize| Options { pool_bytes: [64 << 20, 128 << 10][rank], ..SIZES };
    let error =
        ShardedEngine::new(&model, &up_to, groups(2, |rank| (ShimOptions::default(), sizes(rank)))).err().unwrap();
    assert!(error.is_out_of_memory(), "the other rank does not wait for it: {error}");
}

/// At any operation of any rank: the call that it happens in ends, and says why; later ones say that there is nothing to be had any more.
#[test]
fn a_device_that_fails_ends_all_of_them_and_nobody_waits() {
    let model = tiny("tiny");
    let blob = golden_blob("rank8", &model);
    let options = options(0);
    let (mut at_load, mut at_work) = (0, 0);
    for failing in [0, 1] {
        let mut fails_at = 1;
        loop {
            let begin = Instant::now();
            let shim = |rank: usize| ShimOptions {
                fails_at: if rank == failing { fails_at } else { 0 },
                ..ShimOptions::default()
            };
            let error = match ShardedEngine::new(&model, &options, groups_of(shim)) {
                Err(error) => {
                    at_load += 1;
                    error
                }
                Ok(mut engine) => {
                    let Err(error) = work(&mut engine, &blob) else { break };
                    at_work += 1;
                    let again = StepBatch { seqs: vec![prefill(&[1], None, 0, LogitsWanted::Last)] };
                    assert!(engine.step(&again).unwrap_err().is_fatal());
                    error
                }
            };
            let took = begin.elapsed();
            assert!(took < PATIENCE / 4, "rank {failing} at {fails_at}: after {took:?}");
            assert!(error.is_fatal(), "rank {failing} at {fails_at}: {error}");
            let cause = std::error::Error::source(&error).unwrap().to_string();
            assert!(cause.contains("made to fail"), "rank {failing} at {fails_at}: {cause}");
            fails_at += 1 + fails_at / 6;
        }
    }
    assert!(at_load > 5 && at_work > 10, "{at_load} while loading, {at_work} at work");
}

/// Warm-up, an adapter, prompts, decoding steps.
fn work(engine: &mut ShardedEngine, blob: &[u8]) -> Result<(), Error> {
    let prepared: ShardedAdapter = engine.preparer().prepare(blob)?;
    let blocks = engine.find_blocks(&prepared).unwrap_or_default();
    let slot = engine.install(&prepared, &blocks)?;
    for batch in course(&[None, Some(slot)], LogitsWanted::Last) {
        engine.step(&batch)?;
    }
    engine.warm_up()
}

#[test]
fn streamed_adapters_are_streamed_by_all_ranks() {
    let model = tiny("tiny");
    let options = DeviceOptions { stream_bytes: 1 << 20, ..options(0) };
    let mut engine = sharded(&model, 2, &options);
    let prepared = ["rank64", "dora"].map(|name| engine.preparer().prepare(&golden_blob(name, &model)).unwrap());
    let streamed = prepared.clone().map(|adapter| engine.stream(&adapter).unwrap().expect("there is room"));
    let batch = |slots: [SlotId; 2]| StepBatch {
        seqs: vec![
            prefill(&golden().case("rank64").prompt, Some(slots[0]), 0, LogitsWanted::All),
            prefill(&golden().case("dora").prompt, Some(slots[1]), 40, LogitsWanted::All),
        ],
    };
    let found = engine.step(&batch(streamed)).unwrap();
    for slot in streamed {
        assert_eq!(engine.remove(slot).unwrap().digest(), prepared[usize::from(slot == streamed[1])].digest());
    }
    let installed = prepared.each_ref().map(|adapter| put(&mut engine, adapter));
    let expected = engine.step(&batch(installed)).unwrap();
    assert!(found.seqs.iter().zip(&expected.seqs).all(|(found, expected)| found.logits == expected.logits));
}
