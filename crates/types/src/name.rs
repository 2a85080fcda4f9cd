//! Names as people write them, checked once where they come in.

use crate::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// Adapter names are at most this long.
pub const ADAPTER_NAME_BYTES_MAX: usize = 128;
/// Tenant and alias names are at most this long.
const LABEL_BYTES_MAX: usize = 63;

/// A name that breaks its rule; the message names the rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} {rule}")]
pub struct NameError {
    what: &'static str,
    value: String,
    rule: &'static str,
}

impl NameError {
    fn new(what: &'static str, value: &str, rule: &'static str) -> Self {
        // Echo a bounded piece: the value comes from outside.
        let value = value.chars().take(80).collect();
        Self { what, value, rule }
    }
}

macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $check:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                $check(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

checked_name!(
    /// A tenant: `[a-z0-9][a-z0-9-]{0,62}`.
    TenantName,
    check_tenant
);
checked_name!(
    /// An alias of a version: `[a-z0-9][a-z0-9-]{0,62}`, not all digits (that is a version number).
    AliasName,
    check_alias
);
checked_name!(
    /// An adapter: one or two segments of `[A-Za-z0-9][A-Za-z0-9._-]*` joined by `/`, at most 128 bytes,
    /// neither `base` nor `default`. The base's served name is refused where it is known: at publish.
    AdapterName,
    check_adapter
);

impl AliasName {
    /// `live`: what a bare adapter name means.
    #[must_use]
    pub fn live() -> Self {
        Self("live".to_owned())
    }
}

/// What the names of adapters that are merges made at request time begin with. Nobody else may publish under them.
pub const MERGED_PREFIX: &str = "weft-merged/";

impl AdapterName {
    /// The adapter whose version is the merge with this recipe.
    #[must_use]
    pub fn of_recipe(recipe: &Digest) -> Self {
        Self(format!("{MERGED_PREFIX}{}", recipe.hex()))
    }

    /// Whether it is a name of a merge made at request time.
    #[must_use]
    pub fn is_merged(&self) -> bool {
        self.0.starts_with(MERGED_PREFIX)
    }
}

/// The recipe in the name of an adapter, if it is a merge made at request time.
#[must_use]
pub fn recipe_of(adapter: &str) -> Option<Digest> {
    format!("sha256:{}", adapter.strip_prefix(MERGED_PREFIX)?).parse().ok()
}

/// The number of a version, from 1.
pub type VersionNumber = u64;

fn check_label(what: &'static str, text: &str) -> Result<(), NameError> {
    let mut bytes = text.bytes();
    let first_ok = bytes.next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let rest_ok = bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if first_ok && rest_ok && text.len() <= LABEL_BYTES_MAX {
        return Ok(());
    }
    Err(NameError::new(what, text, "must match [a-z0-9][a-z0-9-]{0,62}"))
}

fn check_tenant(text: &str) -> Result<(), NameError> {
    check_label("tenant", text)
}

fn check_alias(text: &str) -> Result<(), NameError> {
    check_label("alias", text)?;
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(NameError::new("alias", text, "must not be all digits: that is a version number"));
    }
    Ok(())
}

fn check_adapter(text: &str) -> Result<(), NameError> {
    if text.len() > ADAPTER_NAME_BYTES_MAX {
        return Err(NameError::new("adapter", text, "must have at most 128 bytes"));
    }
    let segments: Vec<&str> = text.split('/').collect();
    let segment_ok = |segment: &&str| {
        let mut bytes = segment.bytes();
        bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
            && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    if segments.len() > 2 || !segments.iter().all(segment_ok) {
        return Err(NameError::new(
            "adapter",
            text,
            "must be one or two segments of [A-Za-z0-9][A-Za-z0-9._-]* joined by /",
        ));
    }
    if matches!(text, "base" | "default") {
        return Err(NameError::new("adapter", text, "is reserved"));
    }
    Ok(())
}

/// Which version of an adapter is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// By alias; a bare name means `live`.
    Alias(AliasName),
    /// By number.
    Version(VersionNumber),
    /// By digest; valid only if it is a version of the named adapter.
    Digest(Digest),
}

impl FromStr for Selector {
    type Err = NameError;

