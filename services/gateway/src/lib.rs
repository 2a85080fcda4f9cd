//! HTTP in: who asks, which bytes are meant, which worker answers, and the answer back, token by token.
//!
//! This room knows the wire shapes of OpenAI and LoRAX, tenants and their keys, and the directory of adapters. It knows
//! nothing of tokenizers, weights or storage: text goes to a worker as it came, and an adapter is a digest.
//!
//! A generation passes these stages, each in the file of its name:
//!
//! 1. `http` reads one request of a wire dialect and, at the end, writes its answer.
//! 2. `authenticate` finds the tenant behind the bearer key in the last snapshot of `directory`.
//! 3. `resolve` turns the model name into one immutable digest. After this, no name is looked at again.
//! 4. `limits` says whether there is room, `quota` whether the tenant and its key may use what the answer may cost.
//! 5. `workers` chooses one of those that it hears of and watches.
//! 6. `generate` opens the stream, fails the request rather than deliver a token of another digest, and goes on elsewhere when
//!    the worker is lost.
//!
//! Before all of it, `address` tells for whose rate a request counts. Beside it, `demand` tells registries what is asked for, and
//! `placement` follows what they make of it.
//!
//! Decisions (`address`, `authenticate`, `resolve`) are plain functions over snapshots; they do no IO.

#![recursion_limit = "256"]

mod address;
mod app;
mod authenticate;
mod clock;
mod demand;
mod directory;
mod error;
mod experiments;
mod generate;
mod http;
mod limit_metrics;
mod limits;
mod make;
mod metrics;
mod placement;
mod quota;
mod resolve;
mod serve;
mod settings;
mod usage;
mod workers;

pub use app::{App, Components, WorkerEndpoint};
pub use error::BuildError;
pub use http::openapi_json;
pub use settings::Settings;
