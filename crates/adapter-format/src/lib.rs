//! Reads LoRA and DoRA packages as PEFT writes them, checks them against a base, and writes and reads the canonical blob.
//!
//! A package is two foreign files, `adapter_config.json` and `adapter_model.safetensors`. What PEFT would do with
//! them is done exactly, or the package is refused with every reason at once: no key and no tensor that could change
//! an answer is ever ignored. What comes out is the canonical blob, whose SHA-256 is the adapter's identity.
//!
//! The stages of [`check_package`], in order:
//! 1. the config is parsed, bounded in size and depth, and every key classified (`json`, `config`);
//! 2. the header of the weights is parsed and its layout checked (`header`);
//! 3. the config selects modules of the base and resolves each one's rank and scale (`pattern`, `select`);
//! 4. the tensors present are held against that selection: names, shapes, dtypes, finite values (`check`);
//! 5. the canonical blob is written ([`canonical`]).
//!
//! This room knows nothing of stores, tenants or engines, does no IO, and does not know how a base is loaded: the
//! caller says its shape in a [`BaseShape`].

mod base;
pub mod canonical;
mod check;
mod config;
mod error;
mod header;
mod json;
mod pattern;
mod select;
mod tensor;

pub use base::{BaseShape, LinearShape, Module};
pub use canonical::{CanonicalAdapter, ModuleDelta};
pub use check::{CheckedPackage, Limits, check_package};
pub use error::{Error, REASONS_MAX, Refusal};
pub use select::Resolved;
pub use tensor::{Dtype, TensorView, VectorView};
