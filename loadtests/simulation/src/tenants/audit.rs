//! Looks for everything that was acknowledged.

use super::ask::{Ended, Model, Question, ask};
use super::{ADAPTERS, Client, NAMES, keys, path_of};
use crate::checks::{RECOVERED_WITHIN, Rule};
use crate::ledger::Adapter;
use crate::machine;
use crate::random::one_of;
use crate::world::{DATA_PORT, GATEWAYS};
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::Duration;
use weft_types::Digest;

/// During the faults: what is listed must be what was seen before.
pub(super) async fn run(mut client: Client) {
    while !client.is_over() {
        client.pause(2000, 6000).await;
        let gateway = client.gateway();
        let adapter = *one_of(&mut client.random, &ADAPTERS);
        versions(&client, gateway, adapter).await;
    }
}

/// What a gateway lists of an adapter, held to what was seen of it before.
async fn versions(client: &Client, gateway: &'static str, adapter: Adapter) -> Option<BTreeMap<u64, Digest>> {
    let path = format!("{}/versions", path_of(adapter));
    let answer = client.operate(gateway, "GET", &path, &Value::Null).await.ok()?;
    if answer.status != 200 {
        client.refused(&answer, &format!("GET {path}"));
        return None;
    }
    client.world.record.count("lists of versions");
    let mut found = BTreeMap::new();
    for version in answer.json["versions"].as_array().into_iter().flatten() {
        let digest = version["digest"].as_str().and_then(|text| text.parse::<Digest>().ok());
        let (Some(number), Some(digest)) = (version["version"].as_u64(), digest) else { continue };
        if let Some(problem) = client.world.ledger().saw(adapter, number, digest) {
            client.violated(Rule::VersionsImmutable, problem);
        }
        found.insert(number, digest);
    }
    Some(found)
}

/// After the faults: in time, each gateway is ready, answers for every adapter, and shows everything that was acknowledged.
pub(super) async fn recovered(client: Client) {
    let deadline = machine::elapsed() + RECOVERED_WITHIN;
    for gateway in GATEWAYS {
        in_time(&client, deadline, &format!("{gateway} is ready"), async || is_ready(&client, gateway).await).await;
        for adapter in ADAPTERS {
            let question = Question {
                adapter,
                model: Model::Alias("live"),
                prompt: format!("after all of it, at {gateway}"),
                seed: 1,
                tokens: 5,
                streams: true,
            };
            let answers = async || matches!(ask(&client, gateway, &question).await, Ended::Right);
            in_time(&client, deadline, &format!("{gateway} answers for {adapter:?}"), answers).await;
            in_time(&client, deadline, &format!("{gateway} lists all of {adapter:?}"), async || {
                lists_all(&client, gateway, adapter).await
            })
            .await;
        }
        for tenant in NAMES {
            in_time(&client, deadline, &format!("{gateway} has the keys of {tenant}"), async || {
                has_keys(&client, gateway, tenant).await
            })
            .await;
        }
    }
    client.say("the mesh has recovered");
}

async fn in_time(client: &Client, deadline: Duration, what: &str, holds: impl AsyncFn() -> bool) {
    while !holds().await {
        if client.world.record.is_violated() {
            return;
        }
        if machine::elapsed() > deadline {
            client.violated(Rule::Recovers, format!("not in time: {what}"));
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn is_ready(client: &Client, gateway: &'static str) -> bool {
    let began = machine::elapsed();
    match crate::http::call(gateway, DATA_PORT, "GET", "/readyz", "", &Value::Null).await {
        Ok(answer) => answer.status == 200,
        Err(broken) => {
            client.broke(gateway, began, broken, "/readyz");
            false
        }
    }
}

async fn lists_all(client: &Client, gateway: &'static str, adapter: Adapter) -> bool {
    let Some(found) = versions(client, gateway, adapter).await else { return false };
    let acked = client.world.ledger().versions(adapter).to_vec();
    acked.iter().all(|version| found.get(&version.number) == Some(&version.digest))
}

/// Keys that were not revoked are taken, revoked ones are not, and S3 says the same.
async fn has_keys(client: &Client, gateway: &'static str, tenant: &str) -> bool {
    let all = client.world.ledger().keys.clone();
    for (id, key) in all.iter().filter(|(_, key)| key.tenant == tenant) {
        let record = keys::stored(client, tenant, id);
        let is_revoked_in_s3 = record.as_ref().map(|record| !record["revoked"].is_null());
        let expected = match key.revoke {
            None => Some(false),
            Some((_, Some(_))) => Some(true),
            // Nobody knows.
            Some((_, None)) => None,
        };
        if is_revoked_in_s3.is_none() || expected.is_some() && is_revoked_in_s3 != expected {
            let seen = format!("key {id} should be revoked: {expected:?}; in S3: {is_revoked_in_s3:?}");
            client.violated(Rule::NothingLost, seen);
            return false;
        }
        if client.is_accepted(gateway, &key.secret).await != expected.map(|revoked| !revoked) && expected.is_some() {
            return false;
        }
    }
    true
}
