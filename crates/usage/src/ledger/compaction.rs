//! Many batches of an hour made few objects.
//!
//! 1. The objects of the folder are listed. What a joined object names as its input is deleted: its records are in there.
//! 2. The others are read and joined, each id once, into objects of at most [`OBJECT_BYTES_MAX`], each of which begins with the
//!    list of its inputs. Lines that cannot be read are kept as they are.
//! 3. Only after such an object is durable its inputs are deleted.
//!
//! A kill in between leaves both, which readers take as one (by id), and the next run finishes at step 1. Compactors that race
//! each delete only what a durable object names; that one may itself have become the input of another one, which has all its
//! records. No two objects name each other: a key is the digest of a content that holds the keys of its inputs. So every record
//! is in an object at any time, and in every listing (see `keys`). A batch that is shipped once more after it was compacted is compacted once more.

use super::lines::{Header, Lines};
use super::reader::id_hash;
use super::{Ledger, keys, lines};
use crate::{Error, Hour};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use weft_object_store::ObjectMeta;

/// An hour is compacted when it has been over for so long: two hours. A batch that comes later, from a gateway that could
/// not reach the store, is compacted by a later run.
pub const MARGIN_MS: u64 = 7_200_000;
/// A joined object is at most this long, unless one of its inputs is longer: 64 MiB.
pub const OBJECT_BYTES_MAX: u64 = 64 << 20;
/// So that the list of inputs stays well below the longest line that is read.
const INPUTS_MAX: usize = 4096;
/// Inputs that are read at once; a batch has at most `segment_bytes_max`.
const READS_AT_ONCE: usize = 8;

/// What a run did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compaction {
    /// Objects that were joined.
    pub inputs: u64,
    /// Objects that were written.
    pub outputs: u64,
    /// Objects that were deleted, those of earlier runs that had not come so far among them.
    pub deleted: u64,
    /// Records that were left out because their id had come already.
    pub duplicates: u64,
}

impl Ledger {
    /// Joins the batches of an hour that has been over for [`MARGIN_MS`]. Any number may run at once, and be killed at any point. Cost:
    /// one listing, a get and a delete for each object, about three times [`OBJECT_BYTES_MAX`] of memory; nothing but the listing if
    /// there is one object.
    ///
    /// # Errors
    /// [`Error::TooEarly`]; [`Error::Store`]: what was done so far stays done.
    pub fn compact(&self, hour: Hour, now_ms: u64) -> BoxFuture<'_, Result<Compaction, Error>> {
        Box::pin(self.compact_hour(hour, now_ms))
    }

    async fn compact_hour(&self, hour: Hour, now_ms: u64) -> Result<Compaction, Error> {
        let from_ms = hour.end_ms() + MARGIN_MS;
        if now_ms < from_ms {
            return Err(Error::TooEarly { hour: hour.to_string(), from_ms, now_ms });
        }
        let mut done = Compaction::default();
        let mut objects = self.list_hour(hour).await?;
        if objects.len() < 2 {
            return Ok(done);
        }
        for key in self.inputs_of_joined(hour, &objects).await? {
            if objects.remove(&key).is_some() {
                self.store.delete(&key).await?;
                done.deleted += 1;
            }
        }
        let small = objects.into_values().filter(is_small);
        for group in groups(small) {
            self.join(hour, &group, &mut done).await?;
        }
        Ok(done)
    }

    async fn list_hour(&self, hour: Hour) -> Result<BTreeMap<String, ObjectMeta>, Error> {
        let listed = self.store.list(&keys::folder(hour)).await?;
        let ours = listed.into_iter().filter(|object| keys::level(hour, &object.key).is_some());
        Ok(ours.map(|object| (object.key.clone(), object)).collect())
    }

    /// What may be deleted at once.
    async fn inputs_of_joined(
        &self,
        hour: Hour,
        objects: &BTreeMap<String, ObjectMeta>,
    ) -> Result<BTreeSet<String>, Error> {
        let mut inputs = BTreeSet::new();
        let joined = objects.keys().filter(|key| keys::level(hour, key) > Some(0));
        for key in joined {
            if let Some(header) = self.header(key).await? {
                inputs.extend(header.inputs);
            }
        }
        Ok(inputs)
    }

    async fn header(&self, key: &str) -> Result<Option<Header>, Error> {
        let Some(mut object) = self.store.get_stream(key).await? else { return Ok(None) };
        let mut lines = Lines::default();
        while let Some(piece) = object.stream.try_next().await? {
            if let Some(first) = lines.push(&piece).into_iter().next() {
                return Ok(first.ok().and_then(|line| Header::from_json(&line)));
            }
        }
        Ok(None)
    }

    /// Joins the objects of one group, and deletes them once that is durable.
    async fn join(&self, hour: Hour, group: &[ObjectMeta], done: &mut Compaction) -> Result<(), Error> {
        let reads: Vec<_> = group.iter().map(|object| self.store.get(&object.key)).collect();
        let mut contents = futures::stream::iter(reads).buffered(READS_AT_ONCE);
        let mut joined = Joined::default();
        for object in group {
            let content = contents.next().await.expect("a content for each object");
            // Gone: somebody else compacted it, into an object that the next run joins.
            if let Some(found) = content? {
                joined.add(&object.key, &found.bytes);
            }
        }
        if joined.inputs.len() < 2 {
            return Ok(());
        }
        done.duplicates += joined.duplicates;
        let inputs = joined.inputs.clone();
        let level = inputs.iter().filter_map(|key| keys::level(hour, key)).max().unwrap_or(0) + 1;
        let content = joined.finish();
        self.put_once(&keys::joined(hour, level, &content), content).await?;
        done.inputs += inputs.len() as u64;
        done.outputs += 1;
        for key in inputs {
            self.store.delete(&key).await?;
            done.deleted += 1;
        }
        Ok(())
    }
}

