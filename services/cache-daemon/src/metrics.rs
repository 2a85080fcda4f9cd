//! What the cache daemon counts. Names follow `cache_daemon_<noun>_<unit>[_total]`; labels are bounded: tiers, kinds of
//! faults, outcomes.

use crate::TierKind;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};
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
    lease_wait: HistogramVec,
    refusals: IntCounterVec,
    fetches: IntCounterVec,
    fetched_bytes: IntCounter,
    fetch_seconds: Histogram,
    prefetches: IntCounterVec,
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
        let fetch = HistogramOpts::new("cache_daemon_fetch_seconds", "one blob from the object store, verified");
        let fetch_seconds = Histogram::with_opts(fetch.buckets(wait_buckets()))?;
        registry.register(Box::new(fetch_seconds.clone()))?;
        let fetched_bytes =
            IntCounter::new("cache_daemon_fetched_bytes_total", "bytes of blobs fetched whole and verified")?;
        registry.register(Box::new(fetched_bytes.clone()))?;
        Ok(Self {
            bytes_used: gauges("cache_daemon_used_bytes", "bytes of all files, also unlinked and incoming ones")?,
            bytes_held: gauges("cache_daemon_held_bytes", "bytes that leases keep from eviction")?,
            bytes_max: gauges("cache_daemon_budget_bytes", "the budget")?,
            files: gauges("cache_daemon_files", "files that can be leased")?,
            evictions: counters("cache_daemon_evictions_total", "files evicted", "tier")?,
            evicted_bytes: counters("cache_daemon_evicted_bytes_total", "bytes evicted", "tier")?,
            corrupt_files: counters("cache_daemon_corrupt_total", "blobs with wrong bytes, by where", "place")?,
            leases: counters("cache_daemon_leases_total", "leases granted, by tier of origin", "tier")?,
            lease_wait,
            refusals: counters("cache_daemon_refusals_total", "acquires refused, by kind", "kind")?,
            fetches: counters("cache_daemon_fetches_total", "tries to fetch a blob, by outcome", "outcome")?,
            fetched_bytes,
            fetch_seconds,
            prefetches: counters("cache_daemon_prefetches_total", "prefetches, by outcome", "outcome")?,
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

    pub(crate) fn granted(&self, origin: &str, wait: Duration) {
        self.leases.with_label_values(&[origin]).inc();
        self.lease_wait.with_label_values(&[origin]).observe(wait.as_secs_f64());
    }

    pub(crate) fn refused(&self, kind: Kind) {
        self.refusals.with_label_values(&[kind.as_str()]).inc();
    }

    pub(crate) fn fetched(&self, bytes: u64, took: Duration) {
        self.fetches.with_label_values(&["done"]).inc();
        self.fetched_bytes.inc_by(bytes);
        self.fetch_seconds.observe(took.as_secs_f64());
    }

    pub(crate) fn fetch_failed(&self, kind: Kind) {
        self.fetches.with_label_values(&[kind.as_str()]).inc();
    }

    pub(crate) fn prefetched(&self, outcome: &str) {
        self.prefetches.with_label_values(&[outcome]).inc();
    }
}
