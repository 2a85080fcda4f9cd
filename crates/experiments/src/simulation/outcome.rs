//! Outcomes as they come, and the tests that look at them.

use crate::asymptotic::estimate;
use crate::moments::Sample;
use crate::sequence::{Contrast, Stratum};
use rand::Rng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, StandardNormal};

/// How a metric's values are drawn; all between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Outcome {
    /// 1 with this probability.
    Binary(f64),
    /// Stars 1 to 5 as 0, 1/4, .. 1: 10, 10, 20, 30 and 30 % of them, and so much of the worst taken to the best.
    /// From -0.1 to 0.1.
    Stars(f64),
    /// Log-normal with median 0.4 s times the number and a log standard deviation of 0.8, cut at and divided by 10 s:
    /// like a time to the first token.
    Latency(f64),
    /// The same divided by and cut at 60 s: a bound that is far away.
    LatencyFarBound(f64),
}

/// Shares of one to five stars.
const STARS: [f64; 5] = [0.1, 0.1, 0.2, 0.3, 0.3];

impl Outcome {
    /// For tables.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Binary(mean) => format!("binary {mean}"),
            Self::Stars(shift) => format!("score, 5 stars {shift:+}"),
            Self::Latency(factor) => format!("log-normal × {factor}, cut at 10 s"),
            Self::LatencyFarBound(factor) => format!("log-normal × {factor}, cut at 60 s"),
        }
    }

    /// Draws a value.
    pub fn draw(self, random: &mut StdRng) -> f64 {
        match self {
            Self::Binary(mean) => f64::from(u8::from(random.random::<f64>() < mean)),
            Self::Stars(shift) => {
                let mut drawn = random.random::<f64>() - (STARS[0] - shift);
                let mut star = 0;
                while star < 4 && drawn >= 0.0 {
                    star += 1;
                    drawn -= STARS[star];
                }
                f64::from(star as u8) / 4.0
            }
            Self::Latency(factor) => latency_s(factor, random).min(10.0) / 10.0,
            Self::LatencyFarBound(factor) => latency_s(factor, random).min(60.0) / 60.0,
        }
    }

    /// Mean and variance: exact where they are plain, else from a million draws of their own seed.
    #[must_use]
    pub fn moments(self) -> (f64, f64) {
        match self {
            Self::Binary(mean) => (mean, mean * (1.0 - mean)),
            Self::Stars(shift) => {
                let shares = [STARS[0] - shift, STARS[1], STARS[2], STARS[3], STARS[4] + shift];
                let sum = |power: i32| -> f64 {
                    shares.iter().enumerate().map(|(star, share)| share * (star as f64 / 4.0).powi(power)).sum()
                };
                (sum(1), sum(2) - sum(1) * sum(1))
            }
            Self::Latency(_) | Self::LatencyFarBound(_) => {
                let mut random = rand::SeedableRng::seed_from_u64(20_240_229);
                let mut sample = Sample::default();
                (0..1_000_000).for_each(|_| sample.add(self.draw(&mut random)));
                (sample.mean(), sample.variance())
            }
        }
    }
}

fn latency_s(factor: f64, random: &mut StdRng) -> f64 {
    let normal: f64 = StandardNormal.sample(random);
    0.4 * factor * (0.8 * normal).exp()
}

/// A two-sided test of "the difference is this", looked at after every observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// [`crate::sequence`].
    Exact,
    /// [`crate::asymptotic`].
    Asymptotic,
    /// The z-test for one look at a horizon fixed beforehand, from 30 observations of each arm on.
    FixedHorizon,
}

/// The upper 2.5 % point of the standard normal distribution: the z-test's limit at α = 0.05.
const Z_5_PERCENT: f64 = 1.959_963_985;

impl Test {
    /// For tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Asymptotic => "asymptotic",
            Self::FixedHorizon => "z-test, peeking",
        }
    }

    /// Whether it says, of what was observed so far, that the difference is another one. `alpha` counts for the
    /// confidence sequences; the z-test's is 0.05.
    #[must_use]
    pub fn rejects(self, observed: &Stratum, difference: f64, alpha: f64) -> bool {
        match self {
            Self::Exact => Contrast::new(&[*observed]).excludes(difference, alpha),
            Self::Asymptotic => {
                estimate(&[*observed]).is_some_and(|estimate| estimate.p_value(difference, alpha) <= alpha)
            }
            Self::FixedHorizon => estimate(&[*observed]).is_some_and(|estimate| {
                let off = estimate.difference - difference;
                estimate.least >= 30.0 && off * off > Z_5_PERCENT * Z_5_PERCENT * estimate.variance
            }),
        }
    }
}
