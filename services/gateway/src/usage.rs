//! What tenants used, written down before the last piece of an answer goes out (`docs/usage.md`).
//!
//! The log is on the local disk and shared by all answers; segments of it go to the registry, which keeps the ledger in S3. A gateway without
//! `usage_dir` accounts for nothing, and says so when it starts.

use crate::clock::unix_ms;
use crate::directory::Registry;
use crate::error::BuildError;
use crate::generate::Admission;
use crate::metrics::Metrics;
use crate::resolve::Resolved;
use crate::settings::Settings;
use futures::future::BoxFuture;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use weft_fault::Fault;
use weft_proto::registry::v1 as pb;
use weft_usage::{Destination, Error, Log, LogSettings, Outcome, Record, Request, Segment, Shipped, Shipper};

/// Tries of an append that finds the queue full, and the pause between them: about as long as some fsyncs.
const APPEND_TRIES: usize = 20;
const APPEND_PAUSE: Duration = Duration::from_millis(50);
/// How long the last pass may take at shutdown: what is left ships at the next start.
const LAST_PASS: Duration = Duration::from_secs(10);
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// The log of this gateway and its way to the registry.
pub(crate) struct Usage {
    log: Arc<Log>,
    shipper: Arc<Shipper>,
    metrics: Metrics,
}

/// The registry as whoever keeps the ledger.
struct ToRegistry {
    registry: Registry,
    timeout: Duration,
}

impl Destination for ToRegistry {
    fn ship<'a>(&'a self, segment: &'a Segment, records: &'a [Vec<u8>]) -> BoxFuture<'a, Result<Shipped, Error>> {
        Box::pin(async move {
            if records.is_empty() {
                return Ok(Shipped::Nothing);
            }
            let mut lines = Vec::with_capacity(records.iter().map(|record| record.len() + 1).sum());
            for record in records {
                lines.extend_from_slice(record);
                lines.push(b'\n');
            }
            let request = pb::KeepUsageRequest { segment: segment.name(), lines: lines.into() };
            let mut registry = self.registry.clone();
            match tokio::time::timeout(self.timeout, registry.keep_usage(request)).await {
                Ok(Ok(_)) => Ok(Shipped::Written),
                Ok(Err(status)) if Fault::from(&status).kind == weft_fault::Kind::Corrupt => {
                    Err(Error::OtherBytes { key: segment.name() })
                }
                Ok(Err(status)) => Err(Error::Away { problem: status.message().to_owned() }),
                Err(_) => Err(Error::Away { problem: "the registry does not answer".to_owned() }),
            }
        })
    }
}

impl Usage {
    /// Opens the log, if there is to be one. Blocks for the length of a segment's read.
    pub(crate) fn open(
        settings: &Settings,
        registry: Registry,
        metrics: &Metrics,
    ) -> Result<Option<Arc<Self>>, BuildError> {
        let Some(dir) = &settings.usage_dir else {
            tracing::warn!("usage is not accounted for (setting usage_dir)");
            return Ok(None);
        };
        let wrong = |name, error: Error| BuildError::Setting { name, problem: Fault::from(error).message };
        let log = Log::open(dir, LogSettings::default()).map_err(|error| wrong("usage_dir", error))?;
        let log = Arc::new(log);
        let destination = ToRegistry { registry, timeout: settings.registry_timeout() };
        let shipper = Shipper::new(Arc::clone(&log), destination, settings.usage_ship_ms);
        let shipper = Arc::new(shipper.map_err(|error| wrong("usage_ship_ms", error))?);
        Ok(Some(Arc::new(Self { log, shipper, metrics: metrics.clone() })))
    }

    /// Writes a record; success means that it survives a kill.
    async fn append(&self, record: &Record) -> Result<(), Fault> {
        let mut tries = 0;
        let appended = loop {
            match self.log.append(record).await {
                Err(Error::Full { .. }) if tries < APPEND_TRIES => tries += 1,
                appended => break appended,
            }
            tokio::time::sleep(APPEND_PAUSE).await;
        };
        let result = if appended.is_ok() { "ok" } else { "failed" };
        self.metrics.usage_records.with_label_values(&[result]).inc();
        appended.map_err(|error| {
            let fault = Fault::from(error);
            tracing::error!(reason = fault.message, "an answer is not accounted for, and so it is not given");
            Fault::unavailable(format!("the answer cannot be accounted for: {}", fault.message))
                .with_code("usage_unavailable")
                .with_retry_after_ms(1_000)
        })
    }

