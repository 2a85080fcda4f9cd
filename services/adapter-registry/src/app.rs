//! Wires the registry together and runs it.

use crate::core::Core;
use crate::experiments::{self, Observed};
use crate::grpc::Service;
use crate::layout::ROOT;
use crate::metrics::Metrics;
use crate::placing::{self, Placing};
use crate::publish::Signers;
use crate::{Error, Settings, gc, tell, usage};
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use weft_adapter_sources::Sources;
use weft_bus::Bus;
use weft_object_store::ObjectStore;
use weft_proto::registry::v1::registry_server::{RegistryServer, SERVICE_NAME};
use weft_service_kit::health::Health;
use weft_service_kit::readiness::Readiness;
use weft_service_kit::shutdown::{Shutdown, within_grace};
use weft_service_kit::transport::{self, Backoff, Listener, MESSAGE_BYTES_MAX};

/// A chunk of 1 MiB and its frame.
const REQUEST_BYTES_MAX: usize = 2 << 20;
const BASE_CONDITION: &str = "base";

/// A registry that has read its records and is ready to serve.
pub struct App {
    core: Arc<Core>,
    placing: Arc<Placing>,
    sources: Arc<Sources>,
    signers: Arc<Signers>,
    readiness: Readiness,
    bus: Option<Arc<dyn Bus>>,
}

/// A gateway's `directory_age_max_s` at first.
const DIRECTORY_AGE_S: u64 = 3_600;

