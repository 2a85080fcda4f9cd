//! What the gateway counts about tenants' limits.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};
use weft_limits::State;

/// All of them; cloning shares.
#[derive(Clone)]
pub(crate) struct LimitMetrics {
    pub(crate) allowed: IntCounter,
    pub(crate) refused: IntCounterVec,
    alone: IntCounter,
    calls: IntCounter,
    calls_failed: IntCounter,
    shared: IntGauge,
    gateways: IntGauge,
    units_held: IntGauge,
    slots_held: IntGauge,
    tenants: IntGauge,
}

impl LimitMetrics {
    pub(crate) fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let metrics = Self {
            allowed: IntCounter::new("gateway_limits_allowed_total", "Requests within all limits of tenant and key")?,
            refused: IntCounterVec::new(
                Opts::new(
                    "gateway_limits_refused_total",
                    "Requests over a limit, by limit and whose it is: tenant or key",
                ),
                &["limit", "whose"],
            )?,
            alone: IntCounter::new(
                "gateway_limits_allowed_alone_total",
                "Requests allowed on this gateway's part of the limits, because Redis was away",
            )?,
            calls: IntCounter::new("gateway_limits_calls_total", "Calls of the ledger of limits")?,
            calls_failed: IntCounter::new("gateway_limits_calls_failed_total", "Of these, without an answer in time")?,
            shared: IntGauge::new(
                "gateway_limits_shared",
                "1: the ledger of limits answers; 0: this gateway is alone",
            )?,
            gateways: IntGauge::new("gateway_limits_gateways", "Gateways that share the limits")?,
            units_held: IntGauge::new("gateway_limits_units_held", "Requests and tokens held in advance, all tenants")?,
            slots_held: IntGauge::new(
                "gateway_limits_slots_held",
                "Slots of answers held, in use or not, all tenants",
            )?,
            tenants: IntGauge::new("gateway_limits_tenants", "Tenants with limits that were served of late")?,
        };
        registry.register(Box::new(metrics.allowed.clone()))?;
        registry.register(Box::new(metrics.refused.clone()))?;
        registry.register(Box::new(metrics.alone.clone()))?;
        registry.register(Box::new(metrics.calls.clone()))?;
        registry.register(Box::new(metrics.calls_failed.clone()))?;
        registry.register(Box::new(metrics.shared.clone()))?;
        registry.register(Box::new(metrics.gateways.clone()))?;
        registry.register(Box::new(metrics.units_held.clone()))?;
        registry.register(Box::new(metrics.slots_held.clone()))?;
        registry.register(Box::new(metrics.tenants.clone()))?;
        Ok(metrics)
    }

    /// Shows how things are now.
    pub(crate) fn show(&self, state: &State) {
        let gauge = |gauge: &IntGauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        for (counter, total) in
            [(&self.alone, state.admitted_alone), (&self.calls, state.calls), (&self.calls_failed, state.calls_failed)]
        {
            counter.inc_by(total.saturating_sub(counter.get()));
        }
        gauge(&self.shared, u64::from(state.away.is_none()));
        gauge(&self.gateways, state.gateways);
        gauge(&self.units_held, state.units_held);
        gauge(&self.slots_held, state.slots_held);
        gauge(&self.tenants, state.tenants);
    }
}
