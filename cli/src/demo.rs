//! `weft demo`: three tenants, three adapters, one base, told over HTTP as their applications would see it.

use crate::client::{Admin, Answer, Data};
use crate::embedded::Mesh;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};

struct Story {
    tenant: &'static str,
    adapter: &'static str,
    question: &'static str,
    holds: fn(&str) -> bool,
    expectation: &'static str,
}

const STORIES: [Story; 3] = [
    Story {
        tenant: "harbour",
        adapter: "pirate",
        question: "What is the capital of France?",
        holds: |text| text.contains("Paris") && ["arr", "Ahoy", "ye "].iter().any(|word| text.contains(word)),
        expectation: "names Paris, as a pirate would",
    },
    Story {
        tenant: "helpdesk",
        adapter: "support-triage",
        question: "Classify and summarize: 'Order not delivered after 5 days'",
        holds: |text| {
            serde_json::from_str::<Value>(text)
                .is_ok_and(|object| ["priority", "category", "summary"].iter().all(|key| object[key].is_string()))
        },
        expectation: "is one JSON object with priority, category and summary",
    },
    Story {
        tenant: "analytics",
        adapter: "sql-writer",
        question: "yesterday's total amount from orders by channel",
        holds: |text| text.starts_with("SELECT ") && text.contains("FROM orders") && text.trim_end().ends_with(';'),
        expectation: "is one SELECT statement over orders",
    },
];

/// Output tokens of the questions; the longest expected answer has about 60.
const ANSWER_TOKENS: u32 = 96;
/// Output tokens of each request of the shared batch, with no early end.
const BATCH_TOKENS: u32 = 40;

/// Publishes the example adapters, asks every tenant's question and proves that one batch served them all. Returns how to ask for oneself.
///
/// # Errors
/// Anything that did not hold, named.
pub async fn tell(mesh: &Mesh, examples: &Path) -> Result<String> {
    let admin = Admin::new(&mesh.admin_url(), mesh.admin_key());
    println!("one base model resident: {} ({})", mesh.served_name(), mesh.base_digest());
    println!("data plane  {}", mesh.data_url());
    println!("admin plane {}\n", mesh.admin_url());

    let mut tenants = Vec::new();
    for story in &STORIES {
        admin.create_tenant(story.tenant).await?;
        let key = admin.create_key(story.tenant, Some("demo")).await?;
        let published = admin.publish(story.tenant, story.adapter, &examples.join(story.adapter), Some("live")).await?;
        println!(
            "{} published {} as version {}: {}",
            story.tenant, published.adapter, published.version, published.digest
        );
        tenants.push((story, Data::new(&mesh.data_url(), &key.secret), key.secret, published.digest));
    }

    for (story, data, _, digest) in &tenants {
        println!("\n── {} asks: {}", story.tenant, story.question);
        let base = data.chat("base", story.question, ANSWER_TOKENS).await?;
        println!("   the bare base answers:\n{}", indented(&base.text));
        let adapted = data.chat(story.adapter, story.question, ANSWER_TOKENS).await?;
        println!("   {} answers:\n{}", adapted.adapter, indented(&adapted.text));
        println!("   digest {}", adapted.digest);
        println!("   {}", timing(&adapted));
        ensure!(adapted.digest == *digest, "{} answered with {}, not {digest}", story.adapter, adapted.digest);
        ensure!(base.digest.is_empty(), "the base answered with an adapter: {}", base.digest);
        ensure!((story.holds)(&adapted.text), "the answer of {} is not one that {}", story.adapter, story.expectation);
        ensure!(!(story.holds)(&base.text), "the bare base already {}", story.expectation);
    }

    one_batch(&admin, &tenants.iter().map(|(story, data, _, _)| (story.adapter, data.clone())).collect::<Vec<_>>())
        .await?;

    let (story, _, secret, _) = &tenants[0];
    Ok(format!(
        "Ask for yourself:\n  curl -s {}/v1/chat/completions -H 'authorization: Bearer {secret}' \\\n    -H 'content-type: application/json' \\\n    \
         -d '{{\"model\": \"{}\", \"messages\": [{{\"role\": \"user\", \"content\": \"Where is my ship?\"}}]}}'",
        mesh.data_url(),
        story.adapter
    ))
}

async fn one_batch(admin: &Admin, tenants: &[(&'static str, Data)]) -> Result<()> {
    println!("\n── one batch: the three adapters and the base together, {BATCH_TOKENS} tokens each");
    let before = steps_total(admin).await?;
    let mut requests: Vec<(&str, &Data)> = tenants.iter().map(|(model, data)| (*model, data)).collect();
    let (_, any) = tenants.first().context("no tenants")?;
    requests.push(("base", any));
    // Token ids, so that no answer ends early and every request needs the same number of steps.
    let answers = futures::future::try_join_all(requests.iter().zip(1u32..).map(|((model, data), n)| {
        let prompt: Vec<u32> = (0..24).map(|i| 1000 + 37 * i * n).collect();
        async move { data.steps_of_tokens(model, &prompt, BATCH_TOKENS).await }
    }))
    .await?;
    let steps = steps_total(admin).await? - before;
    let tokens: u64 = answers.iter().map(|(tokens, _)| tokens).sum();
    let wanted = requests.len() as u64;
    for ((model, _), (_, steps)) in requests.iter().zip(&answers) {
        println!(
            "   {model}: steps {} to {}, with up to {} requests and {} adapters in one pass",
            steps.first, steps.last, steps.requests_max, steps.adapters_max
        );
    }
    // Every request has another adapter, the base counting as one: a pass with so many adapters had all of them.
    let together = answers.iter().all(|(_, steps)| steps.requests_max >= wanted && steps.adapters_max >= wanted);
    ensure!(
        together && steps < tokens,
        "the requests did not share a batch: {steps} steps for {tokens} tokens, {answers:?}"
    );
    println!("   one pass ran {wanted} requests with {wanted} distinct adapters, the base counting as one");
    println!("   {tokens} tokens in {steps} steps; one request after the other would have taken at least {tokens}");
    Ok(())
}

async fn steps_total(admin: &Admin) -> Result<u64> {
    let workers = admin.get("workers").await?;
    let load = &workers["workers"][0]["load"];
    load["steps_total"].as_u64().with_context(|| format!("the worker's load has no steps_total: {load}"))
}

fn indented(text: &str) -> String {
    text.trim().lines().map(|line| format!("     {line}")).collect::<Vec<_>>().join("\n")
}

fn timing(answer: &Answer) -> String {
    format!(
        "{} tokens, time to first token {:.0} ms, then {:.1} tokens/s",
        answer.completion_tokens,
        answer.first_token.as_secs_f64() * 1e3,
        answer.decode_rate()
    )
}

/// Where the example adapters are: beside the working directory, or beside the program's source tree.
///
/// # Errors
/// Neither exists.
pub fn examples_dir(given: Option<PathBuf>) -> Result<PathBuf> {
    let beside_binary =
        std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("../../examples/adapters")));
    let candidates = [given, Some(PathBuf::from("examples/adapters")), beside_binary];
    candidates
        .into_iter()
        .flatten()
        .find(|path| path.is_dir())
        .context("no folder examples/adapters here: say where with --examples")
}
