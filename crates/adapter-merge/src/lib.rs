//! Merges LoRA adapters of one base on their deltas: exactly by joining ranks, or to a target rank, the error stated.
//!
//! A LoRA module adds `scale · B A` to a weight; that product is the adapter's delta. Merging the factors apart, as LoRAX
//! does and some of PEFT's kinds do, is not merging what the adapters do: `(B1 + B2)(A1 + A2)` has cross terms. Here
//! every method acts on deltas; LoRAX's own behaviour is there by name ([`Space::Lorax`]).
//!
//! The stages of a merge, in order:
//! 1. a [`Recipe`] says what to merge and how; [`Recipe::check`] bounds it and gives it its digest ([`recipe`]);
//! 2. [`Parent::open`] hashes and opens canonical blobs; [`merge`] takes those that the recipe names and holds them
//!    against the base;
//! 3. every linear is planned: rank, memory, limits;
//! 4. one linear at a time (one for each thread) is merged: thin factors joined, or rows of deltas merged element by
//!    element and cut to the target rank;
//! 5. a package is written, with the recipe as lineage and a [`Report`] of what was lost.
//!
//! The bytes of a merge follow from its recipe alone: sums have one order, draws are counted, parents are sorted.
//!
//! This room knows nothing of stores, tenants, requests or clocks and does no IO. It asks for threads only if told to
//! ([`Limits::threads`]). Formulas, costs and the differences from PEFT and LoRAX: `docs/merging.md`.

mod algebra;
mod chance;
mod delta;
mod elements;
mod error;
mod factors;
mod merge;
mod package;
mod parent;
pub mod recipe;
mod report;
mod spread;

pub use error::Error;
pub use merge::{Limits, Merged, merge};
pub use parent::Parent;
pub use recipe::{CheckedRecipe, Component, MajoritySign, Method, OutputDtype, Recipe, Space};
pub use report::{ModuleReport, Report};
