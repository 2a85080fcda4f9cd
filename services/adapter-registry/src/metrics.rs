//! What the registry counts. Names follow `registry_<noun>_<unit>[_total]`; labels are bounded: methods, outcomes and
//! kinds of faults.

use crate::catalog::Counts;
use crate::gc::Stage;
use crate::publish::Outcome;
use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use std::time::Duration;
use weft_placement::Plan;

/// All metrics of one registry.
pub(crate) struct Metrics {
    calls: IntCounterVec,
    call_seconds: HistogramVec,
    publishes: IntCounterVec,
    upload_bytes: IntCounter,
    uploads: IntGauge,
    refreshes: IntCounterVec,
    refresh_seconds: Histogram,
    generation: IntGauge,
    tenants: IntGauge,
    keys: IntGauge,
    adapters: IntGauge,
    versions: IntGauge,
    pub(crate) watchers: IntGauge,
    pub(crate) damaged_objects: IntGauge,
    experiment_evaluations: IntCounterVec,
    pub(crate) experiment_arms_stopped: IntCounter,
    garbage: IntCounterVec,
    garbage_bytes: IntCounter,
    pub(crate) placement: PlacementMetrics,
}

/// Of the authority for placement; all but the first three stand still at a registry that is not it.
#[derive(Clone)]
pub(crate) struct PlacementMetrics {
    pub(crate) epoch: IntGauge,
    pub(crate) watchers: IntGauge,
    pub(crate) messages_refused: IntCounter,
    pub(crate) is_authority: IntGauge,
    pub(crate) epochs: IntCounter,
    pub(crate) failures: IntCounterVec,
    pub(crate) adapters_heard: IntGauge,
    pub(crate) workers: IntGauge,
    adapters: IntGauge,
    copies: IntGauge,
    deferred: IntGauge,
    moves: IntCounter,
}

impl PlacementMetrics {
    fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| registered(registry, IntGauge::new(name, help)?);
        let counter = |name: &str, help: &str| registered(registry, IntCounter::new(name, help)?);
        let failures = Opts::new("registry_placement_failures_total", "tries of the authority that failed, by kind");
        Ok(Self {
            epoch: gauge("registry_placement_epoch", "number of the last placement known here")?,
            watchers: gauge("registry_placement_watchers", "streams of placements and desired residency open")?,
            messages_refused: counter("registry_placement_messages_refused_total", "heartbeats and demand left out")?,
            is_authority: gauge("registry_placement_is_authority", "1 if this registry is the authority")?,
            epochs: counter("registry_placement_epochs_total", "placements published here")?,
            failures: registered(registry, IntCounterVec::new(failures, &["kind"])?)?,
            adapters_heard: gauge("registry_placement_adapters_heard", "adapters that were asked for lately")?,
            workers: gauge("registry_placement_workers", "workers in the last plan")?,
            adapters: gauge("registry_placement_adapters", "adapters with a place in the last plan")?,
            copies: gauge("registry_placement_copies", "copies in the last plan")?,
            deferred: gauge("registry_placement_copies_deferred", "copies granted and not placed in the last plan")?,
            moves: counter("registry_placement_moves_total", "copies planned where the bytes were not")?,
        })
    }

    /// A plan was made, whether or not it is published.
    pub(crate) fn planned(&self, plan: &Plan) {
        self.adapters.set(plan.adapters.len() as i64);
        self.copies.set(plan.adapters.iter().map(|placed| placed.1.len() as i64).sum());
        self.deferred.set(plan.deferred as i64);
        self.moves.inc_by(plan.moves as u64);
    }
}

fn registered<M: Collector + Clone + 'static>(registry: &Registry, metric: M) -> Result<M, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// Counts something that runs for as long as it lives.
pub(crate) struct Running(IntGauge);

