//! Confidence sequences for means of values between 0 and 1, and for the difference of two of them: exact at every
//! number of observations, for any number of looks, whatever the distribution.
//!
//! **One mean.** For *y* ≥ -1 and 0 ≤ λ < 1: exp(λy - ψ(λ)y²) ≤ 1 + λy with ψ(λ) = -ln(1 - λ) - λ (Fan, Grama and
//! Liu, "Exponential inequalities for martingales with applications", EJP 2015). So with
//! *m* the mean of *x* given the past, exp(λΣ(x-m) - ψ(λ)Σ(x-m)²) is a supermartingale that starts at 1, and so is
//! its average over several λ (Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric, nonasymptotic
//! confidence sequences", Annals of Statistics 2021, section 3; the sums are centred at the candidate *m*, as the
//! bets of Waudby-Smith and Ramdas, JRSS B 2023, are). By Ville's inequality it ever reaches 1/α with probability at
//! most α; the candidates for which it has not are the confidence sequence. It depends on *n*, Σx, Σx² alone, in any
//! order: that is why sums of several gateways can be added.
//!
//! **A difference.** With *w* the arm's planned share of the two arms' requests in a phase and k = 1 / max(w, 1-w), y
//! = k(1-w)(x-p₁) for the arm's and y = -kw(x-p₀) for the control's observations is such a sequence for the true
//! means (p₀, p₁), however requests were really allocated. Its sum is Σ k·n₀n₁/n · (observed difference - (p₁-p₀)) if
//! the split was as planned, so that p₀ hardly matters. What is left of p₀ is bounded by a confidence sequence of its
//! own, at a tenth of α, and the worst p₀ in it counts (Berger and Boos, "P values maximized over a confidence set
//! for the nuisance parameter", JASA 1994, made time-uniform by a union bound).

use crate::interval::Interval;
use crate::moments::Sample;
use std::sync::LazyLock;

/// How many λ are averaged.
pub const BETS: usize = 12;
/// The largest. Up to here each term falls as the candidate mean rises, for all values, so that confidence sets are
/// intervals: λ > 2ψ(λ).
pub const BET_MAX: f64 = 0.5;
/// Each λ is the last one divided by this: from 0.5 to 0.0028, which serves from some ten to some ten million
/// observations.
pub const BET_RATIO: f64 = 1.6;
/// The weight of each λ is the last one's times this: what shows after few observations is to show soon, at the price
/// of intervals that are up to a fourteenth wider after a million.
pub const BET_FADE: f64 = 0.85;
/// The share of α for the confidence sequence of the control's mean.
pub const NUISANCE_SHARE: f64 = 0.1;
/// Cells into which the confidence sequence of the control's mean is cut. In each the worst corner counts, so that
/// nothing between is missed; that makes intervals about a hundredth wider than they need be.
const NUISANCE_CELLS: usize = 128;
/// Halvings of an interval: to 10⁻¹² of the range.
const HALVINGS: usize = 40;

struct Bet {
    lambda: f64,
    psi: f64,
    /// All together are 1.
    weight: f64,
}

static BET: LazyLock<[Bet; BETS]> = LazyLock::new(|| {
    std::array::from_fn(|at| {
        let lambda = BET_MAX / BET_RATIO.powi(at as i32);
        let weight = BET_FADE.powi(at as i32) * (1.0 - BET_FADE) / (1.0 - BET_FADE.powi(BETS as i32));
        Bet { lambda, psi: psi(lambda), weight }
    })
});

/// ψ(λ) = -ln(1 - λ) - λ.
#[must_use]
pub fn psi(lambda: f64) -> f64 {
    -(-lambda).ln_1p() - lambda
}

/// Logarithm of the weighted average over all λ of exp(λ·sum - ψ(λ)·squares): the evidence that the terms' mean is
/// above 0.
#[must_use]
pub fn evidence_ln(sum: f64, squares: f64) -> f64 {
    let exponents: [f64; BETS] = std::array::from_fn(|at| BET[at].lambda * sum - BET[at].psi * squares);
    let largest = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !largest.is_finite() {
        return f64::NEG_INFINITY;
    }
    let total: f64 = BET.iter().zip(exponents).map(|(bet, exponent)| bet.weight * (exponent - largest).exp()).sum();
    largest + total.ln()
}