    /// Ships for ever, and brings its state into the metrics. Cancel safe.
    pub(crate) async fn ship(self: Arc<Self>) {
        let show = async {
            loop {
                self.show();
                tokio::time::sleep(SHOW_EVERY).await;
            }
        };
        tokio::join!(self.shipper.ship_forever(CancellationToken::new()), show);
    }

    /// The last pass, after the last answer.
    pub(crate) async fn finish(&self) {
        if !matches!(tokio::time::timeout(LAST_PASS, self.shipper.ship_once()).await, Ok(Ok(()))) {
            tracing::warn!(bytes = self.log.state().unshipped_bytes, "usage that was not told ships at the next start");
        }
    }

    fn show(&self) {
        let state = self.shipper.state();
        self.metrics.usage_unshipped_bytes.set(state.unshipped_bytes as i64);
        self.metrics.usage_unshipped_age_ms.set(state.oldest_unshipped_age_ms as i64);
    }

    /// Why answers cannot be accounted for now; none: they can.
    pub(crate) fn problem(&self) -> Option<String> {
        self.log.state().poisoned
    }
}

/// One request's accounts: each of its answers is one record.
pub(crate) struct Account {
    usage: Arc<Usage>,
    key_id: String,
}

impl Account {
    pub(crate) fn new(usage: Arc<Usage>, key_id: &str) -> Arc<Self> {
        Arc::new(Self { usage, key_id: key_id.to_owned() })
    }

    /// Answer number `at` of the request, from 0, has begun. `prompt`: what its prompt counts for; nothing, if another answer has the same.
    pub(crate) fn open(self: &Arc<Self>, admission: &Admission, at: usize, prompt: PromptTokens) -> Tab {
        let (adapter, version, digest) = match &admission.resolved {
            Resolved::Base => (None, None, None),
            Resolved::Adapter { name, version, digest } => (name.parse().ok(), Some(*version), Some(*digest)),
        };
        // A name that is none would be a bug of the registry's: without one, nobody can be charged.
        let tenant = admission.tenant.name.parse().ok();
        let request = tenant.map(|tenant| Request {
            id: if at == 0 { admission.response_id.clone() } else { format!("{}.{at}", admission.response_id) },
            tenant,
            key_id: self.key_id.clone(),
            adapter,
            version,
            digest,
            ended_ms: 0,
            prompt_tokens: prompt.all.into(),
            completion_tokens: 0,
            cached_tokens: prompt.cached.into(),
            outcome: Outcome::Cancelled,
            duration_ms: 0,
        });
        Tab::new(Arc::clone(self), request, admission.arrived)
    }
}

/// Tokens of a prompt, and of those the ones that were not computed again.
#[derive(Clone, Copy, Default)]
pub(crate) struct PromptTokens {
    pub(crate) all: u32,
    pub(crate) cached: u32,
}

/// One answer's record in the making. Dropped before it was settled it is a cancelled or failed answer, and is written in the background.
pub(crate) struct Tab {
    account: Arc<Account>,
    request: Option<Request>,
    arrived: tokio::time::Instant,
    /// The record is made, and may be in the log already: whatever happens, it is this one that is written.
    is_made: bool,
    /// The answer's tokens are given to nobody, and not counted.
    is_prompt_alone: bool,
}

impl Tab {
    fn new(account: Arc<Account>, request: Option<Request>, arrived: tokio::time::Instant) -> Self {
        Self { account, request, arrived, is_made: false, is_prompt_alone: false }
    }

    /// So many tokens more were delivered.
    pub(crate) fn answered(&mut self, tokens: usize) {
        if let Some(request) = self.request.as_mut().filter(|_| !self.is_prompt_alone) {
            request.completion_tokens += tokens as u64;
        }
    }

    /// The caller wants the prompt alone: what is generated beside it counts for nothing.
    pub(crate) fn prompt_alone(&mut self) {
        self.is_prompt_alone = true;
        if let Some(request) = &mut self.request {
            request.completion_tokens = 0;
        }
    }

    /// It failed on the way.
    pub(crate) fn failed(&mut self) {
        if let Some(request) = &mut self.request {
            request.outcome = Outcome::Failed;
        }
    }

