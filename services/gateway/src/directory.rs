//! The registry's directory as this gateway last saw it: tenants, key hashes, adapters, versions, aliases.
//!
//! One task follows `WatchDirectory` and reconnects with back-off. Readers take the current snapshot without waiting.
//! While the registry is away the last snapshot stays, for at most `directory_age_max_s`. A registry that cannot read the object
//! store says how old its knowledge is, and is as good as away.

use crate::error::{Error, is_of_the_transport};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use subtle::ConstantTimeEq;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::GrpcMethod;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use weft_experiments::Experiment;
use weft_fault::Fault;
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::registry_client::RegistryClient;
use weft_service_kit::transport::{Backoff, MESSAGE_BYTES_MAX, set_deadline};
use weft_types::{Digest, Limits};

/// The registry speaks at least every few seconds; a stream silent for this long is given up, soon enough to see a write made elsewhere
/// within 15 s.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(12);
/// Another registry's directory that is older than this is not taken for the one we have: that registry sees no writes any more.
const BEHIND_MAX: Duration = SILENCE_MAX;
/// Tags what the salt is for, so that the same secret can serve other ends later.
const SALT_TAG: &[u8] = b"weft.tenant-salt.v1";
/// Bytes of a tenant's secret.
const SECRET_BYTES: usize = 32;

pub(crate) type Registry = RegistryClient<InterceptedService<Channel, Deadline>>;

/// Tells the registry how long we wait for an answer, so that it does not work for one that nobody hears.
#[derive(Clone, Copy)]
pub(crate) struct Deadline(Duration);

/// Calls that last: an upload is bounded piece by piece, the directory is followed, logs and tables come in pieces, and what the registry judges
/// or cleans up has a time of its own.
const LASTING: [&str; 7] =
    ["Publish", "WatchDirectory", "ReadExposures", "ReadUsage", "Merge", "Import", "CollectGarbage"];

impl Interceptor for Deadline {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        let method = request.extensions().get::<GrpcMethod<'_>>().map(GrpcMethod::method);
        if !method.is_some_and(|method| LASTING.contains(&method)) {
            set_deadline(&mut request, self.0);
        }
        Ok(request)
    }
}

/// A registry client with our message limits, whose calls have `deadline` to be answered.
pub(crate) fn registry_client(channel: Channel, deadline: Duration) -> Registry {
    RegistryClient::with_interceptor(channel, Deadline(deadline))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// One state of the directory. Never changes.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) generation: u64,
    pub(crate) incarnation: String,
    tenants: HashMap<String, Arc<Tenant>>,
    keys: HashMap<[u8; 32], (Arc<Key>, Arc<Tenant>)>,
}

/// One of a tenant's keys.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) id: String,
    /// Besides the tenant's.
    pub(crate) limits: Limits,
}

/// A tenant and what it owns.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) name: String,
    pub(crate) default_adapter: Option<String>,
    /// HMAC of the tenant's secret: part of every cache key below (invariant 2). None without a proper secret: then nothing
    /// of this tenant is cached, for it would share with others who have none.
    pub(crate) salt: Option<[u8; 32]>,
    /// Its share of a worker; 0 from a registry that knows no weights.
    pub(crate) weight: f64,
    /// Its own.
    pub(crate) limits: Limits,
    pub(crate) adapters: BTreeMap<String, Adapter>,
    /// Length of each version's blob.
    pub(crate) adapter_bytes: HashMap<Digest, u64>,
    /// That split an alias now.
    pub(crate) experiments: Vec<Arc<Experiment>>,
    /// The beginning of a source, by the `adapter_source` of a request.
    pub(crate) adapter_sources: BTreeMap<String, String>,
    /// The base's name means the default adapter.
    pub(crate) base_is_default: bool,
}

impl Tenant {
    /// The experiment that splits this alias. Of two, the one whose id is smaller, at every gateway.
    pub(crate) fn split(&self, adapter: &str, alias: &str) -> Option<&Arc<Experiment>> {
        let splits = |experiment: &&Arc<Experiment>| {
            experiment.adapter.as_str() == adapter && experiment.alias.as_str() == alias
        };
        self.experiments.iter().filter(splits).min_by(|one, other| one.id.cmp(&other.id))
    }

