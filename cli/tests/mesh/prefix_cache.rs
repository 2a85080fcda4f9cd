//! The prefix cache over HTTP, through all four services: who hits, where it is reported, and who never does.

use crate::support::{Weft, post, tiny_adapter, tiny_model};
use serde_json::{Value, json};

/// 64 tokens: in the tiny model a token is a byte.
const PROMPT: &str = "Once upon a time there was a loom that knew every thread by name";
/// Tokens of its full blocks but the last: at least one token is computed.
const CACHED: u64 = 48;

fn completion(model: &str, prompt: &str) -> Value {
    json!({ "model": model, "prompt": prompt, "temperature": 0, "max_tokens": 4, "ignore_eos": true })
}

fn chat(model: &str, turns: &[&str]) -> Value {
    let roles = ["user", "assistant"].iter().cycle();
    let messages: Vec<Value> =
        turns.iter().zip(roles).map(|(content, role)| json!({ "role": role, "content": content })).collect();
    json!({ "model": model, "messages": messages, "temperature": 0, "max_tokens": 4, "ignore_eos": true })
}

/// The usage of a whole answer, or of the last event of a streamed one.
async fn usage(up: &Weft, secret: &str, route: &str, mut body: Value, stream: bool) -> Value {
    if stream {
        body["stream"] = true.into();
        body["stream_options"] = json!({ "include_usage": true });
    }
    let reply = post(&format!("{}/v1/{route}", up.data_url), secret, body).await;
    assert_eq!(reply.status, 200, "{}", reply.text);
    if !stream {
        return reply.json()["usage"].clone();
    }
    let events = reply.text.lines().filter_map(|line| line.strip_prefix("data: "));
    let mut usages =
        events.filter_map(|event| serde_json::from_str::<Value>(event).ok()).map(|event| event["usage"].clone());
    usages.rfind(Value::is_object).expect("a last event with the usage")
}

fn cached(usage: &Value) -> u64 {
    usage["prompt_tokens_details"]["cached_tokens"].as_u64().expect("a count")
}

#[tokio::test]
async fn a_tenant_sees_its_hits_in_every_usage_and_no_other_tenant_has_any() {
    let up = Weft::up(&tiny_model(), &["--dtype", "f32"]);
    let (harbour, helpdesk) = (up.tenant("harbour").await, up.tenant("helpdesk").await);
    let mut digests = Vec::new();
    for tenant in ["harbour", "helpdesk"] {
        digests.push(up.admin().publish(tenant, "pirate", &tiny_adapter("rank8"), Some("live")).await.unwrap().digest);
    }
    assert_eq!(digests[0], digests[1], "two tenants with the same bytes");
    for model in ["base", "pirate"] {
        let first = usage(&up, &harbour, "completions", completion(model, PROMPT), false).await;
        assert_eq!((first["prompt_tokens"].as_u64(), cached(&first)), (Some(64), 0), "{model}");
        let again = usage(&up, &harbour, "completions", completion(model, PROMPT), false).await;
        assert_eq!((again["prompt_tokens"].as_u64(), cached(&again)), (Some(64), CACHED), "{model}");
        let streamed = usage(&up, &harbour, "completions", completion(model, PROMPT), true).await;
        assert_eq!(cached(&streamed), CACHED, "{model}");
        let longer =
            usage(&up, &harbour, "completions", completion(model, &format!("{PROMPT}, and more")), false).await;
        assert_eq!(cached(&longer), CACHED + 16, "{model}");
        for stream in [false, true] {
            let foreign = usage(&up, &helpdesk, "completions", completion(model, PROMPT), stream).await;
            // Its own second request hits what its first one left.
            assert_eq!(cached(&foreign), if stream { CACHED } else { 0 }, "{model}");
        }
    }
    let first = usage(&up, &harbour, "chat/completions", chat("pirate", &[PROMPT]), false).await;
    let next = chat("pirate", &[PROMPT, "a thread", "and then?"]);
    let second = usage(&up, &harbour, "chat/completions", next.clone(), true).await;
    assert_eq!(cached(&first), 0, "the template stands before the text");
    assert!(cached(&second) >= CACHED, "{second}");
    assert_eq!(cached(&usage(&up, &helpdesk, "chat/completions", next, false).await), 0);

    let load = up.admin().get("workers").await.unwrap()["workers"][0]["load"].clone();
    let total = |name: &str| load[name].as_u64().unwrap_or_else(|| panic!("{name} in {load}"));
    assert!(total("prefix_hit_tokens_total") >= 2 * 4 * CACHED && total("kv_blocks_idle") > 0, "{load}");
    assert!(total("prefix_lookup_tokens_total") > total("prefix_hit_tokens_total"), "{load}");
}

#[tokio::test]
async fn without_a_prefix_cache_nothing_hits() {
    let up = Weft::up(&tiny_model(), &["--worker-prefix-cache=false"]);
    let secret = up.tenant("harbour").await;
    for _ in 0..2 {
        assert_eq!(cached(&usage(&up, &secret, "completions", completion("base", PROMPT), false).await), 0);
    }
}