    /// Makes the record, once: the same id with another time would be another record, and might count for another day.
    fn made(&mut self) -> Option<Record> {
        let request = self.request.as_mut()?;
        if !self.is_made {
            request.ended_ms = unix_ms();
            request.duration_ms = self.arrived.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
            self.is_made = true;
        }
        Some(Record::Request(request.clone()))
    }

    /// Writes down a whole answer; it may be given when this returns. Cancel safe: called again it writes the same, which counts once.
    ///
    /// # Errors
    /// It cannot be written down, and has failed.
    pub(crate) async fn settle(&mut self, completion_tokens: u32) -> Result<(), Fault> {
        if let Some(request) = self.request.as_mut().filter(|_| !self.is_made) {
            request.outcome = Outcome::Complete;
            request.completion_tokens = if self.is_prompt_alone { 0 } else { completion_tokens.into() };
        }
        let Some(record) = self.made() else { return Ok(()) };
        if let Err(fault) = self.account.usage.append(&record).await {
            // It is not in the log, or the log takes no other one either.
            self.is_made = false;
            self.failed();
            return Err(fault);
        }
        self.request = None;
        Ok(())
    }
}

impl Drop for Tab {
    fn drop(&mut self) {
        let (Some(record), Ok(runtime)) = (self.made(), tokio::runtime::Handle::try_current()) else { return };
        let usage = Arc::clone(&self.account.usage);
        // What it cannot write it has told.
        runtime.spawn(async move { drop(usage.append(&record).await) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use std::path::Path;

    struct Nowhere;

    impl Destination for Nowhere {
        fn ship<'a>(&'a self, _: &'a Segment, _: &'a [Vec<u8>]) -> BoxFuture<'a, Result<Shipped, Error>> {
            Box::pin(async { Err(Error::Away { problem: "there is nobody".into() }) })
        }
    }

    fn tab(dir: &Path) -> (Arc<Log>, Tab) {
        let log = Arc::new(Log::open(dir, LogSettings::default()).unwrap());
        let shipper = Arc::new(Shipper::new(Arc::clone(&log), Nowhere, 100).unwrap());
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let account = Account::new(Arc::new(Usage { log: Arc::clone(&log), shipper, metrics }), "k1");
        let request = Request {
            id: "a".into(),
            tenant: "harbour".parse().unwrap(),
            key_id: "k1".into(),
            adapter: None,
            version: None,
            digest: None,
            ended_ms: 0,
            prompt_tokens: 7,
            completion_tokens: 2,
            cached_tokens: 3,
            outcome: Outcome::Cancelled,
            duration_ms: 0,
        };
        (log, Tab::new(account, Some(request), tokio::time::Instant::now()))
    }

    /// What the log has, once it has this many records.
    async fn until_records(log: &Log, count: usize) -> Vec<Record> {
        loop {
            log.close_segment().await.unwrap();
            let lines = log.unshipped().into_iter().flat_map(|segment| log.read(&segment).unwrap());
            let records: Vec<Record> = lines.map(|line| Record::from_json(&line).unwrap()).collect();
            if records.len() >= count {
                return records;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// An append goes into the queue when it is first polled, so that the record is written although nobody waits for it.
    #[tokio::test]
    async fn a_record_that_was_on_its_way_is_never_another_one() {
        for settled_again in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let (log, mut tab) = tab(dir.path());
            let was_settled = tab.settle(3).now_or_never().is_some();
            tokio::time::sleep(Duration::from_millis(20)).await;
            if settled_again {
                tab.settle(3).await.unwrap();
            }
            drop(tab);
            let records = until_records(&log, if was_settled { 1 } else { 2 }).await;
            assert!(records.iter().all(|record| *record == records[0]), "{records:?}");
            let Record::Request(request) = &records[0] else { panic!("{records:?}") };
            assert_eq!((request.outcome, request.completion_tokens), (Outcome::Complete, 3));
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_dropped_is_written_as_far_as_it_got() {
        let dir = tempfile::tempdir().unwrap();
        let (log, mut tab) = tab(dir.path());
        tab.answered(1);
        drop(tab);
        let records = until_records(&log, 1).await;
        let Record::Request(request) = &records[0] else { panic!("{records:?}") };
        assert_eq!((request.outcome, request.completion_tokens), (Outcome::Cancelled, 3));
    }
}
