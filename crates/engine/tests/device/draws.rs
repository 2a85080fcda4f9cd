//! Tokens chosen by steps, on the device and on processors, against the sampler over the logits that the same engine gives. Nothing is
//! compared with a tolerance: in the shim both take one `log`.

use super::common::{self, base_shape, blob, blob_of, golden, golden_dir, prefill, tiny};
use super::{install, options};
use std::sync::Arc;
use weft_base_model::BaseModel;
use weft_cuda_device::driver::Direction;
use weft_cuda_device::record::{Kind, Record};
use weft_engine::device::{DeviceEngine, DeviceOptions, Format, Precision, TOP_LOGPROBS_MAX};
use weft_engine::sampling::{Draw, NoToken, Sampled, Sampler, SamplingParams};
use weft_engine::{Dtype, Error, LogitsWanted, Problem, SeqOutput, SeqStep, SlotId, StepBatch, StepOutput};
use weft_kernels::conformance::Random;

const VOCABULARY: usize = 260;
const ADAPTERS: [&str; 3] = ["rank4", "rank16", "all_linear"];

/// What a step is asked for a sequence.
struct Ask {
    tokens: Vec<u32>,
    /// 0: the base.
    adapter: usize,
    logits: LogitsWanted,
    sampler: Sampler,
    draw: Option<Draw>,
}

fn random_params(random: &mut Random) -> SamplingParams {
    let unit = |random: &mut Random| (random.bits() >> 40) as f32 / (1u64 << 24) as f32;
    let share = |random: &mut Random| if random.below(2) == 0 { 1.0 } else { unit(random) };
    let filters = random.below(4) > 0;
    let penalises = random.below(3) == 0;
    SamplingParams {
        temperature: random.pick(&[0.0, 0.3, 1.0, 1.0, 7.0]),
        top_p: if filters { share(random) } else { 1.0 },
        top_k: if filters { random.pick(&[0, 0, 1, 7, 100]) } else { 0 },
        min_p: if filters { random.pick(&[0.0, 0.0, 0.05, 0.6]) } else { 0.0 },
        typical_p: if filters { share(random) } else { 1.0 },
        repetition_penalty: if penalises { random.pick(&[1.0, 1.3, 0.7]) } else { 1.0 },
        frequency_penalty: if penalises { random.pick(&[0.0, 0.4, -1.1]) } else { 0.0 },
        presence_penalty: if penalises { random.pick(&[0.0, 0.3, -0.6]) } else { 0.0 },
        seed: random.bits(),
    }
}

/// No mask; some tokens, all, or none of them; the last word may be missing, or be one too many.
fn random_mask(random: &mut Random) -> Option<Arc<[u32]>> {
    let eighths = random.pick(&[8, 8, 8, 8, 7, 4, 1, 0]);
    let words = VOCABULARY.div_ceil(32) - 1 + random.below(3);
    let word = |random: &mut Random| (0..32).fold(0, |word, bit| word | u32::from(random.below(8) < eighths) << bit);
    (eighths < 8 || random.below(4) == 0).then(|| (0..words).map(|_| word(random)).collect())
}

fn random_sampler(random: &mut Random) -> Sampler {
    let token = |random: &mut Random| random.below(VOCABULARY + 3).min(random.below(60) * 5) as u32;
    let prompt: Vec<u32> = (0..random.below(30)).map(|_| token(random)).collect();
    let mut sampler = Sampler::new(random_params(random), &prompt);
    (0..random.below(40)).for_each(|_| sampler.record(token(random)));
    sampler
}

/// Some draw, some want logits, some both, some neither; longer sequences are prompts.
fn random_ask(random: &mut Random, tokens_max: usize) -> Ask {
    let tokens = (0..1 + random.below(tokens_max)).map(|_| random.below(VOCABULARY) as u32).collect();
    let sampler = random_sampler(random);
    let draw = (random.below(4) > 0).then(|| {
        let position = random.bits() >> random.pick(&[0, 32, 50]);
        sampler.draw(position, random.pick(&[0, 0, 1, 5, TOP_LOGPROBS_MAX]), random_mask(random))
    });
    let logits = match draw {
        Some(_) => random.pick(&[LogitsWanted::None, LogitsWanted::Last, LogitsWanted::All]),
        None => random.pick(&[LogitsWanted::None, LogitsWanted::Last, LogitsWanted::Last, LogitsWanted::All]),
    };
    Ask { tokens, adapter: random.below(1 + ADAPTERS.len()), logits, sampler, draw }
}

fn batch(asks: &[Ask], slots: &[Option<SlotId>]) -> StepBatch {
    let seq = |(at, ask): (usize, &Ask)| SeqStep {
        draw: ask.draw.clone(),
        ..prefill(&ask.tokens, slots[ask.adapter], 4 * at as u32, ask.logits)
    };
    StepBatch { seqs: asks.iter().enumerate().map(seq).collect() }
}

