//! How long a true difference stays hidden.

use super::chance;
use super::false_alarm::draw;
use super::outcome::{Outcome, Test};
use crate::sequence::Stratum;

/// How many runs found a difference, and when.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    /// Share of runs that found it, on the right side, by the horizon.
    pub power: f64,
    /// Share of runs that said the opposite.
    pub wrong_side: f64,
    /// Observations of both arms together by which half of all runs had found it; `None` if fewer did.
    pub median: Option<u32>,
    /// By which nine in ten had.
    pub p90: Option<u32>,
}

/// Runs in which the arm differs, looked at after every observation until the difference is found or `horizon`
/// observations were made. Deterministic in its arguments.
#[must_use]
pub fn detection(
    control: Outcome,
    arm: Outcome,
    arm_share: f64,
    horizon: u32,
    runs: u32,
    alpha: f64,
    test: Test,
    seed: u64,
) -> Detection {
    let is_up = arm.moments().0 > control.moments().0;
    let mut found = Vec::new();
    let mut wrong = 0u32;
    for run in 0..runs {
        let mut random = chance(seed, run);
        let mut observed = Stratum { arm_share, ..Stratum::default() };
        for at in 1..=horizon {
            draw(control, arm, &mut observed, &mut random);
            if test.rejects(&observed, 0.0, alpha) {
                if (observed.arm.mean() > observed.control.mean()) == is_up {
                    found.push(at);
                } else {
                    wrong += 1;
                }
                break;
            }
        }
    }
    found.sort_unstable();
    let by = |share: f64| {
        let at = ((f64::from(runs) * share).ceil() as usize).checked_sub(1)?;
        found.get(at).copied()
    };
    Detection {
        power: found.len() as f64 / f64::from(runs),
        wrong_side: f64::from(wrong) / f64::from(runs),
        median: by(0.5),
        p90: by(0.9),
    }
}

/// Observations that a z-test needs which looks once, at a number fixed beforehand, for this power (0.5 or 0.9) at α
/// = 0.05: the price of peeking is measured against it. (z_α + z_power)² · (variances over shares) / difference².
#[must_use]
pub fn fixed_horizon(control: Outcome, arm: Outcome, arm_share: f64, power: f64) -> u32 {
    let z_power = if power > 0.5 { 1.281_551_566 } else { 0.0 };
    let ((control_mean, control_variance), (arm_mean, arm_variance)) = (control.moments(), arm.moments());
    let variance = control_variance / (1.0 - arm_share) + arm_variance / arm_share;
    let difference = arm_mean - control_mean;
    ((1.959_963_985f64 + z_power).powi(2) * variance / (difference * difference)).ceil() as u32
}
