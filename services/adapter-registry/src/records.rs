//! The content of the objects: JSON, one record each. Fields are only ever added, with a default.
//!
//! A record that can change carries a `revision` that grows by one with every conditional write; of two states the
//! one with the larger revision is newer.

use crate::layout::Place;
use crate::policy::Policy;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use weft_adapter_format::{BaseShape, LinearShape};
use weft_adapter_merge::Recipe;
use weft_experiments::{Experiment, State};
use weft_types::{AdapterName, Digest, Limits, TenantName, Weight};

/// Moves of an alias that are kept.
pub(crate) const HISTORY_MAX: usize = 100;
/// Random bytes behind a tenant's cache salt.
pub(crate) const SALT_BYTES: usize = 32;

/// The base that packages are checked against.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BaseRecord {
    pub(crate) revision: u64,
    pub(crate) digest: Digest,
    pub(crate) served_name: String,
    pub(crate) layers: usize,
    pub(crate) vocabulary_size: u32,
    pub(crate) hidden_size: u32,
    pub(crate) linears: Vec<LinearRecord>,
    pub(crate) announced_ms: u64,
    /// The worker that announced it first.
    pub(crate) worker: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LinearRecord {
    pub(crate) module: String,
    pub(crate) parent: String,
    pub(crate) in_features: usize,
    pub(crate) out_features: usize,
}

impl BaseRecord {
    pub(crate) fn shape(&self) -> BaseShape {
        let linear = |linear: &LinearRecord| LinearShape {
            module: linear.module.clone(),
            parent: linear.parent.clone(),
            in_features: linear.in_features,
            out_features: linear.out_features,
        };
        BaseShape { layers: self.layers, linears: self.linears.iter().map(linear).collect() }
    }

    /// Whether both describe the same base, whoever announced it and when.
    pub(crate) fn is_same_base(&self, other: &Self) -> bool {
        let content = |base: &Self| Self { revision: 0, announced_ms: 0, worker: String::new(), ..base.clone() };
        content(self) == content(other)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TenantRecord {
    pub(crate) revision: u64,
    pub(crate) name: TenantName,
    pub(crate) created_ms: u64,
    pub(crate) actor: String,
    /// Never changes: it is part of cache keys.
    #[serde(with = "hex_salt")]
    pub(crate) salt: [u8; SALT_BYTES],
    /// Empty: the base.
    #[serde(default)]
    pub(crate) default_adapter: String,
    #[serde(default)]
    pub(crate) weight: Weight,
    #[serde(default)]
    pub(crate) limits: Limits,
    #[serde(default)]
    pub(crate) places: Places,
    #[serde(default, skip_serializing_if = "Policy::is_empty")]
    pub(crate) policy: Policy,
}

/// What placement promises a tenant and denies it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Places {
    /// So many of its adapters, the most asked for, have a place whatever others ask for.
    #[serde(default)]
    pub(crate) floor: u32,
    /// At most so many copies of all its adapters, beyond pins.
    #[serde(default)]
    pub(crate) ceiling: Option<u32>,
    /// So many workers hold each of these in a slot; 0: all of them.
    #[serde(default)]
    pub(crate) pins: BTreeMap<Digest, u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyRecord {
    pub(crate) revision: u64,
    pub(crate) id: String,
    pub(crate) label: String,
    pub(crate) created_ms: u64,
    pub(crate) actor: String,
    /// Of the whole secret, which is stored nowhere.
    pub(crate) secret_sha256: Digest,
    /// Besides the tenant's.
    #[serde(default)]
    pub(crate) limits: Limits,
    #[serde(default)]
    pub(crate) revoked: Option<Revocation>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Revocation {
    pub(crate) at_ms: u64,
    pub(crate) actor: String,
}

/// A version. What it says of its bytes is written once; only its end is added.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct VersionRecord {
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) revision: u64,
    pub(crate) number: u64,
    pub(crate) digest: Digest,
    /// Length of the canonical blob.
    pub(crate) bytes: u64,
    pub(crate) rank_max: u32,
    pub(crate) target_modules: Vec<String>,
    pub(crate) config_sha256: Digest,
    pub(crate) weights_sha256: Digest,
    pub(crate) base_digest: Digest,
    pub(crate) created_ms: u64,
    pub(crate) actor: String,
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
    /// Elements of all low-rank factors together; 0: it is older than this.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) parameters: u64,
    /// None: nobody signed it, or nobody asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) signed_by: Option<String>,
    /// It was published to be looked at first: nobody is shown it until it is released.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) quarantined: bool,
    /// When it was last published again into quarantine; 0: it was not.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) again_ms: u64,
    /// None: it was uploaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) lineage: Option<Box<Lineage>>,
    /// Where it was read from; none: it was uploaded or merged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) origin: Option<String>,
    /// Nobody is shown it any more; its bytes stay for a while (`gc`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) condemned: Option<Condemned>,
    /// When its bytes went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) collected_ms: Option<u64>,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Who found that nobody needs a version, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Condemned {
    pub(crate) at_ms: u64,
    pub(crate) actor: String,
}

/// Where a merged version comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Lineage {
    /// Identity of the recipe; its parents are digests.
    pub(crate) recipe_digest: Digest,
    pub(crate) recipe: Recipe,
    /// What the digests were called when they were merged.
    pub(crate) parents: Vec<LineageParent>,
    /// Relative Frobenius error of the cut to the target rank, over all modules.
    pub(crate) error: f64,
}

