//! The CUDA kernels of Weft: their sources, what a launch of them needs, and a shim that runs them on a processor.
//!
//! The `.cu` files beside this crate are for devices; nothing here needs one, or CUDA. What this room knows: slices, tables of
//! adapters, launches. What it must not know: models, requests, where memory comes from. It is used by its own tests alone so far.
//!
//! 1. [`table`] turns segments of rows into the device table and the shape of a launch: plain functions.
//! 2. [`host`] launches a kernel by name in the shim, with its checks (`shim/`).
//! 3. [`on_host`] is [`weft_kernels::Kernels`] over that, so that the one conformance suite judges the kernels.
//! 4. [`model`] predicts what a step costs from the bytes that its launches move.

pub mod host;
pub mod model;
pub mod on_host;
pub mod table;
