//! One generation: opens a worker's stream and hands on what it says, piece by piece, after checking whose bytes spoke.
//!
//! Invariant 1 ends here: each event names the digest of the slot entry that the steps used. It is compared with the
//! digest that was resolved at admission, and a difference fails the request; not one token of it gets out.

use crate::directory::Tenant;
use crate::error::{Error, code, from_worker};
use crate::http::Known;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::quota::Meter;
use crate::resolve::Resolved;
use crate::workers::{Base, InFlight, Pool};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Streaming;
use weft_fault::{Fault, Kind};
use weft_proto::worker::v1 as pb;
use weft_types::Digest;

/// A request that was let in: who, on what, since when.
#[derive(Clone)]
pub(crate) struct Admission {
    pub(crate) request_id: String,
    pub(crate) known: Known,
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) resolved: Resolved,
    pub(crate) base: Base,
    pub(crate) arrived: Instant,
    pub(crate) timeout: Duration,
    /// Counts what it uses.
    pub(crate) meter: Meter,
}

/// What to generate, in the worker's own words.
#[derive(Clone)]
pub(crate) struct Wanted {
    /// Shared by the answers to one prompt; copied only on its way to a worker.
    pub(crate) prompt: Arc<pb::generate_request::Prompt>,
    pub(crate) sampling: pb::Sampling,
    pub(crate) stopping: pb::Stopping,
    pub(crate) logprobs: Option<pb::Logprobs>,
    /// -1, 0 or 1; the smaller, the sooner.
    pub(crate) priority: i32,
    pub(crate) grammar: Option<pb::Grammar>,
}

/// Where generations run.
pub(crate) struct Mesh {
    pub(crate) pool: Arc<Pool>,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    pub(crate) retries_max: usize,
}

/// What is known once the first piece is there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) worker: String,
    pub(crate) prompt_tokens: u32,
    pub(crate) cached_tokens: u32,
    pub(crate) queue_us: u64,
    /// Until its adapter was resident; `None` for the base.
    pub(crate) adapter_wait_us: Option<u64>,
    pub(crate) first_token_after: Duration,
}

/// The next part of an answer.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Tokens(Vec<pb::TokenOut>),
    Finished(pb::Finished),
}

/// A running generation. Dropping it cancels the worker's part.
pub(crate) struct Generation {
    pub(crate) facts: Facts,
    admission: Admission,
    first: Option<Piece>,
    stream: Streaming<pb::GenerateEvent>,
    metrics: Metrics,
    end: Option<&'static str>,
    _in_flight: InFlight,
}

/// A whole answer.
pub(crate) struct Collected {
    pub(crate) facts: Facts,
    pub(crate) text: String,
    pub(crate) tokens: Vec<pb::TokenOut>,
    pub(crate) finished: pb::Finished,
}

impl Mesh {
    /// Starts a generation and waits for its first piece, so that whatever goes wrong before has a status of its own
    /// and can be tried on another worker.
    ///
    /// # Errors
    /// Of the last worker tried; [`Error::NoWorker`] if there is none.
    pub(crate) async fn start(&self, admission: &Admission, wanted: &Wanted) -> Result<Generation, Fault> {
        self.limits.retries.deposit();
        let adapter = admission.resolved.digest();
        let mut tried = Vec::new();
        let mut last: Option<Fault> = None;
        loop {
            let Some((id, worker, in_flight)) = self.pool.choose(&admission.base.digest, adapter.as_ref(), &tried)
            else {
                return Err(last.unwrap_or_else(|| Error::NoWorker.into()));
            };
            if let Some(name) = worker.name() {
                admission.known.worker(&name);
            }
            let request = request(admission, wanted, tried.len());
            let attempt = self.attempt(admission, worker.client(), request, in_flight);
            let fault = match attempt.await {
                Ok(generation) => return Ok(generation),
                Err(fault) => fault,
            };
            if fault.code == code::WORKER_LOST {
                worker.suspect(&fault.message);
            }
            tried.push(id);
            let elsewhere =
                matches!(fault.kind, Kind::Unavailable | Kind::Overloaded) && tried.len() <= self.retries_max;
            if !elsewhere || tried.len() == self.pool.workers().len() || !self.limits.retries.withdraw() {
                return Err(fault);
            }
            self.metrics.retries.inc();
            tracing::warn!(request_id = admission.request_id, worker = %worker.address, reason = %fault.message, "trying another worker");
            last = Some(fault);
        }
    }