impl App {
    /// Refuses a store that does not honour conditions, then reads every record. Waits for a store that is away, at
    /// most `store_wait_ms`.
    ///
    /// # Errors
    /// `invalid` settings, `unavailable` if the store stays away, `internal` if it cannot be used.
    pub fn build<'a>(
        settings: Settings,
        store: Arc<dyn ObjectStore>,
        metrics: &'a prometheus::Registry,
    ) -> BoxFuture<'a, Result<Self, Error>> {
        Box::pin(Self::start(settings, store, metrics))
    }

    async fn start(
        settings: Settings,
        store: Arc<dyn ObjectStore>,
        metrics: &prometheus::Registry,
    ) -> Result<Self, Error> {
        settings.check()?;
        if settings.gc_grace_s <= DIRECTORY_AGE_S {
            tracing::warn!(
                gc_grace_s = settings.gc_grace_s,
                "no longer than gateways serve from an old directory unless told otherwise ({DIRECTORY_AGE_S} s): a version may lose its bytes before all know"
            );
        }
        let sources = Arc::new(Sources::new(settings.sources())?);
        let signers = Arc::new(Signers::read(&settings)?);
        let metrics = Metrics::new(metrics).map_err(Error::Metrics)?;
        let wait = Duration::from_millis(settings.store_wait_ms);
        let core = Arc::new(Core::new(store, settings, metrics));
        when_store_answers(wait, || async { Ok(weft_object_store::probe(&*core.store).await?) }).await?;
        when_store_answers(wait, || core.remember()).await?;
        when_store_answers(wait, || core.refresh(ROOT)).await?;
        let counts = core.counts();
        tracing::info!(
            tenants = counts.tenants,
            adapters = counts.adapters,
            versions = counts.versions,
            "read the records"
        );
        let readiness = Readiness::new();
        if core.catalog().base.is_none() {
            readiness.wait_for(BASE_CONDITION, "no worker has announced its base model yet");
        }
        let placing = Arc::new(Placing::new(core.metrics.placement.clone()));
        Ok(Self { core, placing, sources, signers, readiness, bus: None })
    }

    /// Tells the other registries on this bus what is written here, and hears them, while it runs.
    #[must_use]
    pub fn with_bus(self, bus: Arc<dyn Bus>) -> Self {
        self.core.tell_over(Arc::clone(&bus));
        Self { bus: Some(bus), ..self }
    }

    /// What the registry still waits for before it can take packages.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Serves until shutdown and `drain_delay_ms` more, in which health says "not serving". Then no call is taken, directory
    /// streams end, and running calls are waited for during the grace period.
    ///
    /// # Errors
    /// The transport failed.
    pub fn run(self, listener: Listener, shutdown: Shutdown) -> BoxFuture<'static, Result<(), Error>> {
        Box::pin(self.serve(listener, shutdown))
    }

    async fn serve(self, listener: Listener, shutdown: Shutdown) -> Result<(), Error> {
        let grace = Duration::from_millis(self.core.settings.shutdown_grace_ms);
        let closing = shutdown.delayed(Duration::from_millis(self.core.settings.drain_delay_ms));
        let stopping = closing.child();
        let placing = &self.placing;
        let observed = Arc::new(Observed::default());
        let service = Service::new(
            Arc::clone(&self.core),
            Arc::clone(placing),
            Arc::clone(&observed),
            Arc::clone(&self.sources),
            Arc::clone(&self.signers),
            stopping.clone(),
        );
        let service = RegistryServer::new(service)
            .max_decoding_message_size(REQUEST_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        // The server as a whole serves before a base is announced: the worker that announces it must get through, and
        // a balancer that waited for the base would keep it out.
        let health = Health::new(&shutdown).report("", &Readiness::new()).report(SERVICE_NAME, &self.readiness);
        let serving = transport::server()
            .add_service(service)
            .add_service(health.into_server())
            .serve_with_incoming_shutdown(listener.incoming(), closing.wait_owned());
        let mut telling = JoinSet::new();
        let mut office = JoinSet::new();
        if let Some(bus) = &self.bus {
            telling.spawn(weft_bus::report(Arc::clone(bus), self.readiness.clone()));
            telling.spawn(tell::follow_others(Arc::clone(&self.core), Arc::clone(bus), stopping.clone()));
            let parts = || (Arc::clone(&self.core), Arc::clone(placing), Arc::clone(bus), stopping.clone());
            if self.core.settings.placement {
                let (core, placing, bus, stopping) = parts();
                telling.spawn(placing::hear(core, placing, bus, stopping));
                let (core, placing, bus, stopping) = parts();
                office.spawn(placing::stand(core, placing, bus, stopping));
            }
        }
        telling.spawn(experiments::evaluate(Arc::clone(&self.core), observed, stopping.clone()));
        telling.spawn(usage::compact(Arc::clone(&self.core), stopping.clone()));
        telling.spawn(gc::keep_clean(Arc::clone(&self.core), Arc::clone(placing), stopping.clone()));
        telling.spawn(placing::follow(Arc::clone(&self.core), Arc::clone(placing), self.bus.clone(), stopping.clone()));
        let background = async {
            tokio::join!(
                self.core.keep_fresh(stopping.clone()),
                watch_for_base(&self.core, &self.readiness, &stopping)
            );
            // The office is given back, so that nobody has to wait for the silence.
            while office.join_next().await.is_some() {}
        };
        let served = within_grace(
            async {
                let (served, ()) = tokio::join!(serving, background);
                served
            },
            &closing,
            grace,
        );
        let Some(served) = served.await else {
            tracing::warn!("calls did not end in the grace period");
            return Ok(());
        };
        Ok(served?)
    }
}

/// The base arrives with a record, by a worker's call here or at another registry.
async fn watch_for_base(core: &Core, readiness: &Readiness, stopping: &Shutdown) {
    let mut changes = core.watch();
    while core.catalog().base.is_none() {
        tokio::select! {
            _ = changes.changed() => {}
            () = stopping.wait() => return,
        }
    }
    readiness.met(BASE_CONDITION);
}

/// Tries until the store answers; what waiting cannot help is an error at once.
async fn when_store_answers<T, F>(wait: Duration, work: impl Fn() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let deadline = Instant::now() + wait;
    let mut backoff = Backoff::default();
    loop {
        match work().await {
            Err(error) if error.is_passing() && Instant::now() < deadline => {
                tracing::warn!(error = &error as &dyn std::error::Error, "waiting for the object store");
                backoff.wait().await;
            }
            result => return result,
        }
    }
}
