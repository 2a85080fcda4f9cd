//! Who may stay: byte budgets, leases, pins and eviction as plain functions.
//!
//! A [`Ledger`] keeps the books of one place that holds bytes (the slots of a worker, a disk, a memory tier). It moves
//! no bytes, reads no clock and cannot fail: the caller asks [`Ledger::make_room`], carries out the answer and books it.
//!
//! This room must not know what an adapter, a file or a slot is; a key is anything that can be compared and hashed.
//!
//! 1. [`Ledger`]: entries, leases, pins, the budget and what may go.
//! 2. `value`: what an entry is worth keeping, as one number that does not change while nobody uses the entry.
//! 3. [`Past`]: what entries that are gone were worth, for when they come back.

mod ledger;
mod past;
mod value;

pub use ledger::{EntryView, Ledger, Room};
pub use past::Past;
pub use value::{Value, Worth};
