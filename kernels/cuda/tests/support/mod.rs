//! Rows with settings, run by the kernels and by the engine's sampler.

use weft_cuda_kernels::host::Order;
use weft_cuda_kernels::on_host::{Device, Element};
use weft_cuda_kernels::sampling::{Request, Sampled, Sequence, Settings};
use weft_kernels::conformance::Random;

/// The engine's own files, so that nothing that the engine depends on is built for these tests. Their tests come along.
#[path = "../../../../crates/engine/src/sampling/mod.rs"]
#[allow(dead_code, unreachable_pub, clippy::duplicate_mod, reason = "the tests need the sampler only")]
pub(crate) mod engine;

#[path = "../../../../crates/engine/src/sampling/math.rs"]
#[allow(dead_code, clippy::duplicate_mod, reason = "the tests need the exponential only, which is private there")]
mod math;

/// What the engine's files take from their crate.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no largest logit")]
    Logits,
}

// For both of the files above.
pub(crate) use engine::NoToken;

impl From<NoToken> for Error {
    fn from(NoToken: NoToken) -> Self {
        Self::Logits
    }
}

pub(crate) const ORDERS: [Order; 4] = [
    Order::FORWARDS,
    Order::BACKWARDS,
    Order { warps_backwards: true, lanes_backwards: false, blocks_backwards: true },
    Order { warps_backwards: false, lanes_backwards: true, blocks_backwards: false },
];

pub(crate) fn on(order: Order) -> Device {
    Device { order, multiprocessors: 4 }
}

/// What the engine draws a logit with, if the largest is 0 and the temperature 1.
pub(crate) fn weight(logit: f32) -> f32 {
    math::exp(logit)
}

/// A row whose logits, mask and tokens are to be drawn.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) settings: Settings,
    pub(crate) position: u64,
    /// Standard deviation of the logits.
    pub(crate) spread: f32,
    /// Logits are multiples of it; 0: any.
    pub(crate) step: f32,
    /// Of eight logits, how many are -inf.
    pub(crate) forbidden: usize,
    /// Of eight tokens, how many the mask allows; 8: no mask.
    pub(crate) allowed: usize,
    pub(crate) is_biased: bool,
    pub(crate) alternatives: usize,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            position: 0,
            spread: 2.0,
            step: 0.0,
            forbidden: 0,
            allowed: 8,
            is_biased: false,
            alternatives: 0,
        }
    }
}

/// A row with all that it is sampled by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filled {
    pub(crate) settings: Settings,
    pub(crate) position: u64,
    pub(crate) logits: Vec<f32>,
    pub(crate) mask: Option<Vec<u32>>,
    pub(crate) prompt: Vec<u32>,
    pub(crate) output: Vec<u32>,
    pub(crate) bias: Vec<(u32, f32)>,
    pub(crate) alternatives: usize,
}

pub(crate) fn random_settings(random: &mut Random, vocabulary: usize) -> Settings {
    let unit = |random: &mut Random| (random.bits() >> 40) as f32 / (1u64 << 24) as f32;
    let share = |random: &mut Random| if random.below(2) == 0 { 1.0 } else { unit(random) };
    let any = unit(random);
    let mut settings = Settings {
        temperature: random.pick(&[0.0, 0.3, 1.0, 1.0, 0.2 + 2.0 * any, 7.0, 1e4]),
        top_p: share(random),
        top_k: random.pick(&[0, 0, 0, 1, 2, 1 + random.clone().below(vocabulary), vocabulary]),
        min_p: if random.below(2) == 0 { 0.0 } else { unit(random) * unit(random) * unit(random) },
        typical_p: if random.below(3) > 0 { 1.0 } else { unit(random) },
        seed: random.bits(),
        ..Settings::default()
    };
    if random.below(4) == 0 {
        settings = Settings { top_p: 1.0, top_k: 0, min_p: 0.0, typical_p: 1.0, ..settings };
    }
    if random.below(3) == 0 {
        settings.repetition_penalty = random.pick(&[1.0, 1.3, 0.7, 5.0]);
        settings.frequency_penalty = random.pick(&[0.0, 0.4, -1.1]);
        settings.presence_penalty = random.pick(&[0.0, 0.3, -0.6]);
    }
    settings
}

pub(crate) fn random_case(random: &mut Random, vocabulary: usize) -> Case {
    Case {
        settings: random_settings(random, vocabulary),
        position: random.bits() >> random.pick(&[0, 32, 50]),
        spread: random.pick(&[0.0, 0.3, 2.0, 2.0, 4.0, 30.0]),
        step: random.pick(&[0.0, 0.0, 0.5, 0.125]),
        forbidden: random.pick(&[0, 0, 0, 3, 7]),
        allowed: random.pick(&[8, 8, 8, 1, 4, 7]),
        is_biased: random.below(4) == 0,
        alternatives: random.pick(&[0, 0, 1, 5, 40]),
    }
}

