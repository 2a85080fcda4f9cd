//! From a model name to one immutable digest. Pure; happens once a request, and no name is looked at afterwards.

use crate::directory::Tenant;
use crate::error::Error;
use crate::experiments::{Assigned, assign};
use weft_types::{AdapterName, Digest, ModelRef, Selector, model_ref};

/// What a request runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resolved {
    /// The base alone.
    Base,
    /// The base with one version of one adapter.
    Adapter {
        /// Of the tenant.
        name: String,
        /// Its number.
        version: u64,
        /// Its identity.
        digest: Digest,
    },
}

impl Resolved {
    pub(crate) fn digest(&self) -> Option<Digest> {
        match self {
            Self::Base => None,
            Self::Adapter { digest, .. } => Some(*digest),
        }
    }

    /// `tenant/name@version`, or `base`.
    pub(crate) fn label(&self, tenant: &str) -> String {
        match self {
            Self::Base => "base".to_owned(),
            Self::Adapter { name, version, .. } => format!("{tenant}/{name}@{version}"),
        }
    }
}

/// Resolves a request's model name among what this tenant owns.
///
/// # Errors
/// One and the same for a malformed name, an unknown one and another tenant's.
pub(crate) fn resolve(tenant: &Tenant, model: Option<&str>, base_served_name: &str) -> Result<Resolved, Error> {
    resolve_with(model, base_served_name, tenant, |name, selector| version(tenant, name, selector))
}

/// The same for a request: an alias that an experiment splits means what this key's arm serves.
pub(crate) fn resolve_split(
    tenant: &Tenant,
    model: Option<&str>,
    base_served_name: &str,
    key: Option<&str>,
) -> Result<(Resolved, Option<Assigned>), Error> {
    let mut assigned = None;
    let resolved = resolve_with(model, base_served_name, tenant, |name, selector| {
        let Selector::Alias(alias) = selector else { return version(tenant, name, selector) };
        let arm = tenant.split(name, alias.as_str()).and_then(|experiment| assign(experiment, key));
        let digest = arm.as_ref().map(|arm| arm.experiment.arms[arm.assignment.arm].digest);
        match digest.and_then(|digest| version(tenant, name, &Selector::Digest(digest))) {
            Some(found) => {
                assigned = arm;
                Some(found)
            }
            None => version(tenant, name, selector),
        }
    })?;
    Ok((resolved, assigned))
}

fn resolve_with(
    model: Option<&str>,
    base_served_name: &str,
    tenant: &Tenant,
    mut version: impl FnMut(&str, &Selector) -> Option<Resolved>,
) -> Result<Resolved, Error> {
    let asked = model.unwrap_or("");
    let unknown = || Error::UnknownModel(asked.chars().take(200).collect());
    match model_ref(asked, base_served_name).map_err(|_| unknown())? {
        ModelRef::Base if !tenant.base_is_default => Ok(Resolved::Base),
        ModelRef::Base | ModelRef::Default => match &tenant.default_adapter {
            None => Ok(Resolved::Base),
            Some(name) => version(name, &Selector::Alias(weft_types::AliasName::live()))
                .ok_or_else(|| Error::UnknownModel(name.clone())),
        },
        ModelRef::Adapter { name, selector } => version(AdapterName::as_str(&name), &selector).ok_or_else(unknown),
    }
}

fn version(tenant: &Tenant, name: &str, selector: &Selector) -> Option<Resolved> {
    let adapter = tenant.adapters.get(name)?;
    let number = match selector {
        Selector::Alias(alias) => *adapter.aliases.get(alias.as_str())?,
        Selector::Version(number) => *number,
        Selector::Digest(digest) => *adapter.versions.iter().find(|(_, known)| *known == digest)?.0,
    };
    let digest = *adapter.versions.get(&number)?;
    Some(Resolved::Adapter { name: name.to_owned(), version: number, digest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::Adapter;
    use std::collections::BTreeMap;

    fn tenant(default_adapter: Option<&str>) -> Tenant {
        let adapter = Adapter {
            created_ms: 0,
            versions: BTreeMap::from([(1, Digest::of(b"1")), (2, Digest::of(b"2"))]),
            aliases: BTreeMap::from([("live".into(), 2), ("old".into(), 1), ("lost".into(), 9)]),
        };
        Tenant {
            name: "t".into(),
            default_adapter: default_adapter.map(Into::into),
            salt: None,
            limits: Default::default(),
            weight: 1.0,
            adapters: BTreeMap::from([("org/a".into(), adapter)]),
            adapter_bytes: Default::default(),
            experiments: Vec::new(),
            adapter_sources: Default::default(),
            base_is_default: false,
        }
    }

    fn number(model: &str) -> Result<u64, String> {
        match resolve(&tenant(None), Some(model), "served") {
            Ok(Resolved::Adapter { version, .. }) => Ok(version),
            Ok(Resolved::Base) => Ok(0),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn every_form_of_a_name_resolves_to_one_version() {
        let digest = Digest::of(b"1");
        for (model, expected) in [
            ("", 0),
            ("default", 0),
            ("base", 0),
            ("served", 0),
            ("org/a", 2),
            ("org/a@live", 2),
            ("org/a@old", 1),
            ("org/a@1", 1),
            (&format!("org/a@{digest}"), 1),
        ] {
            assert_eq!(number(model), Ok(expected), "{model}");
        }
    }

    #[test]
    fn what_is_unknown_malformed_or_foreign_answers_alike() {
        let foreign = format!("org/a@{}", Digest::of(b"foreign"));
        for model in ["b", "org/a@3", "org/a@none", "org/a@lost", "https://x/y", "../etc", "a@b@c", &foreign] {
            let expected = format!("the model `{model}` does not exist or you do not have access to it");
            assert_eq!(number(model), Err(expected));
        }
    }

    #[test]
    fn the_default_is_the_tenants_own_if_it_has_one() {
        let resolved = resolve(&tenant(Some("org/a")), None, "served").unwrap();
        assert_eq!(resolved.label("t"), "t/org/a@2");
        assert_eq!(resolve(&tenant(Some("org/a")), Some("base"), "served").unwrap(), Resolved::Base);
        assert!(resolve(&tenant(Some("gone")), None, "served").is_err());
        let without_base = Tenant { base_is_default: true, ..tenant(Some("org/a")) };
        for model in ["base", "served", "default"] {
            assert_eq!(resolve(&without_base, Some(model), "served").unwrap().label("t"), "t/org/a@2", "{model}");
        }
        let nothing_else = Tenant { base_is_default: true, ..tenant(None) };
        assert_eq!(resolve(&nothing_else, Some("base"), "served").unwrap(), Resolved::Base);
    }
}
