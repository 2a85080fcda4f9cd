//! A `weft up` to measure: started, filled with tenants and synthetic adapters, watched from outside.

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use std::collections::HashMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use weft_base_model::ModelConfig;
use weft_cli::client::Admin;
use weft_cli::embedded::{self, Mesh};
use weft_cli::synthetic::{self, Package};
use weft_service_kit::shutdown::Shutdown;

/// Longest wait for a mesh to serve: reading a large model from a slow disk.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Publications at once; the gateway takes 8 at most.
const PUBLISH_CONCURRENCY: usize = 4;
const ADMIN_KEY: &str = "admin-key-of-the-load-test";

/// How to start a mesh.
#[derive(Clone, Debug)]
pub enum Launcher {
    /// The program `weft`: a process of its own, whose memory can be told from ours.
    Process {
        /// The program.
        program: PathBuf,
        /// Settings of `weft up` for every start.
        settings: Vec<String>,
    },
    /// In this process; for tests.
    Here {
        /// Settings of `weft up` for every start.
        settings: Vec<String>,
    },
}

enum Life {
    Process { child: Child, _dir: tempfile::TempDir },
    Here { mesh: Box<Mesh>, shutdown: Shutdown },
}

/// A running mesh.
pub struct Weft {
    life: Life,
    data_url: String,
    admin_url: String,
    admin_key: String,
    started: Duration,
    http: reqwest::Client,
}

impl Launcher {
    /// Settings of every start.
    #[must_use]
    pub fn settings(&self) -> &[String] {
        match self {
            Self::Process { settings, .. } | Self::Here { settings } => settings,
        }
    }

    /// What the model of these settings is like.
    ///
    /// # Errors
    /// It cannot be fetched or read.
    pub async fn model(&self) -> Result<ModelConfig> {
        let path = embedded::model_path(self.settings()).await?;
        let model = tokio::task::spawn_blocking(move || weft_base_model::open(&path, &Default::default())).await??;
        Ok(model.config)
    }

    /// Starts a mesh on free ports over a new folder, with these settings besides.
    ///
    /// # Errors
    /// It does not start.
    pub async fn up(&self, more: &[String]) -> Result<Weft> {
        let begin = Instant::now();
        let (life, data_url, admin_url, admin_key) = match self {
            Self::Here { settings } => {
                let all = settings.iter().chain(more).cloned().collect();
                let (mesh, shutdown) = embedded::start_private(all).await?;
                let (data, admin, key) = (mesh.data_url(), mesh.admin_url(), mesh.admin_key().to_owned());
                (Life::Here { mesh: Box::new(mesh), shutdown }, data, admin, key)
            }
            Self::Process { program, settings } => {
                let dir = tempfile::Builder::new().prefix("weft-loadtest-").tempdir()?;
                let mut command = Command::new(program);
                command.args(["up", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
                command.args(["--admin-key", ADMIN_KEY]).arg("--data-dir").arg(dir.path());
                command.args(settings).args(more).env("WEFT_LOG", "warn").stdout(Stdio::piped()).kill_on_drop(true);
                let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
                let (data, admin) = tokio::time::timeout(START_TIMEOUT, addresses(&mut child))
                    .await
                    .with_context(|| format!("weft up does not serve after {} s", START_TIMEOUT.as_secs()))??;
                (Life::Process { child, _dir: dir }, data, admin, ADMIN_KEY.to_owned())
            }
        };
        Ok(Weft { life, data_url, admin_url, admin_key, started: begin.elapsed(), http: reqwest::Client::new() })
    }
}

/// What `weft up` prints before it serves.
async fn addresses(child: &mut Child) -> Result<(String, String)> {
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let (mut data, mut admin) = (String::new(), String::new());
    while let Some(line) = lines.next_line().await? {
        if let Some(url) = line.strip_prefix("data plane ") {
            data = url.trim().to_owned();
        } else if let Some(url) = line.strip_prefix("admin plane ") {
            admin = url.trim().to_owned();
        } else if line.starts_with("serving ") {
            // Kept open and empty, so that the mesh never writes to a closed or full pipe.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Ok((data, admin));
        }
    }
    bail!("weft up ended before it served: {}", child.wait().await?)
}

impl Weft {
    /// `http://host:port` of the data listener.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.data_url
    }

    /// From the start of the process until it served.
    #[must_use]
    pub fn started(&self) -> Duration {
        self.started
    }

    /// A client of its admin API.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(&self.admin_url, &self.admin_key)
    }

    /// Creates a tenant and returns the secret of a key.
    ///
    /// # Errors
    /// The admin API refuses.
    pub async fn tenant(&self, name: &str) -> Result<String> {
        self.admin().create_tenant(name).await?;
        Ok(self.admin().create_key(name, Some("load test")).await?.secret)
    }

    /// Publishes `count` different adapters of the tenant and returns their names.
    ///
    /// # Errors
    /// The admin API refuses.
    pub async fn publish(&self, tenant: &str, prefix: &str, package: &Package, count: usize) -> Result<Vec<String>> {
        let admin = self.admin();
        let publish = |number: usize| {
            let (admin, name) = (admin.clone(), format!("{prefix}-{number:05}"));
            // Names differ between prefixes, so must the bytes: equal ones would be one adapter below the gateway.
            let weights = variant(&package.weights, prefix, number as u32);
            let config = package.config.clone();
            async move {
                admin.publish_bytes(tenant, &name, config, weights, Some("live")).await?;
                anyhow::Ok(name)
            }
        };
        futures::stream::iter((0..count).map(publish)).buffered(PUBLISH_CONCURRENCY).try_collect().await
    }

