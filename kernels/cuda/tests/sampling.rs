//! The sampling kernels against the engine's sampler: the same token, and here, where both take one `log`, the same bits of
//! log-probabilities. Nothing is compared with a tolerance.

mod support;

use half::{bf16, f16};
use support::{Case, Error, Filled, ORDERS, check_batch, engine, on, random_case, random_settings};
use weft_cuda_kernels::arguments;
use weft_cuda_kernels::host::{Launch, Order};
use weft_cuda_kernels::on_host::Element;
use weft_cuda_kernels::sampling::{CANDIDATES, Request, Settings, VOCABULARY_MAX};
use weft_kernels::conformance::Random;

const SMALL: [usize; 12] = [1, 2, 3, 5, 17, 31, 32, 33, 63, 64, 65, 100];
/// More blocks than one, more chunks than one, with and without a tail of sixteen.
const LARGER: [usize; 8] = [129, 257, 700, 1000, 1024, 1025, 1300, 2100];

/// Batches of rows, each with settings of its own, over a vocabulary.
fn batches<X: Element>(seed: u64, count: usize, vocabularies: &[usize]) {
    for batch in 0..count {
        let random = &mut Random::new(seed + batch as u64);
        let vocabulary = random.pick(vocabularies);
        let cases: Vec<Case> = (0..16).map(|_| random_case(random, vocabulary)).collect();
        check_batch::<X>(&cases, vocabulary, random, ORDERS[batch % ORDERS.len()]);
    }
}

#[test]
fn chooses_what_the_engine_chooses_in_f32() {
    batches::<f32>(1000, 60, &SMALL);
    batches::<f32>(1500, 12, &LARGER);
}

#[test]
fn chooses_what_the_engine_chooses_in_bf16() {
    batches::<bf16>(2000, 12, &SMALL);
    batches::<bf16>(2500, 6, &LARGER);
}

#[test]
fn chooses_what_the_engine_chooses_in_f16() {
    batches::<f16>(3000, 12, &SMALL);
    batches::<f16>(3500, 6, &LARGER);
}

/// More candidates than shared memory holds: several tiles, merged, in the workspace, beside rows that need none of it.
#[test]
fn chooses_what_the_engine_chooses_among_many_candidates() {
    let sampled = Settings { temperature: 1.3, seed: 3, ..Settings::default() };
    let flat = [
        Settings { top_k: 3000, ..sampled },
        Settings { top_p: 0.97, ..sampled },
        Settings { top_p: 0.99999, temperature: 3.0, ..sampled },
        Settings { min_p: 1e-3, ..sampled },
        Settings { typical_p: 0.8, ..sampled },
        Settings { top_k: 6000, top_p: 0.9, min_p: 1e-4, typical_p: 0.9, ..sampled },
        Settings { top_k: 40, ..sampled },
        Settings { min_p: 1e-6, top_p: 0.999, temperature: 1e3, ..sampled },
    ];
    for (seed, vocabulary) in [(1, 2 * CANDIDATES), (2, 6149)] {
        let random = &mut Random::new(seed);
        let cases: Vec<Case> = flat
            .iter()
            .map(|&settings| Case {
                settings,
                spread: 1.5,
                step: random.pick(&[0.0, 0.25]),
                ..random_case(random, vocabulary)
            })
            .collect();
        check_batch::<f32>(&cases, vocabulary, random, ORDERS[seed as usize % ORDERS.len()]);
    }
}

/// All logits the same, so that ids alone rank them, sums are exact and shares fall on the edge between two tokens.
#[test]
fn ties_are_ranked_by_id() {
    for vocabulary in [8, 64, 1024, CANDIDATES + 64] {
        let mut cases = Vec::new();
        for top_p in [0.125f32, 0.25, 0.5, 0.75, 1.0] {
            for top_k in [0, 1, 7, vocabulary / 2] {
                let settings =
                    Settings { temperature: 0.7, top_p, top_k, seed: cases.len() as u64, ..Settings::default() };
                cases.push(Case { settings, spread: 0.0, alternatives: 5, ..Case::default() });
            }
            let settings = Settings { temperature: 0.7, typical_p: top_p, seed: 1, ..Settings::default() };
            cases.push(Case { settings, spread: 0.0, ..Case::default() });
        }
        check_batch::<f32>(&cases, vocabulary, &mut Random::new(5), Order::FORWARDS);
    }
}

