//! What the step loop counts of its own work: where the time of steps goes, how full they are, how evenly tokens come.

use std::time::Duration;

use prometheus::{CounterVec, Histogram, HistogramOpts, Opts, Registry};
use weft_engine::StepTimes;

/// Metrics of steps that do not depend on the model. Cheap to clone.
#[derive(Clone)]
pub(crate) struct StepMetrics {
    /// By part: plan, gather, base, lora, attention, rows, sample.
    part_seconds: CounterVec,
    tokens: Histogram,
    inter_token_seconds: Histogram,
}

const TOKENS: &[f64] = &[1.0, 4.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0];
const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5];

impl StepMetrics {
    /// Registers everything.
    ///
    /// # Errors
    /// A name is taken in this registry.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
        };
        let parts = Opts::new("worker_step_part_seconds_total", "Time of steps, by part of the work");
        let metrics = Self {
            part_seconds: CounterVec::new(parts, &["part"])?,
            tokens: histogram("worker_step_tokens", "Tokens computed in a step", TOKENS)?,
            inter_token_seconds: histogram(
                "worker_inter_token_seconds",
                "Between two output tokens of one request",
                SECONDS,
            )?,
        };
        registry.register(Box::new(metrics.part_seconds.clone()))?;
        registry.register(Box::new(metrics.tokens.clone()))?;
        registry.register(Box::new(metrics.inter_token_seconds.clone()))?;
        Ok(metrics)
    }

    /// A step of the engine over this many tokens.
    pub(crate) fn step(&self, times: &StepTimes, tokens: usize) {
        let StepTimes { base, lora, attention, rows, gather } = *times;
        for (part, time) in
            [("base", base), ("lora", lora), ("attention", attention), ("rows", rows), ("gather", gather)]
        {
            self.part(part, time);
        }
        self.tokens.observe(tokens as f64);
    }

    /// Choosing who runs.
    pub(crate) fn plan(&self, time: Duration) {
        self.part("plan", time);
    }

    /// Choosing tokens and telling the callers.
    pub(crate) fn sample(&self, time: Duration) {
        self.part("sample", time);
    }

    pub(crate) fn inter_token(&self, time: Duration) {
        self.inter_token_seconds.observe(time.as_secs_f64());
    }

    fn part(&self, part: &str, time: Duration) {
        self.part_seconds.with_label_values(&[part]).inc_by(time.as_secs_f64());
    }
}
