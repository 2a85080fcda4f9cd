//! What the authority may do as long as nobody has taken over.

use crate::epochs::{self, EPOCH_KEY};
use crate::lease::{self, LEASE_KEY, Lease};
use crate::{Decision, Error};
use std::sync::Arc;
use weft_object_store::{ETag, ObjectStore, PutOutcome};
use weft_placement::{Document, Epoch, Plan};

/// Tries of one publication that others win. Only an old authority can, and only until the fence is there.
const PUBLISH_ATTEMPTS_MAX: u32 = 8;

/// The authority's rights in one term.
pub struct Office {
    store: Arc<dyn ObjectStore>,
    lease: Lease,
    /// The lease's state; `None` after a write whose outcome is not known.
    lease_etag: Option<ETag>,
    /// The last epoch and its state; `None` when it has to be read.
    current: Option<(Option<Document>, Option<ETag>)>,
    /// The last number that was tried: never used twice, whatever became of it.
    last_tried: Option<Epoch>,
}

impl Office {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, lease: Lease, etag: ETag) -> Self {
        Self { store, lease, lease_etag: Some(etag), current: None, last_tried: None }
    }

    /// The term.
    #[must_use]
    pub fn term(&self) -> u64 {
        self.lease.term
    }

    /// Shows that the authority lives.
    ///
    /// # Errors
    /// [`Error::Deposed`]: the office is over. [`Error::Store`]: try again.
    pub async fn renew(&mut self) -> Result<(), Error> {
        let next = self.lease.renewed();
        self.rewrite(next).await
    }

    /// Gives the office back, so that nobody has to wait for the silence.
    ///
    /// # Errors
    /// As [`Office::renew`]; then the lease runs out by itself.
    pub async fn resign(mut self) -> Result<(), Error> {
        // A renewal that was given up on its way may still have come before this.
        while !self.lease.is_vacant {
            let vacant = self.lease.vacated();
            self.rewrite(vacant).await?;
        }
        Ok(())
    }

    async fn rewrite(&mut self, next: Lease) -> Result<(), Error> {
        let etag = match self.lease_etag.take() {
            Some(etag) => etag,
            None => self.own_lease().await?,
        };
        match self.store.put_if_match(LEASE_KEY, next.encode(), &etag).await? {
            PutOutcome::Written(etag) => {
                self.lease_etag = Some(etag);
                self.lease = next;
                Ok(())
            }
            // Ours all the same, if our own write was taken for somebody else's.
            PutOutcome::Lost => self.own_lease().await.map(|etag| self.lease_etag = Some(etag)),
        }
    }

    /// Reads the lease and takes up its state if it is ours.
    async fn own_lease(&mut self) -> Result<ETag, Error> {
        match lease::read(&*self.store).await? {
            lease::Found::Lease(lease, etag) if lease.term == self.lease.term && lease.holder == self.lease.holder => {
                self.lease = lease;
                Ok(etag)
            }
            lease::Found::Lease(lease, _) => {
                Err(self.deposed(format!("the lease is {}'s in term {}", lease.holder, lease.term)))
            }
            lease::Found::Nothing => Err(self.deposed("the lease is gone".to_owned())),
            lease::Found::Damaged(_) => Err(self.deposed("the lease cannot be read".to_owned())),
        }
    }

    fn deposed(&self, reason: String) -> Error {
        Error::Deposed { term: self.lease.term, reason }
    }

    /// Publishes the last placement again under the first number of this term: from now on no earlier authority can
    /// publish. To be done first.
    ///
    /// # Errors
    /// As [`Office::publish`].
    pub async fn fence(&mut self) -> Result<Document, Error> {
        let written = self.publish(|last| Decision::Publish(again(last))).await?;
        // `again` always publishes.
        written.ok_or_else(|| self.deposed("nothing was written".to_owned()))
    }

    /// Publishes what `decide` makes of the last placement; `None` if it keeps that. `decide` is asked again if
    /// somebody else has written meanwhile.
    ///
    /// # Errors
    /// [`Error::Deposed`]: the office is over, nothing was written. [`Error::Store`]: it may have been written; the next
    /// publication finds out and goes on from there. [`Error::Document`]: the plan breaks a limit.
    pub async fn publish(
        &mut self,
        mut decide: impl FnMut(Option<&Document>) -> Decision,
    ) -> Result<Option<Document>, Error> {
        for _ in 0..PUBLISH_ATTEMPTS_MAX {
            let (last, etag) = match self.current.take() {
                Some(current) => current,
                None => self.read_current().await?,
            };
            let Decision::Publish(plan) = decide(last.as_ref()) else {
                self.current = Some((last, etag));
                return Ok(None);
            };
            let epoch = self.next_epoch(last.as_ref())?;
            let document =
                Document { epoch, holder: self.lease.holder.clone(), workers: plan.workers, adapters: plan.adapters };
            let bytes = match document.encode() {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.current = Some((last, etag));
                    return Err(error.into());
                }
            };
            self.last_tried = Some(epoch);
            let outcome = match &etag {
                Some(etag) => self.store.put_if_match(EPOCH_KEY, bytes.into(), etag).await?,
                None => self.store.put_if_absent(EPOCH_KEY, bytes.into()).await?,
            };
            if let PutOutcome::Written(etag) = outcome {
                self.current = Some((Some(document.clone()), Some(etag)));
                return Ok(Some(document));
            }
        }
        Err(self.deposed(format!("{PUBLISH_ATTEMPTS_MAX} publications were lost to others")))
    }

    /// The last epoch, if this term may be published over it.
    async fn read_current(&self) -> Result<(Option<Document>, Option<ETag>), Error> {
        match epochs::read(&*self.store).await? {
            epochs::Found::Document(last, etag) => {
                let is_other = last.epoch.term() == self.lease.term && last.holder != self.lease.holder;
                if last.epoch.term() > self.lease.term || is_other {
                    return Err(self.deposed(format!("epoch {} is {}'s", last.epoch, last.holder)));
                }
                Ok((Some(last), Some(etag)))
            }
            // What lies there cannot say of which term it was; the lease can, since a term is taken before it publishes.
            epochs::Found::Nothing => self.still_in_office().await.map(|()| (None, None)),
            epochs::Found::Damaged(etag) => self.still_in_office().await.map(|()| (None, Some(etag))),
        }
    }

    async fn still_in_office(&self) -> Result<(), Error> {
        match lease::read(&*self.store).await? {
            lease::Found::Lease(lease, _) if lease.term == self.lease.term && lease.holder == self.lease.holder => {
                Ok(())
            }
            _ => Err(self.deposed("the last epoch cannot be read, and the lease is not ours".to_owned())),
        }
    }

    fn next_epoch(&self, last: Option<&Document>) -> Result<Epoch, Error> {
        let of_term = last.map(|last| last.epoch).filter(|epoch| epoch.term() == self.lease.term);
        let next = match of_term.max(self.last_tried) {
            Some(epoch) => epoch.next(),
            None => Epoch::first_of(self.lease.term),
        };
        next.ok_or_else(|| self.deposed("its epochs are used up".to_owned()))
    }
}

fn again(last: Option<&Document>) -> Plan {
    let Some(last) = last else { return Plan::default() };
    Plan { workers: last.workers.clone(), adapters: last.adapters.clone(), ..Plan::default() }
}
