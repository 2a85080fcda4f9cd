//! The embedded mesh: the one place where all four services are wired together in a process.
//!
//! Each service is built by the same `App::build` and serves the same gRPC as when it runs apart; only the listeners are
//! in memory. Storage is a real S3 endpoint over a folder. At the end the gateway drains first, because the others still
//! work for its running answers; then they stop.

use crate::{model, up};
use anyhow::{Context, Result};
use futures::future::BoxFuture;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::task::JoinSet;
use tonic::Request;
use tonic::transport::Channel;
use weft_object_store::{EmbeddedS3, ObjectStore, S3Store};
use weft_service_kit::settings::{LoadError, Loaded, Loader, SettingsError, shown};
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::telemetry::{self, LogFormat};
use weft_service_kit::transport::Listener;
use weft_types::Digest;

use weft_proto::worker::v1::DescribeRequest;
use weft_proto::worker::v1::worker_client::WorkerClient;

/// Bucket in the embedded store.
const BUCKET: &str = "weft";

/// Settings of the mesh and of each service.
pub struct Settings {
    up: up::Settings,
    gateway: weft_gateway::Settings,
    worker: weft_worker::Settings,
    registry: weft_adapter_registry::Settings,
    cache: weft_cache_daemon::Settings,
}

/// Settings of services that mean nothing where the mesh wires itself, and what to use instead.
const WIRED_HERE: &[(&str, &[&str], &str)] = &[
    ("gateway", &["listen"], "use --listen"),
    ("gateway", &["admin_listen"], "use --admin-listen"),
    ("gateway", &["admin_key", "admin_key_file"], "use --admin-key or --admin-key-file"),
    ("gateway", &["registry", "workers"], "the services are in this process"),
    ("worker", &["model"], "use --model"),
    ("worker", &["listen", "cache", "registry"], "the services are in this process"),
    ("worker", &["metrics_listen"], "/metrics is on --admin-listen"),
    ("registry", &["listen"], "the services are in this process"),
    ("registry", &["metrics_listen"], "/metrics is on --admin-listen"),
    ("registry", S3_FIELDS, "the object store is in --data-dir"),
    ("cache", &["listen"], "the services are in this process"),
    ("cache", &["metrics_listen"], "/metrics is on --admin-listen"),
    ("cache", &["dir"], "the cache is in --data-dir"),
    ("gateway", NATS_FIELDS, "the services are in this process"),
    ("worker", NATS_FIELDS, "the services are in this process"),
    ("registry", NATS_FIELDS, "the services are in this process"),
    ("cache", NATS_FIELDS, "the services are in this process"),
    ("gateway", TLS_FIELDS, "the services are in this process"),
    ("worker", TLS_FIELDS, "the services are in this process"),
    ("registry", TLS_FIELDS, "the services are in this process"),
    ("cache", TLS_FIELDS, "the services are in this process"),
    ("worker", &["advertise"], "the services are in this process"),
    ("cache", &["advertise", "neighbours_listen"], "the services are in this process"),
    ("cache", S3_FIELDS, "the object store is in --data-dir"),
];
const TLS_FIELDS: &[&str] = &["tls_cert_file", "tls_key_file", "tls_ca_file", "insecure_network"];
const NATS_FIELDS: &[&str] =
    &["nats_url", "nats_credentials_file", "nats_ca_file", "nats_cert_file", "nats_key_file", "nats_subject_prefix"];
const S3_FIELDS: &[&str] = &[
    "s3_endpoint",
    "s3_bucket",
    "s3_prefix",
    "s3_region",
    "s3_access_key_id",
    "s3_secret_access_key",
    "s3_path_style",
];

/// Fills the settings from a file, this process's `WEFT_*` variables and these flags.
///
/// # Errors
/// Usage, or every wrong value at once.
pub fn load_settings(args: Vec<String>) -> Result<Settings, LoadError> {
    Settings::load(args, std::env::vars_os())
}

