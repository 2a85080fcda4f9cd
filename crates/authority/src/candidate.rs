//! Waiting for the lease, and taking it.

use crate::epochs;
use crate::lease::{self, LEASE_KEY, Lease};
use crate::office::Office;
use crate::{Error, Settings};
use rand::Rng;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use weft_object_store::{ETag, ObjectStore, PutOutcome};
use weft_placement::Epoch;

/// Looks at the lease in this part of the silence.
const LOOKS: u32 = 5;

/// One that wants to be the authority.
pub struct Candidate {
    store: Arc<dyn ObjectStore>,
    /// Unique: a process that starts again is somebody else.
    holder: String,
    settings: Settings,
    /// A lease in one state, and since when it has been seen so.
    watched: Option<(ETag, Instant)>,
    /// A lease that may or may not have been written: its reply was lost.
    claimed: Option<Lease>,
}

impl Candidate {
    /// `name` is for people; at most 80 bytes of it are used, and what a document cannot carry becomes `-`.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, name: &str, settings: Settings) -> Self {
        let plain = |c: char| if c.is_ascii_graphic() && !matches!(c, '"' | '\\') { c } else { '-' };
        let name: String = name.chars().take(80).map(plain).collect();
        let holder = format!("{name}.{}", uuid::Uuid::new_v4().simple());
        Self { store, holder, settings: settings.clamped(), watched: None, claimed: None }
    }

    /// The name in leases and epochs.
    #[must_use]
    pub fn holder(&self) -> &str {
        &self.holder
    }

    /// Waits until this candidate is the authority. Cancel safe: what was claimed and not answered is recognised at the
    /// next call. Cost: a request every fifth of the silence.
    ///
    /// # Errors
    /// The store failed; try again later.
    pub async fn stand(&mut self) -> Result<Office, Error> {
        loop {
            if let Some(office) = self.try_once().await? {
                return Ok(office);
            }
            // Jitter, so that candidates do not meet.
            let look = self.silence() / LOOKS;
            let jitter = rand::rng().random_range(0.5..1.0);
            tokio::time::sleep(look.mul_f64(jitter)).await;
        }
    }

    fn silence(&self) -> Duration {
        Duration::from_millis(self.settings.silence_ms)
    }

    async fn try_once(&mut self) -> Result<Option<Office>, Error> {
        let (term, over) = match lease::read(&*self.store).await? {
            lease::Found::Nothing => (0, None),
            lease::Found::Lease(lease, etag) if self.claimed.as_ref() == Some(&lease) => {
                return Ok(Some(self.office(lease, etag)));
            }
            lease::Found::Lease(lease, etag) if lease.is_vacant || self.is_silent(&etag) => (lease.term, Some(etag)),
            lease::Found::Damaged(etag) if self.is_silent(&etag) => (0, Some(etag)),
            lease::Found::Lease(..) | lease::Found::Damaged(_) => return Ok(None),
        };
        // If the lease was lost, its term is still in the epochs.
        let published = match epochs::read(&*self.store).await? {
            epochs::Found::Document(document, _) => document.epoch.term(),
            epochs::Found::Nothing | epochs::Found::Damaged(_) => 0,
        };
        self.claim(term.max(published), over).await
    }

    /// Whether the lease has been in this state for the whole silence, by our own clock.
    fn is_silent(&mut self, etag: &ETag) -> bool {
        match &self.watched {
            Some((watched, since)) if watched == etag => since.elapsed() >= self.silence(),
            _ => {
                self.watched = Some((etag.clone(), Instant::now()));
                false
            }
        }
    }

    async fn claim(&mut self, last_term: u64, over: Option<ETag>) -> Result<Option<Office>, Error> {
        let term = last_term.saturating_add(1);
        if Epoch::first_of(term).is_none() {
            return Err(Error::LastTerm(last_term));
        }
        let lease = Lease::new(term, &self.holder);
        self.claimed = Some(lease.clone());
        let outcome = match &over {
            Some(etag) => self.store.put_if_match(LEASE_KEY, lease.encode(), etag).await?,
            None => self.store.put_if_absent(LEASE_KEY, lease.encode()).await?,
        };
        Ok(match outcome {
            PutOutcome::Written(etag) => Some(self.office(lease, etag)),
            PutOutcome::Lost => None,
        })
    }

    fn office(&mut self, lease: Lease, etag: ETag) -> Office {
        (self.watched, self.claimed) = (None, None);
        tracing::info!(term = lease.term, holder = lease.holder, "authority for placement");
        Office::new(Arc::clone(&self.store), lease, etag)
    }
}
