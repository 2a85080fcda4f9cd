//! What a GPU makes of the engine: sizes without a meaning, random adapters, and what a step of them takes.

mod adapters;
pub mod measure;
pub mod shape;