/// Objects beyond half of the limit stay as they are: joining them again and again would cost more than it saves.
fn is_small(object: &ObjectMeta) -> bool {
    object.bytes <= OBJECT_BYTES_MAX / 2
}

/// Groups of at least two objects, in the order of their keys, each within the limits of one object.
fn groups(objects: impl Iterator<Item = ObjectMeta>) -> Vec<Vec<ObjectMeta>> {
    let mut groups: Vec<Vec<ObjectMeta>> = Vec::new();
    let mut bytes = 0;
    for object in objects {
        match groups.last_mut() {
            Some(group) if bytes + object.bytes <= OBJECT_BYTES_MAX && group.len() < INPUTS_MAX => {
                bytes += object.bytes;
                group.push(object);
            }
            _ => {
                bytes = object.bytes;
                groups.push(vec![object]);
            }
        }
    }
    groups.retain(|group| group.len() > 1);
    groups
}

/// The content of a joined object in the making.
#[derive(Default)]
struct Joined {
    inputs: Vec<String>,
    seen: HashSet<u128>,
    lines: Vec<u8>,
    duplicates: u64,
}

impl Joined {
    /// An object with a line that is too long stays as it is.
    fn add(&mut self, key: &str, content: &Bytes) {
        let mut cut = Lines::default();
        let mut found = cut.push(content);
        found.extend(cut.finish());
        let Ok(found) = found.into_iter().collect::<Result<Vec<_>, _>>() else { return };
        self.inputs.push(key.to_owned());
        found.iter().for_each(|line| self.add_line(line));
    }

    fn add_line(&mut self, line: &[u8]) {
        match lines::record(line) {
            None => return,
            Some(Ok(record)) if !self.seen.insert(id_hash(record.id())) => {
                self.duplicates += 1;
                return;
            }
            Some(_) => {}
        }
        self.lines.extend_from_slice(line);
        self.lines.push(b'\n');
    }

    fn finish(self) -> Bytes {
        let mut content = Header::new(self.inputs).to_json();
        content.push(b'\n');
        content.extend_from_slice(&self.lines);
        content.into()
    }
}
