//! The second phase: a blob goes, under a marker.

use super::judge::{Named, has_record, is_needed};
use crate::Error;
use crate::core::{Change, Core, now_ms};
use crate::layout::{GC_PREFIX, Place, ROOT, gc_key};
use crate::records::VersionRecord;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use weft_object_store::{ETag, ObjectMeta, PutOutcome, keys};
use weft_types::Digest;

/// Blobs that are marked together and judged by one listing.
pub(super) const BATCH: usize = 50;
/// A marker older than this is of somebody who died: nobody deletes a blob so long after it wrote one.
const MARKER_STALE_MS: u64 = 600_000;
/// Longest time between a marker and the delete that it covers.
const DELETE_WITHIN: Duration = Duration::from_secs(60);
/// How long a publish waits for a marker to go.
const MARKER_WAIT: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Blobs of no version, and when each was seen first.
const ORPHANS_KEY: &str = "gc/orphans";

#[derive(Default, Deserialize, PartialEq, Serialize)]
#[serde(transparent)]
struct Orphans(BTreeMap<Digest, u64>);

/// Who deletes, since when.
#[derive(Deserialize, Serialize)]
struct Marker {
    registry: String,
    at_ms: u64,
}

impl Core {
    /// Deletes the blobs of condemned versions, unless another version needs them. Returns how many of the first are done with: one whose
    /// marker is somebody else's is not.
    pub(super) async fn collect(&self, all: &[Named]) -> Result<Vec<bool>, Error> {
        let digests: Vec<Digest> = all.iter().map(|named| named.version.digest).collect();
        let collected = self.collect_blobs(&digests).await?;
        let mut done = Vec::with_capacity(all.len());
        for (named, is_collected) in all.iter().zip(collected) {
            done.push(is_collected && self.note_collected(named).await?);
        }
        Ok(done)
    }

    async fn note_collected(&self, named: &Named) -> Result<bool, Error> {
        let place = Place::Version(named.tenant.clone(), named.adapter.clone(), named.version.number);
        let updated = self.update(&place, |found: Option<(&VersionRecord, &ETag)>| {
            let Some((record, _)) = found else {
                return Err(Error::NotFound("the version's record is gone".to_owned()));
            };
            // Revived meanwhile, or condemned anew: whoever did that looks whether the blob is there.
            if record.condemned != named.version.condemned || record.collected_ms.is_some() {
                return Ok(Change::Keep(record.clone()));
            }
            let (revision, collected_ms) = (record.revision + 1, Some(now_ms()));
            Ok(Change::Write(VersionRecord { revision, collected_ms, ..record.clone() }))
        });
        let (record, _) = updated.await?;
        Ok(record.collected_ms.is_some())
    }

    /// Goes on where others died.
    pub(super) async fn collect_left_over(&self) -> Result<(), Error> {
        let markers = self.store.list(GC_PREFIX).await?;
        let digest = |object: &ObjectMeta| {
            let hex = object.key.strip_prefix(GC_PREFIX)?.strip_suffix(".json")?;
            format!("sha256:{hex}").parse::<Digest>().ok()
        };
        let digests: Vec<Digest> = markers.iter().filter_map(digest).collect();
        for batch in digests.chunks(BATCH) {
            self.collect_blobs(batch).await?;
        }
        Ok(())
    }

