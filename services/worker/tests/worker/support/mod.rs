//! What the worker's tests share: a worker over the tiny golden model, reached through its gRPC face, and a shelf
//! that stands where the cache daemon stands.

#![allow(dead_code, reason = "each test file uses its part")]

pub(crate) mod shelf;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tonic::Streaming;
use tonic::transport::Channel;
use weft_adapter_format::{BaseShape, Limits, LinearShape, check_package};
use weft_fault::Fault;
use weft_proto::worker::v1 as pb;
use weft_proto::worker::v1::generate_event::Event;
use weft_proto::worker::v1::worker_client::WorkerClient;
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::transport::Listener;
use weft_types::Digest;
use weft_worker::{App, Components, Settings};

use shelf::Shelf;

/// Golden files of the engine: tiny models, adapters, and what transformers + PEFT say about them.
pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/engine/tests/golden")
}

/// The prompt "Hello, loom!" of the golden cases: in the tiny model a token is a byte.
pub(crate) const HELLO: &str = "Hello, loom!";

/// Adapters of the tiny model, all with different answers.
pub(crate) const ADAPTERS: [&str; 12] = [
    "plain",
    "rslora",
    "patterns",
    "some_layers",
    "one_layer",
    "regex",
    "all_linear",
    "mlp_only",
    "rank4",
    "rank8",
    "rank16",
    "rank64",
];

fn base_shape() -> BaseShape {
    let linear = |module: &str, parent: &str, in_features, out_features| LinearShape {
        module: module.into(),
        parent: parent.into(),
        in_features,
        out_features,
    };
    let linears = vec![
        linear("q_proj", "self_attn", 64, 64),
        linear("k_proj", "self_attn", 64, 32),
        linear("v_proj", "self_attn", 64, 32),
        linear("o_proj", "self_attn", 64, 64),
        linear("gate_proj", "mlp", 64, 96),
        linear("up_proj", "mlp", 64, 96),
        linear("down_proj", "mlp", 96, 64),
    ];
    BaseShape { layers: 3, linears }
}

/// The canonical blob of a golden adapter.
pub(crate) fn blob(name: &str) -> Vec<u8> {
    let folder = golden().join("adapters").join(name);
    let config = std::fs::read(folder.join("adapter_config.json")).unwrap();
    let weights = std::fs::read(folder.join("adapter_model.safetensors")).unwrap();
    check_package(&config, &weights, &base_shape(), None, &Limits::default()).unwrap().canonical_blob()
}

