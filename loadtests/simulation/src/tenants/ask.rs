//! Asks for completions, and holds each answer to what it must be, token by token.

use super::{ADAPTERS, Client};
use crate::answer;
use crate::checks::{End, NOTICED_WITHIN, REVOKED_WITHIN, Refusal, Rule, SEEN_WITHIN, refusal, stream_end};
use crate::http::{Broken, Whole, open};
use crate::ledger::Adapter;
use crate::machine;
use crate::random::one_of;
use crate::world::{DATA_PORT, GATEWAYS};
use bytes::Bytes;
use rand::Rng;
use serde_json::json;
use std::time::Duration;
use weft_types::Digest;

/// Tries of one request, as a client library has them.
const TRIES: usize = 6;

/// What is asked.
pub(super) struct Question {
    pub(super) adapter: Adapter,
    pub(super) model: Model,
    pub(super) prompt: String,
    pub(super) seed: u64,
    pub(super) tokens: u32,
    pub(super) streams: bool,
}

/// Which bytes are meant.
pub(super) enum Model {
    Base,
    /// A version, its digest, and when it was acknowledged.
    Version(u64, Digest, Duration),
    Alias(&'static str),
}

impl Question {
    fn name(&self) -> String {
        match &self.model {
            Model::Base => "base".to_owned(),
            Model::Version(number, ..) => format!("{}@{number}", self.adapter.1),
            Model::Alias(alias) => format!("{}@{alias}", self.adapter.1),
        }
    }
}

/// How a try ended.
pub(super) enum Ended {
    Right,
    Later,
    Violated,
}

/// Until the faults are over.
pub(super) async fn run(mut client: Client) {
    let mut number = 0;
    while !client.is_over() {
        client.pause(50, 1000).await;
        number += 1;
        let question = draw(&mut client, number);
        let mut gateway = client.random.random_range(0..GATEWAYS.len());
        for tried in 0..TRIES {
            if tried > 0 {
                client.world.record.count("tries again");
            }
            match ask(&client, GATEWAYS[gateway], &question).await {
                Ended::Right | Ended::Violated => break,
                Ended::Later => {
                    gateway = (gateway + 1) % GATEWAYS.len();
                    client.pause(200 << tried, 500 << tried).await;
                }
            }
        }
    }
}

fn draw(client: &mut Client, number: u64) -> Question {
    let adapter = *one_of(&mut client.random, &ADAPTERS);
    let now = machine::elapsed();
    let model = {
        let ledger = client.world.ledger();
        let versions = ledger.versions(adapter);
        match client.random.random_range(0..10) {
            0 => Model::Base,
            1..=4 if !versions.is_empty() => {
                let version = one_of(&mut client.random, versions);
                Model::Version(version.number, version.digest, version.acked)
            }
            5..=6 if ledger.has_alias(adapter, super::aliases::CANARY, now) => Model::Alias(super::aliases::CANARY),
            _ => Model::Alias("live"),
        }
    };
    Question {
        adapter,
        model,
        prompt: format!("{} asks number {number}", client.who),
        seed: client.random.random_range(0..1 << 31),
        tokens: client.random.random_range(1..=80),
        streams: client.random.random_bool(0.6),
    }
}

/// One try at one gateway, held to the rules.
pub(super) async fn ask(client: &Client, gateway: &'static str, question: &Question) -> Ended {
    let began = machine::elapsed();
    let tenant = question.adapter.0;
    let secret = {
        let ledger = client.world.ledger();
        let mut keys = ledger.keys.values();
        keys.find(|key| key.tenant == tenant && key.is_standing).map(|key| key.secret.clone())
    };
    let Some(secret) = secret else { return Ended::Later };
    let model = question.name();
    let body = json!({
        "model": model, "prompt": question.prompt, "seed": question.seed, "max_tokens": question.tokens,
        "stream": question.streams,
    });
    let request = http::Request::post("/v1/completions")
        .header("authorization", format!("Bearer {secret}"))
        .header("content-type", "application/json");
    let what = format!("{model} of {tenant} at {gateway}, {} tokens", question.tokens);
    let opened = open(gateway, DATA_PORT, request, Bytes::from(body.to_string())).await;
    let ended = match opened {
        Ok(answer) if answer.status == 200 && question.streams => {
            streamed(client, question, answer, began, &what).await
        }
        Ok(answer) => answer.whole().await.map(|whole| judged(client, gateway, question, &whole, began, &what)),
        Err(broken) => Err(broken),
    };
    let ended = ended.unwrap_or_else(|broken| {
        client.broke(gateway, began, broken, &what);
        client.say(format!("{what}: {broken:?}"));
        Ended::Later
    });
    if let Ended::Right = ended {
        client.world.record.count("answers");
        client.world.record.add("tokens", question.tokens.into());
        client.say(format!("{what}: right"));
    }
    ended
}

/// A whole answer, or a refusal.
fn judged(
    client: &Client,
    gateway: &'static str,
    question: &Question,
    whole: &Whole,
    began: Duration,
    what: &str,
) -> Ended {
    if whole.status != 200 {
        client.say(format!("{what}: {} {}", whole.status, whole.json["error"]["code"]));
        let has_retry_after = whole.headers.contains_key("retry-after");
        return refused(client, gateway, question, refusal(whole.status, &whole.json, has_retry_after), what);
    }
    let Some(digest) = digest_of(client, question, &whole.headers, began, what) else { return Ended::Violated };
    let choice = &whole.json["choices"][0];
    let expected = answer::text(&digest, &question.prompt, question.seed, question.tokens);
    let is_right = choice["text"] == expected.as_str()
        && choice["finish_reason"] == "length"
        && whole.json["usage"]["completion_tokens"] == question.tokens;
    if is_right {
        return Ended::Right;
    }
    client.violated(Rule::TokensExact, format!("{what}: {} instead of {expected:?}", whole.json));
    Ended::Violated
}

async fn streamed(
    client: &Client,
    question: &Question,
    mut answer: crate::http::Answer,
    began: Duration,
    what: &str,
) -> Result<Ended, Broken> {
    let Some(digest) = digest_of(client, question, &answer.headers, began, what) else { return Ok(Ended::Violated) };
    let expected = answer::text(&digest, &question.prompt, question.seed, question.tokens);
    let mut bytes = Vec::new();
    let broken = loop {
        match answer.piece().await {
            Ok(Some(piece)) => bytes.extend_from_slice(&piece),
            Ok(None) => break None,
            Err(broken) => break Some(broken),
        }
    };
    // What came before a break counts too; the last line may be half of one.
    let text = String::from_utf8_lossy(&bytes);
    let whole_lines = text.rsplit_once("\n\n").map_or("", |(whole, _)| whole);
    let data: Vec<String> =
        whole_lines.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect();
    let (text, end) = match stream_end(&data, broken.is_none()) {
        Ok(read) => read,
        Err(problem) => {
            client.violated(Rule::OneEnd, format!("{what}: {problem}"));
            return Ok(Ended::Violated);
        }
    };
    if !expected.starts_with(&text) {
        client.violated(Rule::TokensExact, format!("{what}: {text:?} does not begin {expected:?}"));
        return Ok(Ended::Violated);
    }
    match (end, broken) {
        (Some(End::Whole), _) if text == expected => Ok(Ended::Right),
        (Some(End::Whole), _) => {
            client.violated(Rule::TokensExact, format!("{what}: only {text:?} of {expected:?}"));
            Ok(Ended::Violated)
        }
        (Some(End::Failed(error)), _) => {
            client.say(format!("{what}: broken off, {}", error["error"]["code"]));
            client.world.record.count("streams that ended with an error");
            match refusal(200, &error, false) {
                Ok(_) => Ok(Ended::Later),
                Err(problem) => {
                    client.violated(Rule::KnownErrors, format!("{what}: {problem}"));
                    Ok(Ended::Violated)
                }
            }
        }
        (None, Some(broken)) => Err(broken),
        (None, None) => unreachable!("a closed stream without an end is a violation"),
    }
}

/// The digest that the answer says it is of, if that is one that its model may stand for.
fn digest_of(
    client: &Client,
    question: &Question,
    headers: &http::HeaderMap,
    began: Duration,
    what: &str,
) -> Option<Vec<u8>> {
    let text = headers.get("x-weft-adapter-digest").and_then(|value| value.to_str().ok());
    let told = text.and_then(|text| text.parse::<Digest>().ok());
    let possible = match &question.model {
        Model::Base => Vec::new(),
        Model::Version(_, digest, _) => vec![*digest],
        Model::Alias(alias) => {
            client.world.ledger().may_be(question.adapter, alias, began.saturating_sub(REVOKED_WITHIN))
        }
    };
    let is_right = match told {
        None => matches!(question.model, Model::Base) && text.is_none(),
        Some(told) => possible.contains(&told),
    };
    if !is_right {
        client.violated(Rule::RightAdapter, format!("{what}: the answer is of {text:?}, possible are {possible:?}"));
        return None;
    }
    Some(told.map_or_else(Vec::new, |told| told.as_bytes().to_vec()))
}

fn refused(
    client: &Client,
    gateway: &'static str,
    question: &Question,
    refusal: Result<Refusal, String>,
    what: &str,
) -> Ended {
    match refusal {
        Err(problem) => {
            client.violated(Rule::KnownErrors, format!("{what}: {problem}"));
            Ended::Violated
        }
        Ok(Refusal::Later) => Ended::Later,
        Ok(Refusal::WrongBytes) => {
            client.world.record.count("wrong bytes noticed");
            Ended::Later
        }
        // These keys were made before anything failed.
        Ok(Refusal::Key) => {
            client.violated(Rule::SeenInTime, format!("{what}: a key that was always good is refused"));
            Ended::Violated
        }
        Ok(Refusal::Model) => {
            let waited = match question.model {
                Model::Version(.., acked) => machine::elapsed().saturating_sub(acked),
                // Known since before anything failed, or since an alias was acknowledged: at least for a moment.
                Model::Base | Model::Alias(_) => Duration::ZERO,
            };
            if waited > SEEN_WITHIN + NOTICED_WITHIN && client.sees_all(gateway, waited) {
                client.violated(Rule::SeenInTime, format!("{what}: unknown {waited:?} after it was acknowledged"));
                return Ended::Violated;
            }
            client.world.record.count("models not known yet");
            Ended::Later
        }
    }
}
