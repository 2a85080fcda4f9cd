//! `weft bench --grammar`: what structured output costs. The same prompts and lengths, free and constrained, in turn within
//! each round; no answer ends before its length.

use super::cases::{TENANT, median};
use super::{Options, workload, write_json};
use crate::client::{Admin, Data};
use crate::embedded::Mesh;
use anyhow::{Result, bail, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use std::time::Instant;
use weft_base_model::ModelConfig;

/// Constrained answers keep so much of the rate of free ones.
const RATIO_LEAST: f64 = 0.9;

/// A kind of traffic and what it came to.
#[derive(Serialize)]
pub(super) struct Case {
    name: &'static str,
    /// Of each round.
    tokens_per_second: Vec<f64>,
    /// To the free answers of the same round.
    ratio_median: f64,
}

pub(super) async fn measure(options: &Options, mesh: &Mesh, model: &ModelConfig) -> Result<Vec<Case>> {
    let admin = Admin::new(&mesh.admin_url(), mesh.admin_key());
    admin.create_tenant(TENANT).await?;
    let data = Data::new(&mesh.data_url(), &admin.create_key(TENANT, Some("bench")).await?.secret);
    let schemas = schemas(options.output_tokens);
    let kinds = [("free", 0), ("constrained, one schema", 1), ("constrained, four schemas", schemas.len())];
    let mut rates: Vec<Vec<f64>> = kinds.iter().map(|_| Vec::new()).collect();
    let seed = workload::fresh_seed();
    // One round warms up: grammars are compiled, pages get touched.
    for round in 0..=u64::from(options.rounds) {
        for (index, (_, used)) in kinds.iter().enumerate() {
            // Each its own prompts: none is found in the prefix cache.
            let seed = seed.rotate_left(index as u32);
            let prompts = workload::prompts(options.requests(), options.prompt_tokens, model.vocab_size, seed, round);
            let rate = one_round(options, &data, &prompts, &schemas[..*used]).await?;
            if round > 0 {
                rates[index].push(rate);
            }
        }
    }
    let free = rates[0].clone();
    let case = |((name, _), rates): ((&'static str, usize), Vec<f64>)| Case {
        name,
        ratio_median: median(rates.iter().zip(&free).map(|(rate, free)| rate / free).collect()),
        tokens_per_second: rates,
    };
    Ok(kinds.into_iter().zip(rates).map(case).collect())
}

/// Prints a table and writes the figures.
///
/// # Errors
/// The file cannot be written; with `check`, a ratio is below what it should be.
pub(super) fn report(options: &Options, cases: &[Case]) -> Result<()> {
    println!(
        "{} requests at once, prompts of {} tokens, answers of {}; median of {} rounds",
        options.concurrency, options.prompt_tokens, options.output_tokens, options.rounds
    );
    println!("{:<28} {:>9} {:>7}", "traffic", "tokens/s", "÷ free");
    for case in cases {
        println!("{:<28} {:>9.1} {:>7.3}", case.name, median(case.tokens_per_second.clone()), case.ratio_median);
    }
    let holds = cases.iter().all(|case| case.ratio_median >= RATIO_LEAST);
    println!("{}  constrained ÷ free (wanted ≥ {RATIO_LEAST})", if holds { "holds" } else { "FAILS" });
    write_json(options, &json!({ "cases": cases, "least": RATIO_LEAST, "holds": holds }))?;
    if options.check && !holds {
        bail!("a figure is not what it should be");
    }
    Ok(())
}

/// Records, prose, numbers and choices, each long enough that the length ends it.
fn schemas(tokens: u32) -> Vec<Value> {
    let endless = |item: Value| json!({"type": "array", "items": item, "minItems": tokens});
    let record = json!({
        "type": "object",
        "properties": {
            "id": {"type": "integer", "minimum": 1, "maximum": 99999},
            "title": {"type": "string", "minLength": 3, "maxLength": 40},
            "state": {"enum": ["open", "closed", "waiting"]},
            "email": {"type": "string", "format": "email", "maxLength": 40},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 10}, "maxItems": 3}
        },
        "required": ["id", "title", "state", "tags"],
        "additionalProperties": false
    });
    vec![
        endless(record),
        endless(json!({"type": "string", "minLength": 60, "maxLength": 300})),
        endless(json!({"type": "number", "minimum": -180, "maximum": 180})),
        endless(
            json!({"anyOf": [{"type": "boolean"}, {"type": "string", "format": "date"}, {"enum": ["north", "south"]}]}),
        ),
    ]
}

/// Tokens a second of all requests together.
async fn one_round(options: &Options, data: &Data, prompts: &[Vec<u32>], schemas: &[Value]) -> Result<f64> {
    let begin = Instant::now();
    let requests = prompts.iter().enumerate().map(|(n, prompt)| {
        let schema = n.checked_rem(schemas.len()).map(|n| &schemas[n]);
        async move { data.complete_tokens_as("base", prompt, options.output_tokens, schema).await }
    });
    let answers = futures::future::try_join_all(requests).await?;
    let seconds = begin.elapsed().as_secs_f64();
    let tokens: u64 = answers.iter().map(|answer| answer.completion_tokens).sum();
    let wanted = u64::from(options.output_tokens) * answers.len() as u64;
    ensure!(tokens == wanted, "{tokens} tokens instead of {wanted}: an answer ended early");
    Ok(tokens as f64 / seconds)
}