fn loader() -> Loader {
    Loader::new("weft up", "The four services in one process, over one base model")
        .section::<up::Settings>("")
        .section_with("gateway", &weft_gateway::Settings { address_limit_loopback: false, ..Default::default() })
        .section::<weft_worker::Settings>("worker")
        // One worker holds everything: there is nothing to place.
        .section_with("registry", &weft_adapter_registry::Settings { placement: false, ..Default::default() })
        .section::<weft_cache_daemon::Settings>("cache")
}

/// The flags of `weft up`, for those who complete them.
#[must_use]
pub fn flags() -> Vec<clap::Arg> {
    loader().into_flags().get_arguments().cloned().collect()
}

impl Settings {
    /// Fills the settings from a file, these variables and these flags.
    ///
    /// # Errors
    /// Usage, or every wrong value at once; one that would have no effect is wrong.
    pub fn load<N: Into<OsString>>(
        args: Vec<String>,
        variables: impl IntoIterator<Item = (N, N)>,
    ) -> Result<Self, LoadError> {
        let loaded = loader().load(args, variables)?;
        let mut problems = without_effect(&loaded);
        let mut keep = |error: SettingsError| problems.extend(error.problems);
        let settings = Self {
            up: loaded.get("").map_err(&mut keep).unwrap_or_default(),
            gateway: weft_gateway::Settings::of(&loaded, "gateway", "").map_err(&mut keep).unwrap_or_default(),
            worker: loaded.get("worker").map_err(&mut keep).unwrap_or_default(),
            registry: loaded.get("registry").map_err(&mut keep).unwrap_or_default(),
            cache: loaded.get("cache").map_err(&mut keep).unwrap_or_default(),
        };
        if problems.is_empty() { Ok(settings) } else { Err(SettingsError { problems }.into()) }
    }

    /// Each section as a line for the log, secrets hidden. The mesh's own has no name.
    #[must_use]
    pub fn shown(&self) -> [(&'static str, String); 5] {
        [
            ("", shown(&self.up)),
            ("gateway", shown(&self.gateway)),
            ("worker", shown(&self.worker)),
            ("registry", shown(&self.registry)),
            ("cache", shown(&self.cache)),
        ]
    }
}

/// A line for every place that gives a value to a setting that has no effect here.
fn without_effect(loaded: &Loaded) -> Vec<String> {
    let mut problems = Vec::new();
    for (section, fields, instead) in WIRED_HERE {
        for field in *fields {
            // An alias may stand for fields of several sections, of which one has an effect.
            for given in loaded.given(section, field).iter().filter(|given| !given.by_alias) {
                problems.push(format!("{}: has no effect in `weft up`: {instead}", given.place));
            }
        }
    }
    problems
}

/// A running mesh.
pub struct Mesh {
    data_url: String,
    admin_url: String,
    admin_key: String,
    admin_key_path: Option<PathBuf>,
    model_path: PathBuf,
    served_name: String,
    base_digest: String,
    gateway: tokio::task::JoinHandle<()>,
    /// Given when the mesh is to end.
    stop: Shutdown,
    worker: JoinSet<Result<()>>,
    worker_stop: Shutdown,
    storage: JoinSet<Result<()>>,
    storage_stop: Shutdown,
    s3: EmbeddedS3,
    /// Removed with everything in it when the mesh is dropped; only for private meshes.
    _private_dir: Option<tempfile::TempDir>,
}

impl Mesh {
    /// `http://host:port` of the data listener.
    #[must_use]
    pub fn data_url(&self) -> String {
        self.data_url.clone()
    }

    /// `http://host:port` of the admin listener.
    #[must_use]
    pub fn admin_url(&self) -> String {
        self.admin_url.clone()
    }

    /// The admin key, given or made.
    #[must_use]
    pub fn admin_key(&self) -> &str {
        &self.admin_key
    }

