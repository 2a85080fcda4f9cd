//! What a worker counts. Labels are few and bounded; adapters and tenants are fields of spans, never labels.

use crate::step_metrics::StepMetrics;
use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// All metrics of a worker. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Metrics {
    pub(crate) step: StepMetrics,
    /// Time of one step of the engine.
    pub(crate) step_seconds: Histogram,
    pub(crate) steps: IntCounter,
    /// Steps with at least two distinct adapters, the base counting as one.
    pub(crate) mixed_steps: IntCounter,
    pub(crate) step_adapters: Histogram,
    pub(crate) step_requests: Histogram,
    pub(crate) prompt_tokens: IntCounter,
    pub(crate) output_tokens: IntCounter,
    pub(crate) preemptions: IntCounter,
    /// From receipt to the first step.
    pub(crate) queue_seconds: Histogram,
    /// From receipt to the first output token.
    pub(crate) first_token_seconds: Histogram,
    /// By result: length, eos, stop, cancelled, or the word of a fault kind.
    pub(crate) requests: IntCounterVec,
    /// By result: ok, or the word of a fault kind.
    pub(crate) adapter_loads: IntCounterVec,
    pub(crate) adapter_load_seconds: Histogram,
    pub(crate) adapter_evictions: IntCounter,
    /// Adapters that found no memory to be packed into.
    pub(crate) out_of_memory: IntCounter,
    /// Adapters that got a slot from the second tier, without a load.
    pub(crate) adapter_returns: IntCounter,
    /// Adapters that began to run from pinned memory because they found no room on the device.
    pub(crate) adapter_streams: IntCounter,
    pub(crate) adapters_streamed: IntGauge,
    /// Adapters that the cache daemon was asked to bring near for requests that wait.
    pub(crate) adapter_hints: IntCounter,
    pub(crate) adapters_ahead: IntCounter,
    pub(crate) placement_epoch: IntGauge,
    /// By result: cached, compiled or refused.
    pub(crate) grammars: IntCounterVec,
    pub(crate) grammar_compile_seconds: Histogram,
    /// Of one token of one answer.
    pub(crate) mask_seconds: Histogram,
    /// Rows of logits that were computed before their mask.
    pub(crate) late_masks: IntCounter,
    pub(crate) running_requests: IntGauge,
    pub(crate) queued_requests: IntGauge,
    pub(crate) kv_blocks_used: IntGauge,
    pub(crate) kv_blocks_idle: IntGauge,
    pub(crate) kv_blocks_total: IntGauge,
    /// Of a device's pool.
    pub(crate) adapter_blocks: IntGauge,
    pub(crate) kv_blocks_reclaimed: IntCounter,
    pub(crate) prefix_lookup_tokens: IntCounter,
    /// Divided by `prefix_lookup_tokens`: the hit ratio of the prefix cache.
    pub(crate) prefix_hit_tokens: IntCounter,
    pub(crate) slot_bytes_used: IntGauge,
    pub(crate) slot_bytes_total: IntGauge,
    pub(crate) prepared_bytes_used: IntGauge,
    pub(crate) prepared_bytes_total: IntGauge,
    /// From the start of the process to a loop that takes requests.
    pub(crate) start_seconds: Gauge,
}

const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
const MASK_SECONDS: &[f64] =
    &[0.000_01, 0.000_025, 0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.025];
