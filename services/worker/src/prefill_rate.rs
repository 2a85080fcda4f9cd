//! How fast this worker computes prompts, learnt from the steps that had some.

use std::time::{Duration, Instant};

/// After so long a step says half as much.
const HALF_LIFE: Duration = Duration::from_secs(5);
/// Without prompts for so long nothing is known: what a worker was like while it was busy or had just begun must not keep
/// requests from it for ever, because only requests can show that it has changed.
const KNOWN_FOR: Duration = Duration::from_secs(5);

/// Tokens over the time of the steps that had prompts. Steps that only decode say nothing: a worker with few requests computes
/// few prompts, and is not slow for that.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PrefillRate {
    tokens: f64,
    seconds: f64,
    last: Option<Instant>,
}

impl PrefillRate {
    /// A step with prompts ended now, took so long, and computed so many tokens: those of answers count too, they cost as much.
    pub(crate) fn note(&mut self, tokens: usize, took: Duration, now: Instant) {
        let age = self.last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        let kept = (-age.as_secs_f64() / HALF_LIFE.as_secs_f64()).exp2();
        self.tokens = self.tokens * kept + tokens as f64;
        self.seconds = self.seconds * kept + took.as_secs_f64();
        self.last = Some(now);
    }

    /// Tokens a second; 0 if there was no prompt lately.
    pub(crate) fn tokens_per_s(&self, now: Instant) -> f64 {
        let is_known = self.last.is_some_and(|last| now.saturating_duration_since(last) < KNOWN_FOR);
        if is_known && self.seconds > 0.0 { self.tokens / self.seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(100);

    #[test]
    fn the_last_steps_decide_and_without_prompts_nothing_is_known() {
        let start = Instant::now();
        let mut rate = PrefillRate::default();
        assert_eq!(rate.tokens_per_s(start), 0.0);
        rate.note(10, STEP, start);
        rate.note(30, STEP, start);
        assert!((rate.tokens_per_s(start) - 200.0).abs() < 1e-9, "{rate:?}");
        // What was before counts half by now: (40 / 2 + 10) tokens in (0.2 / 2 + 0.1) s.
        rate.note(10, STEP, start + HALF_LIFE);
        assert!((rate.tokens_per_s(start + HALF_LIFE) - 150.0).abs() < 1e-9, "{rate:?}");
        assert!(rate.tokens_per_s(start + HALF_LIFE + KNOWN_FOR - STEP) > 0.0);
        assert_eq!(rate.tokens_per_s(start + HALF_LIFE + KNOWN_FOR), 0.0);
    }

    #[test]
    fn a_step_of_no_time_is_no_rate() {
        let now = Instant::now();
        let mut rate = PrefillRate::default();
        rate.note(7, Duration::ZERO, now);
        assert_eq!(rate.tokens_per_s(now), 0.0);
    }
}
