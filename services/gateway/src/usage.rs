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
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use weft_fault::Fault;
use weft_proto::registry::v1 as pb;
use weft_proto::worker::v1::generate_request::Prompt;
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

/// One request's accounts: each of its answers is one record, and each of its prompts counts once.
pub(crate) struct Account {
    usage: Arc<Usage>,
    answers: AtomicUsize,
    /// Where the prompts lie whose tokens were counted.
    prompts: Mutex<HashSet<usize>>,
    key_id: String,
}

impl Account {
    pub(crate) fn new(usage: Arc<Usage>, key_id: &str) -> Arc<Self> {
        let (answers, prompts) = (AtomicUsize::new(0), Mutex::default());
        Arc::new(Self { usage, answers, prompts, key_id: key_id.to_owned() })
    }

    /// An answer has begun.
    pub(crate) fn begun(
        self: &Arc<Self>,
        admission: &Admission,
        prompt: &Arc<Prompt>,
        prompt_tokens: u32,
        cached: u32,
    ) -> Tab {
        let at = self.answers.fetch_add(1, Ordering::Relaxed);
        let is_first = self.prompts.lock().unwrap_or_else(PoisonError::into_inner).insert(Arc::as_ptr(prompt) as usize);
        let of_first = |tokens: u32| if is_first { u64::from(tokens) } else { 0 };
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
            prompt_tokens: of_first(prompt_tokens),
            completion_tokens: 0,
            cached_tokens: of_first(cached),
            outcome: Outcome::Cancelled,
            duration_ms: 0,
        });
        Tab { account: Arc::clone(self), request, arrived: admission.arrived }
    }
}

/// One answer's record in the making. Dropped before it was settled it is a cancelled or failed answer, and is written in the background.
pub(crate) struct Tab {
    account: Arc<Account>,
    request: Option<Request>,
    arrived: tokio::time::Instant,
}

impl Tab {
    /// So many tokens more were delivered.
    pub(crate) fn answered(&mut self, tokens: usize) {
        if let Some(request) = &mut self.request {
            request.completion_tokens += tokens as u64;
        }
    }

    /// It failed on the way.
    pub(crate) fn failed(&mut self) {
        if let Some(request) = &mut self.request {
            request.outcome = Outcome::Failed;
        }
    }

    fn ended(&self, mut request: Request) -> Record {
        request.ended_ms = unix_ms();
        request.duration_ms = self.arrived.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
        Record::Request(request)
    }

    /// Writes down a whole answer; it may be given when this returns.
    ///
    /// # Errors
    /// It cannot be written down.
    pub(crate) async fn settle(&mut self, completion_tokens: u32) -> Result<(), Fault> {
        let Some(request) = self.request.clone() else { return Ok(()) };
        let completion_tokens = u64::from(completion_tokens);
        let record = self.ended(Request { completion_tokens, outcome: Outcome::Complete, ..request });
        self.account.usage.append(&record).await?;
        self.request = None;
        Ok(())
    }
}

impl Drop for Tab {
    fn drop(&mut self) {
        let (Some(request), Ok(runtime)) = (self.request.take(), tokio::runtime::Handle::try_current()) else { return };
        let (record, usage) = (self.ended(request), Arc::clone(&self.account.usage));
        // What it cannot write it has told.
        runtime.spawn(async move { drop(usage.append(&record).await) });
    }
}
