//! Queues, a token budget and KV blocks, turned into the plan of one step.
//!
//! What this room is for: it decides who runs in the next step, with how many tokens and in which KV blocks. It holds
//! counts, names, hashes and measured costs only. It must not know token ids, text, logits, the content of adapters, clocks
//! or threads: the worker's loop asks for a plan, runs it on the engine and reports back.
//!
//! Parts, in the order in which a request meets them:
//! 1. Whose turn it is: virtual token counters by tenant, with weights and classes (`counters.rs`, `fair_queue.rs`), and
//!    the adapters that a tenant may have ahead (`loads.rs`). `docs/fairness.md` has the bound.
//! 2. [`Scheduler`]: waiting, running and preempted requests, and requests that wait beside the queue for their adapter.
//! 3. [`pace`]: how many prompt tokens a step takes beside decodes; `foresight.rs`: how much KV memory will be needed.
//! 4. [`BlockPool`]: physical KV blocks; full ones may be shared by requests that begin alike. On a device some are lent to adapters: what
//!    requests want of those is asked by [`Scheduler::blocks_wanted`], and decided outside.
//! 5. [`prefix`]: which full blocks can be found again, by whom, and which go first.
//!
//! [`turns`] is for queues outside the scheduler, where one entry costs about as much as another.
//!
//! Promises, kept by `tests/properties.rs` and `tests/prefix_cache.rs`:
//! - a plan never holds more than `step_tokens_max` tokens, nor more requests than `running_max`;
//! - a block that is written is held by one request, a block that several hold is only read, and none is lost;
//! - every token of a request is computed once for every time that it has to be (once, and again after a preemption), or
//!   read from a block that holds the same tokens in the same namespace;
//! - what a plan looks like does not depend on the content of prompts in other namespaces;
//! - every request that is admitted finishes;
//!
//! and by `tests/fairness.rs`, `tests/noisy_neighbour.rs` and `tests/pacing.rs`:
//! - tenants that wait are served by their weights, within a written bound, whatever they ask for;
//! - a tenant that comes waits at most one admission of each other tenant for its first;
//! - prompts stretch the time between others' tokens by a set factor, if steps cost what they were measured to.

mod blocks;
mod counters;
mod fair_queue;
mod foresight;
mod loads;
pub mod pace;
pub mod prefix;
mod scheduler;
pub mod turns;

pub use blocks::{BlockPool, BlockTable, Cached};
pub use counters::{Fairness, Priority, Weight};
pub use pace::Pace;
pub use prefix::{BlockHash, Prefix};
pub use scheduler::{
    BlocksWanted, Chunk, Limits, Load, NewRequest, Phase, PrefixCounts, RequestId, Scheduler, StepPlan, Submitted,
};
pub use turns::Tenant;

/// Why a request is not taken, or the scheduler cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The queue is full, and no other tenant holds more of it than this one.
    #[error("queue is full: {queued} requests wait, the limit is {limit}")]
    QueueFull {
        /// Requests that wait.
        queued: usize,
        /// Most requests that may wait.
        limit: usize,
    },
    /// Prompt and output do not fit the KV memory even if the request runs alone.
    #[error("{tokens} tokens of prompt and output do not fit the KV memory of {limit} tokens")]
    TooLong {
        /// Prompt and output.
        tokens: usize,
        /// Tokens that the KV memory holds.
        limit: usize,
    },
    /// A request needs at least one prompt token and one output token.
    #[error("{what} is 0, allowed is 1 or more")]
    Empty {
        /// Field name.
        what: &'static str,
    },
    /// The id is in use.
    #[error("request id {0} is in use")]
    Duplicate(u64),
}
