//! What an operator lets a tenant publish and ask for.

use crate::{Error, Settings};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use weft_adapter_format::Limits;
use weft_adapter_sources::Source;
use weft_proto::registry::v1 as pb;

/// What `adapter_source` may say in a request, as LoRAX has it.
const ADAPTER_SOURCES: [&str; 4] = ["hub", "local", "pbase", "s3"];
/// Longest beginning of a source.
const SOURCE_BYTES_MAX: usize = 200;
/// Most merges made at request time that a policy may allow: each is an adapter of the directory.
pub(crate) const REQUEST_MERGES_MAX: u32 = 10_000;

/// A tenant's policy. What is absent is as the settings have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Policy {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rank_max: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) package_bytes_max: Option<u64>,
    /// A package needs a signature that is trusted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) signed: bool,
    /// Merges made at request time that are kept at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) request_merges_max: Option<u32>,
    /// What an adapter's name is put behind, by the `adapter_source` of a request.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) adapter_sources: BTreeMap<String, String>,
    /// The base's name means the default adapter.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) base_is_default: bool,
}

impl Policy {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What a package may be: no more than the settings allow, whatever the policy says.
    pub(crate) fn limits(&self, settings: &Settings) -> Limits {
        let rank = self.rank_max.map_or(usize::MAX, |rank| rank as usize);
        Limits {
            rank_max: settings.rank_max.min(rank),
            weights_bytes_max: self.weights_bytes_max(settings).0,
            ..Limits::default()
        }
    }

    /// Most bytes of a package's weights, and what says so.
    pub(crate) fn weights_bytes_max(&self, settings: &Settings) -> (u64, &'static str) {
        match self.package_bytes_max {
            Some(bytes) if bytes < settings.package_bytes_max => (bytes, "the tenant's policy"),
            _ => (settings.package_bytes_max, "package_bytes_max"),
        }
    }

    /// How many merges made at request time may be kept at once.
    pub(crate) fn request_merges_max(&self, settings: &Settings) -> usize {
        self.request_merges_max.unwrap_or(settings.request_merges_max) as usize
    }

    /// This policy with the change.
    ///
    /// # Errors
    /// `invalid`, naming the field.
    pub(crate) fn changed(&self, change: &pb::PolicyChange) -> Result<Self, Error> {
        let mut next = self.clone();
        if let Some(rank_max) = change.rank_max {
            next.rank_max = Some(rank_max).filter(|rank| *rank > 0);
        }
        if let Some(bytes) = change.package_bytes_max {
            next.package_bytes_max = Some(bytes).filter(|bytes| *bytes > 0);
        }
        next.signed = change.signed.unwrap_or(next.signed);
        if change.default_request_merges_max {
            next.request_merges_max = None;
        }
        if let Some(merges) = change.request_merges_max {
            if merges > REQUEST_MERGES_MAX {
                let message = format!("request_merges_max is {merges}, the limit is {REQUEST_MERGES_MAX}");
                return Err(Error::invalid("policy.request_merges_max", message));
            }
            next.request_merges_max = Some(merges);
        }
        for (source, beginning) in &change.adapter_sources {
            check_source(source, beginning)?;
            if beginning.is_empty() {
                next.adapter_sources.remove(source);
            } else {
                next.adapter_sources.insert(source.clone(), beginning.clone());
            }
        }
        next.base_is_default = change.base_is_default.unwrap_or(next.base_is_default);
        Ok(next)
    }

    pub(crate) fn wire(&self) -> pb::Policy {
        pb::Policy {
            rank_max: self.rank_max.unwrap_or(0),
            package_bytes_max: self.package_bytes_max.unwrap_or(0),
            signed: self.signed,
            request_merges_max: self.request_merges_max,
            adapter_sources: self.adapter_sources.clone().into_iter().collect(),
            base_is_default: self.base_is_default,
        }
    }
}

