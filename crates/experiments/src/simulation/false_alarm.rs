//! How often a truth is called false.

use super::chance;
use super::outcome::{Outcome, Test};
use crate::sequence::Stratum;
use crate::split::split_evidence_ln;
use rand::Rng;
use rand::rngs::StdRng;

/// How many of some runs ended in an alarm that was false.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alarms {
    /// Runs.
    pub runs: u32,
    /// Those in which the truth was left out at one look or more; by test, in the order asked for.
    pub exact: u32,
    /// Likewise.
    pub asymptotic: u32,
    /// Likewise.
    pub fixed_horizon: u32,
}

impl Alarms {
    /// Those of one test.
    #[must_use]
    pub fn of(&self, test: Test) -> u32 {
        match test {
            Test::Exact => self.exact,
            Test::Asymptotic => self.asymptotic,
            Test::FixedHorizon => self.fixed_horizon,
        }
    }

    fn count(&mut self, test: Test) {
        *(match test {
            Test::Exact => &mut self.exact,
            Test::Asymptotic => &mut self.asymptotic,
            Test::FixedHorizon => &mut self.fixed_horizon,
        }) += 1;
    }
}

/// Runs in which both arms' outcomes are alike, looked at after each of `length` observations by each of the tests.
/// Deterministic in its arguments. Cost: about 0.1 µs for each observation and test.
#[must_use]
pub fn false_alarms(
    outcome: Outcome,
    arm_share: f64,
    length: u32,
    runs: u32,
    alpha: f64,
    tests: &[Test],
    seed: u64,
) -> Alarms {
    coverage(outcome, outcome, arm_share, length, runs, alpha, tests, seed)
}

/// The same with an arm that differs: an alarm is a look at which the true difference is left out.
#[must_use]
pub fn coverage(
    control: Outcome,
    arm: Outcome,
    arm_share: f64,
    length: u32,
    runs: u32,
    alpha: f64,
    tests: &[Test],
    seed: u64,
) -> Alarms {
    let difference = if control == arm { 0.0 } else { arm.moments().0 - control.moments().0 };
    let mut alarms = Alarms { runs, exact: 0, asymptotic: 0, fixed_horizon: 0 };
    let mut silent: Vec<Test> = Vec::with_capacity(tests.len());
    for run in 0..runs {
        let mut random = chance(seed, run);
        let mut observed = Stratum { arm_share, ..Stratum::default() };
        silent.clear();
        silent.extend_from_slice(tests);
        for _ in 0..length {
            draw(control, arm, &mut observed, &mut random);
            silent.retain(|test| {
                let is_alarm = test.rejects(&observed, difference, alpha);
                if is_alarm {
                    alarms.count(*test);
                }
                !is_alarm
            });
            if silent.is_empty() {
                break;
            }
        }
    }
    alarms
}

/// One more request.
pub(super) fn draw(control: Outcome, arm: Outcome, observed: &mut Stratum, random: &mut StdRng) {
    if random.random::<f64>() < observed.arm_share {
        observed.arm.add(arm.draw(random));
    } else {
        observed.control.add(control.draw(random));
    }
}

/// In how many runs the check of the split, looked at after every unit, called a split broken that is as `weights`
/// plan.
#[must_use]
pub fn split_false_alarms(weights: &[u32], length: u32, runs: u32, alpha: f64, seed: u64) -> u32 {
    let total: u32 = weights.iter().sum();
    let limit = -alpha.ln();
    let is_flagged = |run: &u32| {
        let mut random = chance(seed, *run);
        let mut counts = vec![0u64; weights.len()];
        (0..length).any(|_| {
            let mut drawn = random.random_range(0..total);
            let mut arm = 0;
            while drawn >= weights[arm] {
                drawn -= weights[arm];
                arm += 1;
            }
            counts[arm] += 1;
            split_evidence_ln(&counts, weights) >= limit
        })
    };
    (0..runs).filter(is_flagged).count() as u32
}

/// The largest number of alarms in `runs` runs that is still taken for a rate of `alpha`: 4.75 standard deviations
/// and one more above the mean. A rate of `alpha` exceeds it about once in a million seeds where hundreds are
/// expected, and once in a hundred thousand where ten are. A test with a fixed seed that holds its count to this
/// fails if the rate is truly above, and never by chance.
#[must_use]
pub fn binomial_limit(runs: u32, alpha: f64) -> u32 {
    let mean = f64::from(runs) * alpha;
    (mean + 4.75 * (mean * (1.0 - alpha)).sqrt() + 1.0).floor() as u32
}
