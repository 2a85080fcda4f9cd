//! A registry over a real embedded S3, its client, and tiny packages.

mod flaky;
mod package;

pub(crate) use flaky::Flaky;
pub(crate) use package::{BASE_NAME, Package, base_digest, smollm2};

use std::sync::Arc;
use tonic::Status;
use tonic::transport::Channel;
use weft_adapter_registry::{App, Settings};
use weft_bus::Bus;
use weft_fault::Fault;
use weft_object_store::{EmbeddedS3, ObjectMeta, ObjectStore, S3Store};
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::publish_request::Part;
use weft_proto::registry::v1::publish_response::Result as Published;
use weft_proto::registry::v1::registry_client::RegistryClient;
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::transport::{Listener, MESSAGE_BYTES_MAX};

pub(crate) const TENANT: &str = "harbour";
pub(crate) const BUCKET: &str = "weft";

pub(crate) type Client = RegistryClient<Channel>;

/// An S3 of its own, and registries over it.
pub(crate) struct World {
    pub(crate) s3: EmbeddedS3,
    pub(crate) store: Arc<Flaky>,
    _folder: tempfile::TempDir,
}

/// One registry of the world, in this process.
pub(crate) struct Running {
    pub(crate) client: Client,
    pub(crate) channel: Channel,
    pub(crate) metrics: prometheus::Registry,
    shutdown: Shutdown,
    task: tokio::task::JoinHandle<Result<(), weft_adapter_registry::Error>>,
}