/// Greedy tokens for [`HELLO`] by transformers + PEFT; `None`: the base.
pub(crate) fn golden_greedy(adapter: Option<&str>) -> Vec<u32> {
    static CASES: OnceLock<serde_json::Value> = OnceLock::new();
    let golden =
        CASES.get_or_init(|| serde_json::from_slice(&std::fs::read(golden().join("golden.json")).unwrap()).unwrap());
    let name = adapter.unwrap_or("base/tiny");
    let case = golden["cases"].as_array().unwrap().iter().find(|case| case["name"] == name).unwrap();
    let ids = |field: &str| -> Vec<u32> {
        case[field].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    assert_eq!(ids("prompt"), HELLO.bytes().map(u32::from).collect::<Vec<_>>());
    ids("greedy")
}

/// Settings of a small, exact worker.
pub(crate) fn settings() -> Settings {
    Settings {
        name: "worker-t".into(),
        model: golden().join("tiny").to_str().unwrap().into(),
        served_model_name: Some("tiny".into()),
        dtype: "f32".into(),
        threads: 1,
        kv_memory_bytes: 16 << 20,
        adapter_memory_bytes: 16 << 20,
        adapter_prepared_bytes: 0,
        step_tokens_max: 64,
        ..Settings::default()
    }
}

/// A running worker. Dropped: it stops.
pub(crate) struct TestWorker {
    pub(crate) client: WorkerClient<Channel>,
    pub(crate) channel: Channel,
    pub(crate) shelf: Shelf,
    pub(crate) shutdown: Shutdown,
    pub(crate) metrics: prometheus::Registry,
    pub(crate) running: tokio::task::JoinHandle<Result<(), weft_worker::Error>>,
}

impl TestWorker {
    pub(crate) async fn start(settings: Settings) -> Self {
        Self::start_with(settings, Shelf::new().await, None).await
    }

    pub(crate) async fn start_with(settings: Settings, shelf: Shelf, registry: Option<Channel>) -> Self {
        let metrics = prometheus::Registry::new();
        let components = Components { cache_daemon: shelf.channel(), registry };
        let app = App::build(settings, components, &metrics).await.unwrap();
        let (listener, channel) = Listener::memory();
        let shutdown = Shutdown::new();
        let running = tokio::spawn(app.run(listener, shutdown.clone()));
        Self { client: WorkerClient::new(channel.clone()), channel, shelf, shutdown, metrics, running }
    }

    /// What is in slots and in the second tier.
    pub(crate) async fn residency(&self) -> pb::ListResidencyResponse {
        self.client.clone().list_residency(pb::ListResidencyRequest {}).await.unwrap().into_inner()
    }

    pub(crate) async fn pin(&self, digest: Digest) -> Result<u64, Fault> {
        let request = pb::PinRequest { digest: digest.to_vec().into() };
        let answer = self.client.clone().pin(request).await;
        answer.map(|answer| answer.into_inner().bytes).map_err(Fault::from)
    }

    pub(crate) async fn unpin(&self, digest: Digest) -> bool {
        let request = pb::UnpinRequest { digest: digest.to_vec().into() };
        self.client.clone().unpin(request).await.unwrap().into_inner().was_pinned
    }

    pub(crate) async fn evict(&self, digest: Digest) -> Result<u64, Fault> {
        let request = pb::EvictRequest { digest: digest.to_vec().into() };
        let answer = self.client.clone().evict(request).await;
        answer.map(|answer| answer.into_inner().bytes_freed).map_err(Fault::from)
    }

    /// Runs the request to its end.
    pub(crate) async fn generate(&self, request: pb::GenerateRequest) -> Result<Answer, Fault> {
        let mut client = self.client.clone();
        let replayed = request.continuation.as_ref().map_or(0, |continuation| continuation.ids.len());
        let stream = client.generate(request).await.map_err(Fault::from)?.into_inner();
        Answer::read_behind(replayed, stream).await
    }

    pub(crate) async fn load(&self) -> pb::GetLoadResponse {
        self.client.clone().get_load(pb::GetLoadRequest {}).await.unwrap().into_inner()
    }

    /// Looks at the load until it is as wanted; a test that waits for ever is ended by its runner.
    pub(crate) async fn load_when(&self, wanted: impl Fn(&pb::GetLoadResponse) -> bool) -> pb::GetLoadResponse {
        loop {
            let load = self.load().await;
            if wanted(&load) {
                return load;
            }
            tokio::task::yield_now().await;
        }
    }

    pub(crate) async fn resident(&self) -> Vec<Digest> {
        let response = self.client.clone().list_residency(pb::ListResidencyRequest {}).await.unwrap().into_inner();
        response.adapters.iter().map(|adapter| Digest::try_from(&adapter.digest[..]).unwrap()).collect()
    }
}

impl TestWorker {
    /// Running requests of this adapter.
    pub(crate) async fn users(&self, digest: &Digest) -> u32 {
        let response = self.client.clone().list_residency(pb::ListResidencyRequest {}).await.unwrap().into_inner();
        response
            .adapters
            .iter()
            .find(|adapter| adapter.digest[..] == digest.as_bytes()[..])
            .map_or(0, |adapter| adapter.users)
    }
}

impl Drop for TestWorker {
    fn drop(&mut self) {
        self.shutdown.trigger();
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) started: pb::Started,
    pub(crate) tokens: Vec<pb::TokenOut>,
    pub(crate) finished: pb::Finished,
}

impl Answer {
    /// Reads a stream to its end, checking its order and that one digest runs through it.
    pub(crate) async fn read(stream: Streaming<pb::GenerateEvent>) -> Result<Self, Fault> {
        Self::read_behind(0, stream).await
    }

    /// As [`Self::read`], of an answer of which so many tokens were generated elsewhere.
    pub(crate) async fn read_behind(replayed: usize, mut stream: Streaming<pb::GenerateEvent>) -> Result<Self, Fault> {
        let mut started: Option<pb::Started> = None;
        let mut tokens = Vec::new();
        while let Some(event) = stream.message().await.map_err(Fault::from)? {
            match event.event.expect("an event is one of three") {
                Event::Started(event) => assert!(started.replace(event).is_none(), "started once"),
                Event::Tokens(event) => {
                    let started = started.as_ref().expect("started comes first");
                    assert_eq!(event.adapter_digest, started.adapter_digest);
                    tokens.extend(event.tokens);
                }
                Event::Finished(finished) => {
                    let started = started.expect("started comes first");
                    assert_eq!(finished.adapter_digest, started.adapter_digest);
                    assert!(stream.message().await.map_err(Fault::from)?.is_none(), "nothing follows the end");
                    assert_eq!(finished.completion_tokens as usize, replayed + tokens.len());
                    return Ok(Self { started, tokens, finished });
                }
            }
        }
        panic!("the stream ended without its end");
    }

    pub(crate) fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }

    pub(crate) fn text(&self) -> String {
        self.tokens.iter().map(|token| token.text.as_str()).collect()
    }

    pub(crate) fn reason(&self) -> pb::FinishReason {
        self.finished.reason()
    }
}

/// A greedy request for `max_tokens` tokens after `prompt`; the end of sequence is ignored.
pub(crate) fn request(adapter: Option<Digest>, prompt: &str, max_tokens: u32) -> pb::GenerateRequest {
    pb::GenerateRequest {
        request_id: "r-1".into(),
        tenant: "harbour".into(),
        adapter: adapter.map(|digest| pb::AdapterRef { digest: digest.to_vec().into(), label: "harbour/a@1".into() }),
        tenant_salt: vec![7; 32].into(),
        prompt: Some(pb::generate_request::Prompt::Text(pb::TextPrompt { text: prompt.into(), ..Default::default() })),
        stopping: Some(pb::Stopping { max_tokens, ignore_eos: true, ..Default::default() }),
        ..Default::default()
    }
}