    async fn attempt(
        &self,
        admission: &Admission,
        mut client: pb::worker_client::WorkerClient<tonic::transport::Channel>,
        request: pb::GenerateRequest,
        in_flight: InFlight,
    ) -> Result<Generation, Fault> {
        let opened = tokio::time::timeout(admission.time_left(), client.generate(request)).await;
        let stream = match opened {
            Err(_) => return Err(admission.too_slow()),
            Ok(Err(status)) => return Err(from_worker(&status)),
            Ok(Ok(response)) => response.into_inner(),
        };
        self.metrics.generations_in_flight.inc();
        let mut generation = Generation {
            facts: Facts::default(),
            admission: admission.clone(),
            first: None,
            stream,
            metrics: self.metrics.clone(),
            end: None,
            _in_flight: in_flight,
        };
        generation.open().await?;
        Ok(generation)
    }
}

impl Admission {
    fn time_left(&self) -> Duration {
        self.timeout.saturating_sub(self.arrived.elapsed())
    }

    fn too_slow(&self) -> Fault {
        Error::TooSlow(self.timeout.as_secs()).into()
    }

    /// As the worker writes it: empty stands for the base.
    fn expected_digest(&self) -> Bytes {
        self.resolved.digest().map_or_else(Bytes::new, raw)
    }
}

fn request(admission: &Admission, wanted: &Wanted, attempt: usize) -> pb::GenerateRequest {
    pb::GenerateRequest {
        request_id: if attempt == 0 {
            admission.request_id.clone()
        } else {
            format!("{}.{attempt}", admission.request_id)
        },
        tenant: admission.tenant.name.clone(),
        adapter: admission.resolved.digest().map(|digest| pb::AdapterRef {
            digest: raw(digest),
            label: admission.resolved.label(&admission.tenant.name),
        }),
        tenant_salt: admission.tenant.salt.map_or_else(Bytes::new, |salt| Bytes::copy_from_slice(&salt)),
        expected_base_digest: raw(admission.base.digest),
        prompt: Some((*wanted.prompt).clone()),
        sampling: Some(wanted.sampling),
        stopping: Some(wanted.stopping.clone()),
        logprobs: wanted.logprobs,
        tenant_weight: admission.tenant.weight,
        priority: wanted.priority,
        grammar: wanted.grammar.clone(),
        deadline_ms: admission.time_left().as_millis().try_into().unwrap_or(u64::MAX).max(1),
    }
}

impl Generation {
    async fn open(&mut self) -> Result<(), Fault> {
        let Some(pb::generate_event::Event::Started(started)) = self.event().await? else {
            return self.fail(Error::CutShort.into());
        };
        self.check_adapter(&started.adapter_digest)?;
        if started.base_digest.as_ref() != self.admission.base.digest.as_bytes() {
            let error = Error::WrongBase { expected: self.admission.base.digest, got: shown(&started.base_digest) };
            return self.fail(error.into());
        }
        self.first = self.read_piece().await?;
        self.facts = Facts {
            worker: started.worker,
            prompt_tokens: started.prompt_tokens,
            cached_tokens: started.cached_tokens,
            queue_us: started.queue_us,
            adapter_wait_us: (!started.adapter_digest.is_empty()).then_some(started.adapter_wait_us),
            first_token_after: self.admission.arrived.elapsed(),
        };
        self.admission.meter.began(started.prompt_tokens);
        self.metrics.prompt_tokens.inc_by(u64::from(started.prompt_tokens));
        self.metrics.cached_tokens.inc_by(u64::from(started.cached_tokens));
        self.metrics.first_token_seconds.observe(self.facts.first_token_after.as_secs_f64());
        Ok(())
    }

