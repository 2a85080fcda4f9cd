//! Tells the mesh what this daemon holds, every interval.

use crate::TierKind;
use crate::books::Row;
use crate::cache::Cache;
use bytes::Bytes;
use prost::Message;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use weft_bus::residency::{Held, Teller};
use weft_bus::{Bus, subjects};
use weft_proto::mesh::v1 as mesh;
use weft_proto::mesh::v1::Tier;
use weft_service_kit::shutdown::Shutdown;

/// The process, and the last generation that it told.
#[derive(Clone)]
pub(crate) struct Told {
    pub(crate) incarnation: Arc<str>,
    generation: Arc<AtomicU64>,
}

impl Told {
    pub(crate) fn new() -> Self {
        Self { incarnation: uuid::Uuid::new_v4().to_string().into(), generation: Arc::default() }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}

/// Tells until shutdown.
pub(crate) async fn run(
    bus: Arc<dyn Bus>,
    cache: Cache,
    told: Told,
    address: String,
    interval: Duration,
    shutdown: Shutdown,
) {
    let mut teller = Teller::default();
    let mut sequence = 0;
    loop {
        for delta in teller.tell_next(held(&cache.rows())) {
            sequence += 1;
            // It may be lost: whoever listens sees the gap, and the bus counts it.
            let _ = bus.publish(subjects::CACHE_RESIDENCY, message(&cache, &told, &address, interval, sequence, delta));
        }
        told.generation.store(teller.generation(), Ordering::Release);
        tokio::select! {
            // So that daemons started together do not speak together.
            () = tokio::time::sleep(interval.mul_f64(rand::random_range(0.9..1.1))) => {}
            () = shutdown.wait() => return,
        }
    }
}

fn message(
    cache: &Cache,
    told: &Told,
    address: &str,
    interval: Duration,
    sequence: u64,
    delta: mesh::ResidencyDelta,
) -> Bytes {
    let (disk_bytes_used, disk_bytes_max) = cache.usage(TierKind::Disk);
    let (memory_bytes_used, memory_bytes_max) = cache.usage(TierKind::Memory);
    let message = mesh::CacheResidency {
        daemon: cache.0.settings.name.clone(),
        address: address.to_owned(),
        incarnation: told.incarnation.to_string(),
        sequence,
        interval_ms: interval.as_millis() as u32,
        disk_bytes_used,
        disk_bytes_max,
        memory_bytes_used,
        memory_bytes_max,
        residency: Some(delta),
    };
    message.encode_to_vec().into()
}

/// The nearest tier of each; rows come memory first.
fn held(rows: &[Row]) -> Held {
    let tier = |tier: TierKind| match tier {
        TierKind::Memory => Tier::Memory,
        TierKind::Disk => Tier::Disk,
    };
    rows.iter().rev().map(|row| (row.digest, tier(row.tier))).collect()
}
