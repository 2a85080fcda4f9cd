//! Load tests: open-loop traffic with many adapters and tenants, against Weft or any OpenAI or LoRAX endpoint, and what
//! came of it as tables, JSON and charts.
//!
//! What must not happen: that the client waits for the server before it sends the next request (the wait would be
//! missing from the figures), or that two runs ask the same prompts (a prefix cache would answer them).
//!
//! Stages, in order: a workload ([`workload`]: [`arrivals`], [`popularity`], [`lengths`]) becomes a [`trace`]; a
//! [`prompt`] is made for each of its requests; [`dispatch`] sends them when they are due through a [`client`];
//! [`outcome`]s become a [`report`], drawn by [`chart`]. [`scenario`]s start a [`weft`] of their own and put several
//! such runs side by side.
//!
//! This room must not know how Weft works inside: it sees HTTP, `/metrics` and `/proc`.

pub mod arrivals;
pub mod chart;
pub mod client;
pub mod dispatch;
pub mod event;
pub mod lengths;
pub mod outcome;
pub mod popularity;
pub mod prompt;
pub mod report;
pub mod scenario;
pub mod stats;
pub mod target;
pub mod trace;
pub mod weft;
pub mod workload;
