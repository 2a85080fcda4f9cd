//! The registry through its gRPC face, over a real embedded S3. One file a behaviour, one binary for all: each links
//! the whole S3 client.

mod aliases;
mod directory;
mod experiments;
mod gc;
mod kill;
mod merge;
mod operations;
mod placement;
mod publish;
mod races;
mod refusals;
mod signatures;
mod snapshot;
mod support;
mod tenants_and_keys;
mod usage;
