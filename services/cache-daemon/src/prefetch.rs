//! Brings bytes near before anybody asks, a few at a time, behind what is asked for.

use crate::cache::Cache;
use futures::StreamExt;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weft_service_kit::shutdown::Shutdown;
use weft_types::Digest;

/// What came of asking for one prefetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// It will be brought.
    Started,
    /// It is here or on its way.
    Present,
    /// The queue is full.
    Refused,
}

/// Where prefetches are asked for.
#[derive(Clone)]
pub(crate) struct Queue {
    cache: Cache,
    digests: mpsc::Sender<Digest>,
    waiting: Arc<Mutex<HashSet<Digest>>>,
}

impl Queue {
    /// A queue and what [`run`] needs to work it off.
    pub(crate) fn new(cache: Cache) -> (Self, mpsc::Receiver<Digest>) {
        let (digests, work) = mpsc::channel(cache.0.settings.prefetch_queue_max);
        (Self { cache, digests, waiting: Arc::default() }, work)
    }

    /// Asks for one digest. Never waits.
    pub(crate) fn ask(&self, digest: Digest) -> Asked {
        if self.cache.is_near_or_coming(&digest) {
            return Asked::Present;
        }
        let mut waiting = self.waiting();
        if waiting.contains(&digest) {
            return Asked::Present;
        }
        if self.digests.try_send(digest).is_err() {
            self.cache.0.metrics.prefetched("refused");
            return Asked::Refused;
        }
        waiting.insert(digest);
        self.cache.0.metrics.prefetch_queue.set(waiting.len() as i64);
        Asked::Started
    }

    fn waiting(&self) -> MutexGuard<'_, HashSet<Digest>> {
        // The set is whole after every statement.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn bring(&self, digest: Digest) {
        let brought = self.cache.prefetch(digest).await;
        {
            let mut waiting = self.waiting();
            waiting.remove(&digest);
            self.cache.0.metrics.prefetch_queue.set(waiting.len() as i64);
        }
        match brought {
            Ok(_) => self.cache.0.metrics.prefetched("done"),
            Err(error) => {
                self.cache.0.metrics.prefetched("failed");
                tracing::info!(%digest, %error, "a prefetch failed");
            }
        }
    }
}

/// Works off the queue until shutdown.
pub(crate) async fn run(queue: Queue, work: mpsc::Receiver<Digest>, shutdown: Shutdown) {
    let settings = &queue.cache.0.settings;
    // One fetch at least is left to those who wait.
    let at_once = settings.prefetches_max.min(settings.fetches_max - 1).max(1);
    let queue = &queue;
    let all = ReceiverStream::new(work).for_each_concurrent(at_once, |digest| queue.bring(digest));
    tokio::select! {
        () = shutdown.wait() => {}
        () = all => {}
    }
}
