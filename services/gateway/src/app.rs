//! The gateway as a whole: what all requests share, how it is wired, how it runs and how it stops.

use crate::authenticate::AdminKeys;
use crate::demand::Demand;
use crate::directory::{Directory, Registry, SILENCE_MAX, registry_client};
use crate::error::BuildError;
use crate::experiments::{self, Experiments};
use crate::generate::Mesh;
use crate::http::{self, Addresses, Waiting};
use crate::limits::Limits;
use crate::make::Makes;
use crate::metrics::Metrics;
use crate::placement;
use crate::quota::Quota;
use crate::serve::{Bounds, Ending, serve};
use crate::settings::Settings;
use crate::usage::Usage;
use crate::workers::{Dial, Pace, Pool, Prefixes, discover, watch_all};
use axum::Router;
use futures::future::BoxFuture;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use weft_bus::{Bus, State};
use weft_service_kit::readiness::Readiness;
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::transport::Listener;

/// Smallest header buffer that hyper takes.
const HEADER_BYTES_MIN: usize = 8192;
/// Workers whose problems are told when none is ready.
const PROBLEMS_SHOWN_MAX: usize = 8;

/// What the gateway works with and does not make itself.
pub struct Components {
    /// To the adapter registry.
    pub registry: Channel,
    /// To every worker.
    pub workers: Vec<WorkerEndpoint>,
    /// Where metrics go; `/metrics` shows all of it, so that services in one process can share one.
    pub metrics: prometheus::Registry,
}

/// How a worker is reached.
pub struct WorkerEndpoint {
    /// For people: logs and `/admin/v1/workers`.
    pub address: String,
    /// Connects when first used.
    pub channel: Channel,
}

/// What all requests share.
pub(crate) struct Gateway {
    pub(crate) settings: Settings,
    pub(crate) directory: Directory,
    pub(crate) registry: Registry,
    pub(crate) mesh: Arc<Mesh>,
    pub(crate) quota: Quota,
    pub(crate) experiments: Arc<Experiments>,
    pub(crate) makes: Makes,
    pub(crate) addresses: Addresses,
    pub(crate) admin_keys: AdminKeys,
    pub(crate) prometheus: prometheus::Registry,
    pub(crate) started_unix: u64,
    draining: AtomicBool,
    /// Empty without a bus.
    bus_state: OnceLock<watch::Receiver<State>>,
}

/// A gateway that is built and does not run yet.
pub struct App {
    gateway: Arc<Gateway>,
    readiness: Readiness,
    bus: Option<(Arc<dyn Bus>, Dial)>,
}

impl App {
    /// Wires the parts. Does no IO but reading `admin_key_file` and connecting to Redis in the background; whatever is away
    /// is waited for while running. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// A setting that cannot be used, or metrics that are registered twice.
    pub fn build(settings: Settings, components: Components) -> Result<Self, BuildError> {
        if settings.header_bytes_max < HEADER_BYTES_MIN {
            let problem = format!("{} is less than {HEADER_BYTES_MIN}", settings.header_bytes_max);
            return Err(BuildError::Setting { name: "header_bytes_max", problem });
        }
        if settings.heartbeats_missed_max < 2 {
            let problem = format!("{} is less than 2", settings.heartbeats_missed_max);
            return Err(BuildError::Setting { name: "heartbeats_missed_max", problem });
        }
        if !(0.0..=1.0).contains(&settings.retry_share) {
            let problem = format!("{} is not from 0 to 1", settings.retry_share);
            return Err(BuildError::Setting { name: "retry_share", problem });
        }
        for (name, ms) in [
            ("registry_timeout_ms", settings.registry_timeout_ms),
            ("import_timeout_ms", settings.import_timeout_ms),
            ("worker_silence_ms", settings.worker_silence_ms),
        ] {
            if ms == 0 {
                return Err(BuildError::Setting { name, problem: "0 is less than 1".to_owned() });
            }
        }
        if settings.experiment_report_ms < 100 {
            let problem = format!("{} is less than 100", settings.experiment_report_ms);
            return Err(BuildError::Setting { name: "experiment_report_ms", problem });
        }
        let admin_keys = admin_keys(&settings)?;
        if admin_keys.is_empty() {
            tracing::warn!(
                "no admin key is set: /admin/v1 refuses everybody (settings admin_key, admin_key_file, admin_keys)"
            );
        }
        let metrics = Metrics::register(&components.metrics)?;
        let workers = components.workers.into_iter().map(|worker| (worker.address, worker.channel));
        let pace = Pace {
            poll: Duration::from_millis(settings.worker_poll_ms),
            relist: Duration::from_millis(settings.worker_relist_ms),
            intervals_max: settings.heartbeats_missed_max,
            forget: Duration::from_secs(settings.worker_forget_s),
        };
        let registry = registry_client(components.registry, Duration::from_millis(settings.registry_timeout_ms));
        let gateway = Gateway {
            directory: Directory::new(Duration::from_secs(settings.directory_age_max_s)),
            registry,
            mesh: Arc::new(Mesh {
                pool: Arc::new(Pool::new(workers, pace)),
                limits: Limits::new(&settings),
                metrics: metrics.clone(),
                demand: Arc::new(Demand::default()),
                prefixes: Prefixes::default(),
                usage: OnceLock::new(),
                retries_max: settings.retries_max,
                continuations_max: settings.continuations_max,
                patience: Duration::from_millis(settings.continuation_wait_ms),
                silence: Duration::from_millis(settings.worker_silence_ms),
            }),
            quota: Quota::new(&settings)?,
            makes: Makes::default(),
            experiments: Arc::new(Experiments::new(settings.experiment_shadows_max, metrics.clone())),
            addresses: Addresses::new(&settings)?,
            admin_keys,
            prometheus: components.metrics,
            started_unix: std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            draining: AtomicBool::new(false),
            bus_state: OnceLock::new(),
            settings,
        };
        let readiness = Readiness::new();
        for waiting in gateway.waiting_for() {
            readiness.wait_for(waiting.condition, waiting.why);
        }
        Ok(Self { gateway: Arc::new(gateway), readiness, bus: None })
    }