    /// The running experiment with this id.
    pub(crate) fn experiment(&self, id: &str) -> Option<&Arc<Experiment>> {
        self.experiments.iter().find(|experiment| experiment.id == id)
    }
}

/// An adapter's versions and aliases.
#[derive(Debug)]
pub(crate) struct Adapter {
    pub(crate) created_ms: u64,
    pub(crate) versions: BTreeMap<u64, Digest>,
    pub(crate) aliases: BTreeMap<String, u64>,
}

impl Snapshot {
    /// Reads the registry's message. Entries with malformed digests are left out: they can never be served.
    pub(crate) fn read(message: pb::Directory) -> Self {
        let mut snapshot = Self { generation: message.generation, incarnation: message.incarnation, ..Self::default() };
        for tenant in message.tenants {
            let versions = tenant.adapters.iter().flat_map(|adapter| &adapter.versions);
            let adapter_bytes =
                versions.filter_map(|version| Some((Digest::try_from(version.digest.as_ref()).ok()?, version.bytes)));
            let adapter_bytes = adapter_bytes.collect();
            let adapters = tenant.adapters.into_iter().map(|adapter| (adapter.name.clone(), Adapter::read(adapter)));
            let policy = tenant.policy.unwrap_or_default();
            let read = Arc::new(Tenant {
                salt: salt(&tenant.salt),
                weight: tenant.weight,
                limits: limits(tenant.limits),
                default_adapter: Some(tenant.default_adapter).filter(|name| !name.is_empty()),
                adapters: adapters.collect(),
                adapter_bytes,
                experiments: tenant.experiments.iter().filter_map(|json| experiment(&tenant.name, json)).collect(),
                adapter_sources: policy.adapter_sources.into_iter().collect(),
                base_is_default: policy.base_is_default,
                name: tenant.name.clone(),
            });
            for key in tenant.keys {
                if let Ok(hash) = <[u8; 32]>::try_from(key.secret_sha256.as_ref()) {
                    let key = Key { id: key.id, limits: limits(key.limits) };
                    snapshot.keys.insert(hash, (Arc::new(key), Arc::clone(&read)));
                }
            }
            snapshot.tenants.insert(tenant.name, read);
        }
        snapshot
    }

    /// The key with this SHA-256, and its tenant.
    pub(crate) fn key(&self, hash: &[u8; 32]) -> Option<(Arc<Key>, Arc<Tenant>)> {
        let (stored, found) = self.keys.get_key_value(hash)?;
        bool::from(stored.ct_eq(hash)).then(|| found.clone())
    }

    pub(crate) fn tenant(&self, name: &str) -> Option<&Arc<Tenant>> {
        self.tenants.get(name)
    }

    pub(crate) fn adapter(&self, tenant: &str, adapter: &str) -> Option<&Adapter> {
        self.tenant(tenant)?.adapters.get(adapter)
    }

    /// The newest version of the tenant's adapter.
    pub(crate) fn newest(&self, tenant: &str, adapter: &str) -> Option<u64> {
        self.adapter(tenant, adapter)?.versions.keys().next_back().copied()
    }

    /// `tenant/name@version` of every digest; of several the first in the order of versions of some tenant. Cost: one step a version.
    pub(crate) fn labels(&self) -> HashMap<Digest, String> {
        let mut labels = HashMap::new();
        for (tenant, known) in &self.tenants {
            for (name, adapter) in &known.adapters {
                for (version, digest) in &adapter.versions {
                    labels.entry(*digest).or_insert_with(|| format!("{tenant}/{name}@{version}"));
                }
            }
        }
        labels
    }

    pub(crate) fn has_key(&self, tenant: &str, id: &str) -> bool {
        self.key_limits(tenant, id).is_some()
    }

