//! The kinds of traffic, and what each came to.

use super::{Options, workload};
use crate::client::{Admin, Answer, Data};
use crate::embedded::Mesh;
use anyhow::{Context, Result};
use serde::Serialize;
use std::time::Instant;
use weft_base_model::ModelConfig;

/// Ranks of the mixed case, in turn.
pub(super) const MIXED_RANKS: &[usize] = &[8, 16, 32, 64];
/// Prompt of the case that decodes: as short as can be.
const DECODE_PROMPT: usize = 4;
pub(super) const TENANT: &str = "bench";
const SHARED_NAME: &str = "shared";

#[derive(Serialize)]
pub(super) struct Round {
    pub(super) seconds: f64,
    pub(super) tokens_per_second: f64,
    pub(super) first_token_ms_median: f64,
}

#[derive(Serialize)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) tokens_per_second_median: f64,
    pub(super) first_token_ms_median: f64,
    /// Operations of the base a second, the adapters' not counted.
    pub(super) gflops: f64,
    pub(super) ratio_to_base_median: f64,
    /// What the ratio would be if adapters cost their operations at the base's speed.
    pub(super) ratio_floor: f64,
    pub(super) rounds: Vec<Round>,
}

/// One request by itself.
#[derive(Serialize)]
pub(super) struct Single {
    pub(super) decode_tokens_per_second: f64,
    pub(super) prefill_tokens: usize,
    /// Over HTTP, from the request to its first token.
    pub(super) prefill_tokens_per_second: f64,
    pub(super) prefill_gflops: f64,
    /// Weights that a token needs.
    pub(super) weights: f64,
}

#[derive(Serialize)]
pub(super) struct Figures {
    pub(super) dtype: String,
    pub(super) cases: Vec<Case>,
    pub(super) single: Single,
}

pub(super) const BASE: &str = "base alone";
pub(super) const SHARED: &str = "one shared adapter";
pub(super) const DIFFERENT: &str = "a different adapter each";
pub(super) const MIXED: &str = "mixed ranks on all linears";
pub(super) const DECODE: &str = "base alone, decode";

pub(super) fn adapter_name(n: usize) -> String {
    format!("bench-{n:03}")
}

fn mixed_name(n: usize) -> String {
    format!("mixed-{n:03}")
}

/// A kind of traffic.
struct Kind<'a> {
    name: &'static str,
    models: &'a dyn Fn(usize) -> String,
    prompt_tokens: usize,
    /// Parameters of the adapter of the average request.
    adapter_weights: f64,
}

pub(super) async fn measure(options: &Options, mesh: &Mesh, model: &ModelConfig) -> Result<Figures> {
    let admin = Admin::new(&mesh.admin_url(), mesh.admin_key());
    let data = Data::new(&mesh.data_url(), &publish(options, &admin, model).await?);
    let base = |_: usize| "base".to_owned();
    let shared = |_: usize| SHARED_NAME.to_owned();
    let per_rank = |modules: &[&str]| -> f64 {
        let linears = model.linears();
        let some = linears.iter().filter(|linear| modules.is_empty() || modules.contains(&linear.module));
        (some.map(|linear| linear.in_features + linear.out_features).sum::<usize>() * model.layers) as f64
    };
    let modules: Vec<&str> = options.modules.iter().map(String::as_str).collect();
    let small = per_rank(&modules) * options.rank as f64;
    let mean_rank = (0..options.requests()).map(|n| MIXED_RANKS[n % MIXED_RANKS.len()]).sum::<usize>() as f64
        / options.requests() as f64;
    let kind = |name, models, prompt_tokens, adapter_weights| Kind { name, models, prompt_tokens, adapter_weights };
    let kinds = [
        kind(BASE, &base as &dyn Fn(usize) -> String, options.prompt_tokens, 0.0),
        kind(SHARED, &shared, options.prompt_tokens, small),
        kind(DIFFERENT, &adapter_name, options.prompt_tokens, small),
        kind(MIXED, &mixed_name, options.prompt_tokens, per_rank(&[]) * mean_rank),
        kind(DECODE, &base, short_prompt(options), 0.0),
    ];
    let mut rounds: Vec<Vec<Round>> = kinds.iter().map(|_| Vec::new()).collect();
    let mut singles = Vec::new();
    let all_prompts = workload::rounds(options, model)?;
    let seed = workload::fresh_seed();
    // One round warms up: adapters get their slots, pages get touched.
    for (round, prompts) in (0..=u64::from(options.rounds)).zip(&all_prompts) {
        let short = workload::prompts(options.requests(), short_prompt(options), model.vocab_size, seed, round);
        for (kind, rounds) in kinds.iter().zip(&mut rounds) {
            let prompts = if kind.name == DECODE { &short } else { prompts };
            let measured = one_round(options, &data, prompts, kind.models).await?;
            if round > 0 {
                rounds.push(measured);
            }
        }
        let single = one_alone(options, &data, model.vocab_size, seed.rotate_left(9), round).await?;
        if round > 0 {
            singles.push(single);
        }
    }
    let base_rates: Vec<f64> = rounds[0].iter().map(|round| round.tokens_per_second).collect();
    let cases = kinds.iter().zip(rounds).map(|(kind, rounds)| case(options, model, kind, rounds, &base_rates));
    Ok(Figures { dtype: dtype(&admin).await?, cases: cases.collect(), single: alone(options, model, &singles) })
}

