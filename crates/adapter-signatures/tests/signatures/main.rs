//! Bundles as `model-signing` wrote them, and bundles made and broken on the spot.

mod certificates;
mod golden;
mod keys;
mod properties;
mod statements;
mod support;
mod trust;
