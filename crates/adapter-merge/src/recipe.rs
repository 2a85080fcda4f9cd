//! What to merge, and how: plain data, its bounds, and the digest that is the identity of what comes out.
//!
//! The digest is the SHA-256 of a record that has one spelling for each result (all numbers little endian, a text with
//! its length in bytes as u32 before it, an absent number as a zero byte, a present one behind a byte 1):
//!
//! ```text
//! "weft/merge-recipe/1"      text: tag and number of this arithmetic
//! space                      text: "delta" or "lorax"
//! method                     text: "linear", "svd", "ties", "dare_linear", "dare_ties"
//! number of parents          u32
//!   digest, weight           32 bytes, f64 (never negative zero), for each
//! density                    f64 or absent
//! majority sign              text: "total", "frequency", or empty
//! seed                       u64 or absent
//! target rank                u32 or absent
//! dtype                      text: "F32" or "BF16"
//! ```
//!
//! **Order of parents.** On deltas no method depends on it, so parents are sorted by digest, both in the record and in
//! the arithmetic: two recipes that differ in the order alone have one digest and give the same bytes. In LoRAX's space
//! the first parent's scale counts for all, so the order stays.
//!
//! Because bytes are known by this digest wherever they were computed, whatever moves a bit of any result takes a new
//! number in the tag.

use crate::error::{Error, shown};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use weft_types::Digest;

/// Parents of one merge.
pub const PARENTS_MAX: usize = 32;
/// Largest magnitude of a weight.
pub const WEIGHT_MAX: f64 = 100.0;
/// Largest target rank; a package's own limit may be lower.
pub const TARGET_RANK_MAX: u32 = 256;
/// Largest text of a recipe, in bytes: 32 parents have about 4 KiB.
pub const RECIPE_BYTES_MAX: usize = 16 << 10;

const TAG: &str = "weft/merge-recipe/1";

/// A merge as somebody wrote it; [`Recipe::check`] makes it usable.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// 1 to [`PARENTS_MAX`] adapters, each once.
    pub parents: Vec<Component>,
    /// How they become one.
    pub method: Method,
    /// The rank to cut each module to: 1 to [`TARGET_RANK_MAX`]. Required by every method on deltas but `linear`, which
    /// is exact and takes none; LoRAX's space keeps the parents' rank and takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_rank: Option<u32>,
    /// What the method acts on.
    #[serde(default)]
    pub space: Space,
    /// The element type of the result.
    #[serde(default)]
    pub dtype: OutputDtype,
}

/// One parent and its share.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Component {
    /// SHA-256 of the parent's canonical blob.
    pub digest: Digest,
    /// Finite, of magnitude at most [`WEIGHT_MAX`]; negative subtracts. Weights are not made to add up to 1.
    pub weight: f64,
}

/// How several adapters become one. `docs/merging.md` has the formulas.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Method {
    /// The weighted sum of the deltas, exact: its rank is the sum of the parents' ranks.
    Linear {},
    /// The weighted sum of the deltas, cut to the target rank.
    Svd {},
    /// Trim, elect signs, average what agrees (arXiv 2306.01708), then cut to the target rank.
    Ties {
        /// The share of a delta's elements that stay, the largest: over 0 and at most 1.
        density: f64,
        /// How the sign of an element is elected.
        #[serde(default)]
        majority_sign: MajoritySign,
    },
    /// Drop at random and rescale (arXiv 2311.03099), weighted sum, then cut to the target rank.
    DareLinear {
        /// The probability that an element stays: over 0 and at most 1.
        density: f64,
        /// Decides which; the same seed keeps the same elements, whatever else changes in the recipe.
        seed: u64,
    },
    /// Drop at random and rescale, elect signs, average what agrees, then cut to the target rank.
    DareTies {
        /// The probability that an element stays: over 0 and at most 1.
        density: f64,
        /// Decides which.
        seed: u64,
        /// How the sign of an element is elected.
        #[serde(default)]
        majority_sign: MajoritySign,
    },
}