impl Running {
    pub(crate) fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// 1 ms to 54 s, three steps a decade.
fn buckets() -> Vec<f64> {
    (0..15).map(|step| 0.001 * 10f64.powf(f64::from(step) / 3.0)).collect()
}

impl Metrics {
    /// Registers all metrics.
    ///
    /// # Errors
    /// A name is registered already: two registries share one `prometheus::Registry`.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauge = |name: &str, help: &str| registered(registry, IntGauge::new(name, help)?);
        let counters = |name: &str, help: &str, labels: &[&str]| {
            registered(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
        };
        let seconds = |name: &str, help: &str| HistogramOpts::new(name, help).buckets(buckets());
        let call_seconds = HistogramVec::new(seconds("registry_call_seconds", "from call to answer"), &["method"])?;
        let refresh_seconds = Histogram::with_opts(seconds("registry_refresh_seconds", "one listing of records"))?;
        Ok(Self {
            calls: counters("registry_calls_total", "calls by method and kind of fault or ok", &["method", "kind"])?,
            call_seconds: registered(registry, call_seconds)?,
            publishes: counters("registry_publishes_total", "complete uploads and merges by outcome", &["outcome"])?,
            upload_bytes: registered(
                registry,
                IntCounter::new("registry_upload_bytes_total", "bytes of complete uploads")?,
            )?,
            uploads: gauge("registry_uploads", "uploads under way")?,
            refreshes: counters("registry_refreshes_total", "listings of records by outcome", &["outcome"])?,
            refresh_seconds: registered(registry, refresh_seconds)?,
            generation: gauge("registry_directory_generation", "changes of the directory since the start")?,
            tenants: gauge("registry_tenants", "tenants known")?,
            keys: gauge("registry_keys", "keys known, revoked ones included")?,
            adapters: gauge("registry_adapters", "adapters known")?,
            versions: gauge("registry_versions", "versions known")?,
            watchers: gauge("registry_directory_watchers", "directory streams open")?,
            damaged_objects: gauge("registry_damaged_objects", "objects that are no records, left out")?,
            experiment_evaluations: counters(
                "registry_experiment_evaluations_total",
                "looks at running experiments by outcome",
                &["outcome"],
            )?,
            experiment_arms_stopped: registered(
                registry,
                IntCounter::new("registry_experiment_arms_stopped_total", "arms that a guardrail stopped here")?,
            )?,
            garbage: counters(
                "registry_garbage_versions_total",
                "versions by what clean-up did with them: condemned or collected",
                &["stage"],
            )?,
            garbage_bytes: registered(
                registry,
                IntCounter::new("registry_garbage_bytes_total", "bytes of versions that were collected")?,
            )?,
            placement: PlacementMetrics::new(registry)?,
        })
    }

    pub(crate) fn called(&self, method: &str, kind: &str, took: Duration) {
        self.calls.with_label_values(&[method, kind]).inc();
        self.call_seconds.with_label_values(&[method]).observe(took.as_secs_f64());
    }

    /// What a publish or a merge came to.
    pub(crate) fn published(&self, outcome: Option<&Outcome>) {
        let outcome = match outcome {
            Some(Outcome::Created(_)) => "created",
            Some(Outcome::Existing(_)) => "existing",
            Some(Outcome::Refused(_)) => "refused",
            None => "failed",
        };
        self.publishes.with_label_values(&[outcome]).inc();
    }

    pub(crate) fn garbage(&self, stage: Stage, bytes: u64) {
        match stage {
            Stage::Waiting => return,
            Stage::Condemned => {}
            Stage::Collected => self.garbage_bytes.inc_by(bytes),
        }
        self.garbage.with_label_values(&[stage.as_str()]).inc();
    }

    pub(crate) fn experiments_evaluated(&self, succeeded: bool) {
        self.experiment_evaluations.with_label_values(&[if succeeded { "ok" } else { "failed" }]).inc();
    }

    pub(crate) fn upload_started(&self) -> Running {
        Running::new(&self.uploads)
    }

    pub(crate) fn uploaded(&self, bytes: u64) {
        self.upload_bytes.inc_by(bytes);
    }

    pub(crate) fn refreshed(&self, took: Duration, succeeded: bool) {
        self.refreshes.with_label_values(&[if succeeded { "ok" } else { "failed" }]).inc();
        self.refresh_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn directory_changed(&self, generation: u64, counts: Counts) {
        self.generation.set(generation as i64);
        self.tenants.set(counts.tenants as i64);
        self.keys.set(counts.keys as i64);
        self.adapters.set(counts.adapters as i64);
        self.versions.set(counts.versions as i64);
    }
}