/// What the sampler itself makes of logits.
fn expected(ask: &Ask, draw: &Draw, logits: &[f32]) -> Result<Sampled, NoToken> {
    let mut row = logits[logits.len() - VOCABULARY..].to_vec();
    let sampled =
        ask.sampler.clone().sample_allowed(&mut row, draw.allowed.as_deref(), draw.position, draw.top_logprobs);
    sampled.map_err(|error| {
        assert!(matches!(error, Error::Logits));
        NoToken
    })
}

/// Runs the step with all logits and no draw, then as it is asked; holds them against each other.
fn check(
    asks: &[Ask],
    slots: &[Option<SlotId>],
    mut step: impl FnMut(&StepBatch) -> StepOutput,
    what: &str,
) -> Vec<SeqOutput> {
    let mut all = batch(asks, slots);
    for seq in &mut all.seqs {
        (seq.draw, seq.logits) = (None, LogitsWanted::All);
    }
    let logits: Vec<Vec<f32>> = step(&all).seqs.into_iter().map(|seq| seq.logits).collect();
    let found = step(&batch(asks, slots)).seqs;
    for (at, (ask, (found, logits))) in asks.iter().zip(found.iter().zip(&logits)).enumerate() {
        let drawn = ask.draw.as_ref().map(|draw| expected(ask, draw, logits));
        assert_eq!(found.drawn, drawn, "{what}, sequence {at}: {:?}", ask.draw);
        let returned = match (ask.logits, &ask.draw) {
            (LogitsWanted::All, _) => &logits[..],
            (LogitsWanted::Last, None) => &logits[logits.len() - VOCABULARY..],
            _ => &[],
        };
        assert!(found.logits == returned, "{what}, sequence {at}: logits");
    }
    found
}

fn engine_with_adapters(model: &BaseModel, options: DeviceOptions) -> (DeviceEngine, Vec<Option<SlotId>>) {
    let golden = golden();
    let mut engine = DeviceEngine::new(model, options).unwrap();
    let mut slots = vec![None];
    slots.extend(ADAPTERS.map(|name| install(&mut engine, golden.case(name), model)));
    (engine, slots)
}

/// Half of the turns decode alone, by graphs or by launches; the others have prompts among them.
#[test]
fn steps_draw_what_the_sampler_draws_from_their_logits() {
    let model = tiny("tiny");
    let (mut drawn, mut refused, mut penalised, mut masked) = (0, 0, 0, 0);
    for (precision, adapters, turns) in [(Precision::F32, Format::F32, 0..28), (Precision::Bf16, Format::Bf16, 28..40)]
    {
        let options = |graphs| DeviceOptions {
            precision,
            adapters,
            batch_invariant: true,
            graphs,
            ..options(11 + u64::from(graphs))
        };
        let [mut with, mut without] = [true, false].map(|graphs| engine_with_adapters(&model, options(graphs)));
        for turn in turns {
            let random = &mut Random::new(900 + turn);
            let tokens_max = if turn % 2 == 0 { 1 } else { 12 };
            let asks: Vec<Ask> = (0..1 + random.below(8)).map(|_| random_ask(random, tokens_max)).collect();
            let what = format!("{precision:?}, turn {turn}");
            let [by_graphs, by_launches] = [&mut with, &mut without]
                .map(|(engine, slots)| check(&asks, slots, |batch| engine.step(batch).unwrap(), &what));
            assert!(by_graphs == by_launches, "{what}");
            for (ask, out) in asks.iter().zip(&by_graphs) {
                drawn += usize::from(matches!(out.drawn, Some(Ok(_))));
                refused += usize::from(matches!(out.drawn, Some(Err(_))));
                masked += usize::from(ask.draw.as_ref().is_some_and(|draw| draw.allowed.is_some()));
                let params = ask.sampler.params();
                penalised += usize::from(ask.draw.is_some() && params.repetition_penalty != 1.0);
            }
        }
        // Of steps whose every row has logits or a draw: 1, 2, 4 and 8 rows, of the base, or with adapters by one of two kernels.
        assert!((1..=12).contains(&with.0.graphs()) && without.0.graphs() == 0, "{} graphs", with.0.graphs());
    }
    assert!(drawn > 60 && refused > 2 && penalised > 10 && masked > 20, "{drawn} {refused} {penalised} {masked}");
}

