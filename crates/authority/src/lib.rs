//! One authority for placement, elected over objects, and the epochs that it publishes.
//!
//! Two objects, both written under conditions only:
//!
//! - `placement/lease` says who is the authority and since which **term**. Who takes over adds one to the term; the
//!   authority rewrites the lease again and again to show that it lives.
//! - `placement/epoch` is the last placement ([`weft_placement::Document`]). Its number has the term as its upper part.
//!
//! # Why an old authority cannot publish over a newer one
//!
//! An epoch is written by compare-and-swap over the very state that the writer has read, and only if that state is of its
//! own term or an earlier one. A new authority's first act is to write an epoch of its term (the *fence*). Every write
//! after it must be made over the fence or what follows it, which an old authority refuses to do when it has read it,
//! and cannot do when it has not: its state is gone. So terms, and with them numbers, never go down, whatever the timing.
//!
//! Clocks are used to wait, never to be right: a candidate that sees the same lease for `silence_ms` of its own monotonic
//! clock takes it over. If it is wrong because the authority was only slow, the two of them disagree for as long as it takes
//! to write the fence, and the old one learns of it at its next write.
//!
//! This room must not know NATS, gRPC or how demand is gathered: the plan comes from a function of the caller.
//!
//! 1. [`Candidate`]: waits for the lease and takes it.
//! 2. [`Office`]: what its holder may do: renew, publish, resign.
//! 3. [`run`]: both in a loop, until it is dropped or told to stop.
//! 4. [`latest_epoch`] and [`Reader`]: what gateways use.

mod candidate;
mod epochs;
mod error;
mod lease;
mod office;
mod run;

pub use candidate::Candidate;
pub use epochs::{EPOCH_KEY, Reader, latest_epoch};
pub use error::Error;
pub use lease::LEASE_KEY;
pub use office::Office;
pub use run::{Event, run};

use weft_placement::Plan;

/// How long things are waited for.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// A lease that does not change for so long is taken over. The authority renews it every third of this.
    pub silence_ms: u64,
    /// Time between two plans of the authority.
    pub epoch_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { silence_ms: 10_000, epoch_ms: 3_000 }
    }
}

impl Settings {
    /// The settings with every value in its range: both at least 30 ms and at most an hour.
    #[must_use]
    pub fn clamped(self) -> Self {
        let range = |ms: u64| ms.clamp(30, 3_600_000);
        Self { silence_ms: range(self.silence_ms), epoch_ms: range(self.epoch_ms) }
    }
}

/// What the caller's function says about the next epoch.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// The last placement stays; nothing is written.
    Keep,
    /// This is the next one.
    Publish(Plan),
}