    /// Takes the folder of the usage log, if there is one. To be called once, before [`App::run`]; a check of settings does not.
    ///
    /// # Errors
    /// The folder cannot be used, or another process has it.
    pub fn open(self) -> Result<Self, BuildError> {
        let gateway = &self.gateway;
        if let Some(usage) = Usage::open(&gateway.settings, gateway.registry.clone(), &gateway.mesh.metrics)? {
            // An error means that it was opened before.
            let _ = gateway.mesh.usage.set(usage);
        }
        Ok(self)
    }

    /// Hears of workers on this bus too, and reaches them through `dial`.
    #[must_use]
    pub fn with_bus(
        self,
        bus: Arc<dyn Bus>,
        dial: impl Fn(&str) -> Result<Channel, String> + Send + Sync + 'static,
    ) -> Self {
        // An error means that it was given before; the first one stays for both.
        let _ = self.gateway.bus_state.set(bus.state());
        Self { bus: Some((bus, Arc::new(dial))), ..self }
    }

    /// What it still waits for, for a process that runs several services. Kept up to date while it runs.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// Tenants' routes, for tests without a port. The parts that follow the registry and the workers run only in [`App::run`].
    pub fn data_router(&self) -> Router {
        http::data_router(&self.gateway)
    }

    /// Operators' routes, likewise.
    pub fn admin_router(&self) -> Router {
        http::admin_router(&self.gateway)
    }

    /// Serves until the signal, then lets running answers finish within `shutdown_grace_s`.
    pub fn run(self, data: Listener, admin: Listener, shutdown: Shutdown) -> BoxFuture<'static, ()> {
        Box::pin(self.serve(data, admin, shutdown))
    }

    async fn serve(self, data: Listener, admin: Listener, shutdown: Shutdown) {
        let gateway = Arc::clone(&self.gateway);
        let mut background = JoinSet::new();
        background.spawn({
            let gateway = Arc::clone(&gateway);
            async move { gateway.directory.follow(gateway.registry.clone()).await }
        });
        let (pool, metrics) = (&gateway.mesh.pool, &gateway.mesh.metrics);
        background.spawn(watch_all(Arc::clone(pool), metrics.clone()));
        background.spawn(placement::follow(gateway.registry.clone(), Arc::clone(pool), metrics.clone()));
        if let Some((bus, dial)) = self.bus.clone() {
            let workers_max = gateway.settings.workers_max;
            background.spawn(Arc::clone(&gateway.mesh.demand).tell(Arc::clone(&bus)));
            background.spawn(discover(Arc::clone(pool), bus, dial, workers_max, metrics.clone()));
        }
        background.spawn(Arc::clone(&gateway).tell(self.readiness.clone()));
        background.spawn(experiments::report(Arc::clone(&gateway)));
        if let Some(usage) = gateway.mesh.usage.get() {
            background.spawn(Arc::clone(usage).ship());
        }
        background.spawn({
            let gateway = Arc::clone(&gateway);
            async move { gateway.addresses.forget().await }
        });
        let _in_touch = gateway.quota.keep();

        // Readiness turns first, the listeners close a little later: see `drain_delay_ms`.
        let ending = Ending { draining: shutdown, closing: Shutdown::new() };
        background.spawn({
            let (gateway, ending) = (Arc::clone(&gateway), ending.clone());
            async move {
                ending.draining.wait().await;
                gateway.draining.store(true, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(gateway.settings.drain_delay_ms)).await;
                ending.closing.trigger();
            }
        });
        let settings = &gateway.settings;
        let bounds = Bounds {
            connections_max: settings.connections_max,
            header_bytes_max: settings.header_bytes_max,
            header_timeout: Duration::from_secs(settings.header_timeout_s),
            write_stall: settings.write_stall(),
            grace: Duration::from_secs(settings.shutdown_grace_s),
            linger: Duration::from_millis(settings.drain_delay_ms),
        };
        let metrics = &gateway.mesh.metrics;
        tracing::info!(data = data.address(), admin = admin.address(), "listening");
        tokio::join!(
            serve("data", data, self.data_router(), bounds, metrics, &ending, || http::unasked_lines(&gateway)),
            serve("admin", admin, self.admin_router(), bounds, metrics, &ending, || http::unasked_lines(&gateway)),
        );
        // What was observed since the last report, once all answers have ended.
        experiments::report_rest(&gateway).await;
        if let Some(usage) = gateway.mesh.usage.get() {
            usage.finish().await;
        }
        // What is held in advance is of use to other gateways.
        gateway.quota.limiter.sweep(true).await;
        // Dropping `background` ends the followers.
    }
}

