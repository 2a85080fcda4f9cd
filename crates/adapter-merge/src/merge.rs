//! From a recipe and its parents to a package: everything is checked and planned before a tensor is computed.

use crate::algebra::Factored;
use crate::delta::{self, Part, Plan};
use crate::error::Error;
use crate::factors;
use crate::package::{self, Piece, Tensor};
use crate::parent::Parent;
use crate::recipe::{CheckedRecipe, OutputDtype, Recipe, Space};
use crate::report::{ModuleReport, Report};
use crate::spread::spread;
use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use weft_adapter_format::{BaseShape, LinearShape, Module, ModuleDelta};
use weft_types::Digest;

/// What a merge may take and make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest rank of a module of the result.
    pub rank_max: usize,
    /// Most modules of the result.
    pub modules_max: usize,
    /// Most bytes of all parents together.
    pub parents_bytes_max: u64,
    /// Most bytes of the result's tensors; they are all in memory at the end.
    pub package_bytes_max: u64,
    /// Most bytes of memory for one linear while it is merged. With several threads there are as many at once.
    pub work_bytes_max: u64,
    /// Threads that merge linears side by side. The result does not depend on it.
    pub threads: NonZeroUsize,
}

impl Default for Limits {
    /// Rank 256, 2,048 modules, parents of 8 GiB together, 4 GiB for the result, 2 GiB for a linear, one thread.
    fn default() -> Self {
        Self {
            rank_max: 256,
            modules_max: 2048,
            parents_bytes_max: 8 << 30,
            package_bytes_max: 4 << 30,
            work_bytes_max: 2 << 30,
            threads: NonZeroUsize::MIN,
        }
    }
}

/// A package made by merging, and how it came to be.
#[derive(Clone, Debug)]
pub struct Merged {
    /// `adapter_config.json`
    pub config: Vec<u8>,
    /// `adapter_model.safetensors`
    pub weights: Vec<u8>,
    /// The recipe in its canonical order: the lineage to store beside the package.
    pub recipe: Recipe,
    /// The identity of a merge that is made at request time.
    pub recipe_digest: Digest,
    /// What was cut off, per module and over all.
    pub report: Report,
}

/// Merges adapters of one base into a package that `weft_adapter_format::check_package` accepts.
///
/// `parents` are those that the recipe names, in any order. A module that only some of them change is merged from
/// those alone, as in PEFT. The bytes that come out follow from the recipe: not from the order of `parents`, the
/// number of threads or the machine.
///
/// Blocks and computes: run it off any event loop. Cost and memory per method: `docs/merging.md`.
///
/// # Errors
/// [`Error::Parents`] if the parents are not those of the recipe; [`Error::Unfit`] if one does not fit the base or holds
/// NaN or infinity; [`Error::Incompatible`] if LoRAX's space is asked for and ranks or scales differ, or if every weight
/// is zero; [`Error::TooLarge`] beyond a limit, before anything is computed; [`Error::Overflow`] if a value is beyond
/// the output's range.
pub fn merge(
    recipe: &CheckedRecipe,
    parents: &[Parent<'_>],
    base: &BaseShape,
    limits: &Limits,
) -> Result<Merged, Error> {
    let parents = in_recipe_order(recipe, parents, limits)?;
    for (parent, _) in &parents {
        parent.check(base)?;
    }
    let jobs = plan(recipe, &parents, base, limits)?;
    let outcomes = spread(limits.threads, &jobs, |job| job.run(recipe.recipe()));
    let mut pieces = Vec::with_capacity(jobs.len());
    let mut modules = Vec::with_capacity(jobs.len());
    for outcome in outcomes {
        let (piece, report) = outcome?;
        pieces.push(piece);
        modules.push(report);
    }
    Ok(Merged {
        config: package::config(&pieces, base),
        weights: package::weights(&pieces, recipe.recipe().dtype),
        recipe: recipe.recipe().clone(),
        recipe_digest: recipe.digest(),
        report: Report::new(modules),
    })
}

/// The parents with their weights, as the recipe lists them.
fn in_recipe_order<'p, 'a>(
    recipe: &CheckedRecipe,
    parents: &'p [Parent<'a>],
    limits: &Limits,
) -> Result<Vec<(&'p Parent<'a>, f64)>, Error> {
    let bytes = parents.iter().map(Parent::bytes).sum();
    within("the parents have together, in bytes,".to_owned(), bytes, limits.parents_bytes_max, "")?;
    let by_digest: HashMap<Digest, &Parent<'_>> = parents.iter().map(|parent| (parent.digest(), parent)).collect();
    let named = &recipe.recipe().parents;
    let mut ordered = Vec::with_capacity(named.len());
    for component in named {
        let digest = component.digest;
        let parent = by_digest.get(&digest).copied();
        let parent = parent.ok_or_else(|| Error::Parents(format!("the recipe names {digest}, which was not given")))?;
        ordered.push((parent, component.weight));
    }
    if let Some(extra) = by_digest.keys().find(|digest| named.iter().all(|component| component.digest != **digest)) {
        return Err(Error::Parents(format!("{extra} was given, the recipe does not name it")));
    }
    Ok(ordered)
}

