//! Before an alias moves: the version it will mean is brought into a slot wherever the version that it means now has one, so that
//! traffic does not arrive before the bytes.

use crate::app::Gateway;
use crate::directory::Tenant;
use crate::workers::Worker;
use futures::future::join_all;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use weft_proto::mesh::v1::Tier;
use weft_proto::worker::v1 as pb;
use weft_service_kit::transport::within;
use weft_types::{AdapterName, AliasName, Digest, TenantName};

impl Gateway {
    /// Brings `version` to the workers that have what the alias means now in a slot, within `prewarm_ms`. Returns at how many of how many
    /// it is. A worker that cannot, or not in time, stops nothing: its first request waits for the bytes, as any cold one does.
    pub(super) async fn prewarm(
        &self,
        tenant: &TenantName,
        adapter: &AdapterName,
        alias: &AliasName,
        version: u64,
    ) -> (usize, usize) {
        let limit = Duration::from_millis(self.settings.prewarm_ms);
        let Some((from, to)) = self.move_of(tenant, adapter, alias, version).filter(|_| !limit.is_zero()) else {
            return (0, 0);
        };
        let (known, now) = (self.mesh.pool.workers(), Instant::now());
        let holds = |worker: &&Arc<Worker>| {
            worker.read(|view| view.is_up(now, &self.mesh.pool.pace) && view.adapters.tier(&from) == Some(Tier::Slot))
        };
        let workers: Vec<_> = known.iter().filter(holds).collect();
        let warming = workers.iter().map(|worker| async {
            let mut client = worker.client();
            let digest = || to.to_vec().into();
            // A pin loads, and lasts only until it is let go, if it is ours.
            let pinned = client.pin(within(limit, pb::PinRequest { digest: digest() })).await;
            if pinned.as_ref().is_ok_and(|pinned| !pinned.get_ref().was_pinned) {
                let _ = client.unpin(within(limit, pb::UnpinRequest { digest: digest() })).await;
            }
            pinned.is_ok()
        });
        let warm = match tokio::time::timeout(limit, join_all(warming)).await {
            Ok(warm) => warm.into_iter().filter(|is_warm| *is_warm).count(),
            Err(_) => 0,
        };
        if warm < workers.len() {
            tracing::warn!(%tenant, %adapter, %alias, version, warm, workers = workers.len(), "an alias moves before all workers are warm");
        }
        (warm, workers.len())
    }

    /// Whether the alias of a version that is being published has to wait until the version is warm: it means another one now, and nothing but us moves it.
    pub(super) fn moves_later(&self, tenant: &TenantName, adapter: &AdapterName, alias: &str) -> bool {
        let Some(snapshot) = self.directory.last() else { return false };
        let known = snapshot.tenant(tenant.as_str());
        let has_alias = |known: &Arc<Tenant>| {
            let adapter = known.adapters.get(adapter.as_str());
            adapter.is_some_and(|adapter| adapter.aliases.contains_key(alias))
        };
        let is_split = |known: &Arc<Tenant>| known.split(adapter.as_str(), alias).is_some();
        self.settings.prewarm_ms > 0 && known.is_some_and(|known| has_alias(known) && !is_split(known))
    }

    /// What the alias means now and what it will mean; `None` if that is the same, or nobody knows.
    fn move_of(
        &self,
        tenant: &TenantName,
        adapter: &AdapterName,
        alias: &AliasName,
        version: u64,
    ) -> Option<(Digest, Digest)> {
        let snapshot = self.directory.last()?;
        let adapter = snapshot.adapter(tenant.as_str(), adapter.as_str())?;
        let from = *adapter.versions.get(adapter.aliases.get(alias.as_str())?)?;
        let to = *adapter.versions.get(&version)?;
        (from != to).then_some((from, to))
    }
}
