//! Prompts and adapters of the benchmark, the same for Weft and its peers.

use super::Options;
use crate::synthetic::{self, Package};
use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::path::Path;
use weft_base_model::ModelConfig;

const SEED: u64 = 20_261_124;

/// Refuses what the model cannot do, before anything is measured.
pub(super) fn check(options: &Options, model: &ModelConfig) -> Result<()> {
    let longest = (options.prompt_tokens + options.output_tokens as usize).max(options.prefill_tokens + 1);
    if longest > model.context_length {
        bail!("prompt and answer have {longest} tokens, the model's context has {}", model.context_length);
    }
    if options.prompt_tokens == 0 || options.prefill_tokens == 0 || options.rank == 0 {
        bail!("prompt_tokens, prefill_tokens and rank must be 1 or more");
    }
    let known = model.linears();
    match options.modules.iter().find(|module| !known.iter().any(|linear| linear.module == module.as_str())) {
        Some(module) => bail!("modules names {module:?}, the model has no such linear"),
        None => Ok(()),
    }
}

/// One different package for each request.
pub(super) fn packages(options: &Options, model: &ModelConfig) -> Vec<Package> {
    let modules: Vec<&str> = options.modules.iter().map(String::as_str).collect();
    (0..options.requests() as u64).map(|n| synthetic::lora(model, options.rank, &modules, SEED + n)).collect()
}

/// The one that all requests share: none of [`packages`], so that no prompt is asked twice of the same adapter.
pub(super) fn shared_package(options: &Options, model: &ModelConfig) -> Package {
    let modules: Vec<&str> = options.modules.iter().map(String::as_str).collect();
    synthetic::lora(model, options.rank, &modules, SEED + 5_000)
}

/// One different package for each request, on all linears, the ranks in turn.
pub(super) fn mixed_packages(options: &Options, model: &ModelConfig, ranks: &[usize]) -> Vec<Package> {
    let linears = model.linears();
    let modules: Vec<&str> = linears.iter().map(|linear| linear.module).collect();
    let one = |n: usize| synthetic::lora(model, ranks[n % ranks.len()], &modules, SEED + 10_000 + n as u64);
    (0..options.requests()).map(one).collect()
}

/// Where the random ids of a run begin: rounds of one run differ, and so do runs.
pub(super) fn fresh_seed() -> u64 {
    rand::random()
}

/// A prompt for each request.
pub(super) fn prompts(requests: usize, tokens: usize, vocabulary: usize, seed: u64, round: u64) -> Vec<Vec<u32>> {
    let mut random = StdRng::seed_from_u64(seed ^ (round << 32));
    // The first thousand ids hold special tokens and single bytes.
    let mut id = || random.random_range(1000.min(vocabulary as u32 / 2)..vocabulary as u32);
    (0..requests).map(|_| (0..tokens).map(|_| id()).collect()).collect()
}

/// Rounds of prompts: those of the file, or fresh ones.
pub(super) fn rounds(options: &Options, model: &ModelConfig) -> Result<Vec<Vec<Vec<u32>>>> {
    let wanted = u64::from(options.rounds) + 1;
    let Some(path) = &options.prompts else {
        let seed = fresh_seed();
        let round = |round| prompts(options.requests(), options.prompt_tokens, model.vocab_size, seed, round);
        return Ok((0..wanted).map(round).collect());
    };
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let rounds: Vec<Vec<Vec<u32>>> =
        serde_json::from_slice(&bytes).with_context(|| format!("{} holds no rounds of prompts", path.display()))?;
    let fits = |prompts: &Vec<Vec<u32>>| {
        prompts.len() == options.requests() && prompts.iter().all(|prompt| prompt.len() == options.prompt_tokens)
    };
    if (rounds.len() as u64) < wanted || !rounds.iter().all(fits) {
        bail!(
            "{} does not hold {wanted} rounds of {} prompts of {} tokens",
            path.display(),
            options.requests(),
            options.prompt_tokens
        );
    }
    Ok(rounds)
}

/// Folders `bench-000`… and `prompts.json`, one more round than is measured: peers warm up with the first.
pub(super) fn export(options: &Options, model: &ModelConfig, folder: &Path) -> Result<()> {
    for (n, package) in packages(options, model).into_iter().enumerate() {
        let dir = folder.join(super::cases::adapter_name(n));
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        std::fs::write(dir.join("adapter_config.json"), package.config)?;
        std::fs::write(dir.join("adapter_model.safetensors"), package.weights)?;
    }
    std::fs::write(folder.join("prompts.json"), serde_json::to_vec(&rounds(options, model)?)?)?;
    Ok(())
}
