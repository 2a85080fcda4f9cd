//! The four services as separate processes on ports, over real gRPC and a real S3 endpoint.

use crate::support::process::{Process, binary};
use crate::support::{ADMIN_KEY, Reply, demo_model, example_adapter, post, tiny_adapter, tiny_model};
use serde_json::json;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use weft_cli::client::{Admin, Data, Published};
use weft_object_store::{EmbeddedS3, ObjectStore, S3Settings, S3Store};

/// How the services are started.
#[derive(Default)]
struct Plan {
    worker_flags: Vec<String>,
    cache_flags: Vec<String>,
    /// No file of the cache daemon may grow larger, as on a full disk.
    cache_file_bytes_max: Option<u64>,
}

/// The internal services meet at Unix sockets in the folder, so that no port can be taken; the gateway picks its ports.
struct Apart {
    s3: EmbeddedS3,
    dir: tempfile::TempDir,
    model: PathBuf,
    plan: Plan,
    processes: Vec<(String, Process)>,
    data_url: String,
    admin: Admin,
}

fn flags(pairs: &[(&str, String)]) -> Vec<String> {
    // A secret may begin with a dash.
    pairs.iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

impl Apart {
    /// Starts the services in the given order: it must not matter.
    async fn start(model: &Path, order: [&str; 4], plan: Plan) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let s3 = EmbeddedS3::start(&dir.path().join("s3"), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let admin = Admin::new("http://nowhere", ADMIN_KEY);
        let model = model.to_owned();
        let mut apart = Self { s3, dir, model, plan, processes: Vec::new(), data_url: String::new(), admin };
        for name in order {
            apart.launch(name);
        }
        apart.ready().await;
        apart
    }

    fn socket(&self, name: &str) -> String {
        format!("unix:{}", self.dir.path().join(name).display())
    }

    fn cache_dir(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    fn args(&self, name: &str) -> Vec<String> {
        let s3 = s3_flags(&self.s3.settings("weft"));
        match name {
            "weft-adapter-registry" => [flags(&[("listen", self.socket("registry"))]), s3].concat(),
            "weft-cache-daemon" => {
                let own = [("listen", self.socket("daemon")), ("dir", self.cache_dir().display().to_string())];
                [flags(&own), s3, self.plan.cache_flags.clone()].concat()
            }
            "weft-worker" => {
                let own = [
                    ("listen", self.socket("worker")),
                    ("model", self.model.display().to_string()),
                    ("dtype", "f32".to_owned()),
                    ("cache", self.socket("daemon")),
                    ("registry", self.socket("registry")),
                ];
                [flags(&own), self.plan.worker_flags.clone()].concat()
            }
            _ => flags(&[
                ("listen", "127.0.0.1:0".to_owned()),
                ("admin-listen", "127.0.0.1:0".to_owned()),
                ("admin-key", ADMIN_KEY.to_owned()),
                ("registry", self.socket("registry")),
                ("workers", self.socket("worker")),
            ]),
        }
    }

    fn launch(&mut self, name: &str) {
        let mut command = match self.plan.cache_file_bytes_max {
            Some(bytes) if name == "weft-cache-daemon" => {
                // In blocks of 512 bytes; with the signal off, a write over the limit fails like one on a full disk.
                let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$@\"", bytes / 512);
                let mut command = Command::new("sh");
                command.args(["-c", &script, "sh"]).arg(binary(name));
                command
            }
            _ => Command::new(binary(name)),
        };
        // A log in a file would have the limit too.
        let log = match self.plan.cache_file_bytes_max {
            Some(_) if name == "weft-cache-daemon" => Stdio::inherit(),
            _ => Stdio::from(std::fs::File::create(self.log(name)).unwrap()),
        };
        command.args(self.args(name)).env_remove("WEFT_DEMO_MODEL").stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().expect("service starts");
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        if name == "weft-gateway" {
            let mut url = |prefix: &str| {
                let line = lines.next().expect("the gateway says where it listens").unwrap();
                format!("http://{}", line.strip_prefix(prefix).unwrap_or_else(|| panic!("{line}")))
            };
            self.data_url = url("listening on ");
            self.admin = Admin::new(&url("admin listening on "), ADMIN_KEY);
        }
        std::thread::spawn(move || lines.for_each(drop));
        self.processes.push((name.to_owned(), Process(child)));
    }

    /// Waits until the gateway would answer, or would not.
    async fn until_ready_is(&mut self, ready: bool) {
        let http = reqwest::Client::new();
        loop {
            for (name, process) in &mut self.processes {
                assert!(process.0.try_wait().unwrap().is_none(), "{name} ended early");
            }
            match http.get(format!("{}/readyz", self.data_url)).send().await {
                Ok(answer) if answer.status().is_success() == ready => return,
                _ => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        }
    }

    async fn ready(&mut self) {
        self.until_ready_is(true).await;
    }

    /// Ends a service as a crash would.
    fn kill(&mut self, name: &str) {
        self.processes.retain(|(other, _)| other != name);
    }

    async fn secret(&self, name: &str) -> String {
        self.admin.create_tenant(name).await.unwrap();
        self.admin.create_key(name, None).await.unwrap().secret
    }

    async fn tenant(&self, name: &str) -> Data {
        Data::new(&self.data_url, &self.secret(name).await)
    }

    /// Publishes. A registry that heard of no base yet cannot check packages and says so; the gateway does not wait for that.
    async fn publish(&self, tenant: &str, name: &str, folder: &Path) -> Published {
        loop {
            match self.admin.publish(tenant, name, folder, Some("live")).await {
                Ok(published) => return published,
                Err(error) if error.to_string().contains("no worker has announced") => {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn ask(&self, secret: &str, model: &str) -> Reply {
        let body = json!({ "model": model, "prompt": [65, 66], "max_tokens": 4, "temperature": 0 });
        post(&format!("{}/v1/completions", self.data_url), secret, body).await
    }

    async fn stop(self) {
        drop(self.processes);
        self.s3.stop().await;
    }
}

fn s3_flags(store: &S3Settings) -> Vec<String> {
    let pairs = [
        ("endpoint", store.endpoint.clone().expect("embedded")),
        ("bucket", store.bucket.clone()),
        ("region", store.region.clone()),
        ("access-key-id", store.access_key_id.clone().expect("embedded")),
        ("secret-access-key", store.secret_access_key.clone().expect("embedded")),
        ("path-style", String::new()),
    ];
    let flag = |(name, value): &(&str, String)| match *name {
        "path-style" => vec!["--s3-path-style=true".to_owned()],
        _ => vec![format!("--s3-{name}={value}")],
    };
    pairs.iter().flat_map(flag).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_three_tenant_story_over_real_grpc() {
    let order = ["weft-gateway", "weft-worker", "weft-cache-daemon", "weft-adapter-registry"];
    let apart = Apart::start(&demo_model(), order, Plan::default()).await;
    let stories = [
        ("harbour", "pirate", "What is the capital of France?", "Ahoy! That be Paris"),
        (
            "helpdesk",
            "support-triage",
            "Classify and summarize: 'Order not delivered after 5 days'",
            r#"{"priority": "high""#,
        ),
        ("analytics", "sql-writer", "yesterday's total amount from orders by channel", "SELECT channel, SUM(amount)"),
    ];
    for (tenant, adapter, question, begins) in stories {
        let data = apart.tenant(tenant).await;
        let published = apart.publish(tenant, adapter, &example_adapter(adapter)).await;
        let answer = data.chat(adapter, question, 24).await.unwrap();
        assert!(answer.text.starts_with(begins), "{adapter}: {}", answer.text);
        assert_eq!((answer.digest, answer.adapter), (published.digest, format!("{tenant}/{adapter}@1")));
        let base = data.chat("base", question, 24).await.unwrap();
        assert!(!base.text.starts_with(begins), "{}", base.text);
    }
    apart.stop().await;
}

fn refused(reply: &Reply) -> (u16, String) {
    (reply.status, reply.json()["error"]["code"].as_str().unwrap_or_default().to_owned())
}

const FORWARD: [&str; 4] = ["weft-adapter-registry", "weft-cache-daemon", "weft-worker", "weft-gateway"];

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_behind_a_right_name_fail_the_request() {
    let mut apart = Apart::start(&tiny_model(), FORWARD, Plan::default()).await;
    let secret = apart.secret("harbour").await;
    let data = Data::new(&apart.data_url, &secret);
    let right = apart.publish("harbour", "right", &tiny_adapter("rank8")).await;
    let other = apart.publish("harbour", "other", &tiny_adapter("rank16")).await;
    // In S3: the blob of `right` becomes that of `other`, a perfectly valid adapter. The daemon's hash sees it.
    let store = S3Store::connect(&apart.s3.settings("weft")).await.unwrap();
    let key = |digest: &str| weft_object_store::keys::blob(&digest.parse().unwrap());
    let foreign = store.get(&key(&other.digest)).await.unwrap().expect("published").bytes;
    store.put(&key(&right.digest), foreign.clone()).await.unwrap();
    assert_eq!(refused(&apart.ask(&secret, "right").await), (500, "wrong_adapter_bytes".to_owned()));
    // The others are untouched, and everything still answers with its own digest.
    let fine = data.complete_tokens("other", &[65, 66], 4).await.unwrap();
    assert_eq!(fine.digest, other.digest);

    // On the daemon's disk, after it has checked the file: only the worker's own hash is left to see it.
    let third = apart.publish("harbour", "third", &tiny_adapter("rank4")).await;
    assert_eq!(data.complete_tokens("third", &[65, 66], 4).await.unwrap().digest, third.digest);
    let hex = third.digest.trim_start_matches("sha256:");
    let cached = find(&apart.cache_dir(), hex).expect("the daemon keeps the blob under its digest");
    // Same size, same inode, same time of change, as a failing disk does it: anything else the daemon sees itself.
    let modified = std::fs::metadata(&cached).unwrap().modified().unwrap();
    let mut rotten = std::fs::read(&cached).unwrap();
    *rotten.last_mut().unwrap() ^= 1;
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&cached, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&cached, &rotten).unwrap();
    std::fs::File::options().write(true).open(&cached).unwrap().set_modified(modified).unwrap();
    std::fs::set_permissions(&cached, std::fs::Permissions::from_mode(0o444)).unwrap();
    apart.kill("weft-worker");
    apart.until_ready_is(false).await;
    apart.launch("weft-worker");
    apart.ready().await;
    let reply = apart.ask(&secret, "third").await;
    assert_eq!(refused(&reply), (500, "wrong_adapter_bytes".to_owned()));
    assert!(!reply.text.contains(apart.dir.path().to_str().unwrap()), "{}", reply.text);
    let log = std::fs::read_to_string(apart.log("weft-gateway")).unwrap();
    assert!(log.contains("they hash to"), "the worker's own words: {log}");
    assert_eq!(data.complete_tokens("other", &[65, 66], 4).await.unwrap().digest, other.digest);
    apart.stop().await;
}

/// The file with this name, somewhere below.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    std::fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() { find(&path, name) } else { (path.file_name()? == name).then_some(path) }
    })
}

/// The adapter cannot be had now, for a reason that is the mesh's: 503, with a hint, and nothing of the inside.
async fn cannot_be_had(apart: &Apart, secret: &str, code: &str) {
    let reply = apart.ask(secret, "pirate").await;
    assert_eq!(refused(&reply), (503, code.to_owned()), "{}", reply.text);
    assert!(reply.header("retry-after").is_some() && reply.header("retry-after-ms").is_some());
    assert_eq!(reply.header("x-weft-adapter"), Some("harbour/pirate@1"));
    for inside in [apart.dir.path().to_str().unwrap(), "cache", "disk", "127.0.0.1", "unix:"] {
        assert!(!reply.text.contains(inside), "{inside} in {}", reply.text);
    }
    // Whoever needs no adapter is served.
    assert_eq!(apart.ask(secret, "base").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_in_the_cache_daemon_is_503_and_tells_nothing_of_the_disk() {
    let plan = Plan { cache_file_bytes_max: Some(4096), ..Plan::default() };
    let apart = Apart::start(&tiny_model(), FORWARD, plan).await;
    let secret = apart.secret("harbour").await;
    apart.publish("harbour", "pirate", &tiny_adapter("rank16")).await;
    cannot_be_had(&apart, &secret, "adapter_unavailable").await;
    let log = std::fs::read_to_string(apart.log("weft-gateway")).unwrap();
    assert!(log.contains("no space left"), "the log says why: {log}");
    apart.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_budget_below_the_adapter_is_503_and_not_the_tenants_fault() {
    let plan = Plan { cache_flags: flags(&[("disk-bytes-max", "4096".to_owned())]), ..Plan::default() };
    let apart = Apart::start(&tiny_model(), FORWARD, plan).await;
    let secret = apart.secret("harbour").await;
    apart.publish("harbour", "pirate", &tiny_adapter("rank16")).await;
    cannot_be_had(&apart, &secret, "adapter_too_large").await;
    apart.stop().await;
}
