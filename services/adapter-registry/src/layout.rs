//! Where each record lies. The `/` of a two-segment adapter name is written `!`, which no name contains.
//!
//! ```text
//! registry/base.json
//! registry/tenants/<tenant>/tenant.json
//! registry/tenants/<tenant>/keys/<id>.json
//! registry/tenants/<tenant>/adapters/<adapter>/versions/000000000001.json
//! registry/tenants/<tenant>/adapters/<adapter>/aliases/<alias>.json
//! registry/tenants/<tenant>/experiments/<id>.json
//! gc/<hex>.json                                         (markers: see `gc`)
//! experiments/<tenant>/<id>/statistics/<gateway>.json   (no records: see `experiments`)
//! experiments/<tenant>/<id>/exposures/<day>/<gateway>-<sequence>.jsonl
//! snapshot/records.jsonl.gz                           (no record: see `snapshot`)
//! blobs/sha256/<hex>                                    (weft_object_store::keys::blob)
//! ```

use weft_types::{AdapterName, AliasName, Digest, TenantName, VersionNumber};

/// What every key of a record begins with.
pub(crate) const ROOT: &str = "registry/";
/// A number has always so many digits, so that keys sort like numbers.
const VERSION_DIGITS: usize = 12;

/// The place of a record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    Base,
    Tenant(TenantName),
    Key(TenantName, String),
    Version(TenantName, AdapterName, VersionNumber),
    Alias(TenantName, AdapterName, AliasName),
    Experiment(TenantName, String),
}

/// What every marker of a blob that is being deleted begins with.
pub(crate) const GC_PREFIX: &str = "gc/";

/// The marker of a blob that is being deleted.
pub(crate) fn gc_key(digest: &Digest) -> String {
    format!("{GC_PREFIX}{}.json", digest.hex())
}

/// What every key of what was observed in an experiment begins with.
pub(crate) fn observations_prefix(tenant: &TenantName, id: &str) -> String {
    format!("experiments/{tenant}/{id}/")
}

/// Ids of experiments are `[a-z0-9][a-z0-9-]{0,62}`: nothing else names an object.
pub(crate) fn is_experiment_id(id: &str) -> bool {
    id.parse::<TenantName>().is_ok()
}

/// What every key of a tenant begins with.
pub(crate) fn tenant_prefix(tenant: &TenantName) -> String {
    format!("{ROOT}tenants/{tenant}/")
}

/// What every key of an adapter begins with.
pub(crate) fn adapter_prefix(tenant: &TenantName, adapter: &AdapterName) -> String {
    format!("{}adapters/{}/", tenant_prefix(tenant), adapter.as_str().replace('/', "!"))
}

impl Place {
    /// Whose it is.
    pub(crate) fn tenant(&self) -> Option<&TenantName> {
        match self {
            Self::Base => None,
            Self::Tenant(tenant) | Self::Key(tenant, _) | Self::Version(tenant, ..) | Self::Alias(tenant, ..) => {
                Some(tenant)
            }
            Self::Experiment(tenant, _) => Some(tenant),
        }
    }

    /// Its key.
    pub(crate) fn key(&self) -> String {
        match self {
            Self::Base => format!("{ROOT}base.json"),
            Self::Tenant(tenant) => format!("{}tenant.json", tenant_prefix(tenant)),
            Self::Key(tenant, id) => format!("{}keys/{id}.json", tenant_prefix(tenant)),
            Self::Version(tenant, adapter, number) => {
                format!("{}versions/{number:0VERSION_DIGITS$}.json", adapter_prefix(tenant, adapter))
            }
            Self::Alias(tenant, adapter, alias) => format!("{}aliases/{alias}.json", adapter_prefix(tenant, adapter)),
            Self::Experiment(tenant, id) => format!("{}experiments/{id}.json", tenant_prefix(tenant)),
        }
    }

    /// The place with this key; `None` if it is no record's.
    pub(crate) fn parse(key: &str) -> Option<Self> {
        let path = key.strip_prefix(ROOT)?.strip_suffix(".json")?;
        let segments: Vec<&str> = path.split('/').collect();
        let place = match segments[..] {
            ["base"] => Self::Base,
            ["tenants", tenant, "tenant"] => Self::Tenant(tenant.parse().ok()?),
            ["tenants", tenant, "keys", id] => Self::Key(tenant.parse().ok()?, id.to_owned()),
            ["tenants", tenant, "experiments", id] if is_experiment_id(id) => {
                Self::Experiment(tenant.parse().ok()?, id.to_owned())
            }
            ["tenants", tenant, "adapters", adapter, kind, name] => {
                let (tenant, adapter) = (tenant.parse().ok()?, adapter.replace('!', "/").parse().ok()?);
                match kind {
                    "versions" => Self::Version(tenant, adapter, name.parse().ok()?),
                    "aliases" => Self::Alias(tenant, adapter, name.parse().ok()?),
                    _ => return None,
                }
            }
            _ => return None,
        };
        (place.key() == key).then_some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_found_again_by_its_key() {
        let tenant: TenantName = "harbour".parse().unwrap();
        for adapter in ["pirate", "org/pirate.v2"] {
            let adapter: AdapterName = adapter.parse().unwrap();
            for place in [
                Place::Base,
                Place::Tenant(tenant.clone()),
                Place::Key(tenant.clone(), "0a".to_owned()),
                Place::Version(tenant.clone(), adapter.clone(), 7),
                Place::Alias(tenant.clone(), adapter.clone(), AliasName::live()),
                Place::Experiment(tenant.clone(), "summaries-2".to_owned()),
            ] {
                assert_eq!(Place::parse(&place.key()), Some(place.clone()), "{}", place.key());
            }
        }
        let version = Place::Version(tenant, "org/pirate".parse().unwrap(), 7).key();
        assert_eq!(version, "registry/tenants/harbour/adapters/org!pirate/versions/000000000007.json");
    }

    #[test]
    fn foreign_keys_are_nobodys_place() {
        for key in [
            "registry/base",
            "registry/tenants/Harbour/tenant.json",
            "registry/tenants/t/adapters/a/versions/7.json",
            "registry/tenants/t/adapters/a/other/7.json",
            "registry/tenants/t/experiments/A.json",
            "blobs/sha256/00",
            "",
        ] {
            assert_eq!(Place::parse(key), None, "{key}");
        }
    }
}