    /// Where the admin key lies, unless it was given as a value.
    #[must_use]
    pub fn admin_key_path(&self) -> Option<&Path> {
        self.admin_key_path.as_deref()
    }

    /// The base model's file or folder.
    #[must_use]
    pub fn model_path(&self) -> &Path {
        &self.model_path
    }

    /// Name under which the base answers.
    #[must_use]
    pub fn served_name(&self) -> &str {
        &self.served_name
    }

    /// `sha256:…` of the base.
    #[must_use]
    pub fn base_digest(&self) -> &str {
        &self.base_digest
    }

    /// Waits until the gateway has drained after the stop signal, then stops the rest.
    ///
    /// # Errors
    /// A service failed; the message names it.
    pub fn finished(self) -> BoxFuture<'static, Result<()>> {
        Box::pin(self.wind_down())
    }

    async fn wind_down(mut self) -> Result<()> {
        // A service that ends before the signal takes the mesh down with it: half a mesh serves nobody.
        let ended = tokio::select! {
            drained = &mut self.gateway => Err(drained),
            Some(ended) = self.worker.join_next() => Ok(ended),
            Some(ended) = self.storage.join_next() => Ok(ended),
        };
        let gateway_failed = "the gateway failed";
        let failed = match ended {
            Err(drained) => drained.context(gateway_failed).err(),
            // A drained gateway lets go of its pipes in memory; a service whose pipes have no other end ends by itself,
            // and may be seen to before the gateway is.
            Ok(Ok(Ok(()))) if self.stop.is_triggered() => (&mut self.gateway).await.context(gateway_failed).err(),
            Ok(ended) => Some(early(ended)),
        };
        // Who uses another stops before it: gateway, worker, then registry and cache daemon, then the store.
        for (services, stop) in [(&mut self.worker, &self.worker_stop), (&mut self.storage, &self.storage_stop)] {
            stop.trigger();
            while let Some(ended) = services.join_next().await {
                ended??;
            }
        }
        self.s3.stop().await;
        failed.map_or(Ok(()), Err)
    }
}

/// Starts the mesh with these settings and waits until it can answer.
///
/// # Errors
/// Wrong settings end the process with status 2; else a taken port, a missing model, a folder in use.
pub async fn start(settings: Result<Settings, LoadError>, shutdown: Shutdown) -> Result<Mesh> {
    let settings = settings.unwrap_or_else(|error| error.exit());
    start_logging(&settings.up, "info");
    let data_dir = settings.up.data_dir.clone().unwrap_or_else(up::default_data_dir);
    start_in(settings, &data_dir, None, shutdown).await
}

/// The mesh of the demo: in a temporary folder unless one is given, quiet, stopped by signals.
///
/// # Errors
/// As [`start`].
pub async fn start_demo(args: Vec<String>) -> Result<(Mesh, Shutdown)> {
    let mut settings = load_settings(args).unwrap_or_else(|error| error.exit());
    // The proof that one batch served all tenants.
    settings.gateway.step_headers = true;
    start_logging(&settings.up, "warn");
    let shutdown = Shutdown::on_signals()?;
    Ok((start_temporary(settings, shutdown.clone()).await?, shutdown))
}

/// A mesh for measurements: in a temporary folder, on free ports, quiet.
///
/// # Errors
/// As [`start`].
pub async fn start_private(args: Vec<String>) -> Result<(Mesh, Shutdown)> {
    let mut settings = load_settings(args).unwrap_or_else(|error| error.exit());
    start_logging(&settings.up, "warn");
    settings.up.listen = "127.0.0.1:0".to_owned();
    settings.up.admin_listen = "127.0.0.1:0".to_owned();
    let shutdown = Shutdown::new();
    Ok((start_temporary(settings, shutdown.clone()).await?, shutdown))
}

