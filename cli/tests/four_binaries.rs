//! The four services as separate processes on ports, over real gRPC and a real S3 endpoint.

mod support;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use support::{ADMIN_KEY, demo_model, example_adapter, tiny_adapter, tiny_model};
use weft_cli::client::{Admin, Data};
use weft_object_store::{EmbeddedS3, ObjectStore, S3Settings, S3Store};

/// The binaries lie beside each other; `cargo nextest run --workspace` builds all of them.
fn binary(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_weft")).with_file_name(name);
    assert!(path.exists(), "{} is not built: cargo build --release -p {name}", path.display());
    path
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(name: &str, args: &[String]) -> Process {
    let mut command = Command::new(binary(name));
    command.args(args).env_remove("WEFT_DEMO_MODEL").stdout(Stdio::null());
    Process(command.spawn().expect("service starts"))
}

struct Apart {
    s3: EmbeddedS3,
    _dir: tempfile::TempDir,
    processes: Vec<Process>,
    data_url: String,
    admin: Admin,
}

impl Apart {
    /// Starts the services in the given order: it must not matter.
    async fn start(model: &Path, order: [&str; 4], worker_flags: &[(&str, String)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let s3 = EmbeddedS3::start(&dir.path().join("s3"), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let store = s3.settings("weft");
        let s3_flags = s3_flags(&store);
        let ports: Vec<u16> = (0..5).map(|_| free_port()).collect();
        let at = |n: usize| format!("127.0.0.1:{}", ports[n]);
        let flags = |own: &[(&str, String)]| -> Vec<String> {
            own.iter().flat_map(|(name, value)| [format!("--{name}"), value.clone()]).collect()
        };
        let mut processes = Vec::new();
        for name in order {
            let args = match name {
                "weft-adapter-registry" => [flags(&[("listen", at(0))]), s3_flags.clone()].concat(),
                "weft-cache-daemon" => {
                    let cache = dir.path().join("cache").display().to_string();
                    [flags(&[("listen", at(1)), ("dir", cache)]), s3_flags.clone()].concat()
                }
                "weft-worker" => {
                    let model = model.display().to_string();
                    let own = [
                        ("listen", at(2)),
                        ("model", model),
                        ("dtype", "f32".to_owned()),
                        ("cache", at(1)),
                        ("registry", at(0)),
                    ];
                    [flags(&own), flags(worker_flags)].concat()
                }
                _ => flags(&[
                    ("listen", at(3)),
                    ("admin-listen", at(4)),
                    ("admin-key", ADMIN_KEY.to_owned()),
                    ("registry", at(0)),
                    ("workers", at(2)),
                ]),
            };
            processes.push(start(name, &args));
        }
        let data_url = format!("http://{}", at(3));
        let admin = Admin::new(&format!("http://{}", at(4)), ADMIN_KEY);
        let http = reqwest::Client::new();
        loop {
            for process in &mut processes {
                assert!(process.0.try_wait().unwrap().is_none(), "a service ended early");
            }
            match http.get(format!("{data_url}/readyz")).send().await {
                Ok(answer) if answer.status().is_success() => break,
                _ => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
            }
        }
        Self { s3, _dir: dir, processes, data_url, admin }
    }

    async fn tenant(&self, name: &str) -> Data {
        self.admin.create_tenant(name).await.unwrap();
        Data::new(&self.data_url, &self.admin.create_key(name, None).await.unwrap().secret)
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
        _ => vec![format!("--s3-{name}"), value.clone()],
    };
    pairs.iter().flat_map(flag).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_three_tenant_story_over_real_grpc() {
    let order = ["weft-gateway", "weft-worker", "weft-cache-daemon", "weft-adapter-registry"];
    let apart = Apart::start(&demo_model(), order, &[]).await;
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
        let published = apart.admin.publish(tenant, adapter, &example_adapter(adapter), Some("live")).await.unwrap();
        let answer = data.chat(adapter, question, 24).await.unwrap();
        assert!(answer.text.starts_with(begins), "{adapter}: {}", answer.text);
        assert_eq!((answer.digest, answer.adapter), (published.digest, format!("{tenant}/{adapter}@1")));
        let base = data.chat("base", question, 24).await.unwrap();
        assert!(!base.text.starts_with(begins), "{}", base.text);
    }
    apart.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_behind_a_right_name_fail_the_request() {
    let order = ["weft-adapter-registry", "weft-cache-daemon", "weft-worker", "weft-gateway"];
    let apart = Apart::start(&tiny_model(), order, &[]).await;
    let data = apart.tenant("harbour").await;
    let right = apart.admin.publish("harbour", "right", &tiny_adapter("rank8"), Some("live")).await.unwrap();
    let other = apart.admin.publish("harbour", "other", &tiny_adapter("rank16"), Some("live")).await.unwrap();
    // In S3: the blob of `right` becomes that of `other`, a perfectly valid adapter.
    let store = S3Store::connect(&apart.s3.settings("weft")).await.unwrap();
    let key = |digest: &str| weft_object_store::keys::blob(&digest.parse().unwrap());
    let foreign = store.get(&key(&other.digest)).await.unwrap().expect("published").bytes;
    store.put(&key(&right.digest), foreign.clone()).await.unwrap();
    let error = data.complete_tokens("right", &[65, 66], 4).await.unwrap_err().to_string();
    assert!(error.contains("500") || error.contains("502") || error.contains("503"), "{error}");

    // The others are untouched, and everything still answers with its own digest.
    let fine = data.complete_tokens("other", &[65, 66], 4).await.unwrap();
    assert_eq!(fine.digest, other.digest);
    apart.stop().await;
}
