//! The last placement: read from the store, whoever published it.

use super::Placing;
use crate::core::Core;
use bytes::Bytes;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use weft_authority::Reader;
use weft_bus::{Bus, subjects};
use weft_placement::{Desired, Document, by_worker};
use weft_service_kit::shutdown::Shutdown;

/// A hint is a reason to look now; a few that wait are one.
const HINTS_MAX: usize = 4;

/// A placement, ready to be sent.
pub(super) struct Published {
    pub(super) document: Document,
    pub(super) bytes: Bytes,
    /// What is wanted of each worker.
    of_worker: HashMap<String, Vec<Desired>>,
}

impl Published {
    /// `None`: it breaks a limit of documents, which none that was read or published does.
    pub(super) fn new(document: Document) -> Option<Self> {
        let bytes = document.encode().ok()?.into();
        let of_worker = by_worker(&document).into_iter().map(|(name, desired)| (name.to_owned(), desired)).collect();
        Some(Self { document, bytes, of_worker })
    }

    /// What is wanted of a worker; nothing of one that the placement does not name.
    pub(super) fn of_worker(&self, name: &str) -> &[Desired] {
        self.of_worker.get(name).map_or(&[], |desired| desired)
    }
}

/// Looks for newer placements until shutdown: at once when somebody says that there is one, and from time to time.
pub(crate) async fn follow(core: Arc<Core>, placing: Arc<Placing>, bus: Option<Arc<dyn Bus>>, shutdown: Shutdown) {
    let mut hints = bus.map(|bus| bus.subscribe(subjects::PLACEMENT_EPOCH, HINTS_MAX));
    let mut reader = Reader::new();
    let interval = Duration::from_millis(core.settings.directory_refresh_ms);
    loop {
        match reader.refresh(&*core.store).await {
            Ok(true) => reader.newest().cloned().into_iter().for_each(|document| placing.offer(document)),
            Ok(false) => {}
            Err(error) => {
                placing.metrics.failures.with_label_values(&[error.kind().as_str()]).inc();
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "cannot read the last placement; the one that is known stays");
            }
        }
        let hinted = async {
            match &mut hints {
                Some(hints) => drop(hints.next().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(interval.mul_f64(rand::random_range(0.75..1.25))) => {}
            () = hinted => {}
            () = shutdown.wait() => return,
        }
    }
}
