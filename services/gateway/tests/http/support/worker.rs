//! A worker that plays scripts over the real protocol.

use super::spawn_server;
use bytes::Bytes;
use futures::stream::BoxStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, mpsc};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use weft_fault::{Fault, Kind};
use weft_proto::worker::v1 as pb;
use weft_proto::worker::v1::generate_event::Event;
use weft_proto::worker::v1::worker_server::{Worker, WorkerServer};
use weft_service_kit::transport::{Listener, server};
use weft_types::Digest;

pub(crate) fn base() -> Digest {
    Digest::of(b"the base")
}

pub(crate) fn raw(digest: Digest) -> Bytes {
    Bytes::copy_from_slice(digest.as_bytes())
}

/// One move of a script.
#[derive(Clone)]
pub(crate) enum Step {
    Say(Event),
    Fail(Status),
    /// Goes on when told.
    Wait(Arc<Notify>),
    /// Says nothing for ever.
    Hang,
    /// Ends the stream without a word.
    Stop,
}

type Script = dyn Fn(&pb::GenerateRequest) -> Vec<Step> + Send + Sync;

#[derive(Clone)]
pub(crate) struct FakeWorker {
    pub(crate) name: String,
    inner: Arc<Inner>,
}

struct Inner {
    script: Mutex<Arc<Script>>,
    requests: Mutex<Vec<pb::GenerateRequest>>,
    /// `grpc-timeout` of each of them.
    deadlines: Mutex<Vec<String>>,
    description: Mutex<pb::DescribeResponse>,
    resident: Mutex<Vec<Digest>>,
    /// Pinned ones; "full" refuses the next pin.
    pinned: Mutex<Vec<Digest>>,
    pins_full: AtomicBool,
    /// Every digest that was ever pinned.
    warmed: Mutex<Vec<Digest>>,
    /// Of residency, as a listing tells it.
    generation: AtomicU64,
    lists: AtomicUsize,
    /// Says nothing, not even how busy it is.
    mute: AtomicBool,
    running: AtomicUsize,
    dropped: AtomicUsize,
}

/// When the caller gives up, as it says in `grpc-timeout`.
pub(crate) fn deadline<T>(request: &Request<T>) -> Option<String> {
    Some(request.metadata().get("grpc-timeout")?.to_str().unwrap().to_owned())
}

/// Digest of the request's adapter as a sound worker echoes it.
pub(crate) fn echoed(request: &pb::GenerateRequest) -> Bytes {
    request.adapter.as_ref().map_or_else(Bytes::new, |adapter| adapter.digest.clone())
}

pub(crate) fn started(adapter_digest: Bytes) -> Step {
    Step::Say(Event::Started(pb::Started {
        adapter_digest,
        base_digest: raw(base()),
        prompt_tokens: 7,
        cached_tokens: 3,
        queue_us: 2000,
        adapter_wait_us: 1500,
        worker: "fake".into(),
        seed: 42,
        ..Default::default()
    }))
}

/// As a worker says it that can be followed by another one; of a request that goes on, that it does.
pub(crate) fn began(request: &pb::GenerateRequest) -> Step {
    Step::Say(Event::Started(pb::Started {
        adapter_digest: echoed(request),
        base_digest: raw(base()),
        prompt_tokens: 7,
        cached_tokens: 3,
        worker: "fake".into(),
        seed: 4711,
        prompt_digest: raw(Digest::of(b"the prompt")),
        replayed_tokens: request.continuation.as_ref().map_or(0, |continuation| continuation.ids.len() as u32),
        ..Default::default()
    }))
}

pub(crate) fn token(id: u32, text: &str) -> pb::TokenOut {
    let top = vec![
        pb::TopToken { id, text: text.into(), logprob: -0.25, raw: text.to_owned().into() },
        pb::TopToken { id: id + 1000, text: "other".into(), logprob: -2.0, raw: "other".into() },
    ];
    pb::TokenOut {
        id,
        text: text.into(),
        logprob: -0.25,
        special: false,
        step: u64::from(id),
        top,
        raw: text.to_owned().into(),
    }
}

pub(crate) fn tokens(adapter_digest: Bytes, tokens: Vec<pb::TokenOut>) -> Step {
    Step::Say(Event::Tokens(pb::Tokens { adapter_digest, tokens }))
}

pub(crate) fn finished(adapter_digest: Bytes, reason: pb::FinishReason, completion_tokens: u32) -> Step {
    Step::Say(Event::Finished(pb::Finished {
        reason: reason.into(),
        completion_tokens,
        seed: 42,
        adapter_digest,
        first_step: 5,
        last_step: 9,
        adapters_in_step_max: 4,
        requests_in_step_max: 6,
        ..Default::default()
    }))
}

