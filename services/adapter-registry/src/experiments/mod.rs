//! Split tests: their records, what gateways observed in them, and what follows.
//!
//! Arithmetic and decisions are `weft_experiments`'s. An experiment splits an alias while two records agree: its own says
//! "running", and the alias names it. So both begin and end are one conditional write of the alias:
//!
//! - *start*: the alias names the experiment, then the experiment runs;
//! - *end*: the experiment notes how it ends, then the alias moves (or stays) and names nobody, then the experiment has ended.
//!
//! Whoever dies in between leaves a state that starting again, or [`evaluate()`], completes.
//!
//! 1. [`describe`]: from an operator's JSON to a checked description.
//! 2. [`change`]: create, start, weigh, promote, stop.
//! 3. [`observations`]: gateways' statistics and exposure logs in the store, beside the records.
//! 4. [`evaluate`]: guardrails and ends, by all registries, again and again.

mod change;
mod describe;
mod evaluate;
mod observations;

pub(crate) use change::Change;
pub(crate) use evaluate::evaluate;
pub(crate) use observations::Observed;
