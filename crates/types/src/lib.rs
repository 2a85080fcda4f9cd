//! Values that two or more rooms truly share: digests, names and model references. No IO, no policy.

mod digest;
mod name;

pub use digest::{Digest, DigestHasher, ParseDigestError};
pub use name::{
    ADAPTER_NAME_BYTES_MAX, AdapterName, AliasName, ModelRef, NameError, Selector, TenantName, VersionNumber, model_ref,
};
