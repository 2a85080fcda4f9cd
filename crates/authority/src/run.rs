//! The authority's life: stand, fence, plan and renew until deposed, stand again.

use crate::{Candidate, Decision, Error, Office, Settings};
use std::sync::Arc;
use std::time::Duration;
use weft_fault::Kind;
use weft_object_store::ObjectStore;
use weft_placement::Document;

/// What happened, for metrics and for the bus.
#[derive(Clone, Debug)]
pub enum Event {
    /// This process is the authority now.
    Elected {
        /// Its term.
        term: u64,
    },
    /// An epoch is in the store.
    Published(Document),
    /// This process is no longer the authority.
    Deposed {
        /// The term that ended.
        term: u64,
    },
    /// Something failed and is tried again.
    Failed {
        /// What to make of it.
        kind: Kind,
    },
}

/// Wants to be the authority as long as `stop` has not ended; then gives the office back. `decide` makes the next placement
/// from the last one; it is called every `epoch_ms` and must not block. `on` is told what happened.
///
/// Never ends by itself: a store that is away is waited for. Cancel safe: a process that drops this or dies is taken over
/// after the silence.
pub async fn run(
    store: Arc<dyn ObjectStore>,
    name: &str,
    settings: Settings,
    mut decide: impl FnMut(Option<&Document>) -> Decision,
    mut on: impl FnMut(Event),
    stop: impl Future<Output = ()>,
) {
    let settings = settings.clamped();
    let mut candidate = Candidate::new(store, name, settings);
    tokio::pin!(stop);
    loop {
        let stood = tokio::select! {
            stood = candidate.stand() => stood,
            () = &mut stop => return,
        };
        let mut office = match stood {
            Ok(office) => office,
            Err(error) => {
                failed(&error, &mut on);
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(settings.silence_ms / 3)) => continue,
                    () = &mut stop => return,
                }
            }
        };
        let term = office.term();
        on(Event::Elected { term });
        let is_stopped = tokio::select! {
            () = serve(&mut office, settings, &mut decide, &mut on) => false,
            () = &mut stop => true,
        };
        if is_stopped {
            if let Err(error) = office.resign().await {
                failed(&error, &mut on);
            }
            return;
        }
        tracing::warn!(term, "no longer the authority for placement");
        on(Event::Deposed { term });
    }
}

/// Until deposed.
async fn serve(
    office: &mut Office,
    settings: Settings,
    decide: &mut impl FnMut(Option<&Document>) -> Decision,
    on: &mut impl FnMut(Event),
) {
    let mut renewals = tokio::time::interval(Duration::from_millis(settings.silence_ms / 3));
    let mut epochs = tokio::time::interval(Duration::from_millis(settings.epoch_ms));
    renewals.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    epochs.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut is_fenced = false;
    loop {
        let result = tokio::select! {
            _ = renewals.tick() => office.renew().await.map(|()| None),
            _ = epochs.tick() => {
                if is_fenced { office.publish(&mut *decide).await } else { office.fence().await.map(Some) }
            }
        };
        match result {
            Ok(None) => {}
            Ok(Some(document)) => {
                is_fenced = true;
                on(Event::Published(document));
            }
            Err(Error::Deposed { term, reason }) => {
                tracing::warn!(term, reason, "deposed");
                return;
            }
            Err(error) => failed(&error, on),
        }
    }
}

fn failed(error: &Error, on: &mut impl FnMut(Event)) {
    tracing::warn!(error = error as &dyn std::error::Error, "the authority for placement tries again");
    on(Event::Failed { kind: error.kind() });
}
