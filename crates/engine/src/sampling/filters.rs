//! Which tokens may be drawn: top_k, top_p, min_p and typical_p, in this order, each over what the one before kept.
//!
//! A vocabulary is never sorted whole if it can be helped: every filter but `typical_p` keeps some number of the most
//! probable tokens, so only the values above a bound are gathered and sorted, and the bound is lowered until enough are
//! in. The result is exact.

use super::math::{self, BLOCK};

/// A token that may still be drawn. `weight` is `exp((logit - max) / temperature)`: 1 for the most probable token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) weight: f32,
}

/// The settings of the filters; each has a value that turns it off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filters {
    /// 0: off.
    pub(super) top_k: usize,
    /// 1: off.
    pub(super) top_p: f32,
    /// 0: off.
    pub(super) min_p: f32,
    /// 1: off.
    pub(super) typical_p: f32,
}

impl Filters {
    pub(super) fn are_off(&self) -> bool {
        self.top_k == 0 && self.top_p >= 1.0 && self.min_p <= 0.0 && self.typical_p >= 1.0
    }
}

/// Penalised logits of one row, with what turns a logit into a weight.
pub(super) struct Row<'a> {
    logits: &'a [f32],
    max: f32,
    inverse_temperature: f32,
    /// Of blocks of [`BLOCK`] logits: a block whose largest is below a bound is skipped whole.
    maxima: Vec<f32>,
}

impl<'a> Row<'a> {
    /// `max` is the largest of `logits`.
    pub(super) fn new(logits: &'a [f32], max: f32, inverse_temperature: f32) -> Self {
        Self { logits, max, inverse_temperature, maxima: math::block_maxima(logits) }
    }

    fn weight(&self, logit: f32) -> f32 {
        math::exp((logit - self.max) * self.inverse_temperature)
    }

    /// Every token whose logit is at least `bound` and whose weight is positive.
    fn gather(&self, bound: f32) -> Vec<Candidate> {
        let mut kept = Vec::new();
        for (block, (values, &max)) in self.logits.chunks(BLOCK).zip(&self.maxima).enumerate() {
            if max < bound {
                continue;
            }
            for (offset, &logit) in values.iter().enumerate() {
                if logit >= bound {
                    let weight = self.weight(logit);
                    if weight > 0.0 {
                        kept.push(Candidate { id: (block * BLOCK + offset) as u32, weight });
                    }
                }
            }
        }
        kept
    }

    /// A logit that at least `count` tokens reach: the `count`-th largest of the blocks' maxima.
    fn bound_for(&self, count: usize) -> f32 {
        if count == 0 || count > self.maxima.len() {
            return f32::NEG_INFINITY;
        }
        let mut maxima = self.maxima.clone();
        *maxima.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
    }
}

/// The tokens that pass all filters, the most probable first (equal weights by id), except after `typical_p`, where
/// the most typical is first. Never empty.
pub(super) fn apply(row: &Row<'_>, filters: &Filters) -> Vec<Candidate> {
    let mut kept = if filters.top_k > 0 {
        most_probable(row, filters.top_k)
    } else if filters.top_p < 1.0 {
        covering(row, filters.top_p)
    } else if filters.min_p > 0.0 {
        // weight >= min_p <=> logit >= max + T ln(min_p); a little lower, because the exact test follows.
        let slack = filters.min_p.ln() / row.inverse_temperature - 1e-3;
        sorted(row.gather(row.max + slack))
    } else {
        sorted(row.gather(f32::NEG_INFINITY))
    };
    if filters.top_p < 1.0 {
        let total = mass(&kept);
        keep_mass(&mut kept, f64::from(filters.top_p) * total);
    }
    if filters.min_p > 0.0 {
        let count = kept.iter().take_while(|candidate| candidate.weight >= filters.min_p).count();
        kept.truncate(count.max(1));
    }
    if filters.typical_p < 1.0 {
        keep_typical(&mut kept, f64::from(filters.typical_p));
    }
    kept
}

fn most_probable(row: &Row<'_>, count: usize) -> Vec<Candidate> {
    let mut kept = sorted(row.gather(row.bound_for(count)));
    kept.truncate(count);
    kept
}

/// A prefix of the sorted vocabulary that holds at least the share `top_p` of its mass. The caller cuts it exactly.
fn covering(row: &Row<'_>, top_p: f32) -> Vec<Candidate> {
    let total = math::exp_sum(row.logits, row.max, row.inverse_temperature);
    // Nats below the largest; e^-9 still cuts most vocabularies of 50,000 to some hundreds.
    for depth in [3.0f32, 9.0] {
        let kept = row.gather(row.max - depth / row.inverse_temperature);
        // Strictly more than asked, so that the order in which the sums were made cannot matter.
        if mass(&kept) >= f64::from(top_p) * total * (1.0 + 1e-5) {
            return with_rest(sorted(kept), total);
        }
    }
    sorted(row.gather(f32::NEG_INFINITY))
}

/// `top_p` is a share of the whole mass, also of what was not gathered: an id that no vocabulary has stands for it.
fn with_rest(mut kept: Vec<Candidate>, total: f64) -> Vec<Candidate> {
    let rest = total - mass(&kept);
    if rest > 0.0 {
        kept.push(Candidate { id: u32::MAX, weight: rest as f32 });
    }
    kept
}

fn sorted(mut kept: Vec<Candidate>) -> Vec<Candidate> {
    kept.sort_unstable_by(|a, b| b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id)));
    kept
}