/// A parent of a merge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LineageParent {
    pub(crate) adapter: AdapterName,
    pub(crate) version: u64,
    pub(crate) digest: Digest,
    pub(crate) weight: f64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AliasRecord {
    pub(crate) revision: u64,
    pub(crate) version: u64,
    pub(crate) digest: Digest,
    pub(crate) moved_ms: u64,
    pub(crate) actor: String,
    /// Id of the experiment that splits its requests. While there is one, nothing but its end moves the alias.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) experiment: Option<String>,
    /// Earlier targets, newest first, at most [`HISTORY_MAX`].
    #[serde(default)]
    pub(crate) history: Vec<AliasMove>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AliasMove {
    pub(crate) version: u64,
    pub(crate) digest: Digest,
    pub(crate) moved_ms: u64,
    pub(crate) actor: String,
}

impl AliasRecord {
    /// The alias on another version, after `earlier`.
    pub(crate) fn moved(earlier: Option<&Self>, version: u64, digest: Digest, now_ms: u64, actor: &str) -> Self {
        let mut history = Vec::new();
        if let Some(earlier) = earlier {
            history.push(AliasMove {
                version: earlier.version,
                digest: earlier.digest,
                moved_ms: earlier.moved_ms,
                actor: earlier.actor.clone(),
            });
            history.extend(earlier.history.iter().take(HISTORY_MAX - 1).cloned());
        }
        let revision = earlier.map_or(1, |earlier| earlier.revision + 1);
        Self { revision, version, digest, moved_ms: now_ms, actor: actor.to_owned(), experiment: None, history }
    }

    /// The same alias, split by this experiment or by none.
    pub(crate) fn claimed(&self, experiment: Option<String>) -> Self {
        Self { revision: self.revision + 1, experiment, ..self.clone() }
    }
}

/// A split test, and what was done to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExperimentRecord {
    pub(crate) revision: u64,
    pub(crate) experiment: Experiment,
    pub(crate) created_ms: u64,
    pub(crate) actor: String,
    /// How it ends: written before the alias is let go, so that whoever finds it half done knows what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ending: Option<State>,
    /// Oldest first; bounded by the phases and states that an experiment can go through.
    #[serde(default)]
    pub(crate) changes: Vec<ExperimentChange>,
}

/// Something that was done to an experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ExperimentChange {
    pub(crate) at_ms: u64,
    pub(crate) actor: String,
    pub(crate) what: String,
}

impl ExperimentRecord {
    /// The record with another description, and who did what.
    pub(crate) fn changed(&self, experiment: Experiment, now_ms: u64, actor: &str, what: String) -> Self {
        let mut next = Self { revision: self.revision + 1, experiment, ..self.clone() };
        next.changes.push(ExperimentChange { at_ms: now_ms, actor: actor.to_owned(), what });
        next
    }

