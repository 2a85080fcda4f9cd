//! The last epoch as an object.

use crate::Error;
use weft_object_store::{ETag, ObjectStore};
use weft_placement::{Document, Epoch};

/// Where the last epoch lies.
pub const EPOCH_KEY: &str = "placement/epoch";

/// What lies there, for the authority.
pub(crate) enum Found {
    Nothing,
    Document(Document, ETag),
    Damaged(ETag),
}

pub(crate) async fn read(store: &dyn ObjectStore) -> Result<Found, Error> {
    let Some(object) = store.get(EPOCH_KEY).await? else { return Ok(Found::Nothing) };
    Ok(match Document::decode(&object.bytes) {
        Ok(document) => Found::Document(document, object.etag),
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, key = EPOCH_KEY, "the epoch cannot be read");
            Found::Damaged(object.etag)
        }
    })
}

/// The last published epoch, or `None` before the first. Cost: one request.
///
/// # Errors
/// The store failed, or what lies there is no document (kind `corrupt`): stay on the epoch that is known.
pub async fn latest_epoch(store: &dyn ObjectStore) -> Result<Option<Document>, Error> {
    let Some(object) = store.get(EPOCH_KEY).await? else { return Ok(None) };
    Ok(Some(Document::decode(&object.bytes)?))
}

/// Reads epochs again and again and never goes back to an earlier one: not when the store fails, when the object is
/// damaged or deleted, or when an old one comes from somewhere.
#[derive(Debug, Default)]
pub struct Reader {
    newest: Option<Document>,
    /// The state that was read last.
    seen: Option<ETag>,
}

impl Reader {
    /// Has read nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The newest epoch so far.
    #[must_use]
    pub fn newest(&self) -> Option<&Document> {
        self.newest.as_ref()
    }

    /// Looks for a newer one; true if there is. Cost: one request without content, one with it when it changed.
    ///
    /// # Errors
    /// As [`latest_epoch`]; the newest stays.
    pub async fn refresh(&mut self, store: &dyn ObjectStore) -> Result<bool, Error> {
        let Some(meta) = store.head(EPOCH_KEY).await? else { return Ok(false) };
        if self.seen.as_ref() == Some(&meta.etag) {
            return Ok(false);
        }
        let Some(object) = store.get(EPOCH_KEY).await? else { return Ok(false) };
        let document = Document::decode(&object.bytes)?;
        self.seen = Some(object.etag);
        Ok(self.offer(document))
    }

    /// Takes a document that came another way, e.g. over the bus; true if it is newer.
    pub fn offer(&mut self, document: Document) -> bool {
        let known = self.newest.as_ref().map(|newest| newest.epoch);
        let is_newer = known < Some(document.epoch);
        if is_newer {
            self.newest = Some(document);
        }
        is_newer
    }

    /// The number of the newest.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.newest.as_ref().map_or(Epoch::default(), |newest| newest.epoch)
    }
}
