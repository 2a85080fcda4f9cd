//! Wires the daemon together and runs it.

use crate::cache::Cache;
use crate::for_neighbours::ForNeighbours;
use crate::metrics::Metrics;
use crate::neighbours::{self, Neighbours};
use crate::prefetch::{self, Queue};
use crate::service::CacheService;
use crate::tell::{self, Told};
use crate::{Error, Settings, promote};
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use weft_bus::Bus;
use weft_object_store::ObjectStore;
use weft_proto::cache::v1::cache_daemon_server::{CacheDaemonServer, SERVICE_NAME};
use weft_service_kit::health::Health;
use weft_service_kit::readiness::Readiness;
use weft_service_kit::shutdown::{Shutdown, within_grace};
use weft_service_kit::transport::{self, Listener, Peers};
use weft_types::Digest;

/// A cache daemon that owns its folders and is ready to serve.
pub struct App {
    cache: Cache,
    prefetches: Queue,
    prefetch_work: mpsc::Receiver<Digest>,
    promotions: mpsc::Receiver<Digest>,
    readiness: Readiness,
    bus: Option<Arc<dyn Bus>>,
    peers: Option<Peers>,
    neighbours_listener: Option<Listener>,
}

impl App {
    /// Takes the folders over and books what an earlier process left in them. Blocks for as long as listing takes.
    ///
    /// The object store is not asked: what is near can be leased while it is away.
    ///
    /// # Errors
    /// `invalid` settings, `conflict` if another process owns a folder, `internal` if one cannot be used.
    pub fn build(
        settings: Settings,
        store: Arc<dyn ObjectStore>,
        metrics: &prometheus::Registry,
    ) -> Result<Self, Error> {
        let metrics = Arc::new(Metrics::new(metrics).map_err(Error::Metrics)?);
        let (cache, promotions) = Cache::open(settings, store, metrics)?;
        let (prefetches, prefetch_work) = Queue::new(cache.clone());
        let readiness = Readiness::new();
        let (bus, peers, neighbours_listener) = (None, None, None);
        Ok(Self { cache, prefetches, prefetch_work, promotions, readiness, bus, peers, neighbours_listener })
    }

    /// Tells over this bus what the daemon holds while it runs.
    #[must_use]
    pub fn with_bus(self, bus: Arc<dyn Bus>) -> Self {
        Self { bus: Some(bus), ..self }
    }

    /// Asks other daemons, of which the bus tells, for blobs before the object store.
    #[must_use]
    pub fn with_neighbours(self, peers: Peers) -> Self {
        Self { peers: Some(peers), ..self }
    }

    /// Serves neighbours at a listener of their own, where there is nothing else, and tells them that one's address.
    #[must_use]
    pub fn with_neighbours_listener(self, listener: Listener) -> Self {
        Self { neighbours_listener: Some(listener), ..self }
    }

    /// What the daemon still waits for: nothing, once it is built.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Serves until shutdown and `drain_delay_ms` more, in which health says "not serving". Then no call is taken, every stream
    /// is told, and waited for during the grace period.
    ///
    /// # Errors
    /// The transport failed.
    pub fn run(self, listener: Listener, shutdown: Shutdown) -> BoxFuture<'static, Result<(), Error>> {
        Box::pin(self.serve(listener, shutdown))
    }

    async fn serve(self, listener: Listener, shutdown: Shutdown) -> Result<(), Error> {
        let grace = Duration::from_millis(self.cache.0.settings.shutdown_grace_ms);
        let running = TaskTracker::new();
        let closing = shutdown.delayed(Duration::from_millis(self.cache.0.settings.drain_delay_ms));
        let stopping = closing.child();
        let mut background = JoinSet::new();
        background.spawn(promote::run(self.cache.clone(), self.promotions, stopping.clone()));
        background.spawn(prefetch::run(self.prefetches.clone(), self.prefetch_work, stopping.clone()));

        let told = Told::new();
        // Apart from the rest: nobody waits for it at the end.
        let mut telling = JoinSet::new();
        if let Some(bus) = self.bus {
            let settings = &self.cache.0.settings;
            let address = told_address(&settings.advertise, self.neighbours_listener.as_ref().unwrap_or(&listener));
            let interval = Duration::from_millis(settings.residency_interval_ms);
            telling.spawn(weft_bus::report(Arc::clone(&bus), self.readiness.clone()));
            let (cache, stopping) = (self.cache.clone(), stopping.clone());
            if let Some(peers) = self.peers {
                let own = told.incarnation.to_string();
                let neighbours = Arc::new(Neighbours::new(own, settings.neighbours_max, peers));
                // An error means that there are some; a daemon runs once.
                let _ = cache.0.neighbours.set(neighbours.clone());
                telling.spawn(neighbours::follow(Arc::clone(&bus), neighbours, cache.clone(), stopping.clone()));
            }
            let prefetches = self.prefetches.clone();
            telling.spawn(neighbours::follow_aliases(Arc::clone(&bus), cache, prefetches, stopping.clone()));
            telling.spawn(tell::run(bus, self.cache.clone(), told.clone(), address, interval, stopping.clone()));
        }
        let service = CacheService::new(self.cache, self.prefetches, running.clone(), stopping.clone(), told);
        let health = Health::new(&shutdown).report("", &self.readiness).report(SERVICE_NAME, &self.readiness);
        let for_neighbours = async {
            let Some(listener) = self.neighbours_listener else { return Ok(()) };
            transport::server()
                .add_service(CacheDaemonServer::new(ForNeighbours(service.clone())))
                .serve_with_incoming_shutdown(listener.incoming(), closing.wait_owned())
                .await
        };
        let serving = transport::server()
            .add_service(CacheDaemonServer::new(service.clone()))
            .add_service(health.into_server())
            .serve_with_incoming_shutdown(listener.incoming(), closing.wait_owned());
        let served = within_grace(futures::future::try_join(serving, for_neighbours), &closing, grace).await;

        stopping.trigger();
        running.close();
        let rest = async {
            running.wait().await;
            while background.join_next().await.is_some() {}
        };
        if tokio::time::timeout(grace, rest).await.is_err() {
            tracing::warn!(streams = running.len(), "streams did not end in the grace period");
        }
        background.shutdown().await;
        served.unwrap_or(Ok(((), ()))).map(drop).map_err(Error::Transport)
    }
}

/// Where neighbours reach us, as messages tell them; empty: nowhere. A socket is not told unless a setting says so: at the same path on
/// another node is another daemon.
fn told_address(advertise: &str, listener: &Listener) -> String {
    if !advertise.is_empty() {
        return advertise.to_owned();
    }
    listener.local_addr().map(|address| address.to_string()).unwrap_or_default()
}
