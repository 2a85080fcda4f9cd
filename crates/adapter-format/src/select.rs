//! Which modules of a base a config means, and with what rank and scale: PEFT's rules, step by step.
//!
//! PEFT walks over every module of the model, also over those that are not linears. The few of a Llama are listed
//! here, so that a config that selects one is refused rather than understood as less than it says.

use crate::base::{BaseShape, Module};
use crate::config::{Layers, LoraConfig, Names};
use crate::error::{Reasons, some_names};
use crate::pattern::Pattern;
use std::collections::BTreeMap;

/// One module of the base with the rank and scale that the config gives it.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// The decoder layer, from 0.
    pub layer: usize,
    /// The linear in that layer.
    pub module: Module,
    /// Columns of A's transpose and of B.
    pub rank: usize,
    /// What `B(A x)` is multiplied by: alpha / r, or alpha / sqrt(r) with rsLoRA. Finite.
    pub scale: f64,
}

/// The modules that `config` selects in `base`, in layer order. Faults go to `reasons`; `None` if there are any.
pub(crate) fn select(
    config: &LoraConfig,
    base: &BaseShape,
    rank_max: usize,
    reasons: &mut Reasons,
    warnings: &mut Reasons,
) -> Option<Vec<Resolved>> {
    match try_select(config, base, warnings) {
        Ok(Selection { resolved, others }) => {
            let mut sound = true;
            if !others.is_empty() {
                reasons.push(format!("target_modules selects {}, which Weft cannot adapt", some_names(&others)));
                sound = false;
            }
            if resolved.is_empty() && others.is_empty() {
                reasons.push("target_modules selects no module of this base");
                sound = false;
            }
            sound &= check_values(&resolved, rank_max, reasons);
            sound.then_some(resolved)
        }
        Err(reason) => {
            reasons.push(reason);
            None
        }
    }
}

struct Selection {
    resolved: Vec<Resolved>,
    /// Selected modules that are no linears of a decoder layer.
    others: Vec<String>,
}

fn try_select(config: &LoraConfig, base: &BaseShape, warnings: &mut Reasons) -> Result<Selection, String> {
    let mut names = Vec::new();
    let mut resolved = Vec::new();
    for (layer, module, linear) in base.targets() {
        let name = linear.full_name(layer);
        if is_selected(config, &name, true)? {
            let (rank, scale) = rank_and_scale(config, &name)?;
            resolved.push(Resolved { layer, module, rank, scale });
        }
        names.push(name);
    }
    let mut others = Vec::new();
    for name in other_modules(base.layers) {
        if is_selected(config, &name, false)? {
            others.push(name.clone());
        }
        names.push(name);
    }
    if let Names::List(entries) = &config.target {
        let idle: Vec<&str> = entries
            .iter()
            .map(String::as_str)
            .filter(|entry| !names.iter().any(|name| ends_with_segments(name, entry)))
            .collect();
        if !idle.is_empty() && !resolved.is_empty() {
            warnings.push(format!("target_modules names {}, which this base does not have", some_names(&idle)));
        }
    }
    Ok(Selection { resolved, others })
}

/// The modules of a Llama that are not linears of a layer, as `named_modules` lists them.
fn other_modules(layers: usize) -> impl Iterator<Item = String> {
    let top = ["model", "model.embed_tokens", "model.layers", "model.norm", "model.rotary_emb", "lm_head"];
    let inner = ["", ".self_attn", ".mlp", ".mlp.act_fn", ".input_layernorm", ".post_attention_layernorm"];
    let in_layers =
        (0..layers).flat_map(move |layer| inner.into_iter().map(move |name| format!("model.layers.{layer}{name}")));
    top.into_iter().map(str::to_owned).chain(in_layers)
}

/// PEFT's `check_target_module_exists`.
fn is_selected(config: &LoraConfig, name: &str, is_linear: bool) -> Result<bool, String> {
    let excluded = match &config.exclude {
        None | Some(Names::AllLinear) => false,
        Some(Names::List(entries)) => entries.iter().any(|entry| ends_with_segments(name, entry)),
        Some(Names::Pattern(pattern)) => pattern.is_match(name)?,
    };
    if excluded {
        return Ok(false);
    }
    match &config.target {
        Names::AllLinear => Ok(is_linear),
        Names::Pattern(pattern) => pattern.is_match(name),
        // A whole name counts whatever the layer filter says.
        Names::List(entries) if entries.iter().any(|entry| entry == name) => Ok(true),
        Names::List(entries) => {
            let listed = entries.iter().any(|entry| ends_with_segments(name, entry));
            match &config.layers {
                Some(layers) if listed => in_layers(layers, name),
                _ => Ok(listed),
            }
        }
    }
}

/// The whole name, or its end after a dot.
fn ends_with_segments(name: &str, entry: &str) -> bool {
    name.strip_suffix(entry).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn in_layers(layers: &Layers, name: &str) -> Result<bool, String> {
    for pattern in &layers.patterns {
        if let Some(index) = pattern.layer_index(name)? {
            return Ok(index.parse().is_ok_and(|index| layers.indices.contains(&index)));
        }
    }
    Ok(false)
}

fn rank_and_scale(config: &LoraConfig, name: &str) -> Result<(usize, f64), String> {
    let rank = first_match(&config.rank_pattern, name)?.unwrap_or(config.rank);
    let alpha = first_match(&config.alpha_pattern, name)?.unwrap_or(config.alpha);
    let divisor = if config.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
    Ok((rank as usize, alpha / divisor))
}

fn first_match<T: Copy>(patterns: &[(Pattern, T)], name: &str) -> Result<Option<T>, String> {
    for (pattern, value) in patterns {
        if pattern.is_match(name)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

fn check_values(resolved: &[Resolved], rank_max: usize, reasons: &mut Reasons) -> bool {
    let mut too_large: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let mut sound = true;
    for Resolved { layer, module, rank, scale } in resolved {
        if *rank > rank_max {
            too_large.entry(*rank).or_default().push(module.full_name(*layer));
        }
        // Finite as a double (alpha is finite and rank at least 1), but engines multiply in single precision.
        if !(*scale as f32).is_finite() {
            let name = module.full_name(*layer);
            reasons.push(format!("the scale of {name} is {scale:e}, too large for single precision"));
            sound = false;
        }
    }
    for (rank, names) in too_large {
        reasons.push(format!("rank {rank} is over the limit of {rank_max}: {}", some_names(&names)));
        sound = false;
    }
    sound
}

#[cfg(test)]
mod tests;
