//! The hot operations of a step: one port, a definition, and fast implementations.
//!
//! What this room knows: slices of `f32`, packed weights, packed adapters, pages of keys and values.
//! What it must not know: models, layers, requests, tokens, files, async.
//!
//! - [`Kernels`] is the port. Everything above talks to it and to the opaque types it hands out.
//! - [`reference()`] is the definition of every operation: plain loops, sums in `f64`.
//! - [`cpu()`] is the implementation for processors: SIMD chosen at run time ([`Isa`]), a fixed pool of threads.
//! - [`conformance`] holds one suite that every implementation must pass, with a tolerance per format.
//!
//! Names of dimensions, the same everywhere in this crate: `rows` are the tokens of a step, `in` and `out`
//! the features of a linear, `rank` that of an adapter; `heads` query heads, `kv_heads` key and value heads
//! (`heads` is a multiple of it), `head_dim` their width. All slices are row-major `f32`, the last dimension contiguous.
//!
//! # Same answer, whatever shares the batch
//!
//! Every operation computes each row from that row alone (its integer codes included), with one fixed order of additions per element.
//! The order depends on the shape of the weights and, in attention, on the absolute position, never on the number
//! of rows, the cut of a prompt into steps, the number of threads or which thread did the work. For one
//! implementation on one machine a row is therefore *bit-equal* alone and in any batch, in every format.

mod aligned;
pub mod conformance;
mod cpu;
mod kv;
mod packed;
mod port;
mod quant;
mod reference;
mod shapes;
mod share;

pub use cpu::{CpuOptions, Isa, ParseIsaError, cpu};
pub use kv::{KvFormat, KvLayer};
pub use packed::{LoraMatrix, PackedLinear, WeightFormat};
pub use port::{AttentionSeq, Kernels, LoraSegment, LoraTarget};
pub use reference::reference;
