//! A package that was checked: what its version's record says of it, and its canonical blob.

use crate::records::BaseRecord;
use bytes::Bytes;
use weft_adapter_format::{Limits, Refusal, Resolved, check_package};
use weft_object_store::Content;
use weft_types::Digest;

/// The two files as they came, hashed.
pub(crate) struct Source<'a> {
    pub(crate) config: &'a [u8],
    pub(crate) config_sha256: Digest,
    pub(crate) weights: &'a Bytes,
    pub(crate) weights_sha256: Digest,
}

/// What they are.
pub(crate) struct Package {
    pub(crate) warnings: Vec<String>,
    pub(crate) rank_max: usize,
    pub(crate) modules: Vec<String>,
    pub(crate) resolved: Vec<Resolved>,
    pub(crate) config_sha256: Digest,
    pub(crate) weights_sha256: Digest,
    /// A header of its own and parts of the weights, which stay as long as it does. Its hash is the adapter digest.
    pub(crate) blob: Content,
}

impl Package {
    /// Checks the files and hashes the blob. Cost: two passes over the weights. Blocks.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub(crate) fn check(source: &Source<'_>, base: &BaseRecord, limits: &Limits) -> Result<Self, Refusal> {
        let name = Some(base.served_name.as_str());
        let mut checked = check_package(source.config, source.weights, &base.shape(), name, limits)?;
        let (warnings, modules) = (std::mem::take(&mut checked.warnings), std::mem::take(&mut checked.modules));
        let (rank_max, resolved) = (checked.rank_max, std::mem::take(&mut checked.resolved));
        let (head, data) = checked.into_pieces();
        let data = data.into_iter().map(|piece| source.weights.slice_ref(piece));
        let blob = Content::of([head.into()].into_iter().chain(data).collect());
        let Source { config_sha256, weights_sha256, .. } = *source;
        Ok(Self { warnings, rank_max, modules, resolved, config_sha256, weights_sha256, blob })
    }
}