    /// The limits of one of the tenant's keys. Cost: one step a key.
    pub(crate) fn key_limits(&self, tenant: &str, id: &str) -> Option<Limits> {
        let mut keys = self.keys.values();
        keys.find(|(key, owner)| key.id == id && owner.name == tenant).map(|(key, _)| key.limits)
    }
}

impl Adapter {
    fn read(adapter: pb::DirectoryAdapter) -> Self {
        let versions = adapter.versions.into_iter().filter_map(|version| {
            let digest = Digest::try_from(version.digest.as_ref()).ok()?;
            Some((version.number, digest))
        });
        Self {
            created_ms: adapter.created_ms,
            versions: versions.collect(),
            aliases: adapter.aliases.into_iter().map(|alias| (alias.name, alias.version)).collect(),
        }
    }
}

/// A description that this gateway cannot read splits nothing here: its alias means what it points to.
fn experiment(tenant: &str, json: &[u8]) -> Option<Arc<Experiment>> {
    match Experiment::parse(json) {
        Ok(experiment) => Some(Arc::new(experiment)),
        Err(error) => {
            tracing::error!(tenant, error = &error as &dyn std::error::Error, "an experiment splits nothing here");
            None
        }
    }
}

/// As the wire has them: 0 is no limit.
pub(crate) fn limits(limits: Option<pb::Limits>) -> Limits {
    let limits = limits.unwrap_or_default();
    let limited = |value: u64| Some(value.min(Limits::MAX)).filter(|value| *value > 0);
    Limits {
        requests_per_minute: limited(limits.requests_per_minute),
        tokens_per_minute: limited(limits.tokens_per_minute),
        tokens_per_day: limited(limits.tokens_per_day),
        concurrent_requests: limited(limits.concurrent_requests),
        queue_length: limited(limits.queue_length),
    }
}

fn salt(secret: &[u8]) -> Option<[u8; 32]> {
    if secret.len() != SECRET_BYTES {
        return None;
    }
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
    mac.update(SALT_TAG);
    Some(mac.finalize().into_bytes().into())
}

/// The current snapshot and its age. Cheap to share behind an `Arc`.
pub(crate) struct Directory {
    current: watch::Sender<Option<Arc<Snapshot>>>,
    /// What was written until then is in the snapshot.
    as_of: Mutex<Option<Instant>>,
    age_max: Duration,
}

impl Directory {
    pub(crate) fn new(age_max: Duration) -> Self {
        Self { current: watch::Sender::new(None), as_of: Mutex::new(None), age_max }
    }

    /// The snapshot to serve from.
    ///
    /// # Errors
    /// None came yet, or the registry has been away for too long.
    pub(crate) fn snapshot(&self) -> Result<Arc<Snapshot>, Error> {
        self.snapshot_at(Instant::now())
    }

    fn snapshot_at(&self, now: Instant) -> Result<Arc<Snapshot>, Error> {
        let snapshot = self.current.borrow().clone().ok_or(Error::DirectoryMissing)?;
        let as_of = *self.as_of.lock().unwrap_or_else(PoisonError::into_inner);
        let age = as_of.map_or(Duration::ZERO, |as_of| now.saturating_duration_since(as_of));
        if age > self.age_max {
            return Err(Error::DirectoryStale { age_s: age.as_secs(), max_s: self.age_max.as_secs() });
        }
        Ok(snapshot)
    }

    /// The last snapshot, however old.
    pub(crate) fn last(&self) -> Option<Arc<Snapshot>> {
        self.current.borrow().clone()
    }

    /// Time since the snapshot was complete: what was written later may not be in it.
    pub(crate) fn age(&self) -> Option<Duration> {
        self.as_of.lock().unwrap_or_else(PoisonError::into_inner).map(|as_of| as_of.elapsed())
    }