pub(crate) fn fill(case: &Case, vocabulary: usize, random: &mut Random) -> Filled {
    let mut logit = || {
        let value = random.normal() * case.spread;
        let value = if case.step > 0.0 { (value / case.step).round() * case.step } else { value };
        if random.below(8) < case.forbidden { f32::NEG_INFINITY } else { value }
    };
    let logits = (0..vocabulary).map(|_| logit()).collect();
    let mask = (case.allowed < 8).then(|| {
        // The last word may be missing, and have bits beyond the vocabulary.
        let words = vocabulary.div_ceil(32).saturating_sub(random.below(4) / 3);
        (0..words)
            .map(|_| (0..32).fold(0, |word, bit| word | u32::from(random.below(8) < case.allowed) << bit))
            .collect()
    });
    // Some tokens occur more than once, and some beyond the vocabulary.
    let mut tokens = |most: usize| {
        (0..random.below(most)).map(|_| random.below(vocabulary + 2).min(random.below(300)) as u32).collect()
    };
    let (prompt, output) = (tokens(20), tokens(30));
    let mut bias: Vec<(u32, f32)> = Vec::new();
    if case.is_biased {
        bias = (0..1 + random.below(9)).map(|_| (random.below(vocabulary) as u32, random.normal() * 5.0)).collect();
        bias.sort_by_key(|(id, _)| *id);
        bias.dedup_by_key(|(id, _)| *id);
    }
    Filled {
        settings: case.settings,
        position: case.position,
        logits,
        mask,
        prompt,
        output,
        bias,
        alternatives: case.alternatives,
    }
}

/// As the kernels choose, rows in one launch; what lies between rows is NaN.
pub(crate) fn run<X: Element>(rows: &[Filled], vocabulary: usize, stride: usize, order: Order) -> Vec<Option<Sampled>> {
    let begun = |row: &Filled| is_changed(row).then(|| begin(row, vocabulary, &row.output, order));
    let mut sequences: Vec<Option<Sequence>> = rows.iter().map(begun).collect();
    let mut logits = vec![X::from_f32(f32::NAN); rows.len() * stride];
    for (row, to) in rows.iter().zip(logits.chunks_mut(stride)) {
        to.iter_mut().zip(&row.logits).for_each(|(to, &logit)| *to = X::from_f32(logit));
    }
    let mut requests: Vec<Request<'_>> = rows
        .iter()
        .zip(&mut sequences)
        .map(|(row, sequence)| Request {
            settings: row.settings,
            position: row.position,
            mask: row.mask.as_deref(),
            sequence: sequence.as_mut(),
            alternatives: row.alternatives,
            wants_logprob: true,
        })
        .collect();
    let sampled = on(order).sample(&logits, vocabulary, stride, &mut requests).unwrap();
    for ((row, sequence), sampled) in rows.iter().zip(&sequences).zip(&sampled) {
        let Some(sequence) = sequence.as_ref().filter(|_| row.settings.penalises()) else { continue };
        let token = sampled.iter().map(|sampled| sampled.token);
        let output: Vec<u32> = row.output.iter().copied().chain(token).collect();
        assert_eq!(*sequence, begin(row, vocabulary, &output, order), "what was recorded: {row:?}");
    }
    sampled
}

fn is_changed(row: &Filled) -> bool {
    row.settings.penalises() || !row.bias.is_empty()
}

fn begin(row: &Filled, vocabulary: usize, output: &[u32], order: Order) -> Sequence {
    on(order).begin_sequence(&row.settings, vocabulary, &row.prompt, output, &row.bias).unwrap()
}

pub(crate) fn parameters(settings: &Settings) -> engine::SamplingParams {
    engine::SamplingParams {
        temperature: settings.temperature,
        top_p: settings.top_p,
        top_k: settings.top_k,
        min_p: settings.min_p,
        typical_p: settings.typical_p,
        repetition_penalty: settings.repetition_penalty,
        frequency_penalty: settings.frequency_penalty,
        presence_penalty: settings.presence_penalty,
        seed: settings.seed,
    }
}

/// As the engine chooses. It has no bias: it gets logits that have it, and log-probabilities are those of the ones that do not.
pub(crate) fn expected<X: Element>(row: &Filled) -> Option<Sampled> {
    let logits: Vec<f32> = row.logits.iter().map(|&logit| X::from_f32(logit).to_f32()).collect();
    let mut biased = logits.clone();
    for &(id, value) in &row.bias {
        biased[id as usize] += value;
    }
    let mut sampler = engine::Sampler::new(parameters(&row.settings), &row.prompt);
    row.output.iter().for_each(|&token| sampler.record(token));
    let sampled = sampler.sample_allowed(&mut biased, row.mask.as_deref(), row.position, row.alternatives).ok()?;
    let model = engine::logprob_of(&logits, sampled.token, row.alternatives).unwrap();
    if row.bias.is_empty() {
        assert_eq!(sampled.logprob, model.logprob);
    }
    Some(Sampled { token: sampled.token, logprob: model.logprob, top: model.top })
}

pub(crate) fn check_filled<X: Element>(rows: &[Filled], vocabulary: usize, order: Order) {
    let got = run::<X>(rows, vocabulary, vocabulary, order);
    for (at, (row, got)) in rows.iter().zip(got).enumerate() {
        let summary = (row.settings, row.position, &row.prompt, &row.output, &row.bias, row.mask.is_some());
        assert_eq!(got, expected::<X>(row), "row {at}, vocabulary {vocabulary}: {summary:?}");
    }
}

pub(crate) fn check_batch<X: Element>(cases: &[Case], vocabulary: usize, random: &mut Random, order: Order) {
    let rows: Vec<Filled> = cases.iter().map(|case| fill(case, vocabulary, random)).collect();
    check_filled::<X>(&rows, vocabulary, order);
}