/// The merge of one linear, planned.
struct Job<'p> {
    layer: usize,
    module: Module,
    linear: &'p LinearShape,
    parts: Vec<Part<'p>>,
    plan: Plan,
    /// Of LoRAX's space: the first parent's scale.
    scale: f64,
}

/// Every linear that comes out, by layer and module, within all limits.
fn plan<'p>(
    recipe: &CheckedRecipe,
    parents: &[(&'p Parent<'_>, f64)],
    base: &'p BaseShape,
    limits: &Limits,
) -> Result<Vec<Job<'p>>, Error> {
    let Recipe { method, target_rank, space, dtype, .. } = *recipe.recipe();
    let scale = if space == Space::Lorax { check_for_lorax(parents)? } else { 1.0 };
    let mut parts_of: BTreeMap<(usize, Module), Vec<Part<'p>>> = BTreeMap::new();
    for (parent, weight) in parents {
        for delta in parent.modules() {
            let part = Part { digest: parent.digest(), weight: *weight, delta: *delta };
            parts_of.entry((delta.layer, delta.module)).or_default().push(part);
        }
    }
    let mut jobs = Vec::with_capacity(parts_of.len());
    let mut package_bytes = 0;
    for ((layer, module), parts) in parts_of {
        let name = module.full_name(layer);
        let Some(linear) = base.linear(module) else { continue };
        let plan = match space {
            Space::Delta => delta::plan(method, target_rank.unwrap_or_default() as usize, &parts, linear),
            Space::Lorax => factors::plan(&parts, linear),
        };
        let hint = if target_rank.is_some() || space == Space::Lorax { "" } else { ": method svd cuts the rank" };
        within(format!("the rank of {name} would be"), plan.rank as u64, limits.rank_max as u64, hint)?;
        within(format!("merging {name} would take, in bytes,"), plan.work_bytes, limits.work_bytes_max, "")?;
        if plan.rank > 0 {
            package_bytes += (plan.rank * (linear.in_features + linear.out_features) * dtype.bytes()) as u64;
            jobs.push(Job { layer, module, linear, parts, plan, scale });
        }
    }
    if jobs.is_empty() {
        return Err(Error::Incompatible("every weight or scale is 0: nothing is left to merge".to_owned()));
    }
    within("the modules of the result would be".to_owned(), jobs.len() as u64, limits.modules_max as u64, "")?;
    within("the tensors of the result would have, in bytes,".to_owned(), package_bytes, limits.package_bytes_max, "")?;
    Ok(jobs)
}

fn within(what: String, value: u64, limit: u64, hint: &'static str) -> Result<(), Error> {
    if value > limit { Err(Error::TooLarge { what, value, limit, hint }) } else { Ok(()) }
}

/// LoRAX knows one rank for all and one scale: the first adapter's. Returns that scale.
fn check_for_lorax(parents: &[(&Parent<'_>, f64)]) -> Result<f64, Error> {
    let name = |delta: &ModuleDelta<'_>| delta.module.full_name(delta.layer);
    let Some(first) = parents.first().and_then(|(parent, _)| parent.modules().first()) else {
        return Err(Error::Incompatible("the first parent changes no module".to_owned()));
    };
    for (index, (parent, _)) in parents.iter().enumerate() {
        for delta in parent.modules() {
            if delta.rank != first.rank {
                return Err(Error::Incompatible(format!(
                    "space \"lorax\" needs one rank everywhere: {} of parent {} has rank {}, {} of the first has {}",
                    name(delta),
                    parent.digest(),
                    delta.rank,
                    name(first),
                    first.rank
                )));
            }
            if index == 0 && delta.scale != first.scale {
                return Err(Error::Incompatible(format!(
                    "space \"lorax\" needs one scale in the first parent: {} has {}, {} has {}",
                    name(delta),
                    delta.scale,
                    name(first),
                    first.scale
                )));
            }
        }
    }
    Ok(first.scale)
}

impl Job<'_> {
    fn run(&self, recipe: &Recipe) -> Result<(Piece, ModuleReport), Error> {
        let name = self.module.full_name(self.layer);
        let factored = match recipe.space {
            Space::Delta => delta::merge(recipe.method, self.plan, &name, &self.parts, self.linear)?,
            Space::Lorax => factors::merge(recipe.method, &name, &self.parts, self.scale, self.linear),
        };
        let report = ModuleReport::new(name.clone(), factored.left.rows, factored.norm2, factored.lost2);
        let piece = self.piece(&name, &factored, recipe.dtype)?;
        Ok((piece, report))
    }

    fn piece(&self, name: &str, factored: &Factored, dtype: OutputDtype) -> Result<Piece, Error> {
        let rank = factored.left.rows;
        let (rows, columns) = (self.linear.out_features, self.linear.in_features);
        let b = factored.left.transposed();
        Ok(Piece {
            layer: self.layer,
            module: self.module,
            rank,
            a: Tensor::new(&format!("{name}.lora_A"), [rank, columns], &factored.right.data, dtype)?,
            b: Tensor::new(&format!("{name}.lora_B"), [rows, rank], &b.data, dtype)?,
        })
    }
}