/// How TIES elects the sign of an element; a draw is positive. Weights have no vote, as in PEFT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MajoritySign {
    /// The sign of the sum of what is left after trimming.
    #[default]
    Total,
    /// The sign that more parents have.
    Frequency,
}

/// What a method acts on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// The deltas `scale · B A`: what the adapters do.
    #[default]
    Delta,
    /// The factors A and B apart, as LoRAX merges: equal ranks only, a parent's weight counts in both factors, the first
    /// parent's scale counts for all, DARE does not rescale, and a density of 0 drops everything.
    Lorax,
}

/// The element type of the merged tensors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OutputDtype {
    /// IEEE single.
    #[default]
    F32,
    /// Half the bytes; each element is off by at most 2^-9 of itself.
    #[serde(rename = "BF16")]
    Bf16,
}

impl Method {
    /// The word in a recipe.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Linear {} => "linear",
            Self::Svd {} => "svd",
            Self::Ties { .. } => "ties",
            Self::DareLinear { .. } => "dare_linear",
            Self::DareTies { .. } => "dare_ties",
        }
    }

    /// The share of elements that stay, for methods that drop some.
    #[must_use]
    pub const fn density(&self) -> Option<f64> {
        match self {
            Self::Linear {} | Self::Svd {} => None,
            Self::Ties { density, .. } | Self::DareLinear { density, .. } | Self::DareTies { density, .. } => {
                Some(*density)
            }
        }
    }

    /// The seed, for methods that draw.
    #[must_use]
    pub const fn seed(&self) -> Option<u64> {
        match self {
            Self::DareLinear { seed, .. } | Self::DareTies { seed, .. } => Some(*seed),
            Self::Linear {} | Self::Svd {} | Self::Ties { .. } => None,
        }
    }

    /// How signs are elected, for methods that elect.
    #[must_use]
    pub const fn majority_sign(&self) -> Option<MajoritySign> {
        match self {
            Self::Ties { majority_sign, .. } | Self::DareTies { majority_sign, .. } => Some(*majority_sign),
            Self::Linear {} | Self::Svd {} | Self::DareLinear { .. } => None,
        }
    }
}

impl OutputDtype {
    /// The name in a safetensors header.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
        }
    }

    /// Bytes of one element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

impl Recipe {
    /// Reads a recipe from JSON; it is not checked yet. Unknown fields are refused.
    ///
    /// # Errors
    /// [`Error::Unreadable`] with the path of the field, or that there are more than [`RECIPE_BYTES_MAX`] bytes.
    pub fn from_json(text: &[u8]) -> Result<Self, Error> {
        if text.len() > RECIPE_BYTES_MAX {
            return Err(Error::Unreadable(format!("it has {} bytes, the limit is {RECIPE_BYTES_MAX}", text.len())));
        }
        let mut deserializer = serde_json::Deserializer::from_slice(text);
        let recipe = serde_path_to_error::deserialize(&mut deserializer)
            .map_err(|error| Error::Unreadable(format!("{}: {}", shown(&error.path().to_string()), error.inner())))?;
        deserializer.end().map_err(|error| Error::Unreadable(error.to_string()))?;
        Ok(recipe)
    }

    /// Holds every field against its bounds and puts the parents in their canonical order. Cost: nothing to speak of.
    ///
    /// # Errors
    /// [`Error::Field`] for the first field that is not allowed, with its value and what would be.
    pub fn check(mut self) -> Result<CheckedRecipe, Error> {
        check_parents(&mut self.parents)?;
        check_density(self.method, self.space)?;
        check_target_rank(&self)?;
        if self.space == Space::Delta {
            self.parents.sort_by_key(|parent| parent.digest);
        }
        Ok(CheckedRecipe(self))
    }
}

