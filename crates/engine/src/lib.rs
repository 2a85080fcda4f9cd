//! The forward pass over a heterogeneous batch: one base model, many adapters, one step.
//!
//! What this room is for: it holds the packed base weights, the adapter slots and the KV memory, and turns a
//! [`StepBatch`] (which tokens of which sequences, with which adapter, into which KV blocks) into logits, or into tokens. It must not
//! know requests, tenants, queues or clocks: who runs when is decided in `crates/batching`, and which adapter stays is
//! decided in `crates/residency`.
//!
//! Stages of a step, in order:
//! 1. `plan` checks the whole batch before anything is written, and orders its sequences by slot, so that the rows of one
//!    adapter are one run;
//! 2. `forward` is the Llama model, written once over a port of its operations. On processors (`processor`) they run over candle tensors, each hot
//!    one a candle custom op from `ops` that calls [`weft_kernels::Kernels`];
//! 3. logits, or the token that a sequence's [`sampling::Draw`] chose from them, are handed back in the order of the batch, each with the digest read
//!    from the slot entry that was used.
//!
//! Beside the step loop: [`Preparer`] turns a canonical blob into a [`PreparedAdapter`] on any thread, so that
//! [`Engine::install`] only moves a pointer (what DoRA's magnitudes mean for this base is computed there: `dora`);
//! [`sampling`] chooses tokens from logits, in a step or behind it.

mod adapter;
mod any;
pub mod device;
mod dora;
mod engine;
mod error;
mod forward;
mod ops;
mod plan;
mod processor;
pub mod sampling;
mod shape;
mod slots;
mod timed;
mod weights;
mod workspace;

pub use any::{Engine, NotInstalled, PreparedAdapter, Preparer};
pub use engine::{
    AdapterDtype, Dtype, EngineOptions, LogitsWanted, ProcessorEngine, SeqOutput, SeqStep, StepBatch, StepOutput,
};
pub use error::{Error, Problem};
pub use slots::SlotId;
pub use timed::StepTimes;
