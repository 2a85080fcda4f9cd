//! Outcomes in figures: latencies split warm and cold and by tenant, throughput, goodput, fairness.

use crate::outcome::{End, Outcome};
use crate::stats::{Quantiles, jain};
use serde::Serialize;
use std::collections::BTreeMap;

/// Most different errors that a report lists; the rest are counted under one name.
const ERRORS_MAX: usize = 20;

/// What an answer must keep to be good.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Slo {
    /// To the first token.
    pub ttft_ms: f64,
    /// For each token after it.
    pub tpot_ms: f64,
}

impl Default for Slo {
    /// S-LoRA's first token within 6 s, and five tokens a second.
    fn default() -> Self {
        Self { ttft_ms: 6000.0, tpot_ms: 200.0 }
    }
}

/// Latencies of completed answers, in ms; `null` where there are no samples.
#[derive(Clone, Debug, Serialize)]
pub struct Latencies {
    /// From when a request was due to its first piece.
    pub ttft_ms: Option<Quantiles>,
    /// Between two pieces of an answer.
    pub itl_ms: Option<Quantiles>,
    /// Mean time of a token after the first, one sample an answer.
    pub tpot_ms: Option<Quantiles>,
    /// From when a request was due to its end.
    pub e2e_ms: Option<Quantiles>,
}

/// Some of the outcomes.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// All of them.
    pub requests: usize,
    /// Whole answers.
    pub completed: usize,
    /// Answers with an error.
    pub failed: usize,
    /// Never sent.
    pub dropped: usize,
    /// Tokens of answers a second of the run.
    pub output_tokens_per_second: f64,
    /// Tokens of prompts a second of the run, of completed answers.
    pub prompt_tokens_per_second: f64,
    /// Completed answers a second of the run.
    pub requests_per_second: f64,
    /// Completed answers a second of the run that kept the [`Slo`].
    pub goodput_per_second: f64,
    /// Of all requests, the part that kept the [`Slo`].
    pub attainment: f64,
    /// Of prompt tokens, the part that came from a prefix cache, as the endpoint says.
    pub cached_share: f64,
    /// Of completed answers.
    #[serde(flatten)]
    pub latencies: Latencies,
}

/// A run in figures.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// From the first request that was due to the last answer's end, seconds.
    pub seconds: f64,
    /// What counts as good.
    pub slo: Slo,
    /// Everything.
    pub all: Part,
    /// Requests whose adapter was there, or that asked for the base.
    pub warm: Latencies,
    /// Requests that waited for their adapter; see [`Outcome::cold`].
    pub cold: Latencies,
    /// How many those were.
    pub cold_requests: usize,
    /// How long the server says they waited, ms; only Weft does.
    pub adapter_wait_ms: Option<Quantiles>,
    /// By tenant.
    pub tenants: BTreeMap<String, Part>,
    /// Jain's index of the tenants' tokens, prompt and output.
    pub jain: f64,
    /// How late requests were sent, ms: the client's own doing, to be small.
    pub lateness_ms: Option<Quantiles>,
    /// Errors and how often.
    pub errors: BTreeMap<String, usize>,
}

impl Report {
    /// Figures of these outcomes.
    #[must_use]
    pub fn of(outcomes: &[Outcome], slo: Slo) -> Self {
        let all: Vec<&Outcome> = outcomes.iter().collect();
        let begin = all.iter().map(|outcome| outcome.due_us).min().unwrap_or(0);
        let end = all.iter().map(|outcome| outcome.end_us).max().unwrap_or(0);
        let seconds = end.saturating_sub(begin) as f64 / 1e6;
        let completed = || all.iter().copied().filter(|outcome| outcome.completed());
        let (cold, warm): (Vec<_>, Vec<_>) = completed().partition(|outcome| outcome.cold());
        let mut by_tenant: BTreeMap<String, Vec<&Outcome>> = BTreeMap::new();
        for outcome in &all {
            by_tenant.entry(outcome.tenant.clone()).or_default().push(outcome);
        }
        let tokens = |outcomes: &Vec<&Outcome>| {
            outcomes.iter().map(|outcome| (outcome.prompt_tokens + outcome.completion_tokens) as f64).sum()
        };
        let got: Vec<f64> = by_tenant.values().map(tokens).collect();
        let waits = cold.iter().filter_map(|outcome| outcome.adapter_wait_us).map(|wait| wait as f64 / 1e3);
        let sent = all.iter().filter(|outcome| outcome.end != End::Dropped);
        Self {
            seconds,
            slo,
            all: Part::of(&all, seconds, slo),
            warm: Latencies::of(&warm),
            cold: Latencies::of(&cold),
            cold_requests: cold.len(),
            adapter_wait_ms: Quantiles::of(waits.collect()),
            tenants: by_tenant.iter().map(|(name, part)| (name.clone(), Part::of(part, seconds, slo))).collect(),
            jain: jain(&got),
            lateness_ms: Quantiles::of(
                sent.map(|outcome| outcome.sent_us.saturating_sub(outcome.due_us) as f64 / 1e3).collect(),
            ),
            errors: errors(&all),
        }
    }

