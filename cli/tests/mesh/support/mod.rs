//! A real `weft up` for tests: started as a process on free ports over a temporary folder, stopped when dropped.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

pub mod apart;
pub mod network;
pub mod over_nats;
pub mod process;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use weft_cli::client::{Admin, Data};

pub const ADMIN_KEY: &str = "admin-key-of-the-test";

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("cli lies in the workspace").to_owned()
}

/// A tiny random Llama that loads in milliseconds.
pub fn tiny_model() -> PathBuf {
    root().join("crates/engine/tests/golden/tiny")
}

/// PEFT packages trained for nothing, but whose answers differ, for [`tiny_model`].
pub fn tiny_adapter(name: &str) -> PathBuf {
    root().join("crates/engine/tests/golden/adapters").join(name)
}

/// The demo model, fetched once into the workspace's cache.
pub fn demo_model() -> PathBuf {
    match std::env::var_os("WEFT_DEMO_MODEL") {
        Some(path) => path.into(),
        None => {
            weft_base_model::fetch::demo_model(&root().join(".cache/models")).expect("the demo model can be fetched")
        }
    }
}

pub fn example_adapter(name: &str) -> PathBuf {
    root().join("examples/adapters").join(name)
}

pub struct Weft {
    child: Child,
    pub data_url: String,
    pub admin_url: String,
    pub dir: tempfile::TempDir,
}

impl Weft {
    /// `weft up` with this model and further flags.
    pub fn up(model: &Path, flags: &[&str]) -> Self {
        Self::up_in(tempfile::tempdir().expect("temporary folder"), model, flags)
    }

    /// The same over a folder that may hold an earlier life.
    pub fn up_in(dir: tempfile::TempDir, model: &Path, flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_weft"))
            .args(["up", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--admin-key", ADMIN_KEY])
            .arg("--data-dir")
            .arg(dir.path())
            .arg("--model")
            .arg(model)
            .args(flags)
            .env_remove("WEFT_DEMO_MODEL")
            .stdout(Stdio::piped())
            .spawn()
            .expect("weft starts");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (mut data_url, mut admin_url) = (String::new(), String::new());
        loop {
            let Some(line) = lines.next() else { panic!("weft up ended early: {:?}", child.wait()) };
            let line = line.expect("readable output");
            if let Some(url) = line.strip_prefix("data plane ") {
                data_url = url.trim().to_owned();
            } else if let Some(url) = line.strip_prefix("admin plane ") {
                admin_url = url.trim().to_owned();
            } else if line.starts_with("serving ") {
                break;
            }
        }
        // Keep the pipe open and empty, so that the process never blocks on it.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, data_url, admin_url, dir }
    }

    pub fn admin(&self) -> Admin {
        Admin::new(&self.admin_url, ADMIN_KEY)
    }

    /// A new tenant and the secret of its first key.
    pub async fn tenant(&self, name: &str) -> String {
        self.admin().create_tenant(name).await.expect("tenant");
        self.admin().create_key(name, None).await.expect("key").secret
    }

    pub fn data(&self, secret: &str) -> Data {
        Data::new(&self.data_url, secret)
    }

    /// Ends the process as a crash would, and gives the folder back.
    pub fn kill(mut self) -> tempfile::TempDir {
        self.child.kill().expect("kill -9");
        self.child.wait().expect("reaped");
        std::mem::replace(&mut self.dir, tempfile::tempdir().expect("temporary folder"))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn try_wait(&mut self) -> Option<std::process::ExitStatus> {
        self.child.try_wait().expect("waitable")
    }
}

impl Drop for Weft {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status, headers and JSON of one raw HTTP call.
pub struct Reply {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub text: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.text))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

pub async fn send(request: reqwest::RequestBuilder) -> Reply {
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Reply { status, headers, text: response.text().await.expect("a body") }
}

pub async fn post(url: &str, secret: &str, body: Value) -> Reply {
    send(reqwest::Client::new().post(url).bearer_auth(secret).json(&body)).await
}

/// Uploads a package to the admin API and returns the raw answer.
pub async fn publish(weft: &Weft, tenant: &str, name: &str, config: Vec<u8>, weights: Vec<u8>) -> Reply {
    use reqwest::multipart::{Form, Part};
    let form = Form::new().part("config", Part::bytes(config)).part("weights", Part::bytes(weights));
    let url = format!("{}/admin/v1/tenants/{tenant}/adapters/{name}/versions", weft.admin_url);
    send(reqwest::Client::new().post(url).bearer_auth(ADMIN_KEY).multipart(form)).await
}

/// A q_proj LoRA of rank 4 for [`tiny_model`] whose values all are `value`, with inputs of this width.
pub fn package(inputs: usize, value: f32) -> (Vec<u8>, Vec<u8>) {
    let config = json!({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"],
        "bias": "none", "base_model_name_or_path": "tiny",
    });
    let floats = |count: usize| -> Vec<u8> { std::iter::repeat_n(value, count).flat_map(f32::to_le_bytes).collect() };
    let shape = tiny_shape();
    let mut tensors = Vec::new();
    for layer in 0..shape.layers {
        let name = format!("base_model.model.model.layers.{layer}.self_attn.q_proj");
        tensors.push((format!("{name}.lora_A.weight"), vec![4, inputs], floats(4 * inputs)));
        tensors.push((format!("{name}.lora_B.weight"), vec![shape.q_out, 4], floats(shape.q_out * 4)));
    }
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, shape, bytes)| (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap()))
        .collect();
    (config.to_string().into_bytes(), safetensors::serialize(views, None).unwrap())
}

pub struct TinyShape {
    pub layers: usize,
    pub hidden: usize,
    pub q_out: usize,
    pub context: usize,
}

pub fn tiny_shape() -> TinyShape {
    let text = std::fs::read_to_string(tiny_model().join("config.json")).expect("config.json");
    let config: Value = serde_json::from_str(&text).expect("JSON");
    let number = |key: &str| usize::try_from(config[key].as_u64().expect("a number")).expect("small");
    TinyShape {
        layers: number("num_hidden_layers"),
        hidden: number("hidden_size"),
        q_out: number("num_attention_heads") * number("head_dim"),
        context: number("max_position_embeddings"),
    }
}

/// Runs `weft` to its end.
pub fn weft(args: &[&str]) -> (std::process::ExitStatus, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(args)
        .env_remove("WEFT_DEMO_MODEL")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("weft starts");
    let (mut out, mut err) = (String::new(), String::new());
    child.stdout.take().expect("piped").read_to_string(&mut out).expect("text");
    child.stderr.take().expect("piped").read_to_string(&mut err).expect("text");
    (child.wait().expect("reaped"), out, err)
}
