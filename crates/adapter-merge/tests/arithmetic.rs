//! Every method against the same formulas on dense deltas, written again without a thought for speed.

mod support;

use std::collections::BTreeMap;
use support::{Dense, base, blob_of, deltas, difference, merge_blobs, mixed_blobs, recipe};
use weft_adapter_merge::{MajoritySign, Method};
use weft_types::Digest;

const SHARES: [f64; 3] = [0.75, -1.5, 2.0];
/// Rounding of factors to single precision: 2^-24 each, a few of them, over sums that cancel a little.
const SINGLE: f64 = 1e-6;
/// More than every shorter side: nothing is cut off.
const WHOLE: Option<u32> = Some(32);

/// The parents' deltas of each module with their shares; `kept` decides what of a delta stays.
fn by_module(blobs: &[Vec<u8>], kept: impl Fn(Digest, &str, &Dense) -> Dense) -> BTreeMap<String, Vec<(f64, Dense)>> {
    let mut all: BTreeMap<String, Vec<(f64, Dense)>> = BTreeMap::new();
    for (blob, share) in blobs.iter().zip(SHARES) {
        for (name, delta) in deltas(blob) {
            let delta = kept(Digest::of(blob), &name, &delta);
            all.entry(name).or_default().push((share, delta));
        }
    }
    all
}

fn join(
    modules: BTreeMap<String, Vec<(f64, Dense)>>,
    element: impl Fn(&[(f64, f64)]) -> f64,
) -> BTreeMap<String, Dense> {
    let joined = modules.into_iter().map(|(name, parts)| {
        let values = (0..parts[0].1.values.len()).map(|index| {
            let values: Vec<(f64, f64)> = parts.iter().map(|(share, delta)| (*share, delta.values[index])).collect();
            element(&values)
        });
        let values = values.collect();
        (name, Dense { values, ..parts[0].1.clone() })
    });
    joined.collect()
}

fn weighted_sum(values: &[(f64, f64)]) -> f64 {
    values.iter().map(|(share, value)| share * value).sum()
}

fn disjoint_mean(values: &[(f64, f64)], election: MajoritySign) -> f64 {
    let zero_or_sign = |value: f64| if value == 0.0 { 0.0 } else { value.signum() };
    let votes: f64 = match election {
        MajoritySign::Total => values.iter().map(|(_, value)| value).sum(),
        MajoritySign::Frequency => values.iter().map(|(_, value)| zero_or_sign(*value)).sum(),
    };
    let elected = if votes < 0.0 { -1.0 } else { 1.0 };
    let agreeing: Vec<_> = values.iter().filter(|(_, value)| zero_or_sign(*value) == elected).collect();
    agreeing.iter().map(|(share, value)| share * value).sum::<f64>() / agreeing.len().max(1) as f64
}

/// Keeps the largest magnitudes by sorting all of them.
fn trimmed(delta: &Dense, density: f64) -> Dense {
    let mut order: Vec<usize> = (0..delta.values.len()).collect();
    order.sort_by(|one, other| delta.values[*other].abs().total_cmp(&delta.values[*one].abs()));
    let mut values = vec![0.0; delta.values.len()];
    for index in &order[..(density * order.len() as f64) as usize] {
        values[*index] = delta.values[*index];
    }
    Dense { values, ..*delta }
}

/// Draws by a second reading of the rule: ChaCha8 keyed by a hash, one word for each element.
fn drawn(seed: u64, parent: Digest, name: &str, delta: &Dense, density: f64) -> Dense {
    use rand_chacha::rand_core::{RngCore, SeedableRng};
    let mut key = b"weft/merge-dare/1".to_vec();
    key.extend(seed.to_le_bytes());
    key.extend(parent.as_bytes());
    key.extend(format!("{name}.delta").as_bytes());
    let words = rand_chacha::ChaCha8Rng::from_seed(*Digest::of(&key).as_bytes());
    let values = delta.values.iter().enumerate().map(|(index, value)| {
        let mut at = words.clone();
        at.set_word_pos(index as u128);
        if f64::from(at.next_u32()) / 4_294_967_296.0 < density { value / density } else { 0.0 }
    });
    Dense { values: values.collect(), ..*delta }
}

