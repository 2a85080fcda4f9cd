//! The flags of `weft merge`.

use anyhow::{Context, Result};
use clap::Args;
use serde_json::{Value, json};

/// How versions of a tenant's adapters become one.
#[derive(Args)]
pub struct Flags {
    /// `ADAPTER`, `ADAPTER@VERSION` or either with `=WEIGHT`: the version is an alias, a number or a digest (absent: live), the weight
    /// is 1 if it is absent. Once for each parent
    #[arg(long = "parent", required = true)]
    pub parents: Vec<String>,
    /// linear (exact: the ranks add up), svd, ties, dare_linear or dare_ties
    #[arg(long)]
    pub method: String,
    /// The share of elements that stay, over 0 and up to 1: ties and dare_* need it
    #[arg(long)]
    pub density: Option<f64>,
    /// How signs are elected, for ties and dare_ties: total or frequency
    #[arg(long)]
    pub majority_sign: Option<String>,
    /// Decides which elements stay: dare_* need it
    #[arg(long)]
    pub seed: Option<u64>,
    /// The rank to cut each module to; required by every method but linear
    #[arg(long)]
    pub target_rank: Option<u32>,
    /// delta, or lorax: A and B apart, as LoRAX merges
    #[arg(long)]
    pub space: Option<String>,
    /// F32 or BF16
    #[arg(long)]
    pub dtype: Option<String>,
}

impl Flags {
    /// The body of the admin API's call.
    ///
    /// # Errors
    /// A parent's weight is no number.
    pub fn json(&self) -> Result<Value> {
        let parents: Vec<Value> = self.parents.iter().map(|text| parent(text)).collect::<Result<_>>()?;
        let given = [
            ("density", self.density.map(Value::from)),
            ("majority_sign", self.majority_sign.clone().map(Value::from)),
            ("seed", self.seed.map(Value::from)),
            ("target_rank", self.target_rank.map(Value::from)),
            ("space", self.space.clone().map(Value::from)),
            ("dtype", self.dtype.clone().map(Value::from)),
        ];
        let mut body = json!({ "parents": parents, "method": self.method });
        for (name, value) in given {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        Ok(body)
    }
}

fn parent(text: &str) -> Result<Value> {
    let (name, weight) = match text.rsplit_once('=') {
        Some((name, weight)) => {
            let weight: f64 =
                weight.parse().with_context(|| format!("--parent {text}: the weight {weight} is no number"))?;
            (name, weight)
        }
        None => (text, 1.0),
    };
    let (adapter, version) = name.split_once('@').unwrap_or((name, ""));
    Ok(json!({ "adapter": adapter, "version": version, "weight": weight }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_a_name_with_or_without_version_and_weight() {
        let of = |text: &str| parent(text).unwrap();
        assert_eq!(of("a"), json!({"adapter": "a", "version": "", "weight": 1.0}));
        assert_eq!(of("org/a@3"), json!({"adapter": "org/a", "version": "3", "weight": 1.0}));
        assert_eq!(of("a@live=-0.5"), json!({"adapter": "a", "version": "live", "weight": -0.5}));
        assert_eq!(of("a=2"), json!({"adapter": "a", "version": "", "weight": 2.0}));
        assert!(parent("a=much").unwrap_err().to_string().contains("much"));
    }
}
