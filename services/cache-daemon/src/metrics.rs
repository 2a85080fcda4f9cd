//! What the cache daemon counts. Names follow `cache_daemon_<noun>_<unit>[_total]`; labels are bounded: tiers, kinds of
//! faults, outcomes.

use crate::TierKind;
use crate::cache::Origin;
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};
use std::time::Duration;
use weft_fault::Kind;

/// 100 µs (a lookup) to 54 s (a large blob from far away), three steps a decade.
fn wait_buckets() -> Vec<f64> {
    (0..18).map(|step| 0.0001 * 10f64.powf(f64::from(step) / 3.0)).collect()
}

/// All metrics of one daemon.
#[derive(Debug)]
pub(crate) struct Metrics {
    bytes_used: IntGaugeVec,
    bytes_held: IntGaugeVec,
    bytes_max: IntGaugeVec,
    files: IntGaugeVec,
    evictions: IntCounterVec,
    evicted_bytes: IntCounterVec,
    corrupt_files: IntCounterVec,
    leases: IntCounterVec,
    leased_bytes: IntCounterVec,
    lease_wait: HistogramVec,
    refusals: IntCounterVec,
    fetches: IntCounterVec,
    fetch_failures: IntCounterVec,
    fetched_bytes: IntCounterVec,
    fetch_seconds: HistogramVec,
    pub(crate) resumes: IntCounter,
    served: IntCounterVec,
    pub(crate) served_bytes: IntCounter,
    prefetches: IntCounterVec,
    pub(crate) neighbours: IntGauge,
    pub(crate) neighbour_blobs: IntGauge,
    pub(crate) streams: IntGauge,
    pub(crate) prefetch_queue: IntGauge,
}