    /// Takes in a message, unless it is older than what is here.
    fn install(&self, message: pb::Directory) {
        let age = Duration::from_millis(message.age_ms);
        self.current.send_if_modified(|current| {
            let is_same_registry = current.as_ref().is_some_and(|current| current.incarnation == message.incarnation);
            if current.is_some() && !is_same_registry && age > BEHIND_MAX {
                tracing::warn!(
                    age_s = age.as_secs(),
                    "a registry that does not reach the object store is not followed"
                );
                return false;
            }
            let mut as_of = self.as_of.lock().unwrap_or_else(PoisonError::into_inner);
            // A time before this machine's start is no time; the age is then unknown, and small.
            let said = Instant::now().checked_sub(age).unwrap_or_else(Instant::now);
            *as_of = Some(as_of.filter(|_| is_same_registry).map_or(said, |before| before.max(said)));
            let newer =
                current.as_ref().is_none_or(|current| !is_same_registry || current.generation < message.generation);
            if newer {
                *current = Some(Arc::new(Snapshot::read(message)));
            }
            newer
        });
    }

    /// Follows the registry for ever. Cancel safe.
    pub(crate) async fn follow(&self, registry: Registry) {
        let mut backoff = Backoff::default();
        loop {
            let ended = self.follow_once(registry.clone(), &mut backoff).await;
            tracing::warn!(reason = %ended, age_s = self.age().map(|age| age.as_secs()), "lost the registry's directory");
            backoff.wait().await;
        }
    }

    async fn follow_once(&self, mut registry: Registry, backoff: &mut Backoff) -> String {
        let silent = || format!("silent for {} s", SILENCE_MAX.as_secs());
        let mut stream =
            match tokio::time::timeout(SILENCE_MAX, registry.watch_directory(pb::WatchDirectoryRequest {})).await {
                Ok(Ok(response)) => response.into_inner(),
                Ok(Err(status)) => return status.message().to_owned(),
                Err(_) => return silent(),
            };
        loop {
            match tokio::time::timeout(SILENCE_MAX, stream.message()).await {
                Ok(Ok(Some(message))) => {
                    backoff.reset();
                    self.install(message);
                }
                Ok(Ok(None)) => return "the stream ended".to_owned(),
                Ok(Err(status)) => return status.message().to_owned(),
                Err(_) => return silent(),
            }
        }
    }

    /// Makes a write that the registry has answered visible here, at once: reads the directory afresh, then waits for
    /// `shows` if another registry answered, at most `wait`.
    ///
    /// Never fails: the write is done, and followers see it a little later anyhow.
    pub(crate) async fn show(&self, mut registry: Registry, wait: Duration, shows: impl Fn(&Snapshot) -> bool) {
        let fresh = async {
            let mut stream = registry.watch_directory(pb::WatchDirectoryRequest {}).await?.into_inner();
            if let Some(message) = stream.message().await? {
                self.install(message);
            }
            Ok::<(), tonic::Status>(())
        };
        let mut changes = self.current.subscribe();
        let seen = async {
            if let Err(status) = fresh.await {
                tracing::warn!(reason = status.message(), "cannot read the directory after a write");
            }
            // The sender lives in `self`, so this ends only by the condition.
            let _ = changes.wait_for(|current| current.as_ref().is_some_and(|snapshot| shows(snapshot))).await;
        };
        if tokio::time::timeout(wait, seen).await.is_err() {
            tracing::warn!(wait_ms = wait.as_millis(), "an admin write is not in the directory yet");
        }
    }

    /// Waits for the first snapshot. Cancel safe.
    pub(crate) async fn first(&self) {
        let _ = self.current.subscribe().wait_for(Option::is_some).await;
    }
}

