//! Asymptotic confidence sequences, for positive values whose bound is far away.
//!
//! Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic confidence
//! sequences", Annals of Statistics 2024 (arXiv 2103.06476), Theorem 2.2:
//!
//! ```text
//! mean ± s · sqrt( 2(tρ² + 1)/(t²ρ²) · ln( sqrt(tρ² + 1) / α ) )
//! ```
//!
//! with *t* observations and their standard deviation *s*; for a difference of arms, as in their section 3, s²/t is
//! the variance of the estimate: s₁²/n₁ + s₀²/n₀, and t = n₁ + n₀. Phases are combined with weights n₀n₁/(n₀+n₁). The
//! promise: as the first look is later, the probability that the truth is ever left out tends to at most α. Nothing
//! is promised for a given number of observations, so nothing is said before [`ASYMPTOTIC_OBSERVATIONS_MIN`] of each
//! arm.

use crate::interval::Interval;
use crate::moments::Sample;
use crate::sequence::Stratum;

/// Observations of each arm before the first look.
pub const ASYMPTOTIC_OBSERVATIONS_MIN: f64 = 200.0;
/// The number of observations of both arms together at which the interval is the narrowest that it can be made.
pub const TUNED_OBSERVATIONS: f64 = 5_000.0;

/// An estimate of a difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Arm's mean minus control's mean.
    pub difference: f64,
    /// Its variance, estimated.
    pub variance: f64,
    /// Observations of both arms.
    pub count: f64,
    /// Observations of the arm that has fewer.
    pub least: f64,
}

/// The difference of means within phases, put together by n₀n₁/(n₀+n₁), as Mantel and Haenszel do: what changed from
/// one phase to the next for both arms is not taken for a difference. `None` if there is no phase with values of
/// both. Cost: a pass over the phases.
#[must_use]
pub fn estimate(strata: &[Stratum]) -> Option<Estimate> {
    let (mut total, mut difference, mut variance, mut control_count, mut arm_count) = (0.0, 0.0, 0.0, 0.0, 0.0);
    let of_both = |stratum: &&Stratum| stratum.control.count > 0.0 && stratum.arm.count > 0.0;
    for Stratum { control, arm, .. } in strata.iter().filter(of_both) {
        let weight = control.count * arm.count / (control.count + arm.count);
        let of_mean = |sample: &Sample| sample.variance() / sample.count;
        total += weight;
        difference += weight * (arm.mean() - control.mean());
        variance += weight * weight * (of_mean(control) + of_mean(arm));
        control_count += control.count;
        arm_count += arm.count;
    }
    (total > 0.0).then(|| Estimate {
        difference: difference / total,
        variance: variance / (total * total),
        count: control_count + arm_count,
        least: arm_count.min(control_count),
    })
}

/// ρ² that makes the interval at `count` observations about as narrow as it can be: (-2 ln α + ln(-2 ln α) + 1) / t.
#[must_use]
pub fn rho_squared(alpha: f64, count: f64) -> f64 {
    let doubled = -2.0 * alpha.ln();
    (doubled + doubled.ln() + 1.0) / count
}

impl Estimate {
    fn is_late_enough(&self) -> bool {
        self.least >= ASYMPTOTIC_OBSERVATIONS_MIN && self.variance > 0.0
    }

    /// The asymptotic confidence sequence at `alpha`, two-sided; -1 to 1 before the first look.
    /// Cost: constant.
    #[must_use]
    pub fn interval(&self, alpha: f64) -> Interval {
        if !self.is_late_enough() {
            return Interval { low: -1.0, high: 1.0 };
        }
        let turns = self.count * rho_squared(alpha, TUNED_OBSERVATIONS);
        let squared = 2.0 * (turns + 1.0) / turns * ((turns + 1.0).sqrt() / alpha).ln();
        let half = (self.variance * squared).sqrt();
        Interval { low: (self.difference - half).max(-1.0), high: (self.difference + half).min(1.0) }
    }

    /// Asymptotic always-valid p-value of "the difference is `difference`", with ρ chosen for `alpha`: at most
    /// `alpha` exactly if [`Estimate::interval`] leaves it out. Cost: constant.
    #[must_use]
    pub fn p_value(&self, difference: f64, alpha: f64) -> f64 {
        if !self.is_late_enough() {
            return 1.0;
        }
        let turns = self.count * rho_squared(alpha, TUNED_OBSERVATIONS);
        let off = self.difference - difference;
        let squared = off * off / self.variance;
        ((turns + 1.0).sqrt() * (-0.5 * squared * turns / (turns + 1.0)).exp()).min(1.0)
    }
}