pub(super) fn mass(kept: &[Candidate]) -> f64 {
    kept.iter().map(|candidate| f64::from(candidate.weight)).sum()
}

/// Keeps the candidates before which less than `target` lies: the smallest prefix that reaches it, and at least one.
fn keep_mass(kept: &mut Vec<Candidate>, target: f64) {
    let mut before = 0.0;
    let mut count = 0;
    for candidate in kept.iter() {
        if count > 0 && before >= target {
            break;
        }
        before += f64::from(candidate.weight);
        count += 1;
    }
    kept.truncate(count);
}

/// Locally typical sampling (arXiv 2202.00666): the tokens whose surprise is nearest to the entropy, until they hold
/// the share `typical_p` of the mass.
fn keep_typical(kept: &mut Vec<Candidate>, typical_p: f64) {
    let total = mass(kept);
    let surprise = |candidate: &Candidate| -(f64::from(candidate.weight) / total).ln();
    let entropy: f64 = kept.iter().map(|candidate| f64::from(candidate.weight) / total * surprise(candidate)).sum();
    let mut by_distance: Vec<(f64, Candidate)> =
        kept.iter().map(|candidate| ((surprise(candidate) - entropy).abs(), *candidate)).collect();
    by_distance.sort_unstable_by(|a, b| a.0.total_cmp(&b.0).then(a.1.id.cmp(&b.1.id)));
    *kept = by_distance.into_iter().map(|(_, candidate)| candidate).collect();
    keep_mass(kept, typical_p * total);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OFF: Filters = Filters { top_k: 0, top_p: 1.0, min_p: 0.0, typical_p: 1.0 };

    fn row(logits: &[f32]) -> Row<'_> {
        Row::new(logits, math::max_finite(logits).unwrap(), 1.0)
    }

    /// The same filters by the book: sort everything, renormalise after each.
    fn by_the_book(logits: &[f32], filters: &Filters) -> Vec<u32> {
        let row = row(logits);
        let mut kept = sorted(row.gather(f32::NEG_INFINITY));
        if filters.top_k > 0 {
            kept.truncate(filters.top_k);
        }
        if filters.top_p < 1.0 {
            let total = mass(&kept);
            keep_mass(&mut kept, f64::from(filters.top_p) * total);
        }
        if filters.min_p > 0.0 {
            kept.retain(|candidate| candidate.weight >= filters.min_p);
        }
        if filters.typical_p < 1.0 {
            keep_typical(&mut kept, f64::from(filters.typical_p));
        }
        kept.iter().map(|candidate| candidate.id).collect()
    }

    fn ids(kept: &[Candidate]) -> Vec<u32> {
        kept.iter().map(|candidate| candidate.id).collect()
    }

    #[test]
    fn top_p_keeps_the_token_that_reaches_the_share() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.15f32.ln(), 0.05f32.ln()];
        let kept = |top_p| ids(&apply(&row(&logits), &Filters { top_p, ..OFF }));
        assert_eq!(kept(0.4), [0]);
        assert_eq!(kept(0.6), [0, 1]);
        assert_eq!(kept(0.81), [0, 1, 2]);
        assert_eq!(kept(1e-9), [0]);
    }

    #[test]
    fn min_p_is_relative_to_the_most_probable() {
        let logits = [0.5f32.ln(), 0.3f32.ln(), 0.15f32.ln(), 0.05f32.ln()];
        assert_eq!(ids(&apply(&row(&logits), &Filters { min_p: 0.5, ..OFF })), [0, 1]);
        assert_eq!(ids(&apply(&row(&logits), &Filters { min_p: 1.0, ..OFF })), [0]);
    }

    #[test]
    fn typical_p_prefers_average_surprise_to_the_most_probable() {
        // Entropy 1.6: the many tokens of 0.06 (surprise 2.8) are nearer to it than the one of 0.7 (0.36) is not.
        let mut logits = vec![0.4f32.ln()];
        logits.extend(vec![0.06f32.ln(); 10]);
        let kept = ids(&apply(&row(&logits), &Filters { typical_p: 0.3, ..OFF }));
        assert!(!kept.contains(&0), "{kept:?}");
    }

    #[test]
    fn forbidden_tokens_are_never_candidates() {
        let mut logits = vec![f32::NEG_INFINITY; 500];
        logits[77] = 1.0;
        for filters in [
            Filters { top_k: 50, ..OFF },
            Filters { top_p: 0.9, ..OFF },
            Filters { min_p: 0.1, ..OFF },
            Filters { typical_p: 0.9, ..OFF },
        ] {
            assert_eq!(ids(&apply(&row(&logits), &filters)), [77]);
        }
    }

    proptest! {
        #[test]
        fn equals_sorting_the_whole_vocabulary(
            seed in 0u64..1000, spread in 0.1f32..12.0, size in 1usize..3000,
            top_k in 0usize..60, top_p in 0.05f32..1.3, min_p in -0.2f32..0.9, typical_p in 0.05f32..1.5,
        ) {
            let logits: Vec<f32> =
                (0..size).map(|i| super::super::rng::uniform(seed, i as u64) as f32 * spread).collect();
            let filters = Filters { top_k, top_p: top_p.min(1.0), min_p: min_p.max(0.0), typical_p: typical_p.min(1.0) };
            prop_assume!(!filters.are_off());
            prop_assert_eq!(ids(&apply(&row(&logits), &filters)), by_the_book(&logits, &filters));
        }
    }
}
