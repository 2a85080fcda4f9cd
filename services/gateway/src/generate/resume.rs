//! What happens to an answer whose worker is lost after the first token: another one computes the delivered tokens again,
//! as a prompt, and goes on behind them with the same seed. The client sees one stream.

use super::attempt::{Attempt, request};
use super::{Admission, Mesh, Piece, Wanted};
use crate::error::code;
use crate::workers::{Asked, InFlight, WorkerId};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, timeout};
use weft_fault::{Fault, Kind};
use weft_proto::worker::v1 as pb;
use weft_service_kit::transport::Backoff;

/// While no worker is up: how long until the next look at what is known of them, if nothing changes before.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

/// What an answer consists of so far, as another worker has to know it.
#[derive(Clone, Debug, Default)]
pub(super) struct Delivered {
    ids: Vec<u32>,
    seed: u64,
    prompt_digest: Bytes,
}

impl Delivered {
    pub(super) fn began(&mut self, started: &pb::Started) {
        (self.seed, self.prompt_digest) = (started.seed, started.prompt_digest.clone());
    }

    pub(super) fn note(&mut self, piece: &Piece) {
        if let Piece::Tokens(tokens) = piece {
            self.ids.extend(tokens.iter().map(|token| token.id));
        }
    }

    /// Whether the worker that began has told what another one needs.
    pub(super) fn can_be_continued(&self) -> bool {
        !self.prompt_digest.is_empty()
    }
}

/// Whether another worker may do better.
pub(super) fn is_worth_another_try(fault: &Fault) -> bool {
    matches!(fault.kind, Kind::Unavailable | Kind::Overloaded)
}

/// A generation between two workers.
pub(super) struct Move {
    pub(super) mesh: Arc<Mesh>,
    pub(super) admission: Admission,
    pub(super) wanted: Wanted,
    pub(super) delivered: Delivered,
    /// The worker that was left, and why.
    pub(super) left: (WorkerId, Fault),
    /// Attempts so far.
    pub(super) attempts: usize,
}

impl Move {
    /// Finds a worker that goes on, waiting for one at most [`Mesh::patience`], and says how many attempts there were by then. A
    /// try that follows a loss takes from the retry budget; one that follows a drain does not: the work was there before.
    ///
    /// # Errors
    /// Why the last worker was left, if nobody goes on; a mismatch of bytes; the request's time limit.
    pub(super) async fn find(mut self) -> Result<(Attempt, usize), Fault> {
        let deadline = Instant::now() + self.mesh.patience.min(self.admission.time_left());
        let mut tried = vec![self.left.0];
        let mut backoff = Backoff::default();
        let mut is_paid = self.left.1.code == code::DRAINING;
        loop {
            let mut is_hopeless = false;
            let before = tried.len();
            while let Some(chosen) = self.choose(&tried) {
                if !std::mem::take(&mut is_paid) && !self.mesh.limits.retries.withdraw() {
                    return self.give_up("the retry budget is spent");
                }
                tried.push(chosen.worker().id);
                let address = chosen.worker().address.clone();
                match self.attempt(chosen).await {
                    Ok(attempt) => {
                        self.mesh.metrics.continuations.with_label_values(&["continued"]).inc();
                        tracing::info!(
                            request_id = self.admission.request_id, worker = %address, tokens = self.delivered.ids.len(),
                            reason = %self.left.1.message, "another worker goes on"
                        );
                        return Ok((attempt, self.attempts));
                    }
                    // What is wrong with the bytes is wrong with the request.
                    Err(fault) if fault.kind == Kind::Corrupt => return Err(fault),
                    Err(_) if self.admission.time_left().is_zero() => return Err(self.admission.too_slow()),
                    Err(fault) => {
                        tracing::warn!(request_id = self.admission.request_id, worker = %address, reason = %fault.message, "cannot go on there");
                        is_paid = fault.code == code::DRAINING;
                        is_hopeless |= !is_worth_another_try(&fault);
                    }
                }
            }
            if is_hopeless || Instant::now() >= deadline {
                return self.give_up("no worker goes on");
            }
            if tried.len() > before {
                backoff.wait().await;
            } else {
                let _ = timeout(LOOK_AGAIN, self.mesh.pool.changed()).await;
            }
            // Whoever comes back is as good as anybody.
            tried.clear();
        }
    }

    /// A worker that is up and was not tried in this round.
    fn choose(&self, tried: &[WorkerId]) -> Option<InFlight> {
        let adapter = self.admission.resolved.digest();
        let asked = self.admission.asked(adapter.as_ref(), &self.wanted);
        let chosen = self.mesh.pool.choose(&Asked { tried, ..asked })?;
        self.mesh.pool.takes_requests(chosen.worker()).then_some(chosen)
    }

    async fn attempt(&mut self, chosen: InFlight) -> Result<Attempt, Fault> {
        let continuation =
            pb::Continuation { ids: self.delivered.ids.clone(), prompt_digest: self.delivered.prompt_digest.clone() };
        let mut again = request(&self.admission, &self.wanted, self.attempts, Some(continuation));
        again.sampling.get_or_insert_default().seed = Some(self.delivered.seed);
        self.attempts += 1;
        Attempt::open(&self.mesh, &self.admission, chosen, again).await.map(|(attempt, _)| attempt)
    }

    fn give_up<T>(self, why: &str) -> Result<T, Fault> {
        self.mesh.metrics.continuations.with_label_values(&["given_up"]).inc();
        tracing::warn!(
            request_id = self.admission.request_id,
            tokens = self.delivered.ids.len(),
            why,
            "an answer is broken off"
        );
        Err(self.left.1)
    }
}
