//! What the gateway counts. Labels are bounded: routes are the patterns of our own router, statuses HTTP's.

use crate::limit_metrics::LimitMetrics;
use crate::workers::Pool;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
use std::time::Duration;
use tokio::time::Instant;

/// All of them; cloning shares.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) requests: IntCounterVec,
    pub(crate) request_seconds: HistogramVec,
    pub(crate) first_token_seconds: Histogram,
    pub(crate) generation_seconds: Histogram,
    pub(crate) generations_in_flight: IntGauge,
    pub(crate) generations: IntCounterVec,
    pub(crate) prompt_tokens: IntCounter,
    pub(crate) cached_tokens: IntCounter,
    pub(crate) completion_tokens: IntCounter,
    pub(crate) digest_mismatches: IntCounter,
    pub(crate) retries: IntCounter,
    pub(crate) continuations: IntCounterVec,
    pub(crate) connections: IntGaugeVec,
    pub(crate) connections_refused: IntCounterVec,
    pub(crate) workers_ready: IntGauge,
    pub(crate) workers_known: IntGauge,
    /// By address, of those that are known: at most `workers_max`.
    pub(crate) worker_view_age_ms: IntGaugeVec,
    pub(crate) worker_looks: IntCounter,
    pub(crate) heartbeats_refused: IntCounter,
    pub(crate) directory_generation: IntGauge,
    pub(crate) directory_age_ms: IntGauge,
    pub(crate) placement_epoch: IntGauge,
    pub(crate) placements_refused: IntCounter,
    pub(crate) panics: IntCounter,
    pub(crate) addresses_refused: IntCounter,
    pub(crate) limits: LimitMetrics,
    /// By tenant, experiment and arm: of experiments that run.
    pub(crate) experiment_exposures: IntCounterVec,
    pub(crate) experiment_shadows: IntCounterVec,
    pub(crate) experiment_reports: IntCounterVec,
    pub(crate) experiment_log_dropped: IntCounter,
    pub(crate) feedback: IntCounterVec,
    pub(crate) usage_records: IntCounterVec,
    pub(crate) usage_unshipped_bytes: IntGauge,
    pub(crate) usage_unshipped_age_ms: IntGauge,
}

