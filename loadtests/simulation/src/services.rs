//! The real services on their hosts: what their `main` does, over the simulated network.

use crate::bus::NetworkBus;
use crate::network;
use crate::s3;
use crate::world::{
    ADMIN_KEY, ADMIN_PORT, DATA_PORT, GATEWAYS, REGISTRIES, REGISTRY_PORT, WORKER_PORT, WORKERS, World, meshed,
};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;
use turmoil::net::TcpStream;
use weft_gateway::{Components, WorkerEndpoint};
use weft_object_store::S3Store;
use weft_service_kit::transport::carried;

/// Seconds for which a gateway serves from its last directory while the registry is away.
pub(crate) const DIRECTORY_AGE_MAX_S: u64 = 12;
/// Seconds that an answer may take.
pub(crate) const REQUEST_TIMEOUT_S: u64 = 30;
/// How long whoever runs the processes waits before it starts one again that ended by itself.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

fn gateway_settings() -> weft_gateway::Settings {
    weft_gateway::Settings {
        admin_key: Some(ADMIN_KEY.to_owned()),
        directory_age_max_s: DIRECTORY_AGE_MAX_S,
        request_timeout_s: REQUEST_TIMEOUT_S,
        shutdown_grace_s: 10,
        // Its clock is the processor's own, which nothing here can simulate.
        address_requests_per_second: 0,
        ..weft_gateway::Settings::default()
    }
}

/// One process of a gateway, until it is told to end.
///
/// # Errors
/// It cannot be built, or its ports are taken: nothing that a fault could bring about.
pub(crate) async fn gateway(world: Arc<World>, number: usize) -> anyhow::Result<()> {
    let shutdown = world.started(GATEWAYS[number]);
    let metrics = prometheus::Registry::new();
    world.keep_metrics(metrics.clone());
    let worker = |name: &'static str| {
        let address = format!("{name}:{WORKER_PORT}");
        WorkerEndpoint { channel: channel_to(&address), address }
    };
    let bus = NetworkBus::join(GATEWAYS[number], meshed(), &metrics).await?;
    let components = Components {
        registry: network::channel(&REGISTRIES, REGISTRY_PORT, number),
        workers: WORKERS.into_iter().map(worker).collect(),
        metrics,
    };
    let app = weft_gateway::App::build(gateway_settings(), components)?;
    let app = app.with_bus(bus, |address| Ok(channel_to(address)));
    let (data, admin) = (network::listen(DATA_PORT).await?, network::listen(ADMIN_PORT).await?);
    app.run(data, admin, shutdown).await;
    Ok(())
}

/// One process of a registry after another, until one was told to end.
///
/// # Errors
/// Its port is taken: nothing that a fault could bring about.
pub(crate) async fn registry(world: Arc<World>, name: &'static str) -> anyhow::Result<()> {
    let shutdown = world.started(name);
    let bus = NetworkBus::join(name, meshed(), &prometheus::Registry::new()).await?;
    loop {
        let store = S3Store::connect_carried(&s3::settings(), dial).await?;
        let settings = weft_adapter_registry::Settings::default();
        let metrics = prometheus::Registry::new();
        let built = tokio::select! {
            built = weft_adapter_registry::App::build(settings, Arc::new(store), &metrics) => built,
            () = shutdown.wait() => return Ok(()),
        };
        match built {
            Ok(app) => {
                let listener = network::listen(REGISTRY_PORT).await?;
                app.with_bus(bus).run(listener, shutdown).await?;
                return Ok(());
            }
            Err(error) => {
                world.record.event(name, format!("did not start: {error}"));
                tokio::time::sleep(RESTART_PAUSE).await;
            }
        }
    }
}

fn channel_to(address: &str) -> Channel {
    let address = address.to_owned();
    carried(move || dial(address.clone()))
}

async fn dial(address: String) -> std::io::Result<TcpStream> {
    let split = address.rsplit_once(':').and_then(|(host, port)| Some((host.to_owned(), port.parse::<u16>().ok()?)));
    TcpStream::connect(split.ok_or(std::io::ErrorKind::InvalidInput)?).await
}
