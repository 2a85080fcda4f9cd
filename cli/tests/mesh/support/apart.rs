//! A mesh of separate processes with several workers, each of which can be killed, stopped and started again.

use super::network::{Cable, MoodyStore};
use super::process::{Process, binary, send_signal};
use super::{ADMIN_KEY, Reply, post};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;
use weft_cli::client::Admin;
use weft_object_store::{EmbeddedS3, S3Settings};

/// One of the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    Registry,
    CacheDaemon,
    Gateway,
    Worker(usize),
}

/// How they are started, beyond what wires them.
#[derive(Default)]
pub struct Plan {
    pub workers: usize,
    pub worker_flags: Vec<String>,
    pub gateway_flags: Vec<String>,
    /// Of the registry and the cache daemon.
    pub store_flags: Vec<String>,
    /// S3, registry and cache daemon are reached over [`Wires`].
    pub over_wires: bool,
    /// Variables of all processes.
    pub environment: Vec<(String, String)>,
}

/// What the processes reach each other over: a test can cut it.
pub struct Wires {
    pub store: MoodyStore,
    /// To the store, of registry and cache daemon.
    pub s3: Cable,
    s3_endpoint: String,
    /// From the gateway to the registry.
    pub registry: Cable,
    /// From the workers to the cache daemon.
    pub daemon: Cable,
}

impl Wires {
    async fn of(s3: &EmbeddedS3, dir: &Path) -> Self {
        let store = MoodyStore::before(&format!("http://{}", s3.address())).await;
        let (cable, near) = Cable::to(store.endpoint.trim_start_matches("http://")).await;
        let between = |name: &str| Cable::between(&dir.join(format!("{name}.wire")), &dir.join(name));
        Self {
            store,
            s3: cable,
            s3_endpoint: format!("http://{near}"),
            registry: between("registry"),
            daemon: between("daemon"),
        }
    }
}

/// The internal services meet at Unix sockets in the folder; the gateway picks its ports.
pub struct Apart {
    s3: EmbeddedS3,
    dir: tempfile::TempDir,
    model: PathBuf,
    plan: Plan,
    wires: Option<Wires>,
    processes: Vec<(Part, Process)>,
    pub data_url: String,
    pub admin_url: String,
}

