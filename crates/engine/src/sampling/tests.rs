use super::*;

/// A row like a model's: a few likely tokens over a long tail. Integer arithmetic, so the same everywhere.
fn row(vocabulary: usize, salt: u32) -> Vec<f32> {
    (0..vocabulary as u32)
        .map(|id| {
            let mixed = (id ^ salt).wrapping_mul(0x9E37_79B9).rotate_left(15).wrapping_mul(0x85EB_CA6B);
            let unit = (mixed >> 8) as f32 / (1u32 << 24) as f32;
            unit * unit * unit * 12.0 - 4.0
        })
        .collect()
}

fn draw(params: SamplingParams, logits: &[f32], position: u64) -> u32 {
    Sampler::new(params, &[]).sample(&mut logits.to_vec(), position, 0).unwrap().token
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let mut logits = vec![0.0f32; 100];
    logits[40] = 1.0;
    logits[41] = 1.0;
    assert_eq!(draw(SamplingParams::default(), &logits, 0), 40);
    let vanishing = SamplingParams { temperature: 1e-45, ..SamplingParams::default() };
    assert_eq!(draw(vanishing, &logits, 0), 40);
}

#[test]
fn reports_the_log_probability_of_the_model_itself() {
    let probabilities = [0.5f32, 0.25, 0.125, 0.125];
    let mut logits: Vec<f32> = probabilities.iter().map(|p| p.ln() + 3.0).collect();
    let params = SamplingParams {
        temperature: 7.0,
        top_k: 2,
        repetition_penalty: 9.0,
        presence_penalty: 2.0,
        ..SamplingParams::default()
    };
    let sampled = Sampler::new(params, &[0, 1, 2]).sample(&mut logits, 4, 3).unwrap();
    assert!((sampled.logprob - probabilities[sampled.token as usize].ln()).abs() < 1e-6, "{sampled:?}");
    let ids: Vec<u32> = sampled.top.iter().map(|&(id, _)| id).collect();
    assert_eq!(ids, [0, 1, 2]);
    assert!((sampled.top[1].1 - 0.25f32.ln()).abs() < 1e-6);
}

#[test]
fn the_same_position_draws_the_same_token_whatever_came_between() {
    let params = SamplingParams { temperature: 1.0, seed: 99, ..SamplingParams::default() };
    let logits = row(5000, 1);
    let mut straight = Sampler::new(params, &[]);
    let tokens: Vec<u32> = (0..50).map(|p| straight.sample(&mut logits.clone(), p, 0).unwrap().token).collect();
    for position in (0..50).rev() {
        assert_eq!(draw(params, &logits, position), tokens[position as usize]);
    }
    let other_seed: Vec<u32> = (0..50).map(|p| draw(SamplingParams { seed: 100, ..params }, &logits, p)).collect();
    assert_ne!(tokens, other_seed);
}

#[test]
fn draws_follow_the_distribution() {
    let logits: Vec<f32> = [0.5f32, 0.3, 0.2].iter().map(|p| p.ln()).collect();
    for top_k in [0, 3] {
        let params = SamplingParams { temperature: 1.0, top_k, seed: 5, ..SamplingParams::default() };
        let mut counts = [0u32; 3];
        for position in 0..20_000 {
            counts[draw(params, &logits, position) as usize] += 1;
        }
        for (count, share) in counts.iter().zip([0.5, 0.3, 0.2]) {
            // Four standard deviations of a binomial of 20,000.
            assert!(
                (f64::from(*count) / 20_000.0 - share).abs() < 4.0 * (share * (1.0 - share) / 20_000.0).sqrt(),
                "{counts:?}"
            );
        }
    }
}

#[test]
fn temperature_sharpens_and_flattens() {
    let logits: Vec<f32> = [0.6f32, 0.4].iter().map(|p| p.ln()).collect();
    let share = |temperature: f32| {
        let params = SamplingParams { temperature, ..SamplingParams::default() };
        (0..4000).filter(|&position| draw(params, &logits, position) == 0).count() as f64 / 4000.0
    };
    // At 1/2 the odds are squared: 0.36 to 0.16; at 2 their roots.
    assert!((share(0.5) - 0.36 / 0.52).abs() < 0.03);
    assert!((share(2.0) - 0.6f64.sqrt() / (0.6f64.sqrt() + 0.4f64.sqrt())).abs() < 0.03);
}

#[test]
fn penalties_follow_their_definitions() {
    let base = vec![2.0f32, -1.0, 0.5, 0.0];
    let after = |params: SamplingParams, prompt: &[u32], output: &[u32]| {
        let mut sampler = Sampler::new(params, prompt);
        output.iter().for_each(|&token| sampler.record(token));
        let mut logits = base.clone();
        sampler.sample(&mut logits, 0, 0).unwrap();
        logits
    };
    let none = SamplingParams::default();
    assert_eq!(after(SamplingParams { repetition_penalty: 2.0, ..none }, &[0, 1], &[2]), [1.0, -2.0, 0.25, 0.0]);
    assert_eq!(after(SamplingParams { frequency_penalty: 0.5, ..none }, &[0], &[1, 1]), [2.0, -2.0, 0.5, 0.0]);
    assert_eq!(after(SamplingParams { presence_penalty: 0.5, ..none }, &[0], &[1, 1]), [2.0, -1.5, 0.5, 0.0]);
    assert_eq!(after(none, &[0], &[1]), base);
}

#[test]
fn a_token_outside_the_vocabulary_in_the_prompt_is_harmless() {
    let params = SamplingParams { repetition_penalty: 1.3, ..SamplingParams::default() };
    let sampled = Sampler::new(params, &[70_000]).sample(&mut [0.0, 1.0], 0, 5).unwrap();
    assert_eq!((sampled.token, sampled.top.len()), (1, 2));
}

