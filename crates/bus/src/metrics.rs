//! What a bus counts. Labels are the subjects of this program and three words.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// All of them. Cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    pub(crate) published: IntCounterVec,
    /// By why: away, full or too_large.
    pub(crate) dropped: IntCounterVec,
    pub(crate) received: IntCounterVec,
    pub(crate) missed: IntCounterVec,
    pub(crate) connections: IntCounter,
    pub(crate) connected: IntGauge,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// The registry has a bus already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let by = |name: &str, help: &str, labels: &[&str]| IntCounterVec::new(Opts::new(name, help), labels);
        let metrics = Self {
            published: by("bus_published_messages_total", "Messages given to the bus, by subject", &["subject"])?,
            dropped: by(
                "bus_dropped_messages_total",
                "Messages not sent, by subject and why: away, full or too_large",
                &["subject", "why"],
            )?,
            received: by("bus_received_messages_total", "Messages heard, by subject", &["subject"])?,
            missed: by(
                "bus_missed_messages_total",
                "Messages dropped because a subscriber here was slow, by subject",
                &["subject"],
            )?,
            connections: IntCounter::new(
                "bus_connections_total",
                "Connections made; all after the first are reconnects",
            )?,
            connected: IntGauge::new("bus_connected", "1 while messages get through")?,
        };
        registry.register(Box::new(metrics.published.clone()))?;
        registry.register(Box::new(metrics.dropped.clone()))?;
        registry.register(Box::new(metrics.received.clone()))?;
        registry.register(Box::new(metrics.missed.clone()))?;
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.connected.clone()))?;
        Ok(metrics)
    }
}
