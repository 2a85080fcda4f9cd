//! The gateway through its HTTP face, one file a behaviour. One binary, because each links the whole service.

mod addresses;
mod authentication;
mod bad_input;
mod chat;
mod completions;
mod continuation;
mod deadlines;
mod disconnect;
mod discovery;
mod experiments;
mod failing_workers;
mod headers;
mod limits;
mod lorax;
mod models;
mod operations;
mod placement;
mod publish;
mod quotas;
mod quotas_shared;
mod random_bytes;
mod registry_away;
mod right_adapter;
mod support;
mod usage;