fn check_parents(parents: &mut [Component]) -> Result<(), Error> {
    if parents.is_empty() || parents.len() > PARENTS_MAX {
        let limit = format!("there must be 1 to {PARENTS_MAX}");
        return Err(Error::field("parents", format!("a list of {}", parents.len()), limit));
    }
    let mut seen = HashMap::new();
    for (index, parent) in parents.iter_mut().enumerate() {
        if !(-WEIGHT_MAX..=WEIGHT_MAX).contains(&parent.weight) {
            let limit = format!("it must be a number from -{WEIGHT_MAX} to {WEIGHT_MAX}");
            return Err(Error::field(format!("parents[{index}].weight"), parent.weight, limit));
        }
        if let Some(first) = seen.insert(parent.digest, index) {
            let limit = format!("the same as parents[{first}].digest: each adapter may be named once");
            return Err(Error::field(format!("parents[{index}].digest"), parent.digest, limit));
        }
        // Of two zeros only one is written.
        parent.weight += 0.0;
    }
    Ok(())
}

fn check_density(method: Method, space: Space) -> Result<(), Error> {
    let Some(density) = method.density() else { return Ok(()) };
    let zero_is_fine = space == Space::Lorax;
    let fits = (0.0..=1.0).contains(&density) && (density > 0.0 || zero_is_fine);
    if fits {
        return Ok(());
    }
    let limit = if zero_is_fine { "it must be from 0 to 1" } else { "it must be over 0 and at most 1" };
    Err(Error::field("method.density", density, limit))
}

fn check_target_rank(recipe: &Recipe) -> Result<(), Error> {
    let method = recipe.method.as_str();
    let is_lorax = recipe.space == Space::Lorax;
    if is_lorax && recipe.method == (Method::Svd {}) {
        return Err(Error::field("method.kind", method, "space \"lorax\" has linear, ties, dare_linear and dare_ties"));
    }
    let takes_one = !is_lorax && recipe.method != (Method::Linear {});
    match recipe.target_rank {
        Some(rank) if !takes_one => {
            let why = if is_lorax {
                "space \"lorax\" keeps the parents' rank and takes none"
            } else {
                "method linear is exact and takes none: use svd to cut the rank"
            };
            Err(Error::field("target_rank", rank, why))
        }
        Some(rank) if !(1..=TARGET_RANK_MAX).contains(&rank) => {
            Err(Error::field("target_rank", rank, format!("it must be from 1 to {TARGET_RANK_MAX}")))
        }
        None if takes_one => Err(Error::field(
            "target_rank",
            "missing",
            format!("method {method} needs one from 1 to {TARGET_RANK_MAX}: its result has no small rank of its own"),
        )),
        _ => Ok(()),
    }
}

/// A recipe within its bounds, in its canonical order.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckedRecipe(Recipe);

impl CheckedRecipe {
    /// The recipe in its canonical order: what is stored as lineage beside the result.
    #[must_use]
    pub fn recipe(&self) -> &Recipe {
        &self.0
    }

    /// The identity of the result, wherever it is computed. Cost: one hash of about 100 bytes and 40 per parent.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.record())
    }

    /// The record of the module's description.
    fn record(&self) -> Vec<u8> {
        let Recipe { parents, method, target_rank, space, dtype } = &self.0;
        let mut record = Vec::with_capacity(128 + parents.len() * 40);
        push_text(&mut record, TAG);
        push_text(&mut record, if *space == Space::Delta { "delta" } else { "lorax" });
        push_text(&mut record, method.as_str());
        record.extend((parents.len() as u32).to_le_bytes());
        for parent in parents {
            record.extend(parent.digest.as_bytes());
            record.extend(parent.weight.to_le_bytes());
        }
        push_optional(&mut record, method.density().map(|density| (density + 0.0).to_le_bytes()));
        push_text(
            &mut record,
            match method.majority_sign() {
                None => "",
                Some(MajoritySign::Total) => "total",
                Some(MajoritySign::Frequency) => "frequency",
            },
        );
        push_optional(&mut record, method.seed().map(u64::to_le_bytes));
        push_optional(&mut record, target_rank.map(u32::to_le_bytes));
        push_text(&mut record, dtype.as_str());
        record
    }
}

fn push_text(record: &mut Vec<u8>, text: &str) {
    record.extend((text.len() as u32).to_le_bytes());
    record.extend(text.as_bytes());
}

fn push_optional<const N: usize>(record: &mut Vec<u8>, bytes: Option<[u8; N]>) {
    record.push(u8::from(bytes.is_some()));
    record.extend(bytes.iter().flatten());
}
