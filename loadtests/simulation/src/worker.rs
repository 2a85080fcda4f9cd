//! Workers that play a script over the real protocol: they answer as [`crate::answer`] says, at a pace drawn from the seed, and go on
//! with what another one began. The real one computes on threads of its own, which no seed can order.

use crate::answer::token;
use crate::bus::NetworkBus;
use crate::checks::Rule;
use crate::network;
use crate::package::{BASE_NAME, announcement, base_digest};
use crate::random::{between_ms, stream};
use crate::world::{REGISTRIES, REGISTRY_PORT, WORKER_PORT, World, meshed};
use bytes::Bytes;
use futures::stream::BoxStream;
use prost::Message;
use rand::Rng;
use rand::rngs::SmallRng;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};
use weft_bus::residency::{Held, Teller};
use weft_bus::{Bus, subjects};
use weft_fault::{Fault, Kind};
use weft_proto::mesh::v1::{Tier, WorkerHeartbeat};
use weft_proto::registry::v1::registry_client::RegistryClient;
use weft_proto::worker::v1 as pb;
use weft_proto::worker::v1::generate_event::Event;
use weft_proto::worker::v1::generate_request::Prompt;
use weft_proto::worker::v1::worker_server::{Worker, WorkerServer};
use weft_service_kit::transport::{Backoff, server, within};
use weft_types::Digest;

const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(10);
/// As the real one has it.
const BEATS_PER_LIST: u64 = 15;

/// How a worker is now; outlives its process.
#[derive(Default)]
pub(crate) struct WorkerMood {
    /// Was told to end: takes nothing new, and what runs must go on elsewhere.
    pub(crate) draining: AtomicBool,
    /// Computes with other bytes than it was asked for, and says so, as a slot table that is wrong would make it.
    pub(crate) confused: AtomicBool,
    /// Says nothing any more, as a process that is stopped.
    pub(crate) stopped: AtomicBool,
}

/// One process of a worker.
struct Process {
    name: &'static str,
    mood: Arc<WorkerMood>,
    world: Arc<World>,
    incarnation: String,
    random: Mutex<SmallRng>,
    resident: Mutex<BTreeSet<Digest>>,
    changes: AtomicU64,
}

#[derive(Clone)]
struct Service(Arc<Process>);

/// Runs one on its host, until the host is ended.
///
/// # Errors
/// The port is taken, or the transport failed.
pub(crate) async fn run(world: Arc<World>, name: &'static str, mood: Arc<WorkerMood>) -> anyhow::Result<()> {
    let incarnation = format!("{name} {}", rand::random::<u32>());
    let process = Arc::new(Process {
        name,
        mood,
        random: Mutex::new(stream(world.seed, &incarnation)),
        incarnation,
        world,
        resident: Mutex::default(),
        changes: AtomicU64::new(0),
    });
    tokio::spawn(announce(name));
    let bus = NetworkBus::join(name, meshed(), &prometheus::Registry::new()).await?;
    tokio::spawn(beat(Arc::clone(&process), bus));
    let listener = network::listen(WORKER_PORT).await?;
    let service = WorkerServer::new(Service(process));
    Ok(server().add_service(service).serve_with_incoming(listener.incoming()).await?)
}

/// Tells a registry of the base until one has heard it.
async fn announce(name: &'static str) {
    let mut backoff = Backoff::default();
    let mut client = RegistryClient::new(network::channel(&REGISTRIES, REGISTRY_PORT, 0));
    while client.announce_base(within(ANNOUNCE_TIMEOUT, announcement(name))).await.is_err() {
        backoff.wait().await;
    }
}

/// Says once a second that it is there, and what it holds.
async fn beat(process: Arc<Process>, bus: Arc<dyn Bus>) {
    let mut teller = Teller::default();
    for sequence in 1.. {
        process.be_there().await;
        let held: Held = process.resident().iter().map(|digest| (*digest, Tier::Slot)).collect();
        if sequence % BEATS_PER_LIST == 0 {
            teller.start_over();
        }
        let mut pieces = teller.tell(held, process.changes.load(Ordering::Relaxed)).into_iter();
        let heartbeat = WorkerHeartbeat {
            worker: process.name.to_owned(),
            address: format!("{}:{WORKER_PORT}", process.name),
            incarnation: process.incarnation.clone(),
            sequence,
            interval_ms: 1000,
            base_digest: raw(base_digest()),
            draining: process.mood.draining.load(Ordering::Relaxed),
            kv_blocks_free: 4096,
            kv_blocks_max: 4096,
            slot_bytes_max: 1 << 20,
            step_us: 20_000,
            residency: pieces.next(),
            ..Default::default()
        };
        // It may be lost.
        let _ = bus.publish(subjects::WORKER_HEARTBEAT, heartbeat.encode_to_vec().into());
        tokio::time::sleep(process.wait(900, 1100)).await;
    }
}

