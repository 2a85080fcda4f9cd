//! LoRAX's `merged_adapters`: several adapters as one, for one request.
//!
//! Weft merges the deltas, exactly; LoRAX merges the factors apart (`docs/merging.md`). Whoever needs LoRAX's numbers says `"space": "lorax"`.

use super::lorax_request::refusal;
use crate::directory::Tenant;
use crate::make::Merge;
use crate::resolve::{Resolved, resolve};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use weft_adapter_merge::{MajoritySign, Method, Space};
use weft_fault::Fault;

const FIELD: &str = "merged_adapters";
/// What a merge that is not exact is cut to where the request does not say.
const TARGET_RANK: u32 = 32;

/// Adapters to merge. LoRAX's fields, and three of Weft's own: `target_rank`, `seed` and `space`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct MergedAdapters {
    /// Names as in `adapter_id`, each version once.
    ids: Vec<String>,
    /// One for each: -100 to 100.
    weights: Vec<f64>,
    /// `linear` (the default), `ties`, `dare_linear` or `dare_ties`.
    merge_strategy: Option<String>,
    /// For all but `linear`: the share of elements that stays, over 0 and at most 1.
    density: Option<f64>,
    /// For `ties` and `dare_ties`: `total` (the default) or `frequency`.
    majority_sign_method: Option<String>,
    /// Of a merge that is not `linear`: the rank that it is cut to, 1 to 256; absent: 32.
    target_rank: Option<u32>,
    /// For `dare_…`: which elements stay.
    seed: Option<u64>,
    /// `delta` (the default) or `lorax`.
    space: Option<String>,
}

impl MergedAdapters {
    /// Whether nothing is asked for.
    pub(super) fn is_off(&self) -> bool {
        *self == Self::default()
    }

    /// What of it does not depend on whose adapters they are.
    ///
    /// # Errors
    /// In LoRAX's words where it has some.
    pub(super) fn check(&self) -> Result<(), Fault> {
        if self.ids.len() != self.weights.len() {
            return Err(refusal(FIELD, "number of adapter IDs must match number of adapter weights"));
        }
        if self.ids.is_empty() {
            return Err(refusal(FIELD, "`merged_adapters.ids` must not be empty"));
        }
        self.method().map(drop)?;
        self.space().map(drop)
    }

    /// The merge of what this tenant calls so.
    ///
    /// # Errors
    /// A name is unknown, or is the base's.
    pub(super) fn of(&self, tenant: &Tenant, base: &str) -> Result<Merge, Fault> {
        let mut parents = Vec::with_capacity(self.ids.len());
        for (id, weight) in self.ids.iter().zip(&self.weights) {
            match resolve(tenant, Some(id), base)? {
                Resolved::Adapter { name, digest, .. } => parents.push((name, digest, *weight)),
                Resolved::Base => {
                    return Err(refusal(FIELD, format!("`merged_adapters.ids` has {id:?}, which is the base model")));
                }
            }
        }
        let (method, space) = (self.method()?, self.space()?);
        let is_cut = !matches!(method, Method::Linear {}) && space == Space::Delta;
        let target_rank = self.target_rank.or(is_cut.then_some(TARGET_RANK));
        Ok(Merge { parents, method, target_rank, space })
    }

    fn method(&self) -> Result<Method, Fault> {
        let density = self.density.unwrap_or(0.0);
        let seed = self.seed.unwrap_or(0);
        let majority_sign = match self.majority_sign_method.as_deref() {
            None | Some("" | "total") => MajoritySign::Total,
            Some("frequency") => MajoritySign::Frequency,
            Some(other) => return Err(unknown("majority_sign_method", other, "total, frequency")),
        };
        Ok(match self.merge_strategy.as_deref() {
            None | Some("" | "linear") => Method::Linear {},
            Some("ties") => Method::Ties { density, majority_sign },
            Some("dare_linear") => Method::DareLinear { density, seed },
            Some("dare_ties") => Method::DareTies { density, seed, majority_sign },
            Some(other) => return Err(unknown("merge_strategy", other, "linear, ties, dare_linear, dare_ties")),
        })
    }

    fn space(&self) -> Result<Space, Fault> {
        match self.space.as_deref() {
            None | Some("" | "delta") => Ok(Space::Delta),
            Some("lorax") => Ok(Space::Lorax),
            Some(other) => Err(unknown("space", other, "delta, lorax")),
        }
    }
}

fn unknown(field: &str, given: &str, known: &str) -> Fault {
    let given: String = given.chars().take(32).collect();
    refusal(FIELD, format!("`merged_adapters.{field}` must be one of {known}. Given: {given:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(value: serde_json::Value) -> MergedAdapters {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (value, part) in [
            (json!({"ids": ["a"]}), "number of adapter IDs must match number of adapter weights"),
            (json!({"density": 0.5}), "ids` must not be empty"),
            (json!({"ids": ["a"], "weights": [1.0], "merge_strategy": "slerp"}), "slerp"),
            (json!({"ids": ["a"], "weights": [1.0], "majority_sign_method": "most"}), "most"),
            (json!({"ids": ["a"], "weights": [1.0], "space": "outer"}), "outer"),
        ] {
            let fault = read(value).check().unwrap_err();
            assert!(fault.message.contains(part), "{part}: {fault}");
        }
        assert!(read(json!({})).is_off());
        assert!(serde_json::from_value::<MergedAdapters>(json!({"weight": [1.0]})).is_err());
    }

    #[test]
    fn strategies_mean_what_lorax_calls_them() {
        let of = |strategy: &str| {
            let asked = json!({"ids": ["a"], "weights": [1.0], "merge_strategy": strategy, "density": 0.25, "seed": 7,
                "majority_sign_method": "frequency"});
            read(asked).method().unwrap()
        };
        let majority_sign = MajoritySign::Frequency;
        assert_eq!(of("linear"), Method::Linear {});
        assert_eq!(of("ties"), Method::Ties { density: 0.25, majority_sign });
        assert_eq!(of("dare_linear"), Method::DareLinear { density: 0.25, seed: 7 });
        assert_eq!(of("dare_ties"), Method::DareTies { density: 0.25, seed: 7, majority_sign });
    }
}