fn merged(method: Method, rank: Option<u32>) -> BTreeMap<String, Dense> {
    let blobs = mixed_blobs();
    let merged = merge_blobs(recipe(&blobs, &SHARES, method, rank), &blobs, &base());
    assert!(merged.report.error < 1e-12, "nothing is cut off: {}", merged.report.error);
    deltas(&blob_of(&merged, &base()))
}

#[test]
fn linear_is_the_weighted_sum_of_the_deltas_with_mixed_ranks_alphas_and_modules() {
    let wanted = join(by_module(&mixed_blobs(), |_, _, delta| delta.clone()), weighted_sum);
    assert_eq!(wanted.len(), 7);
    let found = merged(Method::Linear {}, None);
    assert!(difference(&found, &wanted) < SINGLE, "{}", difference(&found, &wanted));
    // Through the decomposition too, where the rank suffices.
    assert!(difference(&merged(Method::Svd {}, WHOLE), &wanted) < SINGLE);
}

#[test]
fn ties_trims_elects_and_averages() {
    for election in [MajoritySign::Total, MajoritySign::Frequency] {
        for density in [0.05, 0.3, 0.7, 1.0] {
            let modules = by_module(&mixed_blobs(), |_, _, delta| trimmed(delta, density));
            let wanted = join(modules, |values| disjoint_mean(values, election));
            let found = merged(Method::Ties { density, majority_sign: election }, WHOLE);
            assert!(difference(&found, &wanted) < SINGLE, "{election:?} {density}: {}", difference(&found, &wanted));
        }
    }
}

#[test]
fn dare_drops_rescales_and_joins() {
    for density in [0.2, 0.5, 0.9, 1.0] {
        let seed = 17;
        let modules = by_module(&mixed_blobs(), |parent, name, delta| drawn(seed, parent, name, delta, density));
        let found = merged(Method::DareLinear { density, seed }, WHOLE);
        assert!(difference(&found, &join(modules.clone(), weighted_sum)) < SINGLE, "linear {density}");
        for election in [MajoritySign::Total, MajoritySign::Frequency] {
            let wanted = join(modules.clone(), |values| disjoint_mean(values, election));
            let found = merged(Method::DareTies { density, seed, majority_sign: election }, WHOLE);
            assert!(difference(&found, &wanted) < SINGLE, "{election:?} {density}");
        }
    }
}

#[test]
fn the_reported_error_is_the_error_and_falls_with_the_rank() {
    let blobs = mixed_blobs();
    let ties = Method::Ties { density: 0.4, majority_sign: MajoritySign::Total };
    for method in [Method::Svd {}, ties, Method::DareLinear { density: 0.5, seed: 3 }] {
        let whole = merge_blobs(recipe(&blobs, &SHARES, method, WHOLE), &blobs, &base());
        let wanted = deltas(&blob_of(&whole, &base()));
        let mut before = f64::INFINITY;
        for rank in 1..=6 {
            let cut = merge_blobs(recipe(&blobs, &SHARES, method, Some(rank)), &blobs, &base());
            let found = deltas(&blob_of(&cut, &base()));
            let (mut lost2, mut norm2) = (0.0, 0.0);
            for report in &cut.report.modules {
                let (wanted, found) = (&wanted[&report.module], &found[&report.module]);
                let (lost, norm) = (wanted.less(found).norm(), wanted.norm());
                assert!((report.error - lost / norm).abs() < SINGLE, "{method:?} {rank}: {report:?} {}", lost / norm);
                assert!((report.norm / norm - 1.0).abs() < SINGLE);
                lost2 += lost * lost;
                norm2 += norm * norm;
            }
            assert!((cut.report.error - (lost2 / norm2).sqrt()).abs() < SINGLE);
            assert!(cut.report.error <= before);
            before = cut.report.error;
        }
    }
}
