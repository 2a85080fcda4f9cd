//! What requests cost a worker.

/// Prompt tokens a millisecond of a mesh in which nobody has said.
const PREFILL_UNKNOWN: f64 = 1.0;
/// Milliseconds of a step, likewise.
const STEP_UNKNOWN_MS: f64 = 20.0;

/// How fast the workers of a mesh are, on the mean.
///
/// Work is compared with the work of other adapters only, so that what these are off by for all of them changes nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Speeds {
    prefill_tokens_per_ms: f64,
    step_ms: f64,
}

impl Speeds {
    /// From prompt tokens a millisecond and milliseconds of a step, as each worker measures them. What is not positive and
    /// finite says nothing.
    #[must_use]
    pub fn mean(workers: impl IntoIterator<Item = (f64, f64)>) -> Self {
        let (mut prefill, mut step) = (Mean::default(), Mean::default());
        for (prefill_tokens_per_ms, step_ms) in workers {
            prefill.add(prefill_tokens_per_ms);
            step.add(step_ms);
        }
        Self {
            prefill_tokens_per_ms: prefill.value().unwrap_or(PREFILL_UNKNOWN),
            step_ms: step.value().unwrap_or(STEP_UNKNOWN_MS),
        }
    }

    /// Milliseconds for which these tokens take a place on a worker: prompts at the rate of prefill, an answer's tokens a step each.
    #[must_use]
    pub fn work_ms(&self, prompt_tokens: u64, output_tokens: u64) -> f64 {
        prompt_tokens as f64 / self.prefill_tokens_per_ms + output_tokens as f64 * self.step_ms
    }
}

#[derive(Default)]
struct Mean {
    sum: f64,
    count: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        if value.is_finite() && value > 0.0 {
            self.sum += value;
            self.count += 1.0;
        }
    }

    fn value(&self) -> Option<f64> {
        (self.count > 0.0 && self.sum.is_finite()).then(|| self.sum / self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_follows_what_workers_measure() {
        let speeds = Speeds::mean([(2.0, 10.0), (4.0, 30.0), (0.0, f64::NAN), (-1.0, f64::INFINITY)]);
        assert_eq!(speeds.work_ms(300, 5), 100.0 + 100.0);
        let unknown = Speeds::mean([]);
        assert_eq!(unknown.work_ms(100, 1), 100.0 + STEP_UNKNOWN_MS);
    }
}
