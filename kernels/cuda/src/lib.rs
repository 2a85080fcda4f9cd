//! The CUDA kernels of Weft: their sources, what a launch of them needs, and a shim that runs them on a processor.
//!
//! The `.cu` files beside this crate are for devices; nothing here needs one, or CUDA. What this room knows: slices, tables of
//! adapters, launches. What it must not know: models, requests, where memory comes from.
//!
//! 1. [`pack`] lays adapters out as they lie in a slot; [`table`] turns segments of rows into the device table and the shape of a
//!    launch: plain functions.
//!    [`attention`] does so with sequences and their pages, [`columns`] with factors for the outputs of adapters.
//! 2. [`host`] launches a kernel by name in the shim, with its checks (`shim/`).
//!    [`within`] holds it to the memory that it names, and tells what it touched.
//! 3. [`on_host`] is [`weft_kernels::Kernels`] over that, so that the one conformance suite judges the kernels.
//! 4. [`gemm`] packs quantised weights, and chooses the launch of a product with them.
//!    [`e4m3`] is what numbers of 8 bits are.
//! 5. [`sampling`] makes the device table of the sampler, and runs it in the shim.
//! 6. [`model`] predicts what a step costs from the bytes that its launches move.

pub mod attention;
pub mod columns;
pub mod e4m3;
pub mod gemm;
#[cfg(feature = "shim")]
pub mod host;
pub mod model;
#[cfg(feature = "shim")]
pub mod on_host;
pub mod pack;
pub mod sampling;
pub mod table;
#[cfg(feature = "shim")]
pub mod within;
