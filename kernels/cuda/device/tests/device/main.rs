//! The device layer through its public face: over the shim, and what can be seen of CUDA's driver.

mod attention;
mod collectives;
mod conformance;
mod counts;
#[cfg(feature = "cuda")]
mod cuda;
mod graphs;
mod launches;
mod lora;
mod memory;
mod port;
mod products;
mod programs;
mod streams;
mod support;