    /// Deletes blobs that no version ever had: of a publish that was broken off. When one is seen first is written down; it goes after
    /// the grace. Returns them with whether they are gone. A dry run changes nothing.
    pub(super) async fn collect_orphans(&self, dry_run: bool) -> Result<Vec<(ObjectMeta, bool)>, Error> {
        let blobs = self.store.list(keys::BLOB_PREFIX).await?;
        // After the blobs: a version is written after its blob.
        self.refresh(ROOT).await?;
        let (there, now) = (self.store.get(ORPHANS_KEY).await?, now_ms());
        let known: Orphans =
            there.as_ref().and_then(|object| serde_json::from_slice(&object.bytes).ok()).unwrap_or_default();
        let (mut found, mut next, mut over) = (Vec::new(), Orphans::default(), Vec::new());
        for blob in blobs {
            let hex = blob.key.strip_prefix(keys::BLOB_PREFIX).unwrap_or_default();
            let Ok(digest) = format!("sha256:{hex}").parse::<Digest>() else { continue };
            if has_record(&self.catalog(), &digest) {
                continue;
            }
            let since = known.0.get(&digest).copied().unwrap_or(now);
            let is_over = now.saturating_sub(since) >= self.settings.gc_grace_s.saturating_mul(1_000);
            if is_over {
                over.push((blob, digest, since));
            } else {
                next.0.insert(digest, since);
                found.push((blob, false));
            }
        }
        for batch in over.chunks(BATCH) {
            let digests: Vec<Digest> = batch.iter().map(|(_, digest, _)| *digest).collect();
            let gone = if dry_run { vec![true; batch.len()] } else { self.collect_blobs(&digests).await? };
            for ((blob, digest, since), is_gone) in batch.iter().zip(gone) {
                if !is_gone {
                    next.0.insert(*digest, *since);
                }
                found.push((blob.clone(), is_gone));
            }
        }
        if !dry_run && next != known {
            let bytes: Bytes = serde_json::to_vec(&next).expect("digests and times are plain data").into();
            // Who loses has seen the same; the next turn sees it again.
            match &there {
                Some(object) => self.store.put_if_match(ORPHANS_KEY, bytes, &object.etag).await?,
                None => self.store.put_if_absent(ORPHANS_KEY, bytes).await?,
            };
        }
        Ok(found)
    }

    /// Deletes the blobs that no version needs. Returns for each whether it was ours to judge.
    async fn collect_blobs(&self, digests: &[Digest]) -> Result<Vec<bool>, Error> {
        let mut marked = Vec::with_capacity(digests.len());
        for digest in digests {
            marked.push(self.mark(digest).await?);
        }
        let mine: Vec<Digest> =
            digests.iter().zip(&marked).filter(|(_, is_mine)| **is_mine).map(|(digest, _)| *digest).collect();
        self.collect_marked(&mine).await?;
        Ok(marked)
    }

    /// Takes the marker. False: somebody else has it.
    async fn mark(&self, digest: &Digest) -> Result<bool, Error> {
        let key = gc_key(digest);
        let mine = Marker { registry: self.incarnation().to_owned(), at_ms: now_ms() };
        let mine: Bytes = serde_json::to_vec(&mine).expect("a marker is plain data").into();
        if self.store.put_if_absent(&key, mine.clone()).await?.is_written() {
            return Ok(true);
        }
        let Some(there) = self.store.get(&key).await? else { return Ok(false) };
        let at_ms = serde_json::from_slice(&there.bytes).map_or(0, |marker: Marker| marker.at_ms);
        if now_ms().saturating_sub(at_ms) < MARKER_STALE_MS {
            return Ok(false);
        }
        Ok(self.store.put_if_match(&key, mine, &there.etag).await? != PutOutcome::Lost)
    }

    /// Under their markers: the blobs go that no version needs, then the markers. One listing for all of them.
    async fn collect_marked(&self, digests: &[Digest]) -> Result<(), Error> {
        if digests.is_empty() {
            return Ok(());
        }
        let marked = Instant::now();
        self.refresh(ROOT).await?;
        self.check_undamaged()?;
        let grace_ms = self.settings.gc_grace_s.saturating_mul(1_000);
        for digest in digests {
            if !is_needed(&self.catalog(), digest, grace_ms, now_ms()) {
                if marked.elapsed() > DELETE_WITHIN {
                    let seconds = DELETE_WITHIN.as_secs();
                    let message = format!("listing and deleting took longer than {seconds} s: the rest stays for now");
                    return Err(Error::Conflict(message));
                }
                self.store.delete(&keys::blob(digest)).await?;
                tracing::info!(%digest, "a blob that no version needs is gone");
            }
            self.store.delete(&gc_key(digest)).await?;
        }
        Ok(())
    }

    /// After a version was written: waits until nobody deletes its blob. Returns whether the blob is there then.
    pub(crate) async fn blob_outlives_collection(&self, digest: &Digest) -> Result<bool, Error> {
        let key = gc_key(digest);
        let deadline = Instant::now() + MARKER_WAIT;
        while self.store.head(&key).await?.is_some() {
            if Instant::now() > deadline {
                return Err(Error::BlobInMotion(*digest));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(self.store.head(&keys::blob(digest)).await?.is_some())
    }
}