/// The model that these settings name, fetched if it is the demo's.
///
/// # Errors
/// It cannot be fetched.
pub async fn model_path(args: &[String]) -> Result<PathBuf> {
    let settings = load_settings(args.to_vec()).unwrap_or_else(|error| error.exit());
    resolve_model(&settings.up.model).await
}

async fn start_temporary(settings: Settings, shutdown: Shutdown) -> Result<Mesh> {
    match settings.up.data_dir.clone() {
        Some(dir) => start_in(settings, &dir, None, shutdown).await,
        None => {
            let private = tempfile::Builder::new().prefix("weft-").tempdir()?;
            let dir = private.path().to_owned();
            start_in(settings, &dir, Some(private), shutdown).await
        }
    }
}

fn start_logging(settings: &up::Settings, default_filter: &str) {
    let format = if settings.log_format == "json" || settings.json_output { LogFormat::Json } else { LogFormat::Text };
    telemetry::init(format, &std::env::var("WEFT_LOG").unwrap_or_else(|_| default_filter.to_owned()));
}

async fn resolve_model(model: &str) -> Result<PathBuf> {
    if model == model::DEMO { model::fetch(model, None).await } else { Ok(PathBuf::from(model)) }
}

fn start_in<'a>(
    settings: Settings,
    data_dir: &'a Path,
    private_dir: Option<tempfile::TempDir>,
    shutdown: Shutdown,
) -> BoxFuture<'a, Result<Mesh>> {
    Box::pin(wire(settings, data_dir, private_dir, shutdown))
}