const SECONDS: &[f64] =
    &[0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

impl Metrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let histogram = |name: &str, help: &str| HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new("gateway_requests_total", "HTTP requests answered, by route pattern and status"),
                &["route", "status"],
            )?,
            request_seconds: HistogramVec::new(
                histogram("gateway_request_seconds", "From the headers of a request to the headers of its answer"),
                &["route"],
            )?,
            first_token_seconds: Histogram::with_opts(histogram(
                "gateway_first_token_seconds",
                "From the arrival of a request to the first token of its answer",
            ))?,
            generation_seconds: Histogram::with_opts(histogram(
                "gateway_generation_seconds",
                "From the arrival of a request to the last token of its answer",
            ))?,
            generations_in_flight: IntGauge::new("gateway_generations_in_flight", "Generations running now")?,
            generations: IntCounterVec::new(
                Opts::new("gateway_generations_total", "Generations ended, by end: finished, failed or cancelled"),
                &["end"],
            )?,
            prompt_tokens: IntCounter::new("gateway_prompt_tokens_total", "Prompt tokens of started generations")?,
            cached_tokens: IntCounter::new("gateway_cached_tokens_total", "Prompt tokens served from a prefix cache")?,
            completion_tokens: IntCounter::new("gateway_completion_tokens_total", "Tokens of answers")?,
            digest_mismatches: IntCounter::new(
                "gateway_digest_mismatches_total",
                "Generations failed because a worker used other bytes than were resolved",
            )?,
            retries: IntCounter::new(
                "gateway_retries_total",
                "Generations tried on another worker before the first token",
            )?,
            continuations: IntCounterVec::new(
                Opts::new(
                    "gateway_continuations_total",
                    "Answers whose worker was lost after the first token, by result: continued on another one, or given_up",
                ),
                &["result"],
            )?,
            connections: IntGaugeVec::new(
                Opts::new("gateway_connections", "Open connections, by listener"),
                &["listener"],
            )?,
            connections_refused: IntCounterVec::new(
                Opts::new("gateway_connections_refused_total", "Connections over connections_max, by listener"),
                &["listener"],
            )?,
            workers_ready: IntGauge::new("gateway_workers_ready", "Workers that are good for requests")?,
            workers_known: IntGauge::new("gateway_workers_known", "Workers of the settings and heard of on the bus")?,
            worker_view_age_ms: IntGaugeVec::new(
                Opts::new(
                    "gateway_worker_view_age_ms",
                    "Time since a worker's last word, -1 before the first, by address",
                ),
                &["worker"],
            )?,
            worker_looks: IntCounter::new("gateway_worker_looks_total", "Looks at workers over gRPC")?,
            heartbeats_refused: IntCounter::new(
                "gateway_heartbeats_refused_total",
                "Heartbeats that were malformed, or of workers over workers_max",
            )?,
            directory_generation: IntGauge::new("gateway_directory_generation", "Generation of the directory in use")?,
            directory_age_ms: IntGauge::new(
                "gateway_directory_age_ms",
                "Time since the directory was complete: grows while no registry is heard, or it cannot list the store",
            )?,
            placement_epoch: IntGauge::new(
                "gateway_placement_epoch",
                "Number of the placement that requests are routed by, 0 without one",
            )?,
            placements_refused: IntCounter::new(
                "gateway_placements_refused_total",
                "Placements that could not be read",
            )?,
            panics: IntCounter::new("gateway_panics_total", "Requests that ended in a bug of ours")?,
            addresses_refused: IntCounter::new(
                "gateway_addresses_refused_total",
                "Requests over address_requests_per_second",
            )?,
            limits: LimitMetrics::register(registry)?,
            experiment_exposures: IntCounterVec::new(
                Opts::new(
                    "gateway_experiment_exposures_total",
                    "Requests of running experiments, by tenant, experiment and arm",
                ),
                &["tenant", "experiment", "arm"],
            )?,
            experiment_shadows: IntCounterVec::new(
                Opts::new(
                    "gateway_experiment_shadows_total",
                    "Mirrored requests, by result: answered, failed, or dropped for want of room",
                ),
                &["result"],
            )?,
            experiment_reports: IntCounterVec::new(
                Opts::new("gateway_experiment_reports_total", "Reports of observations to the registry, by result"),
                &["result"],
            )?,
            experiment_log_dropped: IntCounter::new(
                "gateway_experiment_log_dropped_total",
                "Lines of exposure logs that had no room until the next report",
            )?,
            usage_records: IntCounterVec::new(
                Opts::new("gateway_usage_records_total", "Answers written to the usage log, by result: ok or failed"),
                &["result"],
            )?,
            usage_unshipped_bytes: IntGauge::new(
                "gateway_usage_unshipped_bytes",
                "Bytes of the usage log that the registry does not have yet",
            )?,
            usage_unshipped_age_ms: IntGauge::new(
                "gateway_usage_unshipped_age_ms",
                "Age of the oldest answer in the usage log that the registry does not have yet",
            )?,
            feedback: IntCounterVec::new(
                Opts::new(
                    "gateway_feedback_total",
                    "Feedback of clients, by result: counted, or ignored with a reason",
                ),
                &["result"],
            )?,
        };
        registry.register(Box::new(metrics.experiment_exposures.clone()))?;
        registry.register(Box::new(metrics.experiment_shadows.clone()))?;
        registry.register(Box::new(metrics.experiment_reports.clone()))?;
        registry.register(Box::new(metrics.experiment_log_dropped.clone()))?;
        registry.register(Box::new(metrics.feedback.clone()))?;
        registry.register(Box::new(metrics.usage_records.clone()))?;
        registry.register(Box::new(metrics.usage_unshipped_bytes.clone()))?;
        registry.register(Box::new(metrics.usage_unshipped_age_ms.clone()))?;
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.request_seconds.clone()))?;
        registry.register(Box::new(metrics.first_token_seconds.clone()))?;
        registry.register(Box::new(metrics.generation_seconds.clone()))?;
        registry.register(Box::new(metrics.generations_in_flight.clone()))?;
        registry.register(Box::new(metrics.generations.clone()))?;
        registry.register(Box::new(metrics.prompt_tokens.clone()))?;
        registry.register(Box::new(metrics.cached_tokens.clone()))?;
        registry.register(Box::new(metrics.completion_tokens.clone()))?;
        registry.register(Box::new(metrics.digest_mismatches.clone()))?;
        registry.register(Box::new(metrics.retries.clone()))?;
        registry.register(Box::new(metrics.continuations.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.connections_refused.clone()))?;
        registry.register(Box::new(metrics.workers_ready.clone()))?;
        registry.register(Box::new(metrics.workers_known.clone()))?;
        registry.register(Box::new(metrics.worker_view_age_ms.clone()))?;
        registry.register(Box::new(metrics.worker_looks.clone()))?;
        registry.register(Box::new(metrics.heartbeats_refused.clone()))?;
        registry.register(Box::new(metrics.directory_generation.clone()))?;
        registry.register(Box::new(metrics.directory_age_ms.clone()))?;
        registry.register(Box::new(metrics.placement_epoch.clone()))?;
        registry.register(Box::new(metrics.placements_refused.clone()))?;
        registry.register(Box::new(metrics.panics.clone()))?;
        registry.register(Box::new(metrics.addresses_refused.clone()))?;
        Ok(metrics)
    }

    /// Brings what is true of the workers now into the gauges.
    pub(crate) fn show_workers(&self, pool: &Pool) {
        let now = Instant::now();
        let workers = pool.workers();
        self.workers_ready.set(pool.ready() as i64);
        self.workers_known.set(workers.len() as i64);
        self.worker_view_age_ms.reset();
        for worker in workers.iter() {
            let age =
                worker.read(|view| view.age(now)).map_or(-1, |age| i64::try_from(age.as_millis()).unwrap_or(i64::MAX));
            self.worker_view_age_ms.with_label_values(&[&worker.address]).set(age);
        }
    }

    pub(crate) fn answered(&self, route: &str, status: http::StatusCode, after: Duration) {
        self.requests.with_label_values(&[route, status.as_str()]).inc();
        self.request_seconds.with_label_values(&[route]).observe(after.as_secs_f64());
    }
}
