//! The worker through its gRPC face. One file a behaviour, one binary for all: each links and compiles the client's half
//! of gRPC.

mod adapters;
mod binary;
mod continuation;
mod device;
mod device_blocks;
mod device_streams;
mod fairness;
mod generate;
mod grammar;
mod heartbeat;
mod lifecycle;
mod limits;
mod prefix_cache;
mod residency;
mod right_adapter;
mod sampling;
mod support;