async fn wire(
    settings: Settings,
    data_dir: &Path,
    private_dir: Option<tempfile::TempDir>,
    shutdown: Shutdown,
) -> Result<Mesh> {
    for (section, settings) in settings.shown() {
        tracing::info!(section, settings, "starting");
    }
    let Settings { up, mut gateway, mut worker, mut registry, mut cache } = settings;
    if up.dtype != "auto" {
        let of_worker = std::mem::replace(&mut worker.dtype, up.dtype.clone());
        anyhow::ensure!(
            of_worker == "auto" || of_worker == up.dtype,
            "dtype is {:?} and worker-dtype is {of_worker:?}: they are the same setting, give one of them",
            up.dtype
        );
    }
    // Ports first: a taken one is known at once, not after the model has been read.
    gateway.listen = up.listen.clone();
    gateway.admin_listen = up.admin_listen.clone();
    let data = Listener::bind(&gateway.data_address().context("setting listen")?).await?;
    let admin = Listener::bind(&gateway.admin_listen.parse().context("setting admin_listen")?).await?;
    let (data_url, admin_url) = (url_of(&data), url_of(&admin));

    std::fs::create_dir_all(data_dir)
        .with_context(|| format!("cannot create the data folder {}", data_dir.display()))?;
    let s3 = EmbeddedS3::start(&data_dir.join("s3"), ([127, 0, 0, 1], 0).into())
        .await
        .with_context(|| format!("cannot open the object store in {}", data_dir.display()))?;
    let (admin_key, admin_key_path) = up::admin_key(&up, data_dir)?;
    let model_path = resolve_model(&up.model).await?;

    let own = s3.settings(BUCKET);
    let s3_store = S3Store::connect(&own).await?;
    // What its sources must not be; it is given the store itself.
    registry.s3_bucket = own.bucket;
    registry.s3_endpoint = own.endpoint;
    registry.s3_access_key_id = own.access_key_id;
    registry.s3_secret_access_key = own.secret_access_key;
    s3_store.ensure_bucket().await?;
    let store: Arc<dyn ObjectStore> = Arc::new(s3_store);
    let metrics = prometheus::Registry::new();
    let (worker_stop, storage_stop) = (Shutdown::new(), Shutdown::new());
    let (mut workers, mut storage) = (JoinSet::new(), JoinSet::new());

    let (listener, registry_channel) = Listener::memory();
    let bus = weft_bus::connect(weft_bus::NatsSettings::default(), &metrics).context("bus")?;
    let app = weft_adapter_registry::App::build(registry, store.clone(), &metrics).await.context("adapter registry")?;
    let app = app.with_bus(Arc::clone(&bus));
    let mut ready = vec![app.readiness()];
    let stop = storage_stop.clone();
    storage.spawn(run("adapter registry", async move { Ok(app.run(listener, stop).await?) }));

    cache.dir = data_dir.join("cache");
    let (listener, cache_channel) = Listener::memory();
    let app = weft_cache_daemon::App::build(cache, store, &metrics).context("cache daemon")?.with_bus(Arc::clone(&bus));
    ready.push(app.readiness());
    let stop = storage_stop.clone();
    storage.spawn(run("cache daemon", async move { Ok(app.run(listener, stop).await?) }));

    worker.model = model_path.display().to_string();
    worker.served_model_name = up.served_model_name.clone().or(worker.served_model_name);
    let (listener, worker_channel) = Listener::memory();
    let components = weft_worker::Components { cache_daemon: cache_channel, registry: Some(registry_channel.clone()) };
    let app = weft_worker::App::build(worker, components, &metrics).await.context("worker")?.with_bus(Arc::clone(&bus));
    ready.push(app.readiness());
    let stop = worker_stop.clone();
    workers.spawn(run("worker", async move { Ok(app.run(listener, stop).await?) }));
    let (served_name, base_digest) = describe(worker_channel.clone()).await?;

    gateway.usage_dir.get_or_insert_with(|| data_dir.join("usage"));
    gateway.admin_key = Some(admin_key.clone());
    gateway.admin_key_file = None;
    let endpoints = vec![weft_gateway::WorkerEndpoint { address: "memory".to_owned(), channel: worker_channel }];
    let components = weft_gateway::Components { registry: registry_channel, workers: endpoints, metrics };
    let stranger = |address: &str| Err(format!("{address} is not of this process"));
    let app = weft_gateway::App::build(gateway, components).and_then(weft_gateway::App::open);
    let app = app.context("gateway")?.with_bus(bus, stranger);
    ready.push(app.readiness());
    let gateway = tokio::spawn(app.run(data, admin, shutdown.clone()));
    // All of it: a mesh whose registry knows no base yet would refuse the first publish.
    let all_ready = async {
        for readiness in &ready {
            readiness.ready().await;
        }
    };
    tokio::select! {
        () = all_ready => {}
        () = shutdown.wait() => {}
        Some(ended) = workers.join_next() => return Err(early(ended)),
        Some(ended) = storage.join_next() => return Err(early(ended)),
    }

    Ok(Mesh {
        data_url,
        admin_url,
        admin_key,
        admin_key_path,
        model_path,
        served_name,
        base_digest,
        gateway,
        stop: shutdown,
        worker: workers,
        worker_stop,
        storage,
        storage_stop,
        s3,
        _private_dir: private_dir,
    })
}

/// Why a service that should still run ended.
fn early(ended: Result<Result<()>, tokio::task::JoinError>) -> anyhow::Error {
    match ended {
        Ok(Err(error)) => error,
        Err(panicked) => panicked.into(),
        Ok(Ok(())) => anyhow::anyhow!("a service ended by itself"),
    }
}

async fn run(name: &'static str, service: impl Future<Output = Result<()>>) -> Result<()> {
    service.await.with_context(|| format!("the {name} failed"))
}

fn url_of(listener: &Listener) -> String {
    listener.local_addr().map_or_else(|| listener.address().to_owned(), |address| format!("http://{address}"))
}

async fn describe(channel: Channel) -> Result<(String, String)> {
    let described = WorkerClient::new(channel).describe(Request::new(DescribeRequest {})).await;
    let described = described.context("the worker does not describe itself")?.into_inner();
    let digest = Digest::try_from(&described.base_digest[..]).context("the worker names no base digest")?;
    Ok((described.served_name, digest.to_string()))
}