/// A source that a name behind it makes whole.
fn check_source(source: &str, beginning: &str) -> Result<(), Error> {
    const PARAM: &str = "policy.adapter_sources";
    if !ADAPTER_SOURCES.contains(&source) {
        let shown: String = source.chars().take(64).collect();
        let message = format!("adapter_sources has {shown:?}; there are {}", ADAPTER_SOURCES.join(", "));
        return Err(Error::invalid(PARAM, message));
    }
    if beginning.is_empty() {
        return Ok(());
    }
    if beginning.len() > SOURCE_BYTES_MAX {
        let bytes = beginning.len();
        let message = format!("adapter_sources.{source} has {bytes} bytes, the limit is {SOURCE_BYTES_MAX}");
        return Err(Error::invalid(PARAM, message));
    }
    if !beginning.ends_with('/') {
        return Err(Error::invalid(
            PARAM,
            format!("adapter_sources.{source} is {beginning:?}; it must end with a slash"),
        ));
    }
    // With any name behind it.
    if let Err(error) = format!("{beginning}org/name").parse::<Source>() {
        return Err(Error::invalid(PARAM, format!("adapter_sources.{source} is {beginning:?}: {error}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(source: &str, beginning: &str) -> pb::PolicyChange {
        let adapter_sources = [(source.to_owned(), beginning.to_owned())].into_iter().collect();
        pb::PolicyChange { adapter_sources, ..pb::PolicyChange::default() }
    }

    #[test]
    fn what_is_absent_stays_and_nothing_goes_beyond_the_settings() {
        let settings = Settings { rank_max: 64, package_bytes_max: 1_000, ..Settings::default() };
        let first = pb::PolicyChange { rank_max: Some(16), signed: Some(true), ..Default::default() };
        let policy = Policy::default().changed(&first).unwrap();
        assert_eq!((policy.limits(&settings).rank_max, policy.limits(&settings).weights_bytes_max), (16, 1_000));
        let second = pb::PolicyChange { rank_max: Some(128), package_bytes_max: Some(10), ..Default::default() };
        let policy = policy.changed(&second).unwrap();
        assert_eq!((policy.limits(&settings).rank_max, policy.limits(&settings).weights_bytes_max), (64, 10));
        assert!(policy.signed);
        let none = pb::PolicyChange { rank_max: Some(0), ..Default::default() };
        assert_eq!(policy.changed(&none).unwrap().rank_max, None);
    }

    #[test]
    fn merges_have_a_default_and_a_bound() {
        let settings = Settings::default();
        let most = |change: pb::PolicyChange| {
            Policy::default().changed(&change).map(|policy| policy.request_merges_max(&settings))
        };
        assert_eq!(most(pb::PolicyChange::default()).unwrap(), settings.request_merges_max as usize);
        assert_eq!(most(pb::PolicyChange { request_merges_max: Some(0), ..Default::default() }).unwrap(), 0);
        let error = most(pb::PolicyChange { request_merges_max: Some(10_001), ..Default::default() }).unwrap_err();
        assert!(error.to_string().contains("10001"), "{error}");
        let set = Policy { request_merges_max: Some(3), ..Policy::default() };
        let back = pb::PolicyChange { default_request_merges_max: true, ..Default::default() };
        assert_eq!(set.changed(&back).unwrap(), Policy::default());
    }

    #[test]
    fn a_source_is_the_beginning_of_one_that_weft_reads() {
        for (source, beginning) in
            [("hub", "hf://"), ("s3", "s3://bucket/adapters/"), ("local", "file:///srv/adapters/")]
        {
            let changed = Policy::default().changed(&sources(source, beginning));
            let policy = changed.unwrap_or_else(|error| panic!("{beginning}: {error}"));
            assert_eq!(policy.adapter_sources[source], beginning);
            assert!(policy.changed(&sources(source, "")).unwrap().is_empty());
        }
        for (source, beginning) in [
            ("ftp", "s3://bucket/"),
            ("s3", "s3://bucket"),
            ("hub", "https://example.org/"),
            ("local", "/srv/adapters/"),
            ("local", "file:///srv/../etc/"),
        ] {
            assert!(Policy::default().changed(&sources(source, beginning)).is_err(), "{source} {beginning}");
        }
        let long = format!("s3://bucket/{}/", "a".repeat(SOURCE_BYTES_MAX));
        assert!(Policy::default().changed(&sources("s3", &long)).is_err());
    }
}
