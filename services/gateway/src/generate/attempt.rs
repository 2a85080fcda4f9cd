//! One worker's part of a generation: its stream, read event by event, with a look at whose bytes spoke.
//!
//! Invariant 1 ends here: each event names the digest of the slot entry that the steps used. It is compared with the
//! digest that was resolved at admission, and a difference fails the request; not one token of it gets out.

use super::{Admission, Mesh, Piece, Wanted};
use crate::error::{Error, code, from_worker};
use crate::workers::{InFlight, Worker, WorkerId};
use bytes::Bytes;
use std::future::Future;
use std::pin::pin;
use tokio::time::timeout;
use tonic::{Status, Streaming};
use weft_fault::Fault;
use weft_proto::worker::v1 as pb;
use weft_proto::worker::v1::generate_event::Event;
use weft_service_kit::transport::within;
use weft_types::Digest;

/// A worker's stream of one request. Dropping it cancels the request there.
pub(super) struct Attempt {
    /// Of the worker, in the pool.
    pub(super) id: WorkerId,
    at: InFlight,
    stream: Streaming<pb::GenerateEvent>,
}

impl Attempt {
    /// Sends the request and waits until its first step.
    ///
    /// # Errors
    /// The worker's, or the request's time limit.
    pub(super) async fn open(
        mesh: &Mesh,
        admission: &Admission,
        mut at: InFlight,
        request: pb::GenerateRequest,
    ) -> Result<(Self, pb::Started), Fault> {
        let replayed = request.continuation.as_ref().map_or(0, |continuation| continuation.ids.len());
        let mut client = at.worker().client();
        let opened = hear(mesh, at.worker(), admission, client.generate(within(admission.time_left(), request))).await;
        let stream = match opened {
            Ok(response) => response.into_inner(),
            Err(fault) => {
                note(&mut at, &fault);
                return Err(fault);
            }
        };
        let mut attempt = Self { id: at.worker().id, at, stream };
        match attempt.started(mesh, admission, replayed).await {
            Ok(started) => {
                attempt.at.succeeded();
                Ok((attempt, started))
            }
            Err(fault) => {
                note(&mut attempt.at, &fault);
                Err(fault)
            }
        }
    }

    async fn started(&mut self, mesh: &Mesh, admission: &Admission, replayed: usize) -> Result<pb::Started, Fault> {
        let Some(Event::Started(started)) = self.event(mesh, admission).await? else {
            return Err(Error::CutShort.into());
        };
        check_adapter(mesh, admission, &started.adapter_digest)?;
        if started.base_digest.as_ref() != admission.base.digest.as_bytes() {
            return Err(Error::WrongBase { expected: admission.base.digest, got: shown(&started.base_digest) }.into());
        }
        if started.replayed_tokens as usize != replayed {
            return Err(Error::CannotContinue.into());
        }
        Ok(started)
    }

    /// The next piece; nothing follows [`Piece::Finished`]. Cancel safe.
    ///
    /// # Errors
    /// The worker's, a mismatch, or the time limit. Nothing comes after an error.
    pub(super) async fn piece(&mut self, mesh: &Mesh, admission: &Admission) -> Result<Piece, Fault> {
        let piece = match self.event(mesh, admission).await {
            Ok(Some(Event::Tokens(tokens))) => {
                check_adapter(mesh, admission, &tokens.adapter_digest).map(|()| Piece::Tokens(tokens.tokens))
            }
            Ok(Some(Event::Finished(finished))) => {
                check_adapter(mesh, admission, &finished.adapter_digest).map(|()| Piece::Finished(finished))
            }
            // `started` twice, an event of a newer worker that we cannot read, or an end without `finished`.
            Ok(Some(Event::Started(_)) | None) => Err(Error::CutShort.into()),
            Err(fault) => Err(fault),
        };
        if let Err(fault) = &piece {
            note(&mut self.at, fault);
        }
        piece
    }

    async fn event(&mut self, mesh: &Mesh, admission: &Admission) -> Result<Option<Event>, Fault> {
        let message = hear(mesh, self.at.worker(), admission, self.stream.message()).await?;
        Ok(message.and_then(|message| message.event))
    }
}

/// What a failure says about the worker, for those who choose one later. A refusal says nothing, and requests that are lost together
/// are one failure: a restart must not open its circuit. One that uses other bytes than were resolved should not be asked on and on.
fn note(at: &mut InFlight, fault: &Fault) {
    let counts = match fault.code.as_str() {
        code::WORKER_LOST => at.worker().suspect(&fault.message),
        code::DRAINING => {
            at.worker().suspect(&fault.message);
            false
        }
        code::ADAPTER_MISMATCH => true,
        _ => false,
    };
    if counts {
        at.failed();
    }
}

/// Waits for a worker's word, within the request's time. A queue and a long prompt are silent too: a worker that has said
/// nothing for [`Mesh::silence`] is asked whether it is there, and is lost if it does not answer that within the same time.
/// Cancel safe if `word` is.
async fn hear<T>(
    mesh: &Mesh,
    worker: &Worker,
    admission: &Admission,
    word: impl Future<Output = Result<T, Status>>,
) -> Result<T, Fault> {
    let mut word = pin!(word);
    loop {
        match timeout(mesh.silence.min(admission.time_left()), word.as_mut()).await {
            Ok(said) => return said.map_err(|status| lost_or_late(&status, admission)),
            Err(_) if admission.time_left().is_zero() => return Err(admission.too_slow()),
            Err(_) => {}
        }
        let mut client = worker.client();
        tokio::select! {
            biased;
            said = word.as_mut() => return said.map_err(|status| lost_or_late(&status, admission)),
            answer = timeout(mesh.silence, client.get_load(within(mesh.silence, pb::GetLoadRequest {}))) => {
                if !matches!(answer, Ok(Ok(_))) {
                    return Err(Error::Silent.into());
                }
            }
        }
    }
}

/// A call that the deadline ended looks like a broken one.
fn lost_or_late(status: &Status, admission: &Admission) -> Fault {
    if admission.time_left().is_zero() { admission.too_slow() } else { from_worker(status) }
}

fn check_adapter(mesh: &Mesh, admission: &Admission, got: &[u8]) -> Result<(), Fault> {
    let expected = admission.expected_digest();
    if got == expected {
        return Ok(());
    }
    mesh.metrics.digest_mismatches.inc();
    tracing::error!(
        request_id = admission.request_id,
        expected = shown(&expected),
        got = shown(got),
        "a worker used other bytes than were resolved"
    );
    Err(Error::WrongAdapter { expected: shown(&expected), got: shown(got) }.into())
}

/// Attempt number `attempt` of the request, from 0.
pub(super) fn request(
    admission: &Admission,
    wanted: &Wanted,
    attempt: usize,
    continuation: Option<pb::Continuation>,
) -> pb::GenerateRequest {
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
        continuation,
        deadline_ms: admission.time_left().as_millis().try_into().unwrap_or(u64::MAX).max(1),
    }
}

/// As the wire wants it.
pub(super) fn raw(digest: Digest) -> Bytes {
    Bytes::copy_from_slice(digest.as_bytes())
}

fn shown(digest: &[u8]) -> String {
    match Digest::try_from(digest) {
        Ok(digest) => digest.to_string(),
        Err(_) if digest.is_empty() => "base".to_owned(),
        Err(_) => format!("({} bytes)", digest.len()),
    }
}