/// Values at the ends of their ranges and beyond: off, greedy, or one token.
#[test]
fn extreme_settings_mean_what_they_mean_to_the_engine() {
    let mut cases = Vec::new();
    for temperature in [0.0f32, -1.0, f32::NAN, 1e-45, 1e-38, 0.01, 1.0, 1e30, f32::INFINITY] {
        for (top_p, min_p) in
            [(0.0, 0.0), (1e-30, 0.0), (1.0, 1e-30), (0.999_999_94, 1.0), (f32::NAN, 5.0), (2.0, f32::NAN)]
        {
            for (top_k, typical_p) in [(0, 1.0), (1, 0.5), (usize::MAX, 1e-30), (300, -1.0)] {
                let settings = Settings { temperature, top_p, min_p, top_k, typical_p, seed: 1, ..Settings::default() };
                cases.push(Case { settings, position: u64::MAX - 3, ..Case::default() });
            }
        }
    }
    check_batch::<f32>(&cases, 300, &mut Random::new(6), Order::BACKWARDS);
}

/// Half of the mass ends at the second token but for the rounding of the sum, which differs with the order of additions: the device must
/// then add as the engine does. Two tokens of weight 1, a tail that rounds at each addition, and tokens that fill all up to 4.
#[test]
fn decisions_within_rounding_are_the_engines() {
    let (mut rows, mut differ) = (Vec::new(), 0);
    for seed in 0..12 {
        let random = &mut Random::new(seed);
        let mut logits = vec![0.0f32, 0.0];
        logits.extend((0..1200).map(|_| -26.0 - (random.below(1 << 20) as f32) * 1e-6));
        let mut left = 4.0 - logits.iter().map(|&logit| f64::from(support::weight(logit))).sum::<f64>();
        while left > 1e-17 {
            let mut logit = (left.ln() as f32).min(-1e-3);
            while f64::from(support::weight(logit)) > left {
                logit = logit.next_down();
            }
            logits.push(logit);
            left -= f64::from(support::weight(logit));
        }
        let mut weights: Vec<f64> = logits.iter().map(|&logit| f64::from(support::weight(logit))).collect();
        weights.sort_by(|a, b| b.total_cmp(a));
        let in_order: f64 = weights.iter().sum();
        let other: f64 = weights.chunks(weights.len().div_ceil(64)).map(|run| run.iter().sum::<f64>()).sum();
        differ += usize::from((in_order > 4.0) != (other > 4.0));
        logits.resize(1250, f32::NEG_INFINITY);
        let settings = Settings { temperature: 1.0, top_k: 1250, top_p: 0.5, seed, ..Settings::default() };
        rows.extend((0..6).map(|position| Filled { settings, position, logits: logits.clone(), ..Filled::default() }));
    }
    assert!(differ >= 2, "the order of additions decides in {differ} rows of 12");
    support::check_filled::<f32>(&rows, 1250, Order::FORWARDS);
}

/// Weights so flat that all are equal: what is left is the bound, by logits, that the engine gathers above, and ids.
#[test]
fn top_k_at_any_temperature_has_the_engines_bound() {
    for seed in 0..4 {
        let settings = |top_k| Settings { temperature: 1e30, top_k, seed, ..Settings::default() };
        let cases: Vec<Case> =
            [1, 2, 5, 11, 20, 21, 300].map(|k| Case { settings: settings(k), ..Case::default() }).into();
        check_batch::<f32>(&cases, 1300, &mut Random::new(seed), ORDERS[seed as usize]);
    }
}

/// Every bit, where sums and decisions would show few.
#[test]
fn weights_have_the_engines_bits() {
    let random = &mut Random::new(31);
    let mut values: Vec<f32> =
        (0..4096).map(|_| -(random.bits() as f32 / u64::MAX as f32) * random.pick(&[1e-3, 1.0, 88.0])).collect();
    values.splice(..5, [0.0, -0.0, -87.0, -87.000_01, f32::NEG_INFINITY]);
    let mut weights = vec![0.0f32; values.len()];
    let (from, to): (*const f32, *mut f32) = (values.as_ptr(), weights.as_mut_ptr());
    let launch =
        Launch { kernel: "probe_weighs", grid: [64, 1, 1], threads: 64, shared_bytes: 0, order: Order::FORWARDS };
    // SAFETY: the probe's parameters; both vectors have a value for each of 64 times 64 threads.
    unsafe { launch.run(&mut arguments![from, to]) }.unwrap();
    for (value, weight) in values.iter().zip(&weights) {
        assert_eq!(weight.to_bits(), support::weight(*value).to_bits(), "of {value}");
    }
}

