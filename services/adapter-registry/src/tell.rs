//! Registries over one store tell each other what they wrote, so that nobody waits for the next listing.
//!
//! An event is a hint to list a tenant's records now. A lost one costs the time until the next refresh.

use crate::core::Core;
use crate::layout::{ROOT, tenant_prefix};
use bytes::Bytes;
use futures::FutureExt;
use prost::Message;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use weft_bus::{Bus, Heard, subjects};
use weft_proto::mesh::v1 as mesh;
use weft_service_kit::shutdown::Shutdown;
use weft_types::{Digest, TenantName};

/// Events that wait; with more, everything is listed.
const QUEUE_MESSAGES_MAX: usize = 1024;
/// Prefixes that are listed one by one; with more, everything is.
const PREFIXES_MAX: usize = 8;
/// Between two rounds of listing, so that a burst of writes elsewhere is a few rounds here.
const PAUSE: Duration = Duration::from_millis(100);

/// Lists what others say they wrote, until shutdown.
pub(crate) async fn follow_others(core: Arc<Core>, bus: Arc<dyn Bus>, shutdown: Shutdown) {
    let mut events = bus.subscribe(subjects::REGISTRY_CHANGE, QUEUE_MESSAGES_MAX);
    loop {
        let mut heard = tokio::select! {
            heard = events.next() => heard,
            () = shutdown.wait() => return,
        };
        let mut stale = BTreeSet::new();
        loop {
            stale.extend(prefix_of(&heard, core.incarnation()));
            match events.next().now_or_never() {
                Some(next) => heard = next,
                None => break,
            }
        }
        if stale.is_empty() {
            continue;
        }
        if stale.len() > PREFIXES_MAX || stale.contains(ROOT) {
            stale = BTreeSet::from([ROOT.to_owned()]);
        }
        for prefix in &stale {
            if let Err(error) = core.refresh(prefix).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(prefix, error, "cannot list what another registry wrote; the next refresh will");
            }
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE.mul_f64(rand::random_range(0.5..1.0))) => {}
            () = shutdown.wait() => return,
        }
    }
}

/// What must be listed after this. None: nothing, because it is our own, or no event at all.
fn prefix_of(heard: &Heard, incarnation: &str) -> Option<String> {
    let message = match heard {
        Heard::Missed { .. } => return Some(ROOT.to_owned()),
        Heard::Message(message) => message.clone(),
    };
    let change = mesh::RegistryChange::decode(message).ok().filter(|change| change.incarnation != incarnation)?;
    if change.tenant.is_empty() {
        return Some(ROOT.to_owned());
    }
    change.tenant.parse::<TenantName>().ok().map(|tenant| tenant_prefix(&tenant))
}

/// The event of a write.
pub(crate) fn event(incarnation: &str, sequence: u64, tenant: Option<&TenantName>, generation: u64) -> Bytes {
    let tenant = tenant.map_or_else(String::new, |tenant| tenant.as_str().to_owned());
    let change = mesh::RegistryChange { incarnation: incarnation.to_owned(), sequence, tenant, generation };
    change.encode_to_vec().into()
}

/// The hint that an alias means other bytes now.
pub(crate) fn alias_moved(from: &Digest, to: &Digest) -> Bytes {
    mesh::AliasMoved { from: from.to_vec().into(), to: to.to_vec().into() }.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_of_another_asks_for_its_tenant_and_others_for_nothing_or_everything() {
        let tenant: TenantName = "harbour".parse().unwrap();
        let asks = |message: Bytes| prefix_of(&Heard::Message(message), "me");
        assert_eq!(asks(event("you", 1, Some(&tenant), 5)).as_deref(), Some("registry/tenants/harbour/"));
        assert_eq!(asks(event("me", 1, Some(&tenant), 5)), None);
        assert_eq!(asks(event("you", 1, None, 5)).as_deref(), Some(ROOT));
        assert_eq!(prefix_of(&Heard::Missed { dropped: 0 }, "me").as_deref(), Some(ROOT));
        assert_eq!(asks(Bytes::from_static(b"\xff\xff")), None);
        let foreign = mesh::RegistryChange { incarnation: "you".into(), tenant: "../x".into(), ..Default::default() };
        assert_eq!(asks(foreign.encode_to_vec().into()), None);
    }
}