    /// The next piece; `None` after [`Piece::Finished`]. Cancel safe.
    ///
    /// # Errors
    /// The worker's, a mismatch, or the time limit. Nothing comes after an error.
    pub(crate) async fn next(&mut self) -> Result<Option<Piece>, Fault> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        if self.end.is_some() {
            return Ok(None);
        }
        self.read_piece().await
    }

    async fn read_piece(&mut self) -> Result<Option<Piece>, Fault> {
        match self.event().await? {
            Some(pb::generate_event::Event::Tokens(tokens)) => {
                self.check_adapter(&tokens.adapter_digest)?;
                self.admission.meter.answered(tokens.tokens.len());
                Ok(Some(Piece::Tokens(tokens.tokens)))
            }
            Some(pb::generate_event::Event::Finished(finished)) => {
                self.check_adapter(&finished.adapter_digest)?;
                self.end = Some("finished");
                self.metrics.completion_tokens.inc_by(u64::from(finished.completion_tokens));
                self.metrics.generation_seconds.observe(self.admission.arrived.elapsed().as_secs_f64());
                Ok(Some(Piece::Finished(finished)))
            }
            // `started` twice, an event of a newer worker that we cannot read, or an end without `finished`.
            Some(pb::generate_event::Event::Started(_)) | None => self.fail(Error::CutShort.into()),
        }
    }

    async fn event(&mut self) -> Result<Option<pb::generate_event::Event>, Fault> {
        match tokio::time::timeout(self.admission.time_left(), self.stream.message()).await {
            Ok(Ok(message)) => Ok(message.and_then(|message| message.event)),
            Ok(Err(status)) => self.fail(from_worker(&status)),
            Err(_) => {
                let fault = self.admission.too_slow();
                self.fail(fault)
            }
        }
    }

    fn check_adapter(&mut self, got: &[u8]) -> Result<(), Fault> {
        let expected = self.admission.expected_digest();
        if got == expected {
            return Ok(());
        }
        self.metrics.digest_mismatches.inc();
        tracing::error!(
            request_id = self.admission.request_id,
            expected = shown(&expected),
            got = shown(got),
            "a worker used other bytes than were resolved"
        );
        self.fail(Error::WrongAdapter { expected: shown(&expected), got: shown(got) }.into())
    }

    fn fail<T>(&mut self, fault: Fault) -> Result<T, Fault> {
        self.end = Some("failed");
        Err(fault)
    }

    /// Reads to the end.
    ///
    /// # Errors
    /// As [`Generation::next`]; what came before is dropped with it.
    pub(crate) async fn collect(mut self) -> Result<Collected, Fault> {
        let (mut text, mut tokens) = (String::new(), Vec::new());
        loop {
            match self.next().await? {
                Some(Piece::Tokens(more)) => {
                    more.iter().for_each(|token| text.push_str(&token.text));
                    tokens.extend(more);
                }
                Some(Piece::Finished(finished)) => {
                    return Ok(Collected { facts: self.facts.clone(), text, tokens, finished });
                }
                None => return Err(Error::CutShort.into()),
            }
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.metrics.generations_in_flight.dec();
        self.metrics.generations.with_label_values(&[self.end.unwrap_or("cancelled")]).inc();
    }
}

/// As the wire wants it.
fn raw(digest: Digest) -> Bytes {
    Bytes::copy_from_slice(digest.as_bytes())
}

fn shown(digest: &[u8]) -> String {
    match Digest::try_from(digest) {
        Ok(digest) => digest.to_string(),
        Err(_) if digest.is_empty() => "base".to_owned(),
        Err(_) => format!("({} bytes)", digest.len()),
    }
}