#[test]
fn bad_logits_are_told_and_nothing_is_recorded() {
    let settings = Settings { presence_penalty: 1.0, ..Settings::default() };
    let infinite = f32::NEG_INFINITY;
    let rows = [
        vec![0.0, f32::NAN, 1.0, 2.0],
        vec![0.0, 1.0, 2.0, f32::INFINITY],
        vec![infinite; 4],
        vec![infinite, infinite, 3.0, 3.0],
    ];
    for (row, logits) in rows.iter().enumerate() {
        for temperature in [0.0, 1.0] {
            let settings = Settings { temperature, ..settings };
            let mut sequence = on(Order::FORWARDS).begin_sequence(&settings, 4, &[1], &[2], &[]).unwrap();
            let before = sequence.clone();
            // What is above -inf in the last row is forbidden.
            let request = Request {
                settings,
                position: 0,
                mask: Some(&[0b0011]),
                sequence: Some(&mut sequence),
                alternatives: 2,
                wants_logprob: true,
            };
            let got = on(Order::FORWARDS).sample(logits, 4, 4, &mut [request]).unwrap();
            assert_eq!(got, [None], "row {row}");
            assert_eq!(sequence, before, "row {row}");
            let mut sampler = engine::Sampler::new(support::parameters(&settings), &[1]);
            let refused = sampler.sample_allowed(&mut logits.clone(), Some(&[0b0011]), 0, 2);
            assert!(matches!(refused, Err(Error::Logits)), "row {row}");
        }
    }
}

/// A penalty can make a logit +inf where the model's was finite.
#[test]
fn penalties_beyond_f32_are_told() {
    let settings = Settings { repetition_penalty: 1e-38, temperature: 1.0, ..Settings::default() };
    let case =
        |tokens: &[u32]| Filled { settings, logits: vec![9.0, 1.0], prompt: tokens.to_vec(), ..Filled::default() };
    support::check_filled::<f32>(&[case(&[0]), case(&[1]), case(&[])], 2, Order::FORWARDS);
}

#[test]
fn a_row_is_the_same_alone_and_in_any_batch() {
    let random = &mut Random::new(21);
    let rows: Vec<Filled> = (0..9).map(|_| support::fill(&random_case(random, 700), 700, random)).collect();
    let together = support::run::<f32>(&rows, 700, 700, Order::FORWARDS);
    for (at, row) in rows.iter().enumerate() {
        let alone = support::run::<f32>(std::slice::from_ref(row), 700, 700, Order::BACKWARDS);
        assert_eq!(alone[0], together[at], "row {at}: {row:?}");
    }
    let mut reversed = rows.clone();
    reversed.reverse();
    let mut again = support::run::<f32>(&reversed, 700, 700, Order::BACKWARDS);
    again.reverse();
    assert_eq!(again, together);
}

/// Rows that begin anywhere, with elements between them that are nobody's.
#[test]
fn rows_may_be_strided_and_unaligned() {
    let random = &mut Random::new(22);
    let rows: Vec<Filled> = (0..5).map(|_| support::fill(&random_case(random, 333), 333, random)).collect();
    for stride in [333, 334, 335, 340] {
        assert_eq!(
            support::run::<f32>(&rows, 333, stride, Order::FORWARDS),
            support::run::<f32>(&rows, 333, 333, Order::BACKWARDS)
        );
    }
}

#[test]
fn the_largest_vocabularies_fit() {
    for (vocabulary, settings) in [
        (128_256, Settings { temperature: 1.0, top_k: 50, top_p: 0.9, seed: 4, ..Settings::default() }),
        (262_144, Settings { temperature: 0.9, seed: 5, ..Settings::default() }),
        (VOCABULARY_MAX, Settings::default()),
    ] {
        let case = Case { settings, spread: 2.0, alternatives: 3, ..Case::default() };
        check_batch::<bf16>(&[case], vocabulary, &mut Random::new(7), Order::FORWARDS);
    }
    let mut logits = vec![0.0f32; VOCABULARY_MAX];
    logits[VOCABULARY_MAX - 1] = 1.0;
    let case = Filled { settings: Settings::default(), logits, ..Filled::default() };
    assert_eq!(
        support::run::<f32>(&[case], VOCABULARY_MAX, VOCABULARY_MAX, Order::FORWARDS)[0].as_ref().unwrap().token,
        524_287
    );
}