impl Metrics {
    /// Registers all metrics.
    ///
    /// # Errors
    /// A name is registered already: two daemons share one registry.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gauges = |name: &str, help: &str| -> Result<IntGaugeVec, prometheus::Error> {
            let metric = IntGaugeVec::new(Opts::new(name, help), &["tier"])?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let counters = |name: &str, help: &str, label: &str| -> Result<IntCounterVec, prometheus::Error> {
            let metric = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let wait = HistogramOpts::new("cache_daemon_lease_wait_seconds", "from acquire to grant, by tier of origin");
        let lease_wait = HistogramVec::new(wait.buckets(wait_buckets()), &["tier"])?;
        registry.register(Box::new(lease_wait.clone()))?;
        let fetch = HistogramOpts::new("cache_daemon_fetch_seconds", "one blob from elsewhere, verified, by source");
        let fetch_seconds = HistogramVec::new(fetch.buckets(wait_buckets()), &["source"])?;
        registry.register(Box::new(fetch_seconds.clone()))?;
        let pairs = |name: &str, help: &str, labels: [&str; 2]| -> Result<IntCounterVec, prometheus::Error> {
            let metric = IntCounterVec::new(Opts::new(name, help), &labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok(metric)
        };
        let served_bytes = IntCounter::new("cache_daemon_served_bytes_total", "bytes sent to neighbours")?;
        registry.register(Box::new(served_bytes.clone()))?;
        let resumes = IntCounter::new(
            "cache_daemon_fetch_resumes_total",
            "reads of the object store that went on where they broke",
        )?;
        registry.register(Box::new(resumes.clone()))?;
        Ok(Self {
            bytes_used: gauges("cache_daemon_used_bytes", "bytes of all files, also unlinked and incoming ones")?,
            bytes_held: gauges("cache_daemon_held_bytes", "bytes that leases keep from eviction")?,
            bytes_max: gauges("cache_daemon_budget_bytes", "the budget")?,
            files: gauges("cache_daemon_files", "files that can be leased")?,
            evictions: counters("cache_daemon_evictions_total", "files evicted", "tier")?,
            evicted_bytes: counters("cache_daemon_evicted_bytes_total", "bytes evicted", "tier")?,
            corrupt_files: counters("cache_daemon_corrupt_total", "blobs with wrong bytes, by where", "place")?,
            leases: counters("cache_daemon_leases_total", "leases granted, by tier of origin", "tier")?,
            leased_bytes: counters(
                "cache_daemon_leased_bytes_total",
                "bytes of leases granted, by tier of origin",
                "tier",
            )?,
            lease_wait,
            refusals: counters("cache_daemon_refusals_total", "acquires refused, by kind", "kind")?,
            fetches: pairs(
                "cache_daemon_fetches_total",
                "fetches of a blob, by source and outcome",
                ["source", "outcome"],
            )?,
            fetch_failures: pairs(
                "cache_daemon_fetch_failures_total",
                "reads that failed, those that were tried again included",
                ["source", "reason"],
            )?,
            fetched_bytes: counters("cache_daemon_fetched_bytes_total", "bytes that came, by source", "source")?,
            fetch_seconds,
            resumes,
            served: counters("cache_daemon_served_total", "reads of neighbours, by outcome", "outcome")?,
            served_bytes,
            prefetches: counters("cache_daemon_prefetches_total", "prefetches, by outcome", "outcome")?,
            neighbours: gauge("cache_daemon_neighbours", "other daemons that the bus tells of")?,
            neighbour_blobs: gauge("cache_daemon_neighbour_blobs", "blobs that they hold, each for itself")?,
            streams: gauge("cache_daemon_streams", "holders connected")?,
            prefetch_queue: gauge("cache_daemon_prefetch_queue", "digests waiting to be prefetched")?,
        })
    }

    pub(crate) fn tier(&self, tier: TierKind, used: u64, held: u64, max: u64, files: usize) {
        let tier = &[tier.as_str()];
        self.bytes_used.with_label_values(tier).set(used as i64);
        self.bytes_held.with_label_values(tier).set(held as i64);
        self.bytes_max.with_label_values(tier).set(max as i64);
        self.files.with_label_values(tier).set(files as i64);
    }

    pub(crate) fn evicted(&self, tier: TierKind, bytes: u64) {
        self.evictions.with_label_values(&[tier.as_str()]).inc();
        self.evicted_bytes.with_label_values(&[tier.as_str()]).inc_by(bytes);
    }

    pub(crate) fn corrupt(&self, place: &str) {
        self.corrupt_files.with_label_values(&[place]).inc();
    }

    pub(crate) fn granted(&self, origin: &str, bytes: u64, wait: Duration) {
        self.leased_bytes.with_label_values(&[origin]).inc_by(bytes);
        self.leases.with_label_values(&[origin]).inc();
        self.lease_wait.with_label_values(&[origin]).observe(wait.as_secs_f64());
    }

    pub(crate) fn refused(&self, kind: Kind) {
        self.refusals.with_label_values(&[kind.as_str()]).inc();
    }

    /// Bytes that came from a source.
    pub(crate) fn read(&self, source: Origin, bytes: u64) {
        self.fetched_bytes.with_label_values(&[source.as_str()]).inc_by(bytes);
    }

    /// A blob came whole and right.
    pub(crate) fn fetched(&self, source: Origin, took: Duration) {
        self.fetches.with_label_values(&[source.as_str(), "done"]).inc();
        self.fetch_seconds.with_label_values(&[source.as_str()]).observe(took.as_secs_f64());
    }

    /// A fetch ended without the blob.
    pub(crate) fn fetch_ended(&self, source: Origin, kind: Kind) {
        self.fetches.with_label_values(&[source.as_str(), kind.as_str()]).inc();
    }

    /// A read failed; it may be tried again.
    pub(crate) fn fetch_failed(&self, source: Origin, reason: &str) {
        self.fetch_failures.with_label_values(&[source.as_str(), reason]).inc();
    }

    /// A neighbour's read ended.
    pub(crate) fn served(&self, outcome: &str) {
        self.served.with_label_values(&[outcome]).inc();
    }

    pub(crate) fn prefetched(&self, outcome: &str) {
        self.prefetches.with_label_values(&[outcome]).inc();
    }
}
