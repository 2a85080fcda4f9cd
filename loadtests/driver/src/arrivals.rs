//! When requests come.

use rand::Rng;
use rand_distr::{Distribution, Exp, Gamma};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A process of arrivals. Rates are requests a second, finite and above 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrivals {
    /// Independent arrivals: exponential gaps.
    Poisson {
        /// Requests a second.
        rate: f64,
    },
    /// Gaps of a gamma distribution, as S-LoRA's trace generator draws them; `cv` 1 is Poisson, above it is burstier.
    Gamma {
        /// Requests a second.
        rate: f64,
        /// Coefficient of variation of the gaps: standard deviation ÷ mean, above 0.
        cv: f64,
    },
    /// Equal gaps.
    Uniform {
        /// Requests a second.
        rate: f64,
    },
    /// So many requests in flight at any time; the next is sent when one has ended. It measures throughput; its
    /// latencies say nothing about an open world.
    Closed {
        /// Requests in flight, 1 or more.
        concurrency: usize,
    },
}

/// Why a text is no process of arrivals.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no kind of arrivals: {problem}")]
pub struct ParseError {
    text: String,
    problem: &'static str,
}

impl Arrivals {
    /// Seconds from one arrival to the next, for ever; 0 for a closed loop.
    ///
    /// # Errors
    /// A rate or cv out of its range.
    pub fn gaps<R: Rng>(self, random: R) -> Result<Gaps<R>, ParseError> {
        let error = |problem| ParseError { text: self.to_string(), problem };
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let kind = match self {
            Self::Poisson { rate } if positive(rate) => Kind::Exp(Exp::new(rate).map_err(|_| error("rate"))?),
            Self::Gamma { rate, cv } if positive(rate) && positive(cv) => {
                let gamma = Gamma::new(1.0 / (cv * cv), cv * cv / rate);
                Kind::Gamma(gamma.map_err(|_| error("the rate and cv are out of reach"))?)
            }
            Self::Uniform { rate } if positive(rate) => Kind::Every(1.0 / rate),
            Self::Closed { concurrency } if concurrency > 0 => Kind::Every(0.0),
            Self::Closed { .. } => return Err(error("the concurrency must be 1 or more")),
            _ => return Err(error("rate and cv must be finite and above 0")),
        };
        Ok(Gaps { kind, random })
    }
}

/// See [`Arrivals::gaps`].
pub struct Gaps<R> {
    kind: Kind,
    random: R,
}

enum Kind {
    Exp(Exp<f64>),
    Gamma(Gamma<f64>),
    Every(f64),
}

impl<R: Rng> Iterator for Gaps<R> {
    type Item = f64;

    fn next(&mut self) -> Option<f64> {
        Some(match &self.kind {
            Kind::Exp(exp) => exp.sample(&mut self.random),
            Kind::Gamma(gamma) => gamma.sample(&mut self.random),
            Kind::Every(gap) => *gap,
        })
    }
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Poisson { rate } => write!(f, "poisson:{rate}"),
            Self::Gamma { rate, cv } => write!(f, "gamma:{rate},{cv}"),
            Self::Uniform { rate } => write!(f, "uniform:{rate}"),
            Self::Closed { concurrency } => write!(f, "closed:{concurrency}"),
        }
    }
}

impl FromStr for Arrivals {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = |problem| ParseError { text: text.to_owned(), problem };
        let (kind, rest) = text.split_once(':').ok_or_else(|| error("write KIND:NUMBER"))?;
        let number = |text: &str| text.parse::<f64>().map_err(|_| error("the number cannot be read"));
        let arrivals = match kind {
            "poisson" => Self::Poisson { rate: number(rest)? },
            "uniform" => Self::Uniform { rate: number(rest)? },
            "gamma" => {
                let (rate, cv) = rest.split_once(',').ok_or_else(|| error("write gamma:RATE,CV"))?;
                Self::Gamma { rate: number(rate)?, cv: number(cv)? }
            }
            "closed" => Self::Closed { concurrency: rest.parse().map_err(|_| error("the number cannot be read"))? },
            _ => return Err(error("the kinds are poisson, gamma, uniform and closed")),
        };
        arrivals.gaps(rand::rng())?;
        Ok(arrivals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn mean_and_cv(arrivals: Arrivals, seed: u64) -> (f64, f64) {
        let gaps: Vec<f64> = arrivals.gaps(StdRng::seed_from_u64(seed)).unwrap().take(20_000).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn gaps_have_the_mean_and_the_spread_that_were_asked_for() {
        // 20,000 draws: the mean's own error is cv ÷ 141, the cv's a few times that for a skewed distribution.
        for seed in 0..5 {
            let (mean, cv) = mean_and_cv(Arrivals::Poisson { rate: 4.0 }, seed);
            assert!((mean - 0.25).abs() < 0.01 && (cv - 1.0).abs() < 0.05, "{mean} {cv}");
            for wanted in [0.25, 1.0, 2.0, 4.0] {
                let (mean, cv) = mean_and_cv(Arrivals::Gamma { rate: 10.0, cv: wanted }, seed);
                assert!((mean * 10.0 - 1.0).abs() < 0.04 * wanted.max(0.5), "cv {wanted}: mean {mean}");
                assert!((cv / wanted - 1.0).abs() < 0.12, "cv {wanted}: {cv}");
            }
        }
        assert_eq!(mean_and_cv(Arrivals::Uniform { rate: 8.0 }, 0), (0.125, 0.0));
    }

    #[test]
    fn nonsense_is_refused_with_its_reason() {
        let bad = ["", "poisson", "poisson:", "poisson:0", "poisson:-1", "poisson:nan", "poisson:inf", "gamma:1"];
        let more = ["gamma:1,0", "closed:0", "closed:1.5", "often:3", "uniform:0"];
        for text in bad.into_iter().chain(more) {
            let error = text.parse::<Arrivals>().expect_err(text).to_string();
            assert!(error.contains("is no kind of arrivals: "), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(rate in 1e-3..1e4f64, cv in 1e-2..10f64, concurrency in 1..10_000usize) {
            for arrivals in [
                Arrivals::Poisson { rate }, Arrivals::Gamma { rate, cv }, Arrivals::Uniform { rate },
                Arrivals::Closed { concurrency },
            ] {
                prop_assert_eq!(arrivals.to_string().parse(), Ok(arrivals));
            }
        }

        #[test]
        fn gaps_are_finite_and_never_negative(rate in 1e-3..1e4f64, cv in 1e-2..10f64, seed: u64) {
            let gaps = Arrivals::Gamma { rate, cv }.gaps(StdRng::seed_from_u64(seed)).unwrap();
            prop_assert!(gaps.take(100).all(|gap| gap.is_finite() && gap >= 0.0));
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,20}") {
            let _ = text.parse::<Arrivals>();
        }
    }
}
