//! The wire contract between Weft's services.
//!
//! `proto/weft/*/v1/*.proto` is the source; `src/generated` is what `protoc` and `tonic-prost-build` make of it, kept
//! in git so that it can be read and searched. `tests/codegen.rs` regenerates it and fails on a difference;
//! `make codegen` writes it anew.
//!
//! This room knows messages only: no defaults, no checks, no conversions. Those live where a message is used.

#![allow(missing_docs, unreachable_pub, clippy::all)]

/// `weft.registry.v1`: adapters, versions, aliases, tenants and keys.
pub mod registry {
    pub mod v1 {
        include!("generated/weft.registry.v1.rs");
    }
}

/// `weft.cache.v1`: leases on adapter bytes.
pub mod cache {
    pub mod v1 {
        include!("generated/weft.cache.v1.rs");
    }
}

/// `weft.worker.v1`: generation, load and residency.
pub mod worker {
    pub mod v1 {
        include!("generated/weft.worker.v1.rs");
    }
}

/// `weft.mesh.v1`: heartbeats, residency and change events over the bus.
pub mod mesh {
    pub mod v1 {
        include!("generated/weft.mesh.v1.rs");
    }
}