    /// `""` is `live`; digits a version; `sha256:…` a digest; anything else an alias.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Ok(Self::Alias(AliasName::live()));
        }
        if text.starts_with("sha256:") {
            return text
                .parse()
                .map(Self::Digest)
                .map_err(|_| NameError::new("digest", text, "must be sha256: and 64 lower-case hex digits"));
        }
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return match text.parse() {
                Ok(number) if number > 0 => Ok(Self::Version(number)),
                _ => Err(NameError::new("version", text, "must be a number from 1")),
            };
        }
        text.parse().map(Self::Alias)
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alias(alias) => alias.fmt(f),
            Self::Version(number) => number.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// What a request's model name asks for, before the tenant's directory is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelRef {
    /// Absent, `""` or `default`: the tenant's default adapter if it has one, else the base.
    Default,
    /// `base` or the base's served name.
    Base,
    /// `name`, `name@alias`, `name@3` or `name@sha256:…`.
    Adapter {
        /// The adapter's name.
        name: AdapterName,
        /// Which of its versions.
        selector: Selector,
    },
}

/// Reads a request's model name.
///
/// # Errors
/// A name that no adapter can have. Callers answer it like an unknown name: a name is never a URL or a path.
pub fn model_ref(text: &str, base_served_name: &str) -> Result<ModelRef, NameError> {
    match text {
        "" | "default" => return Ok(ModelRef::Default),
        "base" => return Ok(ModelRef::Base),
        _ if text == base_served_name => return Ok(ModelRef::Base),
        _ => {}
    }
    let (name, selector) = text.split_once('@').unwrap_or((text, "live"));
    Ok(ModelRef::Adapter { name: name.parse()?, selector: selector.parse()? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_merge_is_named_after_its_recipe() {
        let recipe = Digest::of(b"recipe");
        let name = AdapterName::of_recipe(&recipe);
        assert!(name.is_merged() && name.as_str().parse::<AdapterName>().as_ref() == Ok(&name));
        assert_eq!(recipe_of(name.as_str()), Some(recipe));
        for other in ["weft-merged/pirate", "org/pirate", "weft-merged"] {
            assert_eq!(recipe_of(other), None, "{other}");
        }
    }

    #[test]
    fn adapter_names_follow_their_rule() {
        for good in ["pirate", "org/name", "A.b_c-9", &"a".repeat(128)] {
            assert!(good.parse::<AdapterName>().is_ok(), "{good}");
        }
        for bad in
            ["", "a/b/c", "/a", "a/", "../x", ".a", "a b", "ä", "base", "default", "a@b", "s3://a", &"a".repeat(129)]
        {
            assert!(bad.parse::<AdapterName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_follow_their_rule() {
        assert!("harbour".parse::<TenantName>().is_ok());
        assert!("123".parse::<TenantName>().is_ok());
        for bad in ["", "-a", "A", "a_b", &"a".repeat(64)] {
            assert!(bad.parse::<TenantName>().is_err(), "{bad}");
        }
        assert!("123".parse::<AliasName>().is_err());
        assert!("v2".parse::<AliasName>().is_ok());
    }

    #[test]
    fn model_names_resolve_to_references() {
        let served = "SmolLM2";
        assert_eq!(model_ref("", served), Ok(ModelRef::Default));
        assert_eq!(model_ref("default", served), Ok(ModelRef::Default));
        assert_eq!(model_ref("base", served), Ok(ModelRef::Base));
        assert_eq!(model_ref("SmolLM2", served), Ok(ModelRef::Base));
        let name: AdapterName = "org/pirate".parse().unwrap();
        assert_eq!(
            model_ref("org/pirate@3", served),
            Ok(ModelRef::Adapter { name: name.clone(), selector: Selector::Version(3) })
        );
        let digest = Digest::of(b"x");
        assert_eq!(
            model_ref(&format!("org/pirate@{digest}"), served),
            Ok(ModelRef::Adapter { name, selector: Selector::Digest(digest) })
        );
        assert!(model_ref("pirate@0", served).is_err());
        assert!(model_ref("pirate@a@b", served).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".*") {
            let _ = model_ref(&text, "served");
        }
    }
}
