//! Reading and writing records, and the directory made of them.

use crate::catalog::{Catalog, Counts};
use crate::layout::{Place, ROOT};
use crate::metrics::Metrics;
use crate::policy::Policy;
use crate::records::Record;
use crate::snapshot::Remembered;
use crate::tell::{alias_moved, event};
use crate::{Error, Settings};
use bytes::Bytes;
use futures::StreamExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::time::Instant;
use weft_bus::{Bus, subjects};
use weft_object_store::{ETag, Object, ObjectMeta, ObjectStore, PutOutcome};
use weft_proto::registry::v1 as pb;
use weft_service_kit::shutdown::Shutdown;
use weft_types::{Digest, TenantName};

/// Objects read at once.
const READS_MAX: usize = 32;
/// Tries of a conditional write that others keep winning; each try that loses means that another one won.
const WRITE_ATTEMPTS_MAX: u32 = 64;
const WRITE_DELAY_MS: u64 = 10;

/// What every part of the registry shares.
pub(crate) struct Core {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) settings: Settings,
    pub(crate) metrics: Metrics,
    catalog: Mutex<Catalog>,
    /// Grows by one with every change of the catalog.
    generation: watch::Sender<u64>,
    /// Made of the catalog when somebody asked last: writes cost nothing where nobody looks. Locked after the catalog.
    directory: Mutex<Arc<pb::Directory>>,
    incarnation: String,
    /// Whom to tell of writes. Empty: nobody.
    bus: OnceLock<Arc<dyn Bus>>,
    writes: AtomicU64,
    /// When the last complete listing that succeeded began. What others wrote before is in the catalog.
    listed: Mutex<Instant>,
    /// What a snapshot said, until everything was listed once.
    pub(crate) remembered: Mutex<Remembered>,
    /// Records that no snapshot has.
    pub(crate) news: AtomicU64,
    /// Keys whose objects could not be read as records, so that each is reported once.
    damaged: Mutex<BTreeSet<String>>,
}

/// What to do with a record.
pub(crate) enum Change<R> {
    /// Nothing: it is as wanted.
    Keep(R),
    /// Make it this.
    Write(R),
}