/// A signal as `kill` names it.
pub fn flags(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs.iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

impl Apart {
    pub async fn start(model: &Path, plan: Plan) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let s3 = EmbeddedS3::start(&dir.path().join("s3"), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let wires = if plan.over_wires { Some(Wires::of(&s3, dir.path()).await) } else { None };
        let (workers, model, processes) = (plan.workers, model.to_owned(), Vec::new());
        let (data_url, admin_url) = (String::new(), String::new());
        let mut apart = Self { s3, dir, model, plan, wires, processes, data_url, admin_url };
        for part in [Part::Registry, Part::CacheDaemon].into_iter().chain((0..workers).map(Part::Worker)) {
            apart.launch(part);
        }
        apart.launch(Part::Gateway);
        apart.until_ready().await;
        apart
    }

    pub fn admin(&self) -> Admin {
        Admin::new(&self.admin_url, ADMIN_KEY)
    }

    pub async fn secret(&self, tenant: &str) -> String {
        self.admin().create_tenant(tenant).await.unwrap();
        self.admin().create_key(tenant, None).await.unwrap().secret
    }

    /// A registry that heard of no base yet cannot check packages and says so; the gateway does not wait for that.
    pub async fn publish(&self, tenant: &str, name: &str, folder: &Path) {
        while let Err(error) = self.admin().publish(tenant, name, folder, Some("live")).await {
            assert!(error.to_string().contains("no worker has announced"), "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn ask(&self, secret: &str, path: &str, body: &Value) -> Reply {
        post(&format!("{}{path}", self.data_url), secret, body.clone()).await
    }

    /// Starts a service; a worker is there when this returns.
    pub fn launch(&mut self, part: Part) {
        let (name, args) = self.command(part);
        let log = std::fs::File::options().create(true).append(true).open(self.log(part)).unwrap();
        let mut child = Command::new(binary(name))
            .args(args)
            .env_remove("WEFT_DEMO_MODEL")
            .envs(self.plan.environment.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("service starts");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        if part == Part::Gateway {
            let mut url = |prefix: &str| {
                let line = lines.next().expect("the gateway says where it listens").unwrap();
                format!("http://{}", line.strip_prefix(prefix).unwrap_or_else(|| panic!("{line}")))
            };
            self.data_url = url("listening on ");
            self.admin_url = url("admin listening on ");
        }
        if let Part::Worker(_) = part {
            let line = lines.next().unwrap_or_else(|| panic!("{part:?} ended early: {}", self.said(part))).unwrap();
            assert!(line.starts_with("listening on "), "{line}");
        }
        std::thread::spawn(move || lines.for_each(drop));
        self.processes.push((part, Process(child)));
    }

    /// Ends a service as a crash would, whether it runs or is stopped.
    pub fn kill(&mut self, part: Part) {
        self.processes.retain(|(other, _)| *other != part);
    }

    pub fn pid(&self, part: Part) -> u32 {
        self.processes.iter().find(|(other, _)| *other == part).expect("it runs").1.0.id()
    }

    pub fn signal(&self, part: Part, signal: &str) {
        send_signal(self.pid(part), signal);
    }

    /// Waits until a service that was told to has ended, and says whether it ended well.
    pub async fn ended(&mut self, part: Part) -> bool {
        let at = self.processes.iter().position(|(other, _)| *other == part).expect("it runs");
        loop {
            if let Some(status) = self.processes[at].1.0.try_wait().unwrap() {
                self.processes.remove(at);
                return status.success();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the gateway is ready and counts every worker as ready.
    pub async fn until_ready(&mut self) {
        let http = reqwest::Client::new();
        loop {
            for (part, process) in &mut self.processes {
                assert!(process.0.try_wait().unwrap().is_none(), "{part:?} ended early");
            }
            let ready = http.get(format!("{}/readyz", self.data_url)).send().await;
            if ready.is_ok_and(|answer| answer.status().is_success())
                && self.metric("gateway_workers_ready").await == self.plan.workers as f64
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A metric of the gateway; 0 before it was counted.
    pub async fn metric(&self, name: &str) -> f64 {
        let Ok(answer) = reqwest::get(format!("{}/metrics", self.admin_url)).await else { return 0.0 };
        let text = answer.text().await.unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
    }

    /// What a service wrote so far.
    pub fn said(&self, part: Part) -> String {
        std::fs::read_to_string(self.log(part)).unwrap_or_default()
    }

    pub async fn stop(self) {
        drop(self.processes);
        self.s3.stop().await;
    }

    fn socket(&self, name: &str) -> String {
        format!("unix:{}", self.dir.path().join(name).display())
    }

    fn log(&self, part: Part) -> PathBuf {
        self.dir.path().join(format!("{part:?}.log"))
    }

    pub fn wires(&self) -> &Wires {
        self.wires.as_ref().expect("the plan says so")
    }

    fn s3_flags(&self) -> Vec<String> {
        let mut settings = self.s3.settings("weft");
        if let Some(wires) = &self.wires {
            settings.endpoint = Some(wires.s3_endpoint.clone());
        }
        s3_flags(&settings)
    }

    /// Where others reach a service.
    fn far(&self, name: &str) -> String {
        self.socket(&if self.plan.over_wires { format!("{name}.wire") } else { name.to_owned() })
    }

    fn command(&self, part: Part) -> (&'static str, Vec<String>) {
        let (registry, daemon) = (self.far("registry"), self.far("daemon"));
        match part {
            Part::Registry => {
                let own = flags(&[("listen", &self.socket("registry"))]);
                ("weft-adapter-registry", [own, self.s3_flags(), self.plan.store_flags.clone()].concat())
            }
            Part::CacheDaemon => {
                let dir = self.dir.path().join("cache").display().to_string();
                let own = flags(&[("listen", &self.socket("daemon")), ("dir", &dir)]);
                ("weft-cache-daemon", [own, self.s3_flags(), self.plan.store_flags.clone()].concat())
            }
            Part::Worker(number) => {
                let name = format!("worker-{number}");
                let own = flags(&[
                    ("listen", &self.socket(&name)),
                    ("name", &name),
                    ("model", &self.model.display().to_string()),
                    ("dtype", "f32"),
                    ("threads", "1"),
                    ("cache", &daemon),
                    ("registry", &registry),
                ]);
                ("weft-worker", [own, self.plan.worker_flags.clone()].concat())
            }
            Part::Gateway => {
                let sockets = (0..self.plan.workers).map(|number| self.socket(&format!("worker-{number}")));
                let own = flags(&[
                    ("listen", "127.0.0.1:0"),
                    ("admin-listen", "127.0.0.1:0"),
                    ("admin-key", ADMIN_KEY),
                    ("registry", &registry),
                    ("workers", &sockets.collect::<Vec<_>>().join(",")),
                ]);
                // All clients of a test have one address, and the tiny model answers more than its rate.
                let no_rate = vec!["--address-limit-loopback=false".to_owned()];
                ("weft-gateway", [own, no_rate, self.plan.gateway_flags.clone()].concat())
            }
        }
    }
}

fn s3_flags(store: &S3Settings) -> Vec<String> {
    let mut all = flags(&[
        ("s3-endpoint", store.endpoint.as_deref().expect("embedded")),
        ("s3-bucket", &store.bucket),
        ("s3-region", &store.region),
        ("s3-access-key-id", store.access_key_id.as_deref().expect("embedded")),
        ("s3-secret-access-key", store.secret_access_key.as_deref().expect("embedded")),
    ]);
    all.push("--s3-path-style=true".to_owned());
    all
}