/// `Hello, wörld!` in three tokens, the second of which is only half a character.
pub(crate) fn hello(request: &pb::GenerateRequest) -> Vec<Step> {
    let digest = echoed(request);
    let mut end = finished(digest.clone(), pb::FinishReason::Eos, 3);
    if let Step::Say(Event::Finished(end)) = &mut end
        && request.logprobs.is_some_and(|logprobs| logprobs.prompt)
    {
        let mut first = token(1, "Say");
        first.logprob = f32::NAN;
        end.prompt = vec![first, token(2, " hello")];
    }
    vec![
        started(digest.clone()),
        tokens(digest.clone(), vec![token(10, "Hello, w")]),
        tokens(digest.clone(), vec![token(11, ""), token(12, "örld!")]),
        end,
    ]
}

impl FakeWorker {
    pub(crate) fn new(name: &str) -> Self {
        Self::playing(name, hello)
    }

    pub(crate) fn playing(
        name: &str,
        script: impl Fn(&pb::GenerateRequest) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let description = pb::DescribeResponse {
            worker: name.into(),
            incarnation: format!("process of {name}"),
            served_name: "tiny-base".into(),
            base_digest: raw(base()),
            dtype: "f32".into(),
            isa: "avx2".into(),
            context_tokens_max: 100,
            prompt_tokens_max: 90,
            model_id: "models/tiny.gguf".into(),
            kv_tokens_max: 4096,
            ..Default::default()
        };
        let inner = Inner {
            script: Mutex::new(Arc::new(script)),
            requests: Mutex::default(),
            deadlines: Mutex::default(),
            description: Mutex::new(description),
            resident: Mutex::default(),
            pinned: Mutex::default(),
            pins_full: AtomicBool::new(false),
            warmed: Mutex::default(),
            generation: AtomicU64::new(0),
            lists: AtomicUsize::new(0),
            mute: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            dropped: AtomicUsize::new(0),
        };
        Self { name: name.into(), inner: Arc::new(inner) }
    }

    pub(crate) fn serve(&self, listener: Listener) -> tokio::task::JoinHandle<()> {
        spawn_server(server().add_service(WorkerServer::new(self.clone())).serve_with_incoming(listener.incoming()))
    }

    pub(crate) fn play(&self, script: impl Fn(&pb::GenerateRequest) -> Vec<Step> + Send + Sync + 'static) {
        *self.inner.script.lock().unwrap() = Arc::new(script);
    }

    pub(crate) fn describe_as(&self, change: impl FnOnce(&mut pb::DescribeResponse)) {
        change(&mut self.inner.description.lock().unwrap());
    }

    pub(crate) fn holds(&self, digests: &[Digest]) {
        *self.inner.resident.lock().unwrap() = digests.to_vec();
    }

    pub(crate) fn description(&self) -> pb::DescribeResponse {
        self.inner.description.lock().unwrap().clone()
    }

    pub(crate) fn set_generation(&self, generation: u64) {
        self.inner.generation.store(generation, Ordering::SeqCst);
    }

    /// How often its residency was listed.
    pub(crate) fn lists(&self) -> usize {
        self.inner.lists.load(Ordering::SeqCst)
    }

    pub(crate) fn pinned(&self) -> Vec<Digest> {
        self.inner.pinned.lock().unwrap().clone()
    }

    /// What it was ever asked to pin, and did.
    pub(crate) fn warmed(&self) -> Vec<Digest> {
        self.inner.warmed.lock().unwrap().clone()
    }

    pub(crate) fn refuse_pins(&self) {
        self.inner.pins_full.store(true, Ordering::SeqCst);
    }

    pub(crate) fn deadlines(&self) -> Vec<String> {
        self.inner.deadlines.lock().unwrap().clone()
    }

    pub(crate) fn requests(&self) -> Vec<pb::GenerateRequest> {
        self.inner.requests.lock().unwrap().clone()
    }

    pub(crate) fn last(&self) -> pb::GenerateRequest {
        self.requests().pop().expect("a request came")
    }

    /// Looks at it get no answer from now on, as from a process that is stopped.
    pub(crate) fn freeze(&self) {
        self.inner.mute.store(true, Ordering::SeqCst);
    }

    /// Scripts being played.
    pub(crate) fn running(&self) -> usize {
        self.inner.running.load(Ordering::SeqCst)
    }

    /// Scripts whose listener went away before their end.
    pub(crate) fn dropped(&self) -> usize {
        self.inner.dropped.load(Ordering::SeqCst)
    }
}