fn admin_keys(settings: &Settings) -> Result<AdminKeys, BuildError> {
    let mut keys = AdminKeys::default();
    let wrong = |name, problem: &str| BuildError::Setting { name, problem: problem.to_owned() };
    if let Some(key) = &settings.admin_key {
        if key.is_empty() {
            return Err(wrong("admin_key", "is empty"));
        }
        keys.add("admin", key);
    }
    if let Some(path) = &settings.admin_key_file {
        let problem = |error: std::io::Error| wrong("admin_key_file", &format!("{}: {error}", path.display()));
        let text = std::fs::read_to_string(path).map_err(problem)?;
        let key = text.lines().next().unwrap_or_default().trim();
        if key.is_empty() {
            return Err(wrong("admin_key_file", &format!("{} has no key in its first line", path.display())));
        }
        keys.add("admin", key);
    }
    for entry in &settings.admin_keys {
        match entry.split_once('=') {
            Some((name, key)) if !name.is_empty() && !key.is_empty() => keys.add(name, key),
            _ => return Err(wrong("admin_keys", "an entry is not name=key")),
        }
    }
    Ok(keys)
}

impl Gateway {
    /// The conditions that are not met.
    pub(crate) fn waiting_for(&self) -> Vec<Waiting> {
        let mut waiting = Vec::new();
        if self.draining.load(Ordering::Relaxed) {
            waiting.push(Waiting { condition: "running", why: "shutting down".into() });
        }
        if let Err(error) = self.directory.snapshot() {
            waiting.push(Waiting { condition: "directory", why: error.to_string() });
        }
        if let Some(why) = self.mesh.usage.get().and_then(|usage| usage.problem()) {
            waiting.push(Waiting { condition: "usage", why });
        }
        if self.mesh.pool.ready() == 0 {
            waiting.push(Waiting { condition: "worker", why: self.why_no_worker() });
        }
        waiting
    }

    fn why_no_worker(&self) -> String {
        let workers = self.mesh.pool.workers();
        let problem = |address: &str, problem: &str| format!("{address}: {problem}");
        let problems = workers
            .iter()
            .filter_map(|worker| worker.read(|view| Some(problem(&worker.address, view.problem.as_ref()?))));
        let mut problems: Vec<String> = problems.take(PROBLEMS_SHOWN_MAX).collect();
        problems.extend(self.degraded().into_iter().map(|degraded| degraded.why));
        match problems.is_empty() {
            true if workers.is_empty() => "no worker is named by a setting or heard of".to_owned(),
            true => "no worker has answered yet".to_owned(),
            false => problems.join("; "),
        }
    }

    /// What the gateway does without now.
    pub(crate) fn degraded(&self) -> Vec<Waiting> {
        let bus = match self.bus_state.get().map(|state| state.borrow().clone()) {
            Some(State::Away { why }) => Some(why),
            Some(State::Connected) | None => None,
        };
        // Without any directory nothing is answered: that is waited for, not done without.
        let old = self.directory.age().filter(|age| *age > SILENCE_MAX);
        let directory = old.map(|age| format!("the last directory is {} s old", age.as_secs()));
        let limits = self.quota.limiter.health().away;
        let all = [("bus", bus), ("directory", directory), ("limits", limits)];
        all.into_iter().filter_map(|(condition, why)| Some(Waiting { condition, why: why? })).collect()
    }

    /// Keeps the process' readiness in step with ours. Never ends.
    async fn tell(self: Arc<Self>, readiness: Readiness) {
        self.directory.first().await;
        loop {
            let waiting = self.waiting_for();
            for condition in ["directory", "worker"] {
                match waiting.iter().find(|waiting| waiting.condition == condition) {
                    Some(waiting) => readiness.wait_for(condition, waiting.why.clone()),
                    None => readiness.met(condition),
                }
            }
            let _ = tokio::time::timeout(Duration::from_millis(200), self.mesh.pool.changed()).await;
        }
    }
}
