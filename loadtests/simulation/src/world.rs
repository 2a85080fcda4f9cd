//! Everything that outlives a simulated process: names, what S3 holds, what was acknowledged, how everybody is now.

use crate::ledger::Ledger;
use crate::record::Record;
use crate::s3::{Moods, Objects};
use crate::stage::Stage;
use crate::trouble::Troubles;
use crate::worker::WorkerMood;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weft_service_kit::shutdown::Shutdown;

/// Hosts of registries.
pub(crate) const REGISTRIES: [&str; 2] = ["registry-1", "registry-2"];
/// Hosts of gateways.
pub(crate) const GATEWAYS: [&str; 2] = ["gateway-1", "gateway-2"];
/// Hosts of workers.
pub(crate) const WORKERS: [&str; 3] = ["worker-1", "worker-2", "worker-3"];
/// The host of everybody who asks.
pub(crate) const TENANTS: &str = "tenants";

/// Hosts that share a bus.
pub(crate) fn meshed() -> impl Iterator<Item = &'static str> {
    REGISTRIES.into_iter().chain(GATEWAYS).chain(WORKERS)
}

/// gRPC.
pub(crate) const REGISTRY_PORT: u16 = 7001;
/// gRPC.
pub(crate) const WORKER_PORT: u16 = 7003;
/// Tenants' HTTP.
pub(crate) const DATA_PORT: u16 = 8080;
/// Operators' HTTP.
pub(crate) const ADMIN_PORT: u16 = 8081;
/// Of the admin API.
pub(crate) const ADMIN_KEY: &str = "simulated-admin-key";

/// One simulation's.
pub(crate) struct World {
    /// What everything is drawn from.
    pub(crate) seed: u64,
    /// What happened.
    pub(crate) record: Arc<Record>,
    /// What S3 holds.
    pub(crate) objects: Arc<Objects>,
    /// How S3 is.
    pub(crate) moods: Arc<Moods>,
    /// How each worker is.
    pub(crate) workers: [Arc<WorkerMood>; WORKERS.len()],
    /// Which faults there were.
    pub(crate) troubles: Troubles,
    ledger: Mutex<Ledger>,
    /// The signal that ends the process on a host.
    ends: Mutex<BTreeMap<&'static str, Shutdown>>,
    stage: Mutex<Stage>,
    /// Of every process of a gateway so far.
    metrics: Mutex<Vec<prometheus::Registry>>,
}

impl World {
    /// Nothing has happened.
    #[must_use]
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            record: Arc::default(),
            objects: Arc::default(),
            moods: Arc::new(Moods::new(seed)),
            workers: Default::default(),
            troubles: Troubles::default(),
            ledger: Mutex::default(),
            ends: Mutex::default(),
            stage: Mutex::new(Stage::SettingUp),
            metrics: Mutex::default(),
        }
    }

    /// What was acknowledged, and tried. Held for short work only.
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How far it is.
    #[must_use]
    pub(crate) fn stage(&self) -> Stage {
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next stage begins.
    pub(crate) fn enter(&self, stage: Stage) {
        self.record.event("STAGE", format!("{stage:?}"));
        *self.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    /// The signal for a process that starts on this host.
    pub(crate) fn started(&self, host: &'static str) -> Shutdown {
        let shutdown = Shutdown::new();
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).insert(host, shutdown.clone());
        shutdown
    }

    /// Tells the process on this host to end.
    pub(crate) fn end(&self, host: &str) {
        if let Some(shutdown) = self.ends.lock().unwrap_or_else(PoisonError::into_inner).get(host) {
            shutdown.trigger();
        }
    }

    /// Keeps the metrics of a gateway's process.
    pub(crate) fn keep_metrics(&self, metrics: prometheus::Registry) {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner).push(metrics);
    }

    /// The sum of a counter over all gateways that there were, over labels that have this value.
    #[must_use]
    pub(crate) fn counted(&self, name: &str, label: &str) -> u64 {
        let all = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let families = all.iter().flat_map(prometheus::Registry::gather).filter(|family| family.name() == name);
        let mut sum = 0.0;
        for family in families {
            for metric in family.get_metric() {
                if label.is_empty() || metric.get_label().iter().any(|pair| pair.value() == label) {
                    sum += metric.get_counter().get_value();
                }
            }
        }
        sum as u64
    }
}