async fn play(inner: &Inner, steps: Vec<Step>, said: mpsc::Sender<Result<pb::GenerateEvent, Status>>) {
    inner.running.fetch_add(1, Ordering::SeqCst);
    for step in steps {
        let heard = match step {
            Step::Say(event) => said.send(Ok(pb::GenerateEvent { event: Some(event) })).await.is_ok(),
            Step::Fail(status) => {
                let _ = said.send(Err(status)).await;
                break;
            }
            Step::Wait(told) => tokio::select! {
                () = told.notified() => true,
                () = said.closed() => false,
            },
            Step::Hang => {
                said.closed().await;
                false
            }
            Step::Stop => break,
        };
        if !heard {
            inner.dropped.fetch_add(1, Ordering::SeqCst);
            break;
        }
    }
    inner.running.fetch_sub(1, Ordering::SeqCst);
}

#[tonic::async_trait]
impl Worker for FakeWorker {
    type GenerateStream = BoxStream<'static, Result<pb::GenerateEvent, Status>>;

    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        self.inner.deadlines.lock().unwrap().extend(deadline(&request));
        let request = request.into_inner();
        let script = Arc::clone(&*self.inner.script.lock().unwrap());
        let steps = script(&request);
        self.inner.requests.lock().unwrap().push(request);
        if let Some(Step::Fail(status)) = steps.first() {
            return Err(status.clone());
        }
        let (said, heard) = mpsc::channel(1);
        let inner = Arc::clone(&self.inner);
        tokio::spawn(async move { play(&inner, steps, said).await });
        let stream: BoxStream<'static, _> = Box::pin(ReceiverStream::new(heard).fuse());
        Ok(Response::new(stream))
    }

    async fn describe(&self, _: Request<pb::DescribeRequest>) -> Result<Response<pb::DescribeResponse>, Status> {
        Ok(Response::new(self.inner.description.lock().unwrap().clone()))
    }

    async fn get_load(&self, _: Request<pb::GetLoadRequest>) -> Result<Response<pb::GetLoadResponse>, Status> {
        if self.inner.mute.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(pb::GetLoadResponse { mixed_steps_total: 11, ..Default::default() }))
    }

    async fn list_residency(
        &self,
        _: Request<pb::ListResidencyRequest>,
    ) -> Result<Response<pb::ListResidencyResponse>, Status> {
        let resident = self.inner.resident.lock().unwrap();
        let adapters = resident.iter().map(|digest| pb::ResidentAdapter { digest: raw(*digest), ..Default::default() });
        let incarnation = self.inner.description.lock().unwrap().incarnation.clone();
        self.inner.lists.fetch_add(1, Ordering::SeqCst);
        Ok(Response::new(pb::ListResidencyResponse {
            adapters: adapters.collect(),
            generation: self.inner.generation.load(Ordering::SeqCst),
            incarnation,
            ..Default::default()
        }))
    }

    async fn pin(&self, request: Request<pb::PinRequest>) -> Result<Response<pb::PinResponse>, Status> {
        if self.inner.pins_full.load(Ordering::SeqCst) {
            return Err(Fault::new(Kind::Refused, "pins hold 90 of the 100 bytes").with_code("pin_budget").into());
        }
        let digest = Digest::try_from(&request.into_inner().digest[..]).unwrap();
        self.inner.pinned.lock().unwrap().push(digest);
        self.inner.warmed.lock().unwrap().push(digest);
        Ok(Response::new(pb::PinResponse { bytes: 77, ..Default::default() }))
    }

    async fn unpin(&self, request: Request<pb::UnpinRequest>) -> Result<Response<pb::UnpinResponse>, Status> {
        let digest = Digest::try_from(&request.into_inner().digest[..]).unwrap();
        let mut pinned = self.inner.pinned.lock().unwrap();
        let before = pinned.len();
        pinned.retain(|held| *held != digest);
        Ok(Response::new(pb::UnpinResponse { was_pinned: pinned.len() < before }))
    }

    async fn evict(&self, request: Request<pb::EvictRequest>) -> Result<Response<pb::EvictResponse>, Status> {
        let digest = Digest::try_from(&request.into_inner().digest[..]).unwrap();
        if self.inner.pinned.lock().unwrap().contains(&digest) {
            return Err(Fault::new(Kind::Conflict, "adapter is pinned").with_code("adapter_in_use").into());
        }
        let mut resident = self.inner.resident.lock().unwrap();
        let before = resident.len();
        resident.retain(|held| *held != digest);
        Ok(Response::new(pb::EvictResponse { bytes_freed: 77 * (before - resident.len()) as u64 }))
    }

    /// One token a word.
    async fn tokenize(&self, request: Request<pb::TokenizeRequest>) -> Result<Response<pb::TokenizeResponse>, Status> {
        let text = request.into_inner().text;
        let mut tokens = Vec::new();
        let mut start = 0;
        for (id, word) in text.split_inclusive(' ').enumerate() {
            let end = start + word.chars().count() as u32;
            tokens.push(pb::TextToken { id: id as u32, text: word.into(), start, end });
            start = end;
        }
        Ok(Response::new(pb::TokenizeResponse { tokens }))
    }
}