fn raw(digest: Digest) -> Bytes {
    Bytes::copy_from_slice(digest.as_bytes())
}

/// What is asked, read.
struct Asked {
    /// Empty for the base.
    digest: Bytes,
    prompt: String,
    seed: u64,
    tokens: u32,
    replayed: u32,
    greets: bool,
}

impl Process {
    fn wait(&self, least_ms: u64, most_ms: u64) -> Duration {
        between_ms(&mut self.random.lock().unwrap_or_else(PoisonError::into_inner), least_ms, most_ms)
    }

    fn resident(&self) -> MutexGuard<'_, BTreeSet<Digest>> {
        self.resident.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Never comes back while the worker is stopped.
    async fn be_there(&self) {
        while self.mood.stopped.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn read(&self, request: &pb::GenerateRequest) -> Result<Asked, Status> {
        let invalid = |message: &str| Status::from(Fault::invalid("request", message));
        let Some(Prompt::Text(prompt)) = &request.prompt else { return Err(invalid("prompts are text here")) };
        let seed = request.sampling.and_then(|sampling| sampling.seed).ok_or_else(|| invalid("the seed is not set"))?;
        let digest = request.adapter.as_ref().map_or_else(Bytes::new, |adapter| adapter.digest.clone());
        let tokens = request.stopping.as_ref().map_or(16, |stopping| stopping.max_tokens);
        let delivered = request.continuation.as_ref().map_or(&[][..], |continuation| &continuation.ids);
        for (position, id) in (0..).zip(delivered) {
            if token(&digest, &prompt.text, seed, position).id != *id {
                let seen = format!(
                    "{} was told to go on behind token {id} at {position}, which was never generated",
                    self.name
                );
                self.world.record.violated(Rule::TokensExact, seen);
                return Err(invalid("no such tokens"));
            }
        }
        if !digest.is_empty() {
            let digest = Digest::try_from(digest.as_ref()).map_err(|_| invalid("the digest has another length"))?;
            if self.resident().insert(digest) {
                self.changes.fetch_add(1, Ordering::Relaxed);
            }
        }
        let replayed = delivered.len() as u32;
        Ok(Asked {
            digest,
            prompt: prompt.text.clone(),
            seed,
            tokens,
            replayed,
            greets: request.continuation.is_none(),
        })
    }

    async fn play(self: Arc<Self>, asked: Asked, said: mpsc::Sender<Result<pb::GenerateEvent, Status>>) {
        let say = async |event| said.send(Ok(pb::GenerateEvent { event: Some(event) })).await.is_ok();
        // From the slot table, where it is right.
        let digest = if self.mood.confused.load(Ordering::Relaxed) {
            self.world.record.count("answers with other bytes");
            raw(Digest::of(b"other bytes"))
        } else {
            asked.digest.clone()
        };
        if !asked.greets {
            self.world.record.count("continuations at workers");
        }
        tokio::time::sleep(self.wait(10, 300)).await;
        self.be_there().await;
        let started = pb::Started {
            adapter_digest: digest.clone(),
            base_digest: raw(base_digest()),
            prompt_tokens: 7,
            worker: self.name.to_owned(),
            seed: asked.seed,
            prompt_digest: raw(Digest::of(asked.prompt.as_bytes())),
            replayed_tokens: asked.replayed,
            ..Default::default()
        };
        if !say(Event::Started(started)).await {
            return;
        }
        let mut position = asked.replayed;
        while position < asked.tokens {
            tokio::time::sleep(self.wait(10, 200)).await;
            self.be_there().await;
            if self.mood.draining.load(Ordering::Relaxed) {
                let _ = said.send(Err(draining())).await;
                return;
            }
            let many = self.random.lock().unwrap_or_else(PoisonError::into_inner).random_range(1..=3);
            let end = (position + many).min(asked.tokens);
            let tokens = (position..end).map(|position| {
                let token = token(&digest, &asked.prompt, asked.seed, position);
                pb::TokenOut { id: token.id, raw: token.text.clone().into(), text: token.text, ..Default::default() }
            });
            let tokens = pb::Tokens { adapter_digest: digest.clone(), tokens: tokens.collect() };
            if !say(Event::Tokens(tokens)).await {
                return;
            }
            position = end;
        }
        say(Event::Finished(pb::Finished {
            reason: pb::FinishReason::Length.into(),
            completion_tokens: asked.tokens,
            seed: asked.seed,
            adapter_digest: digest,
            adapters_in_step_max: 1,
            requests_in_step_max: 1,
            ..Default::default()
        }))
        .await;
    }
}

fn draining() -> Status {
    Fault::new(Kind::Unavailable, "the worker is shutting down").with_code("draining").into()
}

#[tonic::async_trait]
impl Worker for Service {
    type GenerateStream = BoxStream<'static, Result<pb::GenerateEvent, Status>>;