pub(crate) fn client(channel: Channel) -> Client {
    RegistryClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

impl World {
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let s3 = EmbeddedS3::start(folder.path(), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let store = S3Store::connect(&s3.settings(BUCKET)).await.unwrap();
        store.ensure_bucket().await.unwrap();
        Self { s3, store: Arc::new(Flaky::over(store)), _folder: folder }
    }

    pub(crate) async fn start(&self) -> Running {
        self.start_with(Settings::default()).await
    }

    pub(crate) async fn start_with(&self, settings: Settings) -> Running {
        self.start_over(settings, None).await
    }

    /// One that shares a bus with others, if there is one.
    pub(crate) async fn start_over(&self, settings: Settings, bus: Option<Arc<dyn Bus>>) -> Running {
        let metrics = prometheus::Registry::new();
        let app = App::build(settings, Arc::clone(&self.store) as Arc<dyn ObjectStore>, &metrics).await.unwrap();
        let app = match bus {
            Some(bus) => app.with_bus(bus),
            None => app,
        };
        let (listener, channel) = Listener::memory();
        let shutdown = Shutdown::new();
        let task = tokio::spawn(app.run(listener, shutdown.clone()));
        Running { client: client(channel.clone()), channel, metrics, shutdown, task }
    }

    /// A registry that knows the base and has one tenant.
    pub(crate) async fn ready() -> (Self, Running) {
        let world = Self::new().await;
        let mut registry = world.start().await;
        registry.prepare().await;
        (world, registry)
    }

    pub(crate) async fn objects(&self) -> Vec<ObjectMeta> {
        self.store.list("").await.unwrap()
    }

    pub(crate) async fn keys(&self) -> Vec<String> {
        self.objects().await.into_iter().map(|object| object.key).collect()
    }
}

impl Running {
    pub(crate) async fn prepare(&mut self) {
        self.client.announce_base(smollm2()).await.unwrap();
        self.create_tenant(TENANT).await;
    }

    pub(crate) async fn create_tenant(&mut self, name: &str) -> pb::CreateTenantResponse {
        let request = pb::CreateTenantRequest { name: name.to_owned(), actor: "ada".to_owned(), ..Default::default() };
        self.client.create_tenant(request).await.unwrap().into_inner()
    }

    /// Ends it in good order.
    pub(crate) async fn stop(self) {
        self.shutdown.trigger();
        self.task.await.unwrap().unwrap();
    }

    /// The value of a metric without labels.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        let families = self.metrics.gather();
        let found = families.iter().find(|family| family.name() == name).expect("the metric is registered");
        let metric = &found.get_metric()[0];
        metric.get_gauge().get_value() + metric.get_counter().get_value()
    }

    /// Waits until a metric without labels has this value.
    pub(crate) async fn until_metric(&self, name: &str, value: f64) {
        let there = async {
            while self.metric(name) != value {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(std::time::Duration::from_secs(60), there).await;
        waited.unwrap_or_else(|_| panic!("{name} is {} and not {value}", self.metric(name)));
    }

    /// The sum of a counter over its labels; 0 before it was counted.
    pub(crate) fn failures(&self, name: &str) -> f64 {
        let families = self.metrics.gather();
        let counted = families.iter().filter(|family| family.name() == name).flat_map(|family| family.get_metric());
        counted.map(|metric| metric.get_counter().get_value()).sum()
    }

    pub(crate) async fn publish(&self, adapter: &str, package: &Package) -> pb::Published {
        publish(&self.client, TENANT, adapter, "live", package).await.unwrap()
    }

    pub(crate) async fn versions(&self, adapter: &str) -> Vec<pb::Version> {
        let request = pb::ListVersionsRequest { tenant: TENANT.to_owned(), adapter: adapter.to_owned() };
        self.client.clone().list_versions(request).await.unwrap().into_inner().versions
    }

    pub(crate) async fn resolve(&self, adapter: &str, selector: &str) -> Result<pb::Version, Fault> {
        let (tenant, adapter, selector) = (TENANT.to_owned(), adapter.to_owned(), selector.to_owned());
        let answer = self.client.clone().resolve(pb::ResolveRequest { tenant, adapter, selector }).await;
        answer.map(|answer| answer.into_inner().version.unwrap()).map_err(Fault::from)
    }

    /// The directory as a new watcher sees it.
    pub(crate) async fn directory(&self) -> pb::Directory {
        let watching = self.client.clone().watch_directory(pb::WatchDirectoryRequest {}).await;
        watching.unwrap().into_inner().message().await.unwrap().unwrap()
    }
}

pub(crate) fn start_part(tenant: &str, adapter: &str, alias: &str) -> Part {
    Part::Start(pb::PublishStart {
        tenant: tenant.to_owned(),
        adapter: adapter.to_owned(),
        alias: alias.to_owned(),
        actor: "ada".to_owned(),
        ..pb::PublishStart::default()
    })
}

/// The parts of an upload, in chunks of at most `chunk_bytes`.
pub(crate) fn parts(tenant: &str, adapter: &str, alias: &str, package: &Package, chunk_bytes: usize) -> Vec<Part> {
    let mut parts = vec![start_part(tenant, adapter, alias)];
    parts.extend(package.config.chunks(chunk_bytes).map(|chunk| Part::Config(chunk.to_vec().into())));
    parts.extend(package.weights.chunks(chunk_bytes).map(|chunk| Part::Weights(chunk.to_vec().into())));
    parts
}

pub(crate) async fn send(client: &Client, parts: Vec<Part>) -> Result<pb::PublishResponse, Status> {
    let messages = parts.into_iter().map(|part| pb::PublishRequest { part: Some(part) });
    let answer = client.clone().publish(tokio_stream::iter(messages.collect::<Vec<_>>())).await;
    answer.map(tonic::Response::into_inner)
}

/// Publishes; a refusal is `Ok(Err(reasons))` in [`try_publish`] and a panic here.
pub(crate) async fn publish(
    client: &Client,
    tenant: &str,
    adapter: &str,
    alias: &str,
    package: &Package,
) -> Result<pb::Published, Fault> {
    Ok(try_publish(client, tenant, adapter, alias, package)
        .await?
        .unwrap_or_else(|reasons| panic!("refused: {reasons:?}")))
}

pub(crate) async fn try_publish(
    client: &Client,
    tenant: &str,
    adapter: &str,
    alias: &str,
    package: &Package,
) -> Result<Result<pb::Published, Vec<String>>, Fault> {
    let answer = send(client, parts(tenant, adapter, alias, package, 256 << 10)).await?;
    Ok(match answer.result.unwrap() {
        Published::Published(published) => Ok(published),
        Published::Refusal(refusal) => Err(refusal.reasons),
    })
}