/// A registry's status as a fault of this gateway: away means "try again".
pub(crate) fn registry_fault(status: &tonic::Status) -> Fault {
    let mut fault = Fault::from(status);
    if is_of_the_transport(status) {
        fault.kind = weft_fault::Kind::Unavailable;
        fault.message = format!("the registry went away: {}", status.message());
    }
    if status.code() == tonic::Code::PermissionDenied {
        // It is this gateway that may not call, and not whoever asked.
        fault.kind = weft_fault::Kind::Unavailable;
        fault.message = format!("the registry refuses this gateway: {}", fault.message);
    }
    if fault.kind == weft_fault::Kind::Unavailable {
        fault.code = "registry_unavailable".into();
        fault.retry_after_ms.get_or_insert(1000);
    }
    fault
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(incarnation: &str, generation: u64, tenants: &[&str]) -> pb::Directory {
        let tenants = tenants.iter().map(|name| pb::DirectoryTenant { name: (*name).into(), ..Default::default() });
        pb::Directory { generation, incarnation: incarnation.into(), tenants: tenants.collect(), age_ms: 0 }
    }

    fn tenants(directory: &Directory) -> usize {
        directory.snapshot().unwrap().tenants.len()
    }

    #[test]
    fn a_connection_that_broke_says_try_again_and_what_the_registry_said_stays() {
        for broken in [
            tonic::Status::unknown("transport error"),
            tonic::Status::internal("h2 protocol error"),
            tonic::Status::cancelled("operation was canceled"),
            tonic::Status::unavailable("tcp connect error"),
        ] {
            let fault = registry_fault(&broken);
            assert_eq!((fault.kind, fault.code.as_str()), (weft_fault::Kind::Unavailable, "registry_unavailable"));
            assert!(fault.retry_after_ms.is_some());
        }
        let said = Fault::internal("a record is damaged");
        assert_eq!(registry_fault(&said.clone().into()), said);
    }

    #[test]
    fn an_older_message_of_the_same_registry_changes_nothing() {
        let directory = Directory::new(Duration::from_secs(1));
        directory.install(message("a", 5, &["x", "y"]));
        directory.install(message("a", 4, &["x"]));
        assert_eq!(tenants(&directory), 2);
        directory.install(message("b", 1, &["x"]));
        assert_eq!(tenants(&directory), 1);
    }

    #[test]
    fn the_last_snapshot_serves_for_its_stated_time_only() {
        let directory = Directory::new(Duration::from_secs(60));
        assert!(matches!(directory.snapshot(), Err(Error::DirectoryMissing)));
        directory.install(message("a", 1, &[]));
        let heard = Instant::now();
        assert!(directory.snapshot_at(heard + Duration::from_secs(59)).is_ok());
        let later = heard + Duration::from_secs(62);
        assert!(matches!(directory.snapshot_at(later), Err(Error::DirectoryStale { age_s: 62, max_s: 60 })));
        // Hearing the same state again makes it fresh.
        *directory.as_of.lock().unwrap() = Some(later);
        assert!(directory.snapshot_at(later).is_ok());
    }

    #[test]
    fn a_registry_without_the_object_store_makes_nothing_fresh() {
        let directory = Directory::new(Duration::from_secs(60));
        let aged = |incarnation, generation, tenants: &[&str], age_ms| pb::Directory {
            age_ms,
            ..message(incarnation, generation, tenants)
        };
        directory.install(aged("a", 1, &["x"], 40_000));
        assert_eq!(tenants(&directory), 1, "the first one is better than none");
        let age = directory.age().unwrap();
        assert!((40..60).contains(&age.as_secs()), "{age:?}");
        directory.install(aged("a", 2, &["x", "y"], 50_000));
        assert_eq!(tenants(&directory), 2, "its own writes are seen");
        assert!(directory.age().unwrap() < Duration::from_secs(50), "what was fresher stays so");
        let now = Instant::now();
        assert!(matches!(directory.snapshot_at(now + Duration::from_secs(21)), Err(Error::DirectoryStale { .. })));

        directory.install(aged("b", 7, &["x"], 1_000));
        assert_eq!((tenants(&directory), directory.age().unwrap().as_secs()), (1, 1));
        directory.install(aged("a", 3, &["x", "y", "revoked"], 60_000));
        assert_eq!(tenants(&directory), 1, "what lags behind does not replace what is fresh");
    }

    #[test]
    fn the_salt_is_neither_the_secret_nor_shared() {
        assert_ne!(salt(&[7; 32]), salt(&[8; 32]));
        assert_ne!(salt(&[7; 32]), Some([7; 32]));
        assert_eq!(salt(&[7; 32]), salt(&[7; 32]));
        assert_eq!((salt(b""), salt(&[7; 31])), (None, None), "what is no secret makes no salt");
    }
}
