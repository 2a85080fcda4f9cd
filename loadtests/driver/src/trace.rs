//! A workload turned into single requests: the same seed gives the same trace, which can be kept and played again.
//!
//! As a file: JSON lines, the workload first, then one request a line in the order in which they are due.

use crate::arrivals;
use crate::workload::Workload;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use std::io::{self, BufRead, Write};

/// Most requests of a trace; more would be a slip of the pen.
pub const REQUESTS_MAX: usize = 1_000_000;

/// One request to come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Microseconds from the start; 0 for all of a closed loop.
    pub due_us: u64,
    /// Index of its source in the workload.
    pub source: usize,
    /// Model name as it is asked for.
    pub model: String,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Tokens of its answer.
    pub output_tokens: u32,
    /// Makes its prompt, together with the salt of the run.
    pub prompt_seed: u64,
}

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// What it was made from.
    pub workload: Workload,
    /// In the order in which they are due.
    pub requests: Vec<Request>,
}

/// Why there is no trace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A source's arrivals are out of range.
    #[error("source {source_index} cannot arrive")]
    Arrivals {
        /// Which.
        source_index: usize,
        /// Why.
        source: arrivals::ParseError,
    },
    /// The duration is no number of seconds.
    #[error("duration_s is {0}, allowed is a finite number above 0")]
    Duration(f64),
    /// More requests than a trace may have.
    #[error("the trace has more than {REQUESTS_MAX} requests")]
    TooLong,
    /// A line of the file is not what it should be.
    #[error("line {line} cannot be read")]
    Line {
        /// Counted from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// A request names a source that the workload lacks.
    #[error("line {line} names source {got}, the workload has {count}")]
    Source {
        /// Counted from 1.
        line: usize,
        /// The index.
        got: usize,
        /// How many there are.
        count: usize,
    },
    /// The file has no first line.
    #[error("the file is empty")]
    Empty,
    /// The file cannot be read.
    #[error("the file cannot be read")]
    Io(#[from] io::Error),
}

impl Trace {
    /// Each source draws from a generator of its own, so that one more source leaves the others as they were.
    ///
    /// # Errors
    /// The workload is out of range.
    pub fn generate(workload: Workload, seed: u64) -> Result<Self, Error> {
        if !(workload.duration_s.is_finite() && workload.duration_s > 0.0) {
            return Err(Error::Duration(workload.duration_s));
        }
        let mut requests = Vec::new();
        for (index, source) in workload.sources.iter().enumerate() {
            let of = |stream: u64| {
                StdRng::seed_from_u64(seed ^ (index as u64 * 2 + stream).wrapping_mul(0x9E37_79B9_7F4A_7C15))
            };
            let gaps = source.arrivals.gaps(of(0)).map_err(|source| Error::Arrivals { source_index: index, source })?;
            let mut random = of(1);
            let mut at = 0.0;
            for (number, gap) in gaps.take(workload.requests_max).enumerate() {
                at += gap;
                if at >= workload.duration_s {
                    break;
                }
                let model = source.popularity.pick(source.models.len(), number, &mut random);
                requests.push(Request {
                    due_us: (at * 1e6) as u64,
                    source: index,
                    model: source.models.get(model).cloned().unwrap_or_else(|| "base".to_owned()),
                    prompt_tokens: source.prompt_tokens.draw(&mut random),
                    output_tokens: source.output_tokens.draw(&mut random),
                    prompt_seed: random.random(),
                });
                if requests.len() > REQUESTS_MAX {
                    return Err(Error::TooLong);
                }
            }
        }
        requests.sort_by_key(|request| request.due_us);
        Ok(Self { workload, requests })
    }

    /// Writes the JSON lines.
    ///
    /// # Errors
    /// The writer's.
    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        serde_json::to_writer(&mut out, &self.workload)?;
        out.write_all(b"\n")?;
        for request in &self.requests {
            serde_json::to_writer(&mut out, request)?;
            out.write_all(b"\n")?;
        }
        out.flush()
    }

    /// Reads what [`Trace::write`] wrote.
    ///
    /// # Errors
    /// Names the line.
    pub fn read(input: impl BufRead) -> Result<Self, Error> {
        let mut lines = input.lines().enumerate();
        let (_, first) = lines.next().ok_or(Error::Empty)?;
        let workload: Workload = serde_json::from_str(&first?).map_err(|source| Error::Line { line: 1, source })?;
        let mut requests = Vec::new();
        for (index, text) in lines {
            let line = index + 1;
            let request: Request = serde_json::from_str(&text?).map_err(|source| Error::Line { line, source })?;
            if request.source >= workload.sources.len() {
                return Err(Error::Source { line, got: request.source, count: workload.sources.len() });
            }
            requests.push(request);
            if requests.len() > REQUESTS_MAX {
                return Err(Error::TooLong);
            }
        }
        requests.sort_by_key(|request| request.due_us);
        Ok(Self { workload, requests })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arrivals::Arrivals;
    use crate::lengths::Lengths;
    use crate::popularity::Popularity;
    use crate::workload::Source;
    use proptest::prelude::*;

    fn workload(rate: f64, duration_s: f64) -> Workload {
        let models: Vec<String> = (0..50).map(|n| format!("a-{n}")).collect();
        let source = |tenant: &str, arrivals| Source {
            tenant: tenant.to_owned(),
            models: models.clone(),
            arrivals,
            popularity: Popularity::Power { alpha: 0.5 },
            prompt_tokens: Lengths::uniform(8, 512),
            output_tokens: Lengths::uniform(8, 64),
        };
        let sources =
            vec![source("one", Arrivals::Gamma { rate, cv: 2.0 }), source("two", Arrivals::Closed { concurrency: 3 })];
        Workload { sources, duration_s, requests_max: 200 }
    }

    #[test]
    fn the_first_source_does_not_notice_a_second() {
        let both = Trace::generate(workload(20.0, 5.0), 7).unwrap();
        let mut alone = workload(20.0, 5.0);
        alone.sources.pop();
        let alone = Trace::generate(alone, 7).unwrap();
        assert!(!alone.requests.is_empty());
        let first: Vec<_> = both.requests.into_iter().filter(|request| request.source == 0).collect();
        assert_eq!(first, alone.requests);
    }

    #[test]
    fn a_broken_file_is_refused_with_its_line() {
        let mut file = Vec::new();
        Trace::generate(workload(20.0, 5.0), 7).unwrap().write(&mut file).unwrap();
        let text = String::from_utf8(file).unwrap();
        let error = Trace::read(text.replacen("\"due_us\"", "\"when\"", 1).as_bytes()).unwrap_err().to_string();
        assert_eq!(error, "line 2 cannot be read");
        let error = Trace::read(text.replacen("\"source\":1", "\"source\":9", 1).as_bytes()).unwrap_err().to_string();
        assert!(error.contains("names source 9, the workload has 2"), "{error}");
        assert!(matches!(Trace::read(&b""[..]), Err(Error::Empty)));
        assert!(matches!(Trace::generate(workload(1.0, f64::NAN), 0), Err(Error::Duration(_))));
        assert!(matches!(Trace::generate(workload(0.0, 1.0), 0), Err(Error::Arrivals { source_index: 0, .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_seed_is_a_trace_and_a_file_holds_it_whole(rate in 0.1..50f64, duration in 0.1..10f64, seed: u64) {
            let trace = Trace::generate(workload(rate, duration), seed).unwrap();
            prop_assert_eq!(&trace, &Trace::generate(workload(rate, duration), seed).unwrap());
            prop_assert!(trace.requests.is_sorted_by_key(|request| request.due_us));
            prop_assert!(trace.requests.iter().all(|request| (request.due_us as f64) < duration * 1e6));
            let mut file = Vec::new();
            trace.write(&mut file).unwrap();
            prop_assert_eq!(&trace, &Trace::read(&file[..]).unwrap());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Trace::read(&bytes[..]);
        }
    }
}
