//! What a tenant may publish and ask for, as operators write and read it.

use super::body::given;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;
use weft_fault::Fault;
use weft_proto::registry::v1 as pb;

/// A tenant's policy; what is null is as the registries' settings have it.
#[derive(Serialize, ToSchema)]
pub(crate) struct PolicyBody {
    /// Largest rank of a package.
    rank_max: Option<u32>,
    /// Most bytes of a package's weights.
    package_bytes_max: Option<u64>,
    /// Whether a package needs a signature that the registries trust.
    signed: bool,
    /// Merges made at request time that are kept at once.
    request_merges_max: Option<u32>,
    /// Where an adapter that a request asks for may be imported from, by its `adapter_source`: its name goes behind this.
    adapter_sources: BTreeMap<String, String>,
    /// Whether the base's name means the default adapter.
    base_is_default: bool,
}

impl From<Option<pb::Policy>> for PolicyBody {
    fn from(policy: Option<pb::Policy>) -> Self {
        let policy = policy.unwrap_or_default();
        Self {
            rank_max: Some(policy.rank_max).filter(|rank| *rank > 0),
            package_bytes_max: Some(policy.package_bytes_max).filter(|bytes| *bytes > 0),
            signed: policy.signed,
            request_merges_max: policy.request_merges_max,
            adapter_sources: policy.adapter_sources.into_iter().collect(),
            base_is_default: policy.base_is_default,
        }
    }
}

/// A policy to set. What is absent stays as it is, null takes a limit away.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PolicyAsked {
    /// From 1.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1)]
    rank_max: Option<Option<u32>>,
    /// From 1.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<u64>, minimum = 1)]
    package_bytes_max: Option<Option<u64>>,
    signed: Option<bool>,
    /// 0 to 10,000; 0: none are made.
    #[serde(deserialize_with = "given")]
    #[schema(value_type = Option<u32>, maximum = 10000)]
    request_merges_max: Option<Option<u32>>,
    /// `hub`, `s3`, `local` or `pbase` to the beginning of a source, which ends in a slash: `hf://`, `s3://bucket/prefix/`, `file:///folder/`. Null
    /// takes one away.
    adapter_sources: BTreeMap<String, Option<String>>,
    base_is_default: Option<bool>,
}

impl PolicyAsked {
    /// For the registry, which checks what is not checked here.
    pub(super) fn change(self) -> Result<pb::PolicyChange, Fault> {
        let zero = |field: &str| {
            Fault::invalid(format!("policy.{field}"), format!("{field} is 0; it is at least 1, or null for none"))
        };
        if self.rank_max == Some(Some(0)) {
            return Err(zero("rank_max"));
        }
        if self.package_bytes_max == Some(Some(0)) {
            return Err(zero("package_bytes_max"));
        }
        let sources = self.adapter_sources.into_iter();
        Ok(pb::PolicyChange {
            rank_max: self.rank_max.map(|rank| rank.unwrap_or(0)),
            package_bytes_max: self.package_bytes_max.map(|bytes| bytes.unwrap_or(0)),
            signed: self.signed,
            request_merges_max: self.request_merges_max.flatten(),
            default_request_merges_max: self.request_merges_max == Some(None),
            adapter_sources: sources.map(|(source, beginning)| (source, beginning.unwrap_or_default())).collect(),
            base_is_default: self.base_is_default,
        })
    }
}
