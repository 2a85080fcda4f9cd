//! The device layer under the GPU worker: what an engine needs to run the kernels of `weft-cuda-kernels`.
//!
//! What this room knows: memory, streams, launches, graphs, ranks. What it must not know: models, adapters, requests, which kernel does what.
//! The same calls go to one of two drivers: CUDA's, or the shim on a processor, which holds every call's memory to what was said of it.
//!
//! 1. [`requirements`] says whether a machine can run the kernels at all.
//! 2. [`Device`] takes its memory from a [`driver`] and gives [`Buffer`]s and [`Pinned`] memory, each from one pool.
//! 3. [`Stream`] takes copies, launches and products; [`Event`] orders streams.
//! 4. [`Graph`] replays what a stream captured.
//! 5. [`Group`] sums and gathers over several devices.
//! 6. [`record`] holds what was enqueued, to be counted.

mod blocks;
pub mod collective;
#[cfg(feature = "cuda")]
pub mod cuda;
mod device;
pub mod driver;
mod error;
mod graph;
mod launch;
mod matmul;
mod memory;
pub mod record;
pub mod requirements;
#[cfg(feature = "shim")]
pub mod shim;
mod stream;

pub use blocks::Blocks;
pub use collective::Group;
pub use device::{Device, Options};
pub use driver::Type;
pub use error::Error;
pub use graph::Graph;
pub use launch::{Argument, Launch};
pub use matmul::Matmul;
pub use memory::{Access, Buffer, Pinned, Usage, View};
pub use record::Counts;
pub use stream::{Event, Stream};
