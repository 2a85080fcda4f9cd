//! What tenants used, exactly: records that survive a kill, the ledger of them in the object store, totals and exports.
//! `docs/usage.md` says what is promised to tenants and operators.
//!
//! This room knows names, counts and times, files and objects. It must not know HTTP, prices, or who may see what; who owns the
//! bytes of an adapter it is told by its caller.
//!
//! 1. [`Record`]: one answer, or what an adapter's bytes cost on a worker. Its id makes everything after it idempotent.
//! 2. [`Log`]: the local log of one process. An append is answered after an fsync that covers it (`frame` is its format).
//! 3. [`Shipper`]: carries closed segments of the log into the ledger, and forgets them afterwards.
//! 4. [`Ledger`]: batches in the object store, read by time without duplicates ([`Reader`]), and compacted ([`Compaction`]).
//! 5. [`Totals`]: sums by tenant, adapter, version and day. Pure; [`share`] splits what owners have in common.
//! 6. [`RecordExport`] and [`TotalExport`]: tables as CSV or Parquet.

mod calendar;
mod error;
mod export;
mod frame;
pub mod ledger;
pub mod log;
mod record;
pub mod share;
mod shipper;
mod totals;

pub use calendar::{Day, Hour, TIME_MS_MAX};
pub use error::Error;
pub use export::{Format, ROW_GROUP_ROWS, RecordExport, TotalExport};
pub use ledger::{Compaction, Ledger, Reader, Shipped};
pub use log::{Log, LogSettings, LogState, Segment};
pub use record::{ID_BYTES_MAX, Outcome, RECORD_BYTES_MAX, Record, Request, Residency};
pub use share::{Owner, Share};
pub use shipper::{Destination, Shipper, ShipperState};
pub use totals::{Amounts, Key, Totals};