/// Whether [`evidence_ln`] is at least `threshold_ln`: mostly without an exponential.
fn reaches(sum: f64, squares: f64, threshold_ln: f64) -> bool {
    let exponents = BET.iter().map(|bet| bet.lambda * sum - bet.psi * squares);
    // An average is at most its largest term.
    exponents.fold(f64::NEG_INFINITY, f64::max) >= threshold_ln && evidence_ln(sum, squares) >= threshold_ln
}

/// The confidence sequence of a mean at `alpha` (0 to 1, both excluded); 0 to 1 without values. Cost: some 2,000
/// exponentials.
#[must_use]
pub fn mean_interval(sample: &Sample, alpha: f64) -> Interval {
    let threshold_ln = (2.0 / alpha).ln();
    let sums = |mean: f64| {
        let Sample { count, sum, squares } = sample;
        (sum - count * mean, (squares - 2.0 * mean * sum + count * mean * mean).max(0.0))
    };
    let centre = sample.mean();
    let low = last_excluded(0.0, centre, |mean| {
        let (sum, squares) = sums(mean);
        reaches(sum, squares, threshold_ln)
    });
    let high = last_excluded(1.0, centre, |mean| {
        let (sum, squares) = sums(mean);
        reaches(-sum, squares, threshold_ln)
    });
    Interval { low, high }
}

/// Between `out`, and `inside` which is not excluded: the last value on the way that is; `out` itself if not even
/// that one is. The side towards `out` is given, so that rounding makes an interval wider.
fn last_excluded(out: f64, inside: f64, is_excluded: impl Fn(f64) -> bool) -> f64 {
    if !is_excluded(out) {
        return out;
    }
    let (mut excluded, mut kept) = (out, inside);
    for _ in 0..HALVINGS {
        let middle = 0.5 * (excluded + kept);
        *(if is_excluded(middle) { &mut excluded } else { &mut kept }) = middle;
    }
    excluded
}

/// What two arms had under one set of weights.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stratum {
    /// The control's values.
    pub control: Sample,
    /// The arm's values.
    pub arm: Sample,
    /// The arm's weight over the sum of the two, as planned: 0 to 1. Fixed before the values came.
    pub arm_share: f64,
}

/// One arm's part of the contrast: weighted sums over phases.
#[derive(Clone, Copy, Debug, Default)]
struct Side {
    /// Of weight × values, and of weight.
    first: f64,
    count: f64,
    /// Of weight² × squares, values, and 1.
    squares: f64,
    second: f64,
    count2: f64,
}

impl Side {
    fn add(&mut self, sample: &Sample, weight: f64) {
        let square = weight * weight;
        self.first += weight * sample.sum;
        self.count += weight * sample.count;
        self.squares += square * sample.squares;
        self.second += square * sample.sum;
        self.count2 += square * sample.count;
    }

    fn sum(&self, mean: f64) -> f64 {
        self.first - self.count * mean
    }

    fn square_sum(&self, mean: f64) -> f64 {
        (self.squares - 2.0 * mean * self.second + self.count2 * mean * mean).max(0.0)
    }
}

/// The sums from which everything about a difference follows, over all phases.
#[derive(Clone, Copy, Debug)]
pub struct Contrast {
    arm: Side,
    control: Side,
    /// The control's values of all phases.
    control_sample: Sample,
}

impl Contrast {
    /// Of the phases in which both had a weight; values of others are left out. Cost: a pass over the phases.
    #[must_use]
    pub fn new(strata: &[Stratum]) -> Self {
        let (mut arm, mut control, mut control_sample) = (Side::default(), Side::default(), Sample::default());
        for stratum in strata.iter().filter(|stratum| stratum.arm_share > 0.0 && stratum.arm_share < 1.0) {
            let [arm_weight, control_weight] = [1.0 - stratum.arm_share, stratum.arm_share];
            // Stretched to the largest that keeps every term at -1 or above: the bets reach farther where there are
            // few values.
            let stretch = 1.0 / arm_weight.max(control_weight);
            arm.add(&stratum.arm, stretch * arm_weight);
            control.add(&stratum.control, stretch * control_weight);
            control_sample = control_sample.merged(stratum.control);
        }
        Self { arm, control, control_sample }
    }

    /// The contrast and its squares for a candidate (control's mean, arm's mean).
    fn sums(&self, control: f64, arm: f64) -> (f64, f64) {
        let squares = self.arm.square_sum(arm) + self.control.square_sum(control);
        (self.arm.sum(arm) - self.control.sum(control), squares)
    }