#[test]
fn processors_draw_what_the_sampler_draws_from_their_logits() {
    let (golden, model) = (golden(), tiny("tiny"));
    let mut engine = common::engine(&model, Dtype::F32, 128);
    let mut slots = vec![None];
    slots.extend(ADAPTERS.map(|name| common::install(&mut engine, golden.case(name), &model.config)));
    // Outputs of an earlier step are written over.
    let mut output = StepOutput::default();
    for turn in 0..40 {
        let random = &mut Random::new(500 + turn);
        let asks: Vec<Ask> = (0..1 + random.below(8)).map(|_| random_ask(random, 12)).collect();
        let step = |batch: &StepBatch| {
            engine.step_into(batch, &mut output).unwrap();
            output.clone()
        };
        check(&asks, &slots, step, &format!("turn {turn}"));
    }
}

fn greedy_asks(rows: usize) -> Vec<Ask> {
    let ask = |row: usize| {
        let sampler = Sampler::new(SamplingParams::default(), &[]);
        let draw = Some(sampler.draw(1, 0, None));
        Ask { tokens: vec![row as u32 * 11], adapter: 0, logits: LogitsWanted::Last, sampler, draw }
    };
    (0..rows).map(ask).collect()
}

/// Whatever is drawn, and whether: one graph; and no byte crosses the bus that nobody asked for.
#[test]
fn one_graph_serves_every_setting_and_only_answers_come_back() {
    let model = tiny("tiny");
    let device_options = options(2);
    let device = device_options.device.clone();
    let mut engine = DeviceEngine::new(&model, device_options).unwrap();
    let mut records = |asks: &[Ask]| -> Vec<Record> {
        let batch = batch(asks, &[None]);
        engine.step(&batch).unwrap();
        device.start_records();
        engine.step(&batch).unwrap();
        assert_eq!(engine.graphs(), 1);
        device.stop_records()
    };
    let copied = |records: &[Record], wanted: Direction| -> Vec<u64> {
        let of = |record: &&Record| matches!(record.kind, Kind::Copy(direction) if direction == wanted);
        let bytes = |record: &Record| record.counts.read_bytes + record.counts.written_bytes;
        records.iter().filter(of).map(bytes).collect()
    };

    let mut asks = greedy_asks(4);
    let greedy = records(&asks);
    // Tables, the graph, a token for each.
    assert_eq!(greedy.iter().filter(|record| !record.in_graph).count(), 3);
    assert_eq!(copied(&greedy, Direction::Download), [4 * 16]);
    let [tables] = copied(&greedy, Direction::Upload)[..] else { panic!("one copy up") };

    // Of those that have one alone: a mask, seen tokens (a token of the prompt, and two of the output), alternatives.
    let mut sampler = Sampler::new(SamplingParams { presence_penalty: 0.5, ..SamplingParams::default() }, &[5]);
    [9, 9, 7].into_iter().for_each(|token| sampler.record(token));
    asks[2].draw = Some(sampler.draw(1, 3, Some(vec![u32::MAX; 9].into())));
    let rich = records(&asks);
    assert_eq!(copied(&rich, Direction::Upload), [tables, 9 * 4 + 4 * 4]);
    assert_eq!(copied(&rich, Direction::Download), [4 * 16, 4 * 8 * TOP_LOGPROBS_MAX as u64]);

    // Two that want logits are beside each other.
    (asks[0].draw, asks[1].draw) = (None, None);
    let mixed = records(&asks);
    let row = 4 * VOCABULARY as u64;
    assert_eq!(copied(&mixed, Direction::Download)[..2], [2 * row, 2 * 16]);
    asks.iter_mut().for_each(|ask| ask.draw = None);
    assert_eq!(copied(&records(&asks), Direction::Download), [4 * row]);
}

/// An adapter whose numbers are the largest that there are: what comes of it is not finite.
fn broken(model: &BaseModel) -> Vec<u8> {
    let folder = golden_dir().join(golden().case("rank8").adapter.as_ref().unwrap());
    let weights = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&weights).unwrap();
    let huge = |view: &safetensors::tensor::TensorView<'_>| {
        assert_eq!(view.dtype(), safetensors::Dtype::BF16);
        half::bf16::MAX.to_le_bytes().repeat(view.data().len() / 2)
    };
    let tensors: Vec<_> =
        file.tensors().iter().map(|(name, view)| (name.clone(), huge(view), view.shape().to_vec())).collect();
    let views = tensors.iter().map(|(name, data, shape)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape.clone(), data).unwrap())
    });
    let config = std::fs::read(folder.join("adapter_config.json")).unwrap();
    blob_of(&config, &safetensors::serialize(views, None).unwrap(), &model.config)
}