    pub(crate) fn is_running(&self) -> bool {
        self.experiment.state == State::Running
    }
}

/// Any record, as it is merged into the catalog; it is written as what it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Record {
    Base(BaseRecord),
    Tenant(TenantRecord),
    Key(KeyRecord),
    Version(VersionRecord),
    Alias(AliasRecord),
    Experiment(ExperimentRecord),
}

impl Record {
    /// Reads an object's bytes as what lies at its place.
    ///
    /// # Errors
    /// They are none.
    pub(crate) fn parse(place: &Place, bytes: &[u8]) -> Result<Self, serde_json::Error> {
        Ok(match place {
            Place::Base => serde_json::from_slice::<BaseRecord>(bytes)?.into(),
            Place::Tenant(_) => serde_json::from_slice::<TenantRecord>(bytes)?.into(),
            Place::Key(..) => serde_json::from_slice::<KeyRecord>(bytes)?.into(),
            Place::Version(..) => serde_json::from_slice::<VersionRecord>(bytes)?.into(),
            Place::Alias(..) => serde_json::from_slice::<AliasRecord>(bytes)?.into(),
            Place::Experiment(..) => serde_json::from_slice::<ExperimentRecord>(bytes)?.into(),
        })
    }
}

macro_rules! is_record {
    ($($record:ident => $variant:ident),+) => {$(
        impl From<$record> for Record {
            fn from(record: $record) -> Self {
                Self::$variant(record)
            }
        }

        impl TryFrom<Record> for $record {
            type Error = Record;

            fn try_from(record: Record) -> Result<Self, Record> {
                match record {
                    Record::$variant(record) => Ok(record),
                    other => Err(other),
                }
            }
        }
    )+};
}
is_record!(
    BaseRecord => Base, TenantRecord => Tenant, KeyRecord => Key, VersionRecord => Version, AliasRecord => Alias,
    ExperimentRecord => Experiment
);

mod hex_salt {
    use super::SALT_BYTES;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(salt: &[u8; SALT_BYTES], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(salt))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; SALT_BYTES], D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut salt = [0; SALT_BYTES];
        hex::decode_to_slice(text, &mut salt).map_err(serde::de::Error::custom)?;
        Ok(salt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_newest_first_and_bounded() {
        let digest = Digest::of(b"");
        let mut alias = AliasRecord::moved(None, 1, digest, 1, "ada");
        for version in 2..=150 {
            alias = AliasRecord::moved(Some(&alias), version, digest, version, "ada");
        }
        assert_eq!((alias.revision, alias.version, alias.history.len()), (150, 150, HISTORY_MAX));
        let versions: Vec<u64> = alias.history.iter().map(|earlier| earlier.version).collect();
        assert_eq!(versions, (50..150).rev().collect::<Vec<_>>());
    }

    #[test]
    fn a_record_reads_back_as_it_was_written() {
        let tenant = TenantRecord {
            revision: 1,
            name: "harbour".parse().unwrap(),
            created_ms: 5,
            actor: "ada".to_owned(),
            salt: [7; SALT_BYTES],
            default_adapter: String::new(),
            weight: Weight::new(0.25).unwrap(),
            limits: Limits { tokens_per_day: Some(5), ..Limits::default() },
            places: Places { floor: 2, ceiling: None, pins: BTreeMap::from([(Digest::of(b"a"), 3)]) },
            policy: Policy::default(),
        };
        let json = serde_json::to_string(&tenant).unwrap();
        assert_eq!(serde_json::from_str::<TenantRecord>(&json).unwrap(), tenant);
        let (older, _) = json.split_once(r#","weight":250,"limits":{"tokens_per_day":5},"places":"#).unwrap();
        let older: TenantRecord = serde_json::from_str(&format!("{older}}}")).unwrap();
        assert_eq!(
            (older.weight, older.limits, older.places),
            (Weight::default(), Limits::default(), Places::default())
        );
    }
}