/// Steps record what they choose, so a sequence that goes on is one that begins again with what it has said.
#[test]
fn a_sequence_that_goes_on_equals_one_that_begins_again() {
    let settings = Settings {
        temperature: 0.8,
        repetition_penalty: 1.05,
        frequency_penalty: 0.1,
        presence_penalty: 0.05,
        seed: 8,
        ..Settings::default()
    };
    let device = on(Order::BACKWARDS);
    let (prompt, bias) = ([3u32, 4, 4, 90_000], [(5u32, 6.0f32), (1, -1.0)]);
    let mut output = Vec::new();
    let mut sequence = device.begin_sequence(&settings, 40, &prompt, &[], &bias).unwrap();
    for position in 4..24u64 {
        let case = Case { settings, position, ..Case::default() };
        let logits = support::fill(&case, 40, &mut Random::new(position)).logits;
        let request = Request {
            settings,
            position,
            mask: None,
            sequence: Some(&mut sequence),
            alternatives: 0,
            wants_logprob: false,
        };
        output.push(device.sample(&logits, 40, 40, &mut [request]).unwrap()[0].as_ref().unwrap().token);
        let again = device.begin_sequence(&settings, 40, &prompt, &output, &bias).unwrap();
        assert_eq!(sequence, again, "after {output:?}");
    }
    assert!((0..40).any(|token| sequence.count(token) > 2), "some token came twice: {output:?}");
    assert_eq!(
        (sequence.count(3), sequence.count(90_000)),
        (1 + output.iter().filter(|&&token| token == 3).count() as u32, 0)
    );
}

/// Pearson's chi-square over 800 draws with fixed seeds; 11 degrees of freedom exceed 50 once in a million.
#[test]
fn draws_follow_the_distribution() {
    const LIMIT: f64 = 50.0;
    let logits: Vec<f32> = (0..12).map(|id| (id * 5 % 12) as f32 * -0.3).collect();
    let kept = |settings: &Settings, id: usize| {
        settings.top_k == 0 || (0..settings.top_k as i32).contains(&(id as i32 * 5 % 12))
    };
    for settings in [
        Settings { temperature: 1.5, seed: 77, ..Settings::default() },
        Settings { temperature: 0.9, seed: 78, top_k: 12, ..Settings::default() },
    ] {
        let weights: Vec<f64> = (0..12)
            .map(|id| {
                if kept(&settings, id) { (f64::from(logits[id]) / f64::from(settings.temperature)).exp() } else { 0.0 }
            })
            .collect();
        let total: f64 = weights.iter().sum();
        let rows: Vec<Filled> = (0..800)
            .map(|position| Filled { settings, position, logits: logits.clone(), ..Filled::default() })
            .collect();
        let mut counts = [0.0f64; 12];
        for sampled in support::run::<f32>(&rows, 12, 12, Order::FORWARDS) {
            counts[sampled.unwrap().token as usize] += 1.0;
        }
        let square: f64 = counts
            .iter()
            .zip(&weights)
            .map(|(count, weight)| {
                let expected = 800.0 * weight / total;
                (count - expected).powi(2) / expected
            })
            .sum();
        assert!(square < LIMIT, "{square}: {counts:?}");
    }
}

/// What the tests above draw does not leave whole stages out.
#[test]
fn random_settings_use_every_stage() {
    let random = &mut Random::new(1);
    let settings: Vec<Settings> = (0..400).map(|_| random_settings(random, 1000)).collect();
    let count = |uses: &dyn Fn(&Settings) -> bool| settings.iter().filter(|settings| uses(settings)).count();
    let counts = [
        count(&|s| s.temperature == 0.0),
        count(&|s| s.top_k > 0),
        count(&|s| s.top_p < 1.0 && s.top_k == 0),
        count(&|s| s.min_p > 0.0 && s.top_p >= 1.0 && s.top_k == 0),
        count(&|s| s.typical_p < 1.0),
        count(&|s| s.penalises()),
        count(&|s| s.top_k == 0 && s.top_p >= 1.0 && s.min_p <= 0.0 && s.typical_p >= 1.0 && s.temperature > 0.0),
    ];
    assert!(counts.iter().all(|&count| count >= 20), "{counts:?}");
}
