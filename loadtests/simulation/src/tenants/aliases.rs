//! Moves the alias `canary` of one adapter from version to version.

use super::{Client, path_of};
use crate::checks::Rule;
use crate::ledger::Adapter;
use crate::machine;
use crate::random::one_of;
use serde_json::{Value, json};

/// The alias that is moved here; `live` is moved by publishing.
pub(super) const CANARY: &str = "canary";

/// Until the faults are over.
pub(super) async fn run(mut client: Client, adapter: Adapter) {
    while !client.is_over() {
        client.pause(2000, 8000).await;
        let versions = client.world.ledger().versions(adapter).to_vec();
        if versions.is_empty() {
            continue;
        }
        let version = one_of(&mut client.random, &versions).clone();
        let gateway = client.gateway();
        let moved = client.world.ledger().moves(adapter, CANARY, version.digest, machine::elapsed());
        let path = format!("{}/aliases/{CANARY}", path_of(adapter));
        let body = json!({"version": version.number});
        let Ok(answer) = client.operate(gateway, "PUT", &path, &body).await else { continue };
        if answer.status != 200 {
            client.refused(&answer, &format!("PUT {path}"));
            continue;
        }
        client.world.record.count("aliases moved");
        client.world.ledger().moved(adapter, CANARY, moved, machine::elapsed());
        if answer.json["version"] != version.number {
            client.violated(
                Rule::NothingLost,
                format!("moved {path} to {}, the answer has {}", version.number, answer.json),
            );
        }
        let record =
            format!("registry/tenants/{}/adapters/{}/aliases/{CANARY}.json", adapter.0, adapter.1.replace('/', "!"));
        let stored = client.world.objects.peek(&record).and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let stored = stored.map(|stored| stored["digest"].as_str().unwrap_or_default().to_owned());
        let possible = client.world.ledger().may_be(adapter, CANARY, machine::elapsed());
        if !possible.iter().any(|digest| Some(digest.to_string()) == stored) {
            client.violated(Rule::NothingLost, format!("{record} has {stored:?}, possible are {possible:?}"));
        }
    }
}