    /// A table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut rows = vec![("all".to_owned(), self.all.completed, &self.all.latencies)];
        rows.push(("warm".to_owned(), self.all.completed - self.cold_requests, &self.warm));
        rows.push(("cold".to_owned(), self.cold_requests, &self.cold));
        if self.tenants.len() > 1 {
            rows.extend(self.tenants.iter().map(|(name, part)| (name.clone(), part.completed, &part.latencies)));
        }
        let mut text = format!(
            "{:<18} {:>7} {:>27} {:>27} {:>18}\n",
            "ms", "answers", "ttft p50 / p90 / p99", "itl p50 / p90 / p99", "e2e p50 / p99"
        );
        for (name, answers, latencies) in rows {
            let triple = |quantiles: &Option<Quantiles>| {
                quantiles.map_or("-".to_owned(), |q| format!("{:.1} / {:.1} / {:.1}", q.p50, q.p90, q.p99))
            };
            let pair = latencies.e2e_ms.map_or("-".to_owned(), |q| format!("{:.0} / {:.0}", q.p50, q.p99));
            let (ttft, itl) = (triple(&latencies.ttft_ms), triple(&latencies.itl_ms));
            text.push_str(&format!("{name:<18} {answers:>7} {ttft:>27} {itl:>27} {pair:>18}\n"));
        }
        let all = &self.all;
        text.push_str(&format!(
            "{:.1} s: {:.1} output tokens/s, {:.2} requests/s, {:.2}/s within ttft {} ms and tpot {} ms ({:.0} %); \
             {} failed, {} dropped; Jain {:.3}\n",
            self.seconds,
            all.output_tokens_per_second,
            all.requests_per_second,
            all.goodput_per_second,
            self.slo.ttft_ms,
            self.slo.tpot_ms,
            all.attainment * 100.0,
            all.failed,
            all.dropped,
            self.jain
        ));
        for (error, count) in &self.errors {
            text.push_str(&format!("{count} x {error}\n"));
        }
        text
    }
}

impl Latencies {
    /// Of these completed answers.
    #[must_use]
    pub fn of(outcomes: &[&Outcome]) -> Self {
        let each = |value: &dyn Fn(&Outcome) -> f64| outcomes.iter().map(|outcome| value(outcome)).collect();
        Self {
            ttft_ms: Quantiles::of(each(&Outcome::ttft_ms)),
            itl_ms: Quantiles::of(outcomes.iter().flat_map(|outcome| outcome.gaps_ms()).collect()),
            tpot_ms: Quantiles::of(outcomes.iter().filter_map(|outcome| outcome.tpot_ms()).collect()),
            e2e_ms: Quantiles::of(each(&Outcome::e2e_ms)),
        }
    }
}

impl Part {
    /// Of these outcomes of a run of so many seconds.
    #[must_use]
    pub fn of(outcomes: &[&Outcome], seconds: f64, slo: Slo) -> Self {
        let completed: Vec<&Outcome> = outcomes.iter().copied().filter(|outcome| outcome.completed()).collect();
        let rate = |count: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
        let share = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let total = |value: fn(&Outcome) -> u64| completed.iter().map(|outcome| value(outcome)).sum::<u64>() as f64;
        let good = completed.iter().filter(|outcome| {
            outcome.ttft_ms() <= slo.ttft_ms && outcome.tpot_ms().is_none_or(|tpot| tpot <= slo.tpot_ms)
        });
        let good = good.count() as f64;
        let prompt_tokens = total(|outcome| outcome.prompt_tokens);
        Self {
            requests: outcomes.len(),
            completed: completed.len(),
            failed: outcomes.iter().filter(|outcome| matches!(outcome.end, End::Failed(_))).count(),
            dropped: outcomes.iter().filter(|outcome| outcome.end == End::Dropped).count(),
            output_tokens_per_second: rate(total(|outcome| outcome.completion_tokens)),
            prompt_tokens_per_second: rate(prompt_tokens),
            requests_per_second: rate(completed.len() as f64),
            goodput_per_second: rate(good),
            attainment: share(good, outcomes.len() as f64),
            cached_share: share(total(|outcome| outcome.cached_tokens), prompt_tokens),
            latencies: Latencies::of(&completed),
        }
    }
}

fn errors(outcomes: &[&Outcome]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for outcome in outcomes {
        if let End::Failed(reason) = &outcome.end {
            let known = counts.len() < ERRORS_MAX || counts.contains_key(reason);
            *counts.entry(if known { reason.clone() } else { "other errors".to_owned() }).or_insert(0) += 1;
        }
    }
    counts
}

#[cfg(test)]
#[path = "report/tests.rs"]
mod tests;