impl Core {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, settings: Settings, metrics: Metrics) -> Self {
        let incarnation = uuid::Uuid::new_v4().to_string();
        let empty = pb::Directory { incarnation: incarnation.clone(), ..pb::Directory::default() };
        Self {
            store,
            settings,
            metrics,
            catalog: Mutex::default(),
            generation: watch::Sender::new(0),
            directory: Mutex::new(Arc::new(empty)),
            incarnation,
            bus: OnceLock::new(),
            writes: AtomicU64::new(0),
            listed: Mutex::new(Instant::now()),
            remembered: Mutex::default(),
            news: AtomicU64::new(0),
            damaged: Mutex::default(),
        }
    }

    /// Tells of every write from now on; the first bus stays.
    pub(crate) fn tell_over(&self, bus: Arc<dyn Bus>) {
        // An error means that there is one.
        let _ = self.bus.set(bus);
    }

    /// This process.
    pub(crate) fn incarnation(&self) -> &str {
        &self.incarnation
    }

    /// Tells the other registries of a write that the directory here shows already.
    fn tell(&self, tenant: Option<&TenantName>) {
        let Some(bus) = self.bus.get() else { return };
        let sequence = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
        let generation = self.generation();
        // It may be lost: the others refresh from time to time, and the bus counts it.
        let _ = bus.publish(subjects::REGISTRY_CHANGE, event(&self.incarnation, sequence, tenant, generation));
    }

    /// Tells cache daemons that an alias means other bytes now.
    pub(crate) fn tell_alias_moved(&self, from: &Digest, to: &Digest) {
        let Some(bus) = self.bus.get() else { return };
        // If it is lost, the next request for the alias waits for its bytes.
        let _ = bus.publish(subjects::ALIAS_MOVED, alias_moved(from, to));
    }

    /// The catalog. Held for short, plain work only.
    pub(crate) fn catalog(&self) -> MutexGuard<'_, Catalog> {
        // Every merge leaves the catalog whole, so that a poisoned lock carries no torn state.
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many changes the catalog has seen.
    pub(crate) fn generation(&self) -> u64 {
        *self.generation.borrow()
    }

    /// The generation now, and every later one.
    pub(crate) fn watch(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// The directory as it is sent now. Cost: a copy of it, and after a change one step a version.
    pub(crate) fn directory(&self) -> pb::Directory {
        let made = {
            // Under the catalog's lock, so that a larger generation never shows less.
            let catalog = self.catalog();
            let mut made = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
            let generation = self.generation();
            if made.generation != generation {
                *made = Arc::new(catalog.directory(generation, &self.incarnation));
            }
            Arc::clone(&made)
        };
        let listed = *self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        pb::Directory { age_ms: listed.elapsed().as_millis() as u64, ..(*made).clone() }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.catalog().counts()
    }

    /// As far as is known here.
    pub(crate) fn policy(&self, tenant: &TenantName) -> Policy {
        let catalog = self.catalog();
        let record = catalog.tenant(tenant).and_then(|tenant| tenant.record.as_ref());
        record.map_or_else(Policy::default, |record| record.policy.clone())
    }

    /// Takes records in. If any is news, every directory made from now on shows it.
    fn merge(&self, records: impl IntoIterator<Item = (Place, Record, ETag)>) {
        self.news.fetch_add(self.take_in(records), Ordering::Relaxed);
    }

    /// The same for records that the snapshot has. Returns how many were news.
    fn take_in(&self, records: impl IntoIterator<Item = (Place, Record, ETag)>) -> u64 {
        let mut news = 0;
        self.change(|catalog| {
            for (place, record, etag) in records {
                news += u64::from(catalog.merge(&place, record, etag));
            }
            news > 0
        });
        news
    }

    /// Drops keys whose objects are gone.
    fn forget_keys(&self, keys: impl IntoIterator<Item = (TenantName, String)>) {
        self.change(|catalog| {
            let mut changed = false;
            for (tenant, id) in keys {
                changed |= catalog.forget_key(&tenant, &id);
            }
            changed
        });
    }

    /// Changes the catalog; if `work` says that it did, a generation begins before this returns.
    fn change(&self, work: impl FnOnce(&mut Catalog) -> bool) {
        let mut catalog = self.catalog();
        if work(&mut catalog) {
            self.generation.send_modify(|generation| *generation += 1);
            self.metrics.directory_changed(self.generation(), catalog.counts());
        }
    }

    /// Lists the objects below a prefix and reads those that are new or changed. Objects that are no records are
    /// reported and left out, so that one damaged object does not hide the others.
    pub(crate) async fn refresh(&self, prefix: &str) -> Result<(), Error> {
        let began = Instant::now();
        let result = self.refresh_objects(prefix).await;
        self.metrics.refreshed(began.elapsed(), result.is_ok());
        if result.is_ok() && prefix == ROOT {
            let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
            *listed = began.max(*listed);
        }
        result
    }

    async fn refresh_objects(&self, prefix: &str) -> Result<(), Error> {
        // A key that is known before the listing begins and is not in it was deleted by another registry: listings of S3
        // show every write that was answered before.
        let known_keys = self.catalog().keys_below(prefix);
        let listed = self.store.list(prefix).await?;
        if !known_keys.is_empty() {
            let there: HashSet<&str> = listed.iter().map(|object| object.key.as_str()).collect();
            let is_gone =
                |(tenant, id): &(TenantName, String)| !there.contains(&*Place::Key(tenant.clone(), id.clone()).key());
            self.forget_keys(known_keys.into_iter().filter(is_gone));
        }
        let unseen: Vec<Place> = {
            let catalog = self.catalog();
            let unseen = listed.iter().filter(|object| !catalog.has_seen(&object.key, &object.etag));
            unseen.filter_map(|object| self.place_of(&object.key)).collect()
        };
        let (recalled, unseen) = self.recall(unseen, &listed);
        self.take_in(recalled);
        let mut found = Vec::new();
        let mut reads = futures::stream::iter(unseen).map(|place| self.read(place)).buffer_unordered(READS_MAX);
        let mut failure = None;
        while let Some(read) = reads.next().await {
            match read {
                Ok(Some(record)) => found.push(record),
                // Deleted by hand meanwhile.
                Ok(None) => {}
                Err(error @ Error::Damaged { .. }) => self.report_damage(&error),
                Err(error) => failure = Some(error),
            }
        }
        // Nothing is damaged nearly always: then nobody needs to know what was read.
        let is_any_damaged = !self.damaged.lock().unwrap_or_else(PoisonError::into_inner).is_empty();
        let read = is_any_damaged.then(|| found.iter().map(|(place, ..)| place.key()).collect::<Vec<_>>());
        self.merge(found);
        if prefix == ROOT && failure.is_none() {
            *self.remembered.lock().unwrap_or_else(PoisonError::into_inner) = Remembered::new();
        }
        if let Some(read) = read {
            self.report_mended(prefix, &listed, &read);
        }
        failure.map_or(Ok(()), Err)
    }

    /// What the snapshot has of these, as listed; and the rest.
    #[allow(clippy::type_complexity, reason = "a pair of lists")]
    fn recall(&self, places: Vec<Place>, listed: &[ObjectMeta]) -> (Vec<(Place, Record, ETag)>, Vec<Place>) {
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if remembered.is_empty() {
            return (Vec::new(), places);
        }
        let etags: HashMap<&str, &ETag> = listed.iter().map(|object| (object.key.as_str(), &object.etag)).collect();
        let (mut found, mut rest) = (Vec::new(), Vec::new());
        for place in places {
            let key = place.key();
            match remembered.remove(&key) {
                Some((etag, record)) if etags.get(key.as_str()) == Some(&&etag) => found.push((place, record, etag)),
                _ => rest.push(place),
            }
        }
        (found, rest)
    }

    fn place_of(&self, key: &str) -> Option<Place> {
        let place = Place::parse(key);
        if place.is_none() {
            let problem = "nothing of ours lies there".to_owned();
            self.report_damage(&Error::Damaged { key: key.to_owned(), problem });
        }
        place
    }

    fn report_damage(&self, error: &Error) {
        let Error::Damaged { key, problem } = error else { return };
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        if damaged.insert(key.clone()) {
            tracing::error!(key, problem, "an object is left out of the directory");
            self.metrics.damaged_objects.set(damaged.len() as i64);
        }
    }

    /// Objects that were damaged and now read well, or are gone.
    fn report_mended(&self, prefix: &str, listed: &[ObjectMeta], read: &[String]) {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        let listed: HashSet<&str> = listed.iter().map(|object| object.key.as_str()).collect();
        let read: HashSet<&str> = read.iter().map(String::as_str).collect();
        damaged.retain(|key| {
            let is_gone = key.starts_with(prefix) && !listed.contains(key.as_str());
            let stays = !is_gone && !read.contains(key.as_str());
            if !stays {
                tracing::info!(key, "an object is no longer damaged");
            }
            stays
        });
        self.metrics.damaged_objects.set(damaged.len() as i64);
    }

    /// Refuses while objects are damaged: what they would have said might hold something.
    ///
    /// # Errors
    /// Some are.
    pub(crate) fn check_undamaged(&self) -> Result<(), Error> {
        let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        match damaged.first() {
            Some(key) => {
                Err(Error::Damaged { key: key.clone(), problem: "nothing is cleaned up until it is mended".to_owned() })
            }
            None => Ok(()),
        }
    }

    async fn read(&self, place: Place) -> Result<Option<(Place, Record, ETag)>, Error> {
        let key = place.key();
        let Some(object) = self.store.get(&key).await? else { return Ok(None) };
        let record = Record::parse(&place, &object.bytes);
        let record = record.map_err(|error| Error::Damaged { key, problem: error.to_string() })?;
        Ok(Some((place, record, object.etag)))
    }

    /// Writes a record that must not exist yet. `None`: somebody else was first.
    pub(crate) async fn create<R>(&self, place: &Place, record: &R) -> Result<Option<ETag>, Error>
    where
        R: Serialize + Clone + Into<Record>,
    {
        let outcome = self.store.put_if_absent(&place.key(), encode(record)).await?;
        let PutOutcome::Written(etag) = outcome else { return Ok(None) };
        Ok(Some(self.written(place, record.clone(), etag).1))
    }

    /// Changes a record by compare-and-swap until one try wins. The change is visible in the directory when this returns. `decide` gets what is
    /// there now, with its state; first what is known here, which nearly always is that: a write on another state loses, and whatever else is
    /// decided is decided again on what is read then.
    pub(crate) async fn update<R>(
        &self,
        place: &Place,
        mut decide: impl FnMut(Option<(&R, &ETag)>) -> Result<Change<R>, Error> + Send,
    ) -> Result<(R, ETag), Error>
    where
        R: Serialize + DeserializeOwned + Clone + Into<Record> + TryFrom<Record> + Send + Sync,
    {
        let key = place.key();
        let known = self.catalog().record(place).and_then(|(record, etag)| Some((R::try_from(record).ok()?, etag)));
        if let Ok(Change::Write(record)) = decide(known.as_ref().map(|(record, etag)| (record, etag))) {
            let state = known.as_ref().map(|(_, etag)| etag);
            if let PutOutcome::Written(etag) = self.put_over(&key, state, &record).await? {
                return Ok(self.written(place, record, etag));
            }
        }
        for attempt in 0..WRITE_ATTEMPTS_MAX {
            let current = match self.store.get(&key).await? {
                Some(object) => Some((parse::<R>(&key, &object)?, object.etag)),
                None => None,
            };
            let change = decide(current.as_ref().map(|(record, etag)| (record, etag)))?;
            let record = match (change, &current) {
                (Change::Keep(record), Some((_, etag))) => {
                    self.merge([(place.clone(), record.clone().into(), etag.clone())]);
                    return Ok((record, etag.clone()));
                }
                (Change::Write(record) | Change::Keep(record), _) => record,
            };
            let state = current.as_ref().map(|(_, etag)| etag);
            if let PutOutcome::Written(etag) = self.put_over(&key, state, &record).await? {
                return Ok(self.written(place, record, etag));
            }
            lost(attempt).await;
        }
        Err(Error::Conflict(format!("{key} was changed by others in each of {WRITE_ATTEMPTS_MAX} tries")))
    }

    /// Puts a record over this state of it; none: over nothing.
    async fn put_over<R: Serialize>(&self, key: &str, state: Option<&ETag>, record: &R) -> Result<PutOutcome, Error> {
        Ok(match state {
            Some(etag) => self.store.put_if_match(key, encode(record), etag).await?,
            None => self.store.put_if_absent(key, encode(record)).await?,
        })
    }

    fn written<R: Clone + Into<Record>>(&self, place: &Place, record: R, etag: ETag) -> (R, ETag) {
        self.merge([(place.clone(), record.clone().into(), etag.clone())]);
        self.tell(place.tenant());
        (record, etag)
    }

    /// Deletes the records of this tenant's oldest revoked keys, so that at most `kept` remain. What cannot be deleted now
    /// is next time.
    pub(crate) async fn drop_revoked_keys(&self, tenant: &TenantName, kept: usize) {
        let beyond = self.catalog().tenant(tenant).map_or_else(Vec::new, |found| found.revoked_beyond(kept));
        for id in beyond {
            if let Err(error) = self.store.delete(&Place::Key(tenant.clone(), id.clone()).key()).await {
                tracing::warn!(%tenant, key = id, error = &error as &dyn std::error::Error, "a revoked key's record stays");
                return;
            }
            self.forget_keys([(tenant.clone(), id)]);
            self.tell(Some(tenant));
        }
    }

    /// Lists everything again and again, so that what other registries write is seen.
    pub(crate) async fn keep_fresh(self: &Arc<Self>, shutdown: Shutdown) {
        let interval = Duration::from_millis(self.settings.directory_refresh_ms);
        loop {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = shutdown.wait() => return,
            }
            if let Err(error) = self.refresh(ROOT).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot list the records; the last directory stays"
                );
                continue;
            }
            if let Err(error) = self.snapshot_if_due().await {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot write a snapshot of the records");
            }
        }
    }
}

/// Gives the winner time, at random, so that those who met do not meet again.
async fn lost(attempt: u32) {
    let ceiling = WRITE_DELAY_MS << attempt.min(5);
    tokio::time::sleep(Duration::from_millis(rand::random_range(1..=ceiling))).await;
}

fn parse<R: DeserializeOwned>(key: &str, object: &Object) -> Result<R, Error> {
    serde_json::from_slice(&object.bytes)
        .map_err(|error| Error::Damaged { key: key.to_owned(), problem: error.to_string() })
}

fn encode<R: Serialize>(record: &R) -> Bytes {
    // People read these objects when something is wrong.
    serde_json::to_vec_pretty(record).expect("records are plain data with text keys").into()
}

/// Unix milliseconds.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