    async fn generate(&self, request: Request<pb::GenerateRequest>) -> Result<Response<Self::GenerateStream>, Status> {
        self.0.be_there().await;
        if self.0.mood.draining.load(Ordering::Relaxed) {
            return Err(draining());
        }
        let asked = self.0.read(request.get_ref())?;
        let (said, heard) = mpsc::channel(4);
        tokio::spawn(Arc::clone(&self.0).play(asked, said));
        let events = futures::stream::unfold(heard, |mut heard| async { Some((heard.recv().await?, heard)) });
        Ok(Response::new(Box::pin(events)))
    }

    async fn describe(&self, _: Request<pb::DescribeRequest>) -> Result<Response<pb::DescribeResponse>, Status> {
        self.0.be_there().await;
        Ok(Response::new(pb::DescribeResponse {
            worker: self.0.name.to_owned(),
            incarnation: self.0.incarnation.clone(),
            served_name: BASE_NAME.to_owned(),
            base_digest: raw(base_digest()),
            dtype: "f32".to_owned(),
            isa: "none".to_owned(),
            context_tokens_max: 4096,
            prompt_tokens_max: 4000,
            vocabulary_size: 1024,
            kv_tokens_max: 65_536,
            slot_bytes_max: 1 << 20,
            concurrent_requests_max: 64,
            ..Default::default()
        }))
    }

    async fn get_load(&self, _: Request<pb::GetLoadRequest>) -> Result<Response<pb::GetLoadResponse>, Status> {
        self.0.be_there().await;
        let draining = self.0.mood.draining.load(Ordering::Relaxed);
        Ok(Response::new(pb::GetLoadResponse { draining, kv_blocks_max: 4096, step_us: 20_000, ..Default::default() }))
    }

    async fn list_residency(
        &self,
        _: Request<pb::ListResidencyRequest>,
    ) -> Result<Response<pb::ListResidencyResponse>, Status> {
        self.0.be_there().await;
        let resident = self.0.resident();
        let adapters = resident.iter().map(|digest| pb::ResidentAdapter {
            digest: raw(*digest),
            bytes: 1024,
            ..Default::default()
        });
        Ok(Response::new(pb::ListResidencyResponse {
            adapters: adapters.collect(),
            generation: self.0.changes.load(Ordering::Relaxed),
            incarnation: self.0.incarnation.clone(),
            slot_bytes_max: 1 << 20,
            ..Default::default()
        }))
    }

    async fn pin(&self, _: Request<pb::PinRequest>) -> Result<Response<pb::PinResponse>, Status> {
        Err(Status::unimplemented("the simulation pins nothing"))
    }

    async fn unpin(&self, _: Request<pb::UnpinRequest>) -> Result<Response<pb::UnpinResponse>, Status> {
        Err(Status::unimplemented("the simulation pins nothing"))
    }

    async fn evict(&self, _: Request<pb::EvictRequest>) -> Result<Response<pb::EvictResponse>, Status> {
        Err(Status::unimplemented("the simulation evicts nothing"))
    }

    async fn tokenize(&self, _: Request<pb::TokenizeRequest>) -> Result<Response<pb::TokenizeResponse>, Status> {
        Err(Status::unimplemented("the simulation has no tokenizer"))
    }
}
