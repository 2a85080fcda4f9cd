//! Tells the registry what adapters took of this worker, which writes it into the usage ledger.
//!
//! A report is made once and told until a registry has it, with the same number, so that none counts twice. What was not told when the process is
//! killed is lost: at most one interval, and what waited for a registry.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tonic::transport::Channel;
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::registry_client::RegistryClient;
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::transport::within;

use crate::view::View;

const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Adapters in one report; more are another one.
const ROWS_MAX: usize = 4_000;
/// Reports that wait for a registry; with more, the oldest go.
const WAITING_MAX: usize = 256;

/// Who tells.
pub(crate) struct Teller {
    pub(crate) view: Arc<View>,
    /// The address in heartbeats, or what stands for it.
    pub(crate) worker: String,
    pub(crate) incarnation: String,
    pub(crate) every: Duration,
}

/// Reports that are made and not told.
struct Reports {
    waiting: VecDeque<pb::KeepResidencyRequest>,
    next: u32,
    since: Instant,
}

impl Teller {
    /// Tells until shutdown, and then once more.
    pub(crate) async fn tell(self, registry: Channel, shutdown: Shutdown) {
        let mut client = RegistryClient::new(registry);
        let mut reports = Reports { waiting: VecDeque::new(), next: 0, since: Instant::now() };
        loop {
            let is_over = tokio::select! {
                () = tokio::time::sleep(self.every) => false,
                () = shutdown.wait() => true,
            };
            self.report(&mut reports);
            while let Some(report) = reports.waiting.front() {
                let call = client.keep_residency(within(CALL_TIMEOUT, report.clone()));
                match tokio::time::timeout(CALL_TIMEOUT, call).await {
                    Ok(Ok(_)) => {}
                    // It will never be taken.
                    Ok(Err(status)) if status.code() == tonic::Code::InvalidArgument => {
                        tracing::error!(problem = status.message(), "a report of residency is lost");
                    }
                    Ok(Err(status)) => {
                        tracing::debug!(problem = status.message(), "cannot tell what adapters took; it waits");
                        break;
                    }
                    Err(_) => break,
                }
                reports.waiting.pop_front();
            }
            if is_over {
                return;
            }
        }
    }

    fn report(&self, reports: &mut Reports) {
        let taken = self.view.take_occupancy();
        let took = reports.since.elapsed();
        reports.since += took;
        let to_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        let from_ms = to_ms.saturating_sub(took.as_millis() as u64 + 1);
        for rows in taken.chunks(ROWS_MAX) {
            let row = |(digest, taken): &(weft_types::Digest, crate::occupancy::Taken)| pb::Occupied {
                digest: digest.to_vec().into(),
                slot_ms: taken.slot_ms,
                memory_ms: taken.memory_ms,
                bytes_moved: taken.bytes_moved,
                bytes: taken.bytes,
            };
            reports.waiting.push_back(pb::KeepResidencyRequest {
                worker: self.worker.clone(),
                incarnation: self.incarnation.clone(),
                sequence: reports.next,
                from_ms,
                to_ms,
                rows: rows.iter().map(row).collect(),
            });
            reports.next += 1;
        }
        while reports.waiting.len() > WAITING_MAX {
            reports.waiting.pop_front();
            tracing::warn!(waiting = WAITING_MAX, "no registry takes reports of residency; the oldest is lost");
        }
    }
}