    /// What its weights are stored in: `bf16`, `int8`, …
    ///
    /// # Errors
    /// The admin API does not say.
    pub async fn dtype(&self) -> Result<String> {
        let workers = self.admin().get("workers").await?;
        let dtype = workers["workers"][0]["describes"]["dtype"].as_str();
        Ok(dtype.context("the worker does not say its dtype")?.to_owned())
    }

    /// A value of its `/metrics`; 0 if it is not there.
    ///
    /// # Errors
    /// The admin listener cannot be reached.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let text = self.http.get(format!("{}/metrics", self.admin_url)).bearer_auth(&self.admin_key).send().await?;
        Ok(sum_of(&text.error_for_status()?.text().await?, name))
    }

    /// Memory that its process holds now and has held at most, bytes. `None` if it runs in this process, or where
    /// there is no `/proc`.
    #[must_use]
    pub fn memory(&self) -> Option<Memory> {
        let Life::Process { child, .. } = &self.life else { return None };
        let text = std::fs::read_to_string(format!("/proc/{}/status", child.id()?)).ok()?;
        let fields: HashMap<&str, u64> = text.lines().filter_map(kib_field).collect();
        let of = |name: &str| fields.get(name).map(|kib| kib * 1024);
        Some(Memory { now_bytes: of("VmRSS")?, most_bytes: of("VmHWM")?, file_bytes: of("RssFile")? })
    }

    /// Stops it and waits for its end.
    ///
    /// # Errors
    /// It failed.
    pub async fn stop(self) -> Result<()> {
        match self.life {
            Life::Here { mesh, shutdown } => {
                shutdown.trigger();
                mesh.finished().await
            }
            Life::Process { mut child, .. } => {
                child.kill().await.context("cannot stop weft up")?;
                Ok(())
            }
        }
    }
}

/// Resident memory of a process.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Memory {
    /// Now.
    pub now_bytes: u64,
    /// At most so far.
    pub most_bytes: u64,
    /// Of `now_bytes`, pages of mapped files, which the system takes back when it wants to.
    pub file_bytes: u64,
}

fn kib_field(line: &str) -> Option<(&str, u64)> {
    let (name, value) = line.split_once(':')?;
    Some((name, value.trim().strip_suffix(" kB")?.trim().parse().ok()?))
}

/// A metric of the text format, added up over its labels.
fn sum_of(text: &str, name: &str) -> f64 {
    let value = |line: &str| {
        let rest = line.strip_prefix(name)?;
        if rest.starts_with([' ', '{']) { rest.rsplit(' ').next()?.parse::<f64>().ok() } else { None }
    };
    text.lines().filter_map(value).sum()
}

/// The same adapter with its last four values replaced, so that its digest is another. Making 2,000 packages from
/// nothing would take longer than measuring them.
fn variant(weights: &[u8], prefix: &str, number: u32) -> Vec<u8> {
    let mut bytes = weights.to_vec();
    let mark = prefix.bytes().fold(number, |mark, byte| mark.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let end = bytes.len();
    if let Some(last) = end.checked_sub(8).map(|begin| &mut bytes[begin..]) {
        for (index, value) in last.chunks_exact_mut(2).enumerate() {
            // A bf16 near 0.01 whose seven bits of mantissa are a part of the mark.
            let bits = 0x3c00 | ((mark >> (7 * index)) & 0x7f) as u16;
            value.copy_from_slice(&bits.to_le_bytes());
        }
    }
    bytes
}

/// A LoRA of this rank on the attention's linears, as S-LoRA measures with.
#[must_use]
pub fn attention_lora(model: &ModelConfig, rank: usize) -> Package {
    synthetic::lora(model, rank, &["q_proj", "k_proj", "v_proj", "o_proj"], 20_261_125)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn metrics_are_added_up_over_labels() {
        let text = "# HELP worker_loads_total x\nworker_loads_total{result=\"ok\"} 3\nworker_loads_total{result=\"timeout\"} 2\n\
            worker_loads_total_more 9\nworker_slot_bytes_used 1.5e6\n";
        assert_eq!(sum_of(text, "worker_loads_total"), 5.0);
        assert_eq!(sum_of(text, "worker_slot_bytes_used"), 1.5e6);
        assert_eq!(sum_of(text, "absent"), 0.0);
    }

    #[test]
    fn variants_differ_and_stay_small_numbers() {
        let weights = vec![0u8; 64];
        let all: HashSet<Vec<u8>> =
            ["a", "b"].iter().flat_map(|prefix| (0..2000).map(|n| variant(&weights, prefix, n))).collect();
        assert_eq!(all.len(), 4000);
        for bytes in &all {
            for pair in bytes[56..].chunks_exact(2) {
                let value = f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16);
                assert!((0.0..0.02).contains(&value), "{value}");
            }
        }
    }

    #[test]
    fn memory_is_read_from_the_status_of_a_process() {
        assert_eq!(kib_field("VmRSS:\t   12345 kB"), Some(("VmRSS", 12345)));
        assert_eq!(kib_field("Name:\tweft"), None);
    }
}