fn short_prompt(options: &Options) -> usize {
    DECODE_PROMPT.min(options.prompt_tokens)
}

/// The tenant with all adapters; the secret of its key.
async fn publish(options: &Options, admin: &Admin, model: &ModelConfig) -> Result<String> {
    admin.create_tenant(TENANT).await?;
    let key = admin.create_key(TENANT, Some("bench")).await?;
    let shared = workload::shared_package(options, model);
    admin.publish_bytes(TENANT, SHARED_NAME, shared.config, shared.weights, Some("live")).await?;
    for (n, package) in workload::packages(options, model).into_iter().enumerate() {
        admin.publish_bytes(TENANT, &adapter_name(n), package.config, package.weights, Some("live")).await?;
    }
    for (n, package) in workload::mixed_packages(options, model, MIXED_RANKS).into_iter().enumerate() {
        admin.publish_bytes(TENANT, &mixed_name(n), package.config, package.weights, Some("live")).await?;
    }
    Ok(key.secret)
}

async fn dtype(admin: &Admin) -> Result<String> {
    let workers = admin.get("workers").await?;
    let dtype = workers["workers"][0]["describes"]["dtype"].as_str().context("the worker does not say its dtype")?;
    Ok(dtype.to_owned())
}

async fn one_round(
    options: &Options,
    data: &Data,
    prompts: &[Vec<u32>],
    models: &dyn Fn(usize) -> String,
) -> Result<Round> {
    let begin = Instant::now();
    let requests = prompts.iter().enumerate().map(|(n, prompt)| {
        let name = models(n);
        async move { data.complete_tokens(&name, prompt, options.output_tokens).await }
    });
    let answers = futures::future::try_join_all(requests).await?;
    let seconds = begin.elapsed().as_secs_f64();
    let tokens: u64 = answers.iter().map(|answer| answer.completion_tokens).sum();
    Ok(Round {
        seconds,
        tokens_per_second: tokens as f64 / seconds,
        first_token_ms_median: median(answers.iter().map(|answer| answer.first_token.as_secs_f64() * 1e3).collect()),
    })
}

/// Decode and prefill rates of one request by itself.
async fn one_alone(options: &Options, data: &Data, vocabulary: usize, seed: u64, round: u64) -> Result<(f64, f64)> {
    let prompt = |tokens| workload::prompts(1, tokens, vocabulary, seed ^ tokens as u64, round).remove(0);
    let decoded = data.complete_tokens("base", &prompt(options.prompt_tokens), options.output_tokens).await?;
    let prefilled = data.complete_tokens("base", &prompt(options.prefill_tokens), 1).await?;
    Ok((Answer::decode_rate(&decoded), options.prefill_tokens as f64 / to_first_token(&prefilled)))
}

/// Seconds; an only token without text comes with the end.
fn to_first_token(answer: &Answer) -> f64 {
    if answer.first_token.is_zero() { answer.whole.as_secs_f64() } else { answer.first_token.as_secs_f64() }
}

fn case(options: &Options, model: &ModelConfig, kind: &Kind<'_>, rounds: Vec<Round>, base_rates: &[f64]) -> Case {
    let rates: Vec<f64> = rounds.iter().map(|round| round.tokens_per_second).collect();
    let outputs = f64::from(options.output_tokens);
    let flop = request_flop(model, kind.prompt_tokens as f64, outputs);
    let more = 2.0 * kind.adapter_weights * (kind.prompt_tokens as f64 + outputs - 1.0);
    let base = request_flop(model, options.prompt_tokens as f64, outputs);
    let seconds = median(rounds.iter().map(|round| round.seconds).collect());
    Case {
        name: kind.name,
        tokens_per_second_median: median(rates.clone()),
        first_token_ms_median: median(rounds.iter().map(|round| round.first_token_ms_median).collect()),
        gflops: flop * options.requests() as f64 / seconds / 1e9,
        ratio_to_base_median: median(rates.iter().zip(base_rates).map(|(rate, base)| rate / base).collect()),
        ratio_floor: base / (flop + more),
        rounds,
    }
}

fn alone(options: &Options, model: &ModelConfig, singles: &[(f64, f64)]) -> Single {
    let prefill = median(singles.iter().map(|single| single.1).collect());
    let tokens = options.prefill_tokens as f64;
    Single {
        decode_tokens_per_second: median(singles.iter().map(|single| single.0).collect()),
        prefill_tokens: options.prefill_tokens,
        prefill_tokens_per_second: prefill,
        prefill_gflops: request_flop(model, tokens, 1.0) * prefill / tokens / 1e9,
        weights: layer_weights(model) + head_weights(model),
    }
}

fn layer_weights(model: &ModelConfig) -> f64 {
    let per_layer: usize = model.linears().iter().map(|linear| linear.in_features * linear.out_features).sum();
    (per_layer * model.layers) as f64
}

fn head_weights(model: &ModelConfig) -> f64 {
    (model.hidden_size * model.vocab_size) as f64
}

/// Floating point operations the base needs: two a weight and token, the output matrix only where a token is drawn.
fn request_flop(model: &ModelConfig, prompt: f64, outputs: f64) -> f64 {
    2.0 * (layer_weights(model) * (prompt + outputs - 1.0) + head_weights(model) * outputs)
}

pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
