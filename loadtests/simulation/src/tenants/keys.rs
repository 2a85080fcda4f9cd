//! Makes keys and revokes them, and sees whether gateways go by it.

use super::Client;
use crate::checks::{REVOKED_WITHIN, Rule, SEEN_WITHIN};
use crate::ledger::Key;
use crate::machine;
use crate::stage::Stage;
use crate::world::GATEWAYS;
use rand::Rng;
use serde_json::{Value, json};
use std::time::Duration;

/// Until the faults are over.
pub(super) async fn run(mut client: Client, tenant: &'static str) {
    while !client.is_over() {
        client.pause(500, 4000).await;
        let gateway = client.gateway();
        let Some(id) = create(&client, gateway, tenant).await else { continue };
        seen(&mut client, &id).await;
        client.pause(0, 6000).await;
        if client.random.random_bool(0.8) {
            revoke(&mut client, tenant, &id).await;
            refused(&mut client, &id).await;
        }
    }
}

/// One try to make a key. Its id, if it was acknowledged.
pub(super) async fn create(client: &Client, gateway: &'static str, tenant: &'static str) -> Option<String> {
    let answer = client.operate(gateway, "POST", &format!("/tenants/{tenant}/keys"), &json!({})).await.ok()?;
    if answer.status != 201 {
        client.refused(&answer, "a new key");
        return None;
    }
    client.world.record.count("keys made");
    let text = |name: &str| answer.json[name].as_str().unwrap_or_default().to_owned();
    let (id, secret) = (text("id"), text("secret"));
    if stored(client, tenant, &id).is_none() {
        client.violated(Rule::NothingLost, format!("key {id} was acknowledged and is not in S3"));
    }
    let is_standing = client.world.stage() == Stage::SettingUp;
    let key = Key { tenant, secret, acked: machine::elapsed(), is_standing, revoke: None };
    client.world.ledger().keys.insert(id.clone(), key);
    Some(id)
}

/// The record of a key, as S3 has it now, past every fault.
pub(super) fn stored(client: &Client, tenant: &str, id: &str) -> Option<Value> {
    let bytes = client.world.objects.peek(&format!("registry/tenants/{tenant}/keys/{id}.json"))?;
    serde_json::from_slice(&bytes).ok()
}

fn key(client: &Client, id: &str) -> Key {
    client.world.ledger().keys[id].clone()
}

/// Both gateways must come to know the key, unless their way to S3 is disturbed.
async fn seen(client: &mut Client, id: &str) {
    let key = key(client, id);
    for gateway in GATEWAYS {
        loop {
            let waited = machine::elapsed().saturating_sub(key.acked);
            match client.is_accepted(gateway, &key.secret).await {
                Some(true) => {
                    client.world.record.count("keys seen");
                    break;
                }
                Some(false) if waited > SEEN_WITHIN && client.sees_all(gateway, waited) => {
                    client.violated(Rule::SeenInTime, format!("{gateway} does not know key {id} after {waited:?}"));
                    break;
                }
                _ if waited > SEEN_WITHIN || client.is_over() => break,
                _ => client.pause(300, 1500).await,
            }
        }
    }
}

/// Until it is acknowledged.
async fn revoke(client: &mut Client, tenant: &'static str, id: &str) {
    let began = machine::elapsed();
    client.world.ledger().keys.entry(id.to_owned()).and_modify(|key| key.revoke = Some((began, None)));
    loop {
        let gateway = client.gateway();
        let path = format!("/tenants/{tenant}/keys/{id}");
        if let Ok(answer) = client.operate(gateway, "DELETE", &path, &Value::Null).await {
            if answer.status == 204 {
                break;
            }
            client.refused(&answer, &format!("DELETE {path}"));
        }
        client.pause(300, 1500).await;
    }
    let acked = machine::elapsed();
    client.world.record.count("keys revoked");
    client.world.ledger().keys.entry(id.to_owned()).and_modify(|key| key.revoke = Some((began, Some(acked))));
    if stored(client, tenant, id).is_none_or(|record| record["revoked"].is_null()) {
        client.violated(Rule::NothingLost, format!("the revocation of key {id} was acknowledged and is not in S3"));
    }
}

/// No gateway may take the key when its time is over, whatever is disturbed.
async fn refused(client: &mut Client, id: &str) {
    let key = key(client, id);
    let Some((_, Some(acked))) = key.revoke else { return };
    let watched_until = acked + REVOKED_WITHIN + Duration::from_secs(5);
    let mut waiting: Vec<&'static str> = GATEWAYS.to_vec();
    while !waiting.is_empty() && machine::elapsed() < watched_until {
        for gateway in std::mem::take(&mut waiting) {
            let asked = machine::elapsed();
            match client.is_accepted(gateway, &key.secret).await {
                Some(false) => client.world.record.count("revocations seen"),
                Some(true) if asked > acked + REVOKED_WITHIN => {
                    let late = asked.saturating_sub(acked);
                    client.violated(
                        Rule::RevokedInTime,
                        format!("{gateway} takes key {id} {late:?} after its revocation"),
                    );
                }
                Some(true) | None => waiting.push(gateway),
            }
        }
        client.pause(300, 1500).await;
    }
}