    /// The confidence sequence of the control's mean at `alpha`, in cells (from, to).
    fn cells(&self, alpha: f64) -> impl Iterator<Item = (f64, f64)> {
        let range = mean_interval(&self.control_sample, alpha);
        let end = move |at: usize| range.low + range.width() * at as f64 / NUISANCE_CELLS as f64;
        (0..NUISANCE_CELLS).map(move |at| (end(at), end(at + 1)))
    }

    /// Evidence that the arm's mean is above `arm` if the control's is `control`: falls with `arm`, rises with
    /// `control`.
    fn above_ln(&self, control: f64, arm: f64) -> f64 {
        let (sum, squares) = self.sums(control, arm);
        evidence_ln(sum, squares)
    }

    /// Evidence that it is below: rises with `arm`, falls with `control`.
    fn below_ln(&self, control: f64, arm: f64) -> f64 {
        let (sum, squares) = self.sums(control, arm);
        evidence_ln(-sum, squares)
    }

    /// The confidence sequence of arm's mean minus control's mean: each end is wrong with probability at most
    /// `side_alpha`, and both with another `nuisance_alpha` together. Cost: some 50,000 exponentials, about a
    /// millisecond.
    #[must_use]
    pub fn interval(&self, side_alpha: f64, nuisance_alpha: f64) -> Interval {
        let threshold_ln = -side_alpha.ln();
        let is_too_low = |control: f64, arm: f64| {
            let (sum, squares) = self.sums(control, arm);
            reaches(sum, squares, threshold_ln)
        };
        let is_too_high = |control: f64, arm: f64| {
            let (sum, squares) = self.sums(control, arm);
            reaches(-sum, squares, threshold_ln)
        };
        let mut interval = Interval { low: 1.0, high: -1.0 };
        for (from, to) in self.cells(nuisance_alpha) {
            // Least evidence against a low mean at the cell's lower end; if even the largest mean is too low there, no
            // mean goes with this cell.
            if !is_too_low(from, 1.0) {
                let lowest = last_excluded(0.0, 1.0, |arm| is_too_low(from, arm));
                interval.low = interval.low.min(lowest - to);
            }
            if !is_too_high(to, 0.0) {
                let highest = last_excluded(1.0, 0.0, |arm| is_too_high(to, arm));
                interval.high = interval.high.max(highest - from);
            }
        }
        interval
    }

    /// Always-valid p-value of "the difference is `difference`", two-sided, with `nuisance_alpha` for the control's
    /// mean. It is at most α if, and but for rounding only if, [`Contrast::interval`] at ((α - `nuisance_alpha`) / 2,
    /// `nuisance_alpha`) leaves `difference` out. Cost: some 3,000 exponentials.
    #[must_use]
    pub fn p_value(&self, difference: f64, nuisance_alpha: f64) -> f64 {
        let (mut above, mut below) = (f64::INFINITY, f64::INFINITY);
        for (from, to) in self.cells(nuisance_alpha) {
            let (lowest, highest) = (from + difference, to + difference);
            if lowest <= 1.0 && highest >= 0.0 {
                above = above.min(self.above_ln(from, highest.min(1.0)));
                below = below.min(self.below_ln(to, lowest.max(0.0)));
            }
        }
        (nuisance_alpha + 2.0 * (-above.max(below)).exp()).min(1.0)
    }

    /// Whether the p-value of this difference is at most `alpha`, with [`NUISANCE_SHARE`] of it for the control's
    /// mean. The same answer as [`Contrast::p_value`], mostly at the price of a few products: for looking after every
    /// observation.
    #[must_use]
    pub fn excludes(&self, difference: f64, alpha: f64) -> bool {
        let nuisance_alpha = alpha * NUISANCE_SHARE;
        let control = self.control_sample.mean();
        let arm = control + difference;
        if (0.0..=1.0).contains(&arm) {
            // The observed mean is in one of the cells: if the evidence does not reach there, it does not at the worst.
            let threshold_ln = (2.0 / (alpha - nuisance_alpha)).ln();
            let (sum, squares) = self.sums(control, arm);
            if !reaches(sum, squares, threshold_ln) && !reaches(-sum, squares, threshold_ln) {
                return false;
            }
        }
        self.p_value(difference, nuisance_alpha) <= alpha
    }
}
