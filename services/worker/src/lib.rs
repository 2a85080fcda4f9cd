//! The worker: one resident base model, many adapter slots, one step loop.
//!
//! What this room is for: it takes a prompt and an adapter's digest, and streams tokens computed with exactly that
//! adapter. It must not know tenants' directories, names of adapters, aliases or HTTP: the gateway resolves those.
//!
//! A request's way, file by file:
//! 1. `grpc.rs`: the call; waits for the first event, cancels when the caller goes.
//! 2. `admit.rs`: checks, renders the chat template, tokenizes, on a blocking thread, when `turns.rs` says so; `prefix.rs`
//!    names the prompt's KV blocks.
//! 3. `step_loop.rs`: one thread that owns engine and requests; plans come from `weft_batching`.
//! 4. `adapters/`: lease from the cache daemon, pack and hash beside the loop, slot in the loop.
//! 5. `grammars.rs`: a grammar compiled or from the cache, before 2.; `masks.rs`: what it allows next, beside the loop.
//! 6. `request.rs`: sampling and what the caller is told; `answer.rs`: its tokens so far, also those that another worker
//!    generated; `text.rs`: whole characters and stop strings.
//!
//! Beside it: `model.rs` (the base and the sizes that follow), `compute.rs`, `device.rs` and `drivers.rs` (what computes, how a device's memory is
//! shared out, what opens devices), `view.rs` (load and residency for others), `announce.rs` (the base to the registry), `heartbeat.rs` (what changes, to the
//! mesh), `desired.rs` (what a placement wants here, from the registry), `metrics.rs` and `step_metrics.rs`, `settings.rs`, `age.rs` (how long
//! the start took), and `app.rs`, where all of it meets.

mod adapters;
mod admit;
mod age;
mod announce;
mod answer;
mod app;
mod compute;
mod desired;
mod device;
mod drivers;
mod error;
mod grammars;
mod grpc;
mod heartbeat;
mod masks;
mod metrics;
mod model;
mod occupancy;
mod prefill_rate;
mod prefix;
mod request;
mod settings;
mod step_loop;
mod step_metrics;
mod tell_occupancy;
mod text;
mod turns;
mod view;

pub use app::{App, Components};
pub use error::Error;
pub use settings::Settings;