const COUNTS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// A name is taken in this registry.
    pub(crate) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| register(registry, IntCounter::new(name, help)?);
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help)?);
        let by_result =
            |name: &str, help: &str| register(registry, IntCounterVec::new(Opts::new(name, help), &["result"])?);
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            register(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?)
        };
        Ok(Self {
            step: StepMetrics::new(registry)?,
            step_seconds: histogram("worker_step_seconds", "Time of one step", SECONDS)?,
            steps: counter("worker_steps_total", "Steps")?,
            mixed_steps: counter(
                "worker_mixed_steps_total",
                "Steps with at least two distinct adapters, base included",
            )?,
            step_adapters: histogram("worker_step_adapters", "Distinct adapters in a step, base included", COUNTS)?,
            step_requests: histogram("worker_step_requests", "Requests in a step", COUNTS)?,
            prompt_tokens: counter("worker_prompt_tokens_total", "Prompt tokens computed, repetitions included")?,
            output_tokens: counter("worker_output_tokens_total", "Tokens sampled")?,
            preemptions: counter("worker_preemptions_total", "Requests whose KV blocks were taken")?,
            queue_seconds: histogram("worker_queue_seconds", "From receipt to the first step", SECONDS)?,
            first_token_seconds: histogram("worker_first_token_seconds", "From receipt to the first token", SECONDS)?,
            requests: by_result("worker_requests_total", "Requests that ended")?,
            adapter_loads: by_result("worker_adapter_loads_total", "Adapter loads that ended")?,
            adapter_load_seconds: histogram("worker_adapter_load_seconds", "From wanted to packed", SECONDS)?,
            adapter_evictions: counter("worker_adapter_evictions_total", "Adapters that lost their slot")?,
            out_of_memory: counter("worker_out_of_memory_total", "Adapters that found no memory to be packed into")?,
            adapter_returns: counter(
                "worker_adapter_returns_total",
                "Adapters that got a slot from the second tier, without a load",
            )?,
            adapter_streams: counter(
                "worker_adapter_streams_total",
                "Adapters that found no room on the device and ran from main memory",
            )?,
            adapters_streamed: gauge("worker_adapters_streamed", "Adapters that run from main memory")?,
            adapter_hints: counter("worker_adapter_hints_total", "Prefetches asked of the cache daemon")?,
            adapters_ahead: counter("worker_adapters_ahead_total", "Loads begun because a placement wants them")?,
            placement_epoch: gauge("worker_placement_epoch", "Number of the last placement that was heard of")?,
            grammars: by_result("worker_grammars_total", "Grammars that requests asked for")?,
            grammar_compile_seconds: histogram("worker_grammar_compile_seconds", "Time to compile a grammar", SECONDS)?,
            mask_seconds: histogram("worker_mask_seconds", "Time to compute the token mask of one row", MASK_SECONDS)?,
            late_masks: counter("worker_late_masks_total", "Rows that waited for their token mask")?,
            running_requests: gauge("worker_running_requests", "Requests that run")?,
            queued_requests: gauge("worker_queued_requests", "Requests that wait, in the queue and for adapters")?,
            kv_blocks_used: gauge("worker_kv_blocks_used", "KV blocks that requests hold")?,
            kv_blocks_idle: gauge("worker_kv_blocks_idle", "KV blocks that nobody holds, kept for the prefix cache")?,
            kv_blocks_total: gauge(
                "worker_kv_blocks_limit",
                "KV blocks that requests may have; on a device all but those of adapters that requests run with or that are pinned",
            )?,
            adapter_blocks: gauge("worker_adapter_blocks", "Blocks of a device's memory that adapters have")?,
            kv_blocks_reclaimed: counter("worker_kv_blocks_reclaimed_total", "Idle KV blocks taken for other content")?,
            prefix_lookup_tokens: counter(
                "worker_prefix_lookup_tokens_total",
                "Prompt tokens of requests that could read the prefix cache",
            )?,
            prefix_hit_tokens: counter("worker_prefix_hit_tokens_total", "Prompt tokens found in the prefix cache")?,
            slot_bytes_used: gauge("worker_slot_bytes_used", "Bytes of resident adapters")?,
            slot_bytes_total: gauge("worker_slot_bytes_limit", "Bytes that resident adapters may take")?,
            prepared_bytes_used: gauge("worker_prepared_bytes_used", "Bytes of packed adapters without a slot")?,
            prepared_bytes_total: gauge(
                "worker_prepared_bytes_limit",
                "Bytes that packed adapters without a slot may take",
            )?,
            start_seconds: register(
                registry,
                Gauge::new("worker_start_seconds", "From the start of the process until requests are taken")?,
            )?,
        })
    }
}

fn register<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: M,
) -> Result<M, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}