#[test]
fn logits_that_are_not_finite_and_masks_without_a_token_harm_nobody_else() {
    let model = tiny("tiny");
    assert_eq!(base_shape(&model.config).layers, model.config.layers);
    let rank4 = golden_dir().join(golden().case("rank4").adapter.as_ref().unwrap());
    let blobs = [blob(&rank4, &model.config), broken(&model)];
    let mut asks = greedy_asks(5);
    for (ask, adapter) in asks.iter_mut().zip([0, 1, 2, 2, 1]) {
        ask.adapter = adapter;
    }
    asks[3].logits = LogitsWanted::All;
    asks[4].draw = Some(asks[4].sampler.draw(1, 2, Some(vec![0; 9].into())));
    let hold = |found: &[SeqOutput], what: &str| {
        let chosen: Vec<bool> = found.iter().map(|out| matches!(out.drawn, Some(Ok(_)))).collect();
        assert_eq!(chosen, [true, true, false, false, false], "{what}");
        assert!(found[3].logits.iter().any(|logit| logit.is_nan()), "{what}");
        assert!(found.iter().all(|out| out.drawn.is_some()), "{what}");
        [&found[0], &found[1]].map(|out| out.drawn.clone())
    };
    for graphs in [true, false] {
        let mut engine = DeviceEngine::new(&model, DeviceOptions { graphs, ..options(6) }).unwrap();
        let mut slots = vec![None];
        for blob in &blobs {
            let prepared = engine.preparer().prepare(blob).unwrap();
            slots.push(Some(super::put(&mut engine, prepared)));
        }
        for _ in 0..2 {
            let found = engine.step(&batch(&asks, &slots)).unwrap().seqs;
            let kept = hold(&found, &format!("graphs: {graphs}"));
            let alone = engine.step(&batch(&asks[..2], &slots)).unwrap().seqs;
            assert_eq!(kept, [&alone[0], &alone[1]].map(|out| out.drawn.clone()));
        }
    }
    let mut engine = common::engine(&model, Dtype::F32, 128);
    let mut slots = vec![None];
    for blob in &blobs {
        let prepared = engine.preparer().prepare(blob).unwrap();
        slots.push(Some(engine.install(prepared)));
    }
    hold(&engine.step(&batch(&asks, &slots)).unwrap().seqs, "processor");
}

/// Rows of one sequence, and draws, on both sides of where a piece ends; and pieces without a draw.
#[test]
fn more_logits_than_there_is_room_for_are_computed_piece_by_piece() {
    let model = tiny("tiny");
    let (mut whole, whole_slots) = engine_with_adapters(&model, options(8));
    for logits_rows_max in [1, 3, 5] {
        let (mut small, slots) = engine_with_adapters(&model, DeviceOptions { logits_rows_max, ..options(9) });
        for turn in 0..8u64 {
            let random = &mut Random::new(70 + turn);
            let tokens_max = if turn % 2 == 0 { 1 } else { 12 };
            let asks: Vec<Ask> = (0..8).map(|_| random_ask(random, tokens_max)).collect();
            let what = format!("{logits_rows_max} rows at a time, turn {turn}");
            let found = check(&asks, &slots, |batch| small.step(batch).unwrap(), &what);
            let expected = whole.step(&batch(&asks, &whole_slots)).unwrap().seqs;
            assert!(found == expected, "{what}");
        }
        assert_eq!(small.graphs(), 0, "{logits_rows_max}: eight rows are no graph");
    }
}

#[test]
fn draws_beyond_the_room_for_them_are_refused_by_name() {
    let model = tiny("tiny");
    let mut engine = DeviceEngine::new(&model, options(0)).unwrap();
    let context = model.config.context_length;
    let params = SamplingParams { frequency_penalty: 0.01, ..SamplingParams::default() };
    let mut sampler = Sampler::new(params, &[1, 1, 2]);
    // As long as a context, but for the token that is drawn.
    (0..context - 2).for_each(|_| sampler.record(3));
    let ask = |draw: Draw| {
        let mut asks = greedy_asks(3);
        asks[1].draw = Some(draw);
        batch(&asks, &[None])
    };
    let fits = ask(sampler.draw(context as u64, TOP_LOGPROBS_MAX, None));
    let before = engine.step(&fits).unwrap();
    let Some(Ok(drawn)) = &before.seqs[1].drawn else { panic!("{:?}", before.seqs[1].drawn) };
    assert_eq!(drawn.top.len(), TOP_LOGPROBS_MAX);

    let refused = |engine: &mut DeviceEngine, draw: Draw| match engine.step(&ask(draw)) {
        Err(Error::Sequence { sequence: 1, problem }) => problem,
        other => panic!("expected a refusal of sequence 1, got {other:?}"),
    };
    assert_eq!(
        refused(&mut engine, sampler.draw(0, TOP_LOGPROBS_MAX + 1, None)),
        Problem::Draw { what: "top log-probabilities", value: TOP_LOGPROBS_MAX + 1, limit: TOP_LOGPROBS_MAX }
    );
    sampler.record(4);
    assert_eq!(
        refused(&mut engine, sampler.draw(0, 0, None)),
        Problem::Draw { what: "occurrences of tokens", value: context + 1, limit: context }
    );
    assert!(engine.step(&fits).unwrap().seqs == before.seqs, "refusals left something behind");
}
