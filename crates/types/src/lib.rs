//! Values that two or more rooms truly share: digests, names, model references, weights and limits. No IO, no policy.

mod digest;
mod limits;
mod name;
mod weight;

pub use digest::{Digest, DigestHasher, ParseDigestError};
pub use limits::{LimitChange, LimitError, LimitKind, Limits};
pub use name::{
    ADAPTER_NAME_BYTES_MAX, AdapterName, AliasName, MERGED_PREFIX, ModelRef, NameError, Selector, TenantName,
    VersionNumber, model_ref, recipe_of,
};
pub use weight::{Weight, WeightError};