#[test]
fn broken_logits_are_an_error_and_leave_the_sampler_as_it_was() {
    let params = SamplingParams { presence_penalty: 1.0, ..SamplingParams::default() };
    let mut sampler = Sampler::new(params, &[]);
    for bad in [f32::NAN, f32::INFINITY] {
        assert!(matches!(sampler.sample(&mut [0.0, bad, 1.0], 0, 2), Err(Error::Logits)));
    }
    assert!(sampler.sample(&mut [], 0, 0).is_err());
    let mut logits = [0.5f32, 0.25];
    sampler.sample(&mut logits, 0, 0).unwrap();
    assert_eq!(logits, [0.5, 0.25], "nothing had been recorded");
}

#[test]
fn extreme_parameters_never_panic() {
    let logits = row(300, 3);
    for temperature in [0.0f32, 1e-38, 0.01, 1.0, 1e30, f32::INFINITY] {
        for top_p in [-1.0f32, 0.0, 1e-30, 0.5, 1.0, 2.0] {
            for min_p in [-1.0f32, 0.0, 1e-30, 1.0, 5.0] {
                for (top_k, typical_p) in [(0, 1.0), (1, 0.5), (usize::MAX, 1e-30), (300, -1.0)] {
                    let params = SamplingParams {
                        temperature,
                        top_p,
                        top_k,
                        min_p,
                        typical_p,
                        seed: 1,
                        ..SamplingParams::default()
                    };
                    assert!(draw(params, &logits, u64::MAX) < 300);
                }
            }
        }
    }
}

#[test]
fn log_softmax_sums_to_one() {
    let mut logits = row(49_152, 9);
    log_softmax(&mut logits).unwrap();
    let sum: f64 = logits.iter().map(|&value| f64::from(value).exp()).sum();
    assert!((sum - 1.0).abs() < 1e-5, "{sum}");
}

#[test]
fn prompt_log_probabilities_equal_log_softmax() {
    let logits = row(1000, 2);
    let mut whole = logits.clone();
    log_softmax(&mut whole).unwrap();
    let one = logprob_of(&logits, 123, 4).unwrap();
    assert_eq!(one.logprob, whole[123]);
    assert!(one.top.iter().all(|&(id, value)| whole[id as usize] == value));
    assert!(logprob_of(&logits, 1000, 0).is_err());
}

/// Guards replay across versions and platforms: a change here changes what clients with a seed get.
#[test]
fn golden_draws_stay_as_they_are() {
    let logits = row(49_152, 42);
    let tokens = |params: SamplingParams| (0..8).map(|position| draw(params, &logits, position)).collect::<Vec<u32>>();
    let plain = SamplingParams { temperature: 0.8, seed: 1234, ..SamplingParams::default() };
    assert_eq!(tokens(plain), GOLDEN_PLAIN);
    assert_eq!(tokens(SamplingParams { top_k: 50, top_p: 0.9, ..plain }), GOLDEN_FILTERED);
    assert_eq!(tokens(SamplingParams { min_p: 0.2, typical_p: 0.7, ..plain }), GOLDEN_TYPICAL);
}

/// From the definitions, in f64 with a whole sort (NumPy), not from this code.
const GOLDEN_PLAIN: [u32; 8] = [41655, 5379, 48268, 6761, 44992, 9572, 32355, 20898];
const GOLDEN_FILTERED: [u32; 8] = [44203, 31851, 14790, 4607, 36241, 34413, 19685, 46452];
const GOLDEN_TYPICAL: [u32; 8] = [22694, 37637, 29004, 48468, 12920, 20095, 33387, 48724];

#[test]
fn a_mask_forbids_under_every_setting_and_leaves_the_log_probabilities_alone() {
    let logits = row(1000, 5);
    let free = Sampler::new(SamplingParams::default(), &[]).sample(&mut logits.clone(), 0, 5).unwrap();
    let mut mask = [0u32; 31];
    for allowed in [3usize, 400, 991] {
        mask[allowed / 32] |= 1 << (allowed % 32);
    }
    for (at, params) in [
        SamplingParams::default(),
        SamplingParams { temperature: 50.0, ..SamplingParams::default() },
        SamplingParams { temperature: 2.0, top_k: 2, top_p: 0.9, min_p: 0.1, ..SamplingParams::default() },
        SamplingParams { temperature: 1.0, typical_p: 0.5, repetition_penalty: 3.0, ..SamplingParams::default() },
        SamplingParams { frequency_penalty: -2.0, presence_penalty: -2.0, ..SamplingParams::default() },
    ]
    .into_iter()
    .enumerate()
    {
        for position in 0..50 {
            let mut sampler = Sampler::new(params, &[3, 5, 700]);
            sampler.record(5);
            let sampled = sampler.sample_allowed(&mut logits.clone(), Some(&mask), position, 5).unwrap();
            assert!([3, 400, 991].contains(&sampled.token), "{at}: {sampled:?}");
            assert_eq!(sampled.top, free.top, "{at}");
            let own = logprob_of(&logits, sampled.token, 0).unwrap().logprob;
            assert!((sampled.logprob - own).abs() < 1e-6, "{at}: {} is not {own}", sampled.logprob);
        }
    }
    // The last 8 tokens have no word: forbidden.
    let all = [u32::MAX; 31];
    let mut ending = vec![0.0f32; 1000];
    ending[995] = 9.0;
    let sampled = Sampler::new(SamplingParams::default(), &[]).sample_allowed(&mut ending, Some(&all), 0, 0).unwrap();
    assert_eq!(sampled.token, 0);
    assert!(
        Sampler::new(SamplingParams::default(), &[]).sample_allowed(&mut logits.clone(), Some(&[0]), 0, 0).is_err()
    );
}
