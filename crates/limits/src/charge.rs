//! What one request took, and its settlement.

use crate::limiter::{Shared, Standing};
use crate::need::Need;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use weft_types::LimitKind;

/// What a request took. When it is dropped, what the request really used is settled: tokens that it did not use come back,
/// tokens beyond its estimate are owed, slots come free. Settling twice changes nothing.
pub struct Charge(Option<Inner>);

struct Inner {
    shared: Arc<Shared>,
    needs: Vec<Need>,
    standing: Standing,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    tokens_used: u64,
    /// Answers that wait for their first token.
    waiting: u64,
    settled: bool,
}

impl Charge {
    /// Of a request that no limit concerns.
    #[must_use]
    pub fn unlimited() -> Self {
        Self(None)
    }

    pub(crate) fn new(shared: Arc<Shared>, needs: Vec<Need>, answers: u64, standing: Standing) -> Self {
        let open = Mutex::new(Open { waiting: answers, ..Open::default() });
        Self(Some(Inner { shared, needs, standing, open }))
    }

    /// For the headers of the answer.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.0.as_ref().map_or_else(Standing::default, |inner| inner.standing)
    }

    /// An answer has its first token: it waits no more.
    pub fn began(&self) {
        let Some(inner) = &self.0 else { return };
        let mut open = inner.open();
        if open.waiting > 0 && !open.settled {
            open.waiting -= 1;
            inner.release(LimitKind::QueueLength, 1);
        }
    }

    /// So many tokens more were used, of the prompt or of an answer.
    pub fn used(&self, tokens: u64) {
        if let Some(inner) = &self.0 {
            let mut open = inner.open();
            open.tokens_used = open.tokens_used.saturating_add(tokens);
        }
    }

    /// Settles now. Later calls, and dropping it, change nothing.
    pub fn settle(&self) {
        let Some(inner) = &self.0 else { return };
        let mut open = inner.open();
        if std::mem::replace(&mut open.settled, true) {
            return;
        }
        let mut account = inner.shared.account();
        for need in &inner.needs {
            match need.kind {
                LimitKind::TokensPerMinute | LimitKind::TokensPerDay => {
                    account.settle(&need.bucket, need.amount, open.tokens_used);
                }
                LimitKind::ConcurrentRequests => account.release(&need.bucket, need.amount),
                LimitKind::QueueLength => account.release(&need.bucket, open.waiting),
                // A request that failed was a request.
                LimitKind::RequestsPerMinute => {}
            }
        }
    }
}

impl Inner {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, kind: LimitKind, count: u64) {
        let mut account = self.shared.account();
        self.needs.iter().filter(|need| need.kind == kind).for_each(|need| account.release(&need.bucket, count));
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.settle();
    }
}
