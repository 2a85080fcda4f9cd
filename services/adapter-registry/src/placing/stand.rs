//! The office of the authority: this registry wants it as long as it runs, and plans while it has it.

use super::hear::Records;
use super::{Placing, records::Known};
use crate::core::Core;
use prost::Message;
use std::sync::Arc;
use weft_authority::{Decision, Event, run};
use weft_bus::{Bus, State, subjects};
use weft_placement::{Document, PlanSettings, hold, plan};
use weft_proto::mesh::v1 as mesh;
use weft_service_kit::shutdown::Shutdown;

/// Stands for the office until shutdown, then gives it back. `bus`: where workers and gateways are heard.
pub(crate) async fn stand(core: Arc<Core>, placing: Arc<Placing>, bus: Arc<dyn Bus>, shutdown: Shutdown) {
    let settings = weft_authority::Settings {
        silence_ms: core.settings.placement_silence_ms,
        epoch_ms: core.settings.placement_epoch_ms,
    };
    let state = bus.state();
    let mut records = Records::default();
    let decide = |last: Option<&Document>| {
        // Who hears nobody knows nothing: the last placement is better.
        if matches!(*state.borrow(), State::Away { .. }) {
            return Decision::Keep;
        }
        decide(&placing, records.now(&core), last)
    };
    let on = |event| told(&placing, &*bus, event);
    run(Arc::clone(&core.store), core.incarnation(), settings, decide, on, shutdown.wait()).await;
    placing.metrics.is_authority.set(0);
}

fn decide(placing: &Placing, known: &Known, last: Option<&Document>) -> Decision {
    let now_ms = placing.now_ms();
    let mut observer = placing.observer();
    if !observer.is_settled(now_ms) {
        return Decision::Keep;
    }
    let mut observed = observer.observed(known, now_ms);
    let is_warm = observer.is_warm(now_ms);
    placing.metrics.adapters_heard.set(observer.adapters_heard() as i64);
    drop(observer);
    placing.metrics.workers.set(observed.workers.len() as i64);
    if observed.workers.is_empty() {
        return Decision::Keep;
    }
    if let Some(last) = last.filter(|_| !is_warm) {
        hold(&mut observed, &last.adapters, |digest| known.adapter(digest));
    }
    let before = last.map(|last| (&*last.workers, &*last.adapters));
    let next = plan(&observed, before, &PlanSettings::default());
    placing.metrics.planned(&next);
    if before == Some((&*next.workers, &*next.adapters)) { Decision::Keep } else { Decision::Publish(next) }
}

fn told(placing: &Placing, bus: &dyn Bus, event: Event) {
    let metrics = &placing.metrics;
    match event {
        Event::Elected { term } => {
            tracing::info!(term, "this registry is the authority for placement now");
            metrics.is_authority.set(1);
        }
        Event::Published(document) => {
            metrics.epochs.inc();
            let hint = mesh::PlacementPublished { epoch: document.epoch.number() };
            placing.offer(document);
            // It may be lost: the others look again from time to time, and the bus counts it.
            let _ = bus.publish(subjects::PLACEMENT_EPOCH, hint.encode_to_vec().into());
        }
        Event::Deposed { .. } => metrics.is_authority.set(0),
        Event::Failed { kind } => metrics.failures.with_label_values(&[kind.as_str()]).inc(),
    }
}
