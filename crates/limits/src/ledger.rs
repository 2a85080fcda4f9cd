//! The port: who keeps what all gateways together have used.

use crate::gcra::{Level, Rate};
use async_trait::async_trait;
use serde::Serialize;
use std::time::Duration;

/// Keeps buckets and charges of tenants.
///
/// One call settles the former charge of a gateway and reserves for a new one, atomically:
///
/// - *All or nothing*: either every ask is granted at least what it needs, or none is granted anything.
/// - *What is given back counts in any case*, also when the asks are refused: units that the former charge did not use
///   come off the buckets, units that were used beyond it go on.
/// - *Idempotent by charge*: a call with a charge that was answered before changes nothing and is answered the same. So is
///   closing a charge that is closed already: units come back once.
///   This holds for as long as a charge is known ([`Exchange::known_us`]), which is longer than it is open.
/// - *A charge that nobody closes ends by itself* after its time: its slots come free, its units count as used. Closed
///   after that and while it is known, what comes back still comes back.
/// - *What is lost is noticed*: a ledger that forgot everything has another epoch, and one that forgot the last of it, as when
///   it comes back from an older copy, does not know the charge that the gateway closes. It then asks for what the gateway
///   remembers ([`Exchange::floors`]), and no bucket is emptier than the fullest memory of it.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// Settles and reserves for one tenant.
    ///
    /// # Errors
    /// The ledger is away, too slow or full. Whether the call had its effect is unknown unless it says [`Error::Full`];
    /// the same call again is safe.
    async fn exchange(&self, tenant: &str, exchange: &Exchange) -> Result<Answer, Error>;

    /// Says that a gateway lives, for so long; answers how many do, and the ledger's own epoch and server, of which one is new
    /// after something was or may have been forgotten: then each gateway should tell what it remembers without waiting for
    /// requests.
    ///
    /// # Errors
    /// The ledger is away or too slow.
    async fn beat(&self, gateway: &str, alive: Duration) -> Result<Beat, Error>;
}

/// The answer to a sign of life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beat {
    /// Gateways that live, this one included.
    pub gateways: u64,
    /// The ledger's own epoch: a new one after everything was forgotten.
    pub epoch: String,
    /// The server that answered: a new one after a restart or a fail-over, by which the last calls may have been forgotten. None:
    /// it does not say.
    pub server: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no connection.
    #[error("cannot be reached: {0}")]
    Away(String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Slow(Duration),
    /// An answer that cannot be read, or a refusal by the server itself.
    #[error("{0}")]
    Wrong(String),
    /// A tenant has as many open charges as it may.
    #[error("a tenant's open charges reach their limit of {0}")]
    Full(usize),
}

/// Charges of one tenant that are kept: the last one of each gateway that serves it or did of late. Beyond it, those that ended
/// are forgotten.
pub const CHARGES_MAX: usize = 4096;

/// One call.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Exchange {
    /// The ledger's epoch as last heard; empty: never heard.
    pub epoch: String,
    /// What a ledger without an epoch shall call its own: random.
    pub new_epoch: String,
    /// The charge to close.
    pub closes: Option<String>,
    /// The new charge: unique, and the key by which this call is idempotent.
    pub charge: String,
    /// How long the charge stays open by itself.
    pub open_us: u64,
    /// How long it is known: more than `open_us`.
    pub known_us: u64,
    /// What is given back and asked for, each bucket at most once.
    pub asks: Vec<Ask>,
    /// What the gateway remembers of the tenant's buckets, after [`Outcome::UnknownEpoch`].
    pub floors: Option<Vec<Floor>>,
}

/// One bucket in a call.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Units that drain.
    Units {
        /// Unique within the tenant.
        bucket: String,
        /// Its limit.
        #[serde(flatten)]
        rate: Rate,
        /// Units that come back from the charge to close; if negative, units used beyond it.
        back: f64,
        /// Units used while the ledger was away. They fill the bucket at most: meanwhile it drained for nobody.
        alone: f64,
        /// Units needed.
        at_least: u64,
        /// Units wanted; at least `at_least`.
        at_most: u64,
    },
    /// Slots that are held.
    Slots {
        /// Unique within the tenant.
        bucket: String,
        /// All that there are.
        limit: u64,
        /// In use at this gateway: counted even if the call is refused.
        used: u64,
        /// Needed by this gateway, those in use included.
        at_least: u64,
        /// Wanted by this gateway; at least `at_least`.
        at_most: u64,
    },
}

impl Serialize for Rate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("limit", &self.limit)?;
        map.serialize_entry("period_us", &self.period_us)?;
        map.end()
    }
}

/// What a gateway remembers of a bucket, on the ledger's clock.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Floor {
    /// Its name.
    pub bucket: String,
    /// Its limit.
    #[serde(flatten)]
    pub rate: Rate,
    /// Units in it.
    pub used: f64,
    /// When, in microseconds.
    pub at_us: u64,
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The ledger's epoch now.
    pub epoch: String,
    /// Whether the asks were granted.
    pub outcome: Outcome,
    /// Each bucket afterwards, in the order of the asks. Empty after [`Outcome::UnknownEpoch`].
    pub buckets: Vec<Bucket>,
}

/// Whether the asks were granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All of them.
    Granted,
    /// None of them.
    Refused {
        /// Position of the ask with the longest wait.
        ask: usize,
        /// Microseconds until it could be granted; 0 for slots, of which nobody knows.
        retry_after_us: u64,
    },
    /// Nothing was done: the ledger is not the one that the gateway knew, or an older state of it. Call again with floors.
    UnknownEpoch,
}

/// A bucket after a call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// Units granted by this call, or slots that this gateway holds now.
    pub granted: u64,
    /// What is in the bucket, or the slots that all gateways hold.
    pub level: Level,
}
