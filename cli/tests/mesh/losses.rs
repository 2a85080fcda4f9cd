//! Real processes whose store and whose wires fail them. What is near is answered; what cannot be had says so, with a time to try again;
//! what was acknowledged is there afterwards; and nothing has to be started again.

use crate::support::apart::{Apart, Plan, flags};
use crate::support::network::{Mood, Wire};
use crate::support::process::until;
use crate::support::{ADMIN_KEY, Reply, send, tiny_adapter, tiny_model};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

async fn mesh() -> (Apart, String) {
    let plan = Plan {
        workers: 1,
        worker_flags: flags(&[("adapter-load-timeout-s", "3")]),
        over_wires: true,
        ..Plan::default()
    };
    let apart = Apart::start(&tiny_model(), plan).await;
    let secret = apart.secret("harbour").await;
    (apart, secret)
}

async fn ask(apart: &Apart, secret: &str, model: &str) -> Reply {
    let body = json!({ "model": model, "prompt": [65, 66], "max_tokens": 4, "temperature": 0 });
    apart.ask(secret, "/v1/completions", &body).await
}

/// Asks until it is answered: what fails on the way must be worth another try.
async fn until_answered(apart: &Apart, secret: &str, model: &str) -> Reply {
    until(model, async || {
        let reply = ask(apart, secret, model).await;
        if reply.status == 200 {
            return Some(reply);
        }
        is_to_be_tried_again(&reply);
        None
    })
    .await
}

fn is_to_be_tried_again(reply: &Reply) {
    assert!(matches!(reply.status, 429 | 503 | 504), "{}: {}", reply.status, reply.text);
    let hint = reply.header("retry-after-ms").and_then(|ms| ms.parse::<u64>().ok());
    assert!(reply.status == 504 || hint.is_some(), "{:?}", reply.headers);
}

/// A write through the admin API, as it is answered.
async fn create_key(apart: &Apart) -> Reply {
    let url = format!("{}/admin/v1/tenants/harbour/keys", apart.admin_url);
    send(reqwest::Client::new().post(url).bearer_auth(ADMIN_KEY).json(&json!({}))).await
}

/// Publishes until it is acknowledged.
async fn publish(apart: &Apart, name: &str, folder: &str) -> (u64, String) {
    let published = until(name, async || {
        let published = apart.admin().publish("harbour", name, &tiny_adapter(folder), Some("live")).await;
        published.inspect_err(|error| println!("{name}: {error:#}")).ok()
    });
    let published = published.await;
    (published.version, published.digest)
}

async fn versions(apart: &Apart, name: &str) -> BTreeMap<u64, String> {
    let listed = apart.admin().versions("harbour", name).await.unwrap();
    let entry =
        |version: &Value| (version["version"].as_u64().unwrap(), version["digest"].as_str().unwrap().to_owned());
    listed["versions"].as_array().unwrap().iter().map(entry).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_costs_no_answer_from_what_is_near() {
    let (apart, secret) = mesh().await;
    let (_, near) = publish(&apart, "near", "rank8").await;
    publish(&apart, "far", "rank16").await;
    until_answered(&apart, &secret, "near").await;

    for wire in [Wire::IsCut, Wire::Hangs] {
        apart.wires().s3.set(wire);
        for _ in 0..3 {
            let reply = ask(&apart, &secret, "near").await;
            assert_eq!(
                (reply.status, reply.header("x-weft-adapter-digest")),
                (200, Some(near.as_str())),
                "{}",
                reply.text
            );
            assert_eq!(ask(&apart, &secret, "base").await.status, 200);
        }
        let far = ask(&apart, &secret, "far").await;
        assert_eq!(far.status, 503, "{}", far.text);
        is_to_be_tried_again(&far);
        is_to_be_tried_again(&create_key(&apart).await);
    }

    apart.wires().s3.set(Wire::Carries);
    until_answered(&apart, &secret, "far").await;
    until("writable", async || (create_key(&apart).await.status == 201).then_some(())).await;
    apart.stop().await;
}

/// Somebody may have revoked a key at another registry meanwhile: what this one knows is not good for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_the_store_is_as_good_as_away() {
    let gateway_flags = flags(&[("directory-age-max-s", "12")]);
    let plan = Plan { workers: 1, over_wires: true, gateway_flags, ..Plan::default() };
    let apart = Apart::start(&tiny_model(), plan).await;
    let secret = apart.secret("harbour").await;
    until_answered(&apart, &secret, "base").await;

    apart.wires().s3.set(Wire::IsCut);
    let refused = until("refused", async || {
        let reply = ask(&apart, &secret, "base").await;
        (reply.status != 200).then_some(reply)
    });
    let refused = refused.await;
    is_to_be_tried_again(&refused);
    assert_eq!(refused.json()["error"]["code"], "directory_unavailable", "{}", refused.text);

    apart.wires().s3.set(Wire::Carries);
    until_answered(&apart, &secret, "base").await;
    apart.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_half_of_all_requests_or_is_slow_is_lived_with() {
    let (apart, secret) = mesh().await;
    let mut acknowledged = BTreeMap::new();
    let moods = [
        Mood::Refuses(503, "SlowDown"),
        Mood::Refuses(500, "InternalError"),
        Mood::Refuses(429, "TooManyRequests"),
        Mood::Slow(Duration::from_millis(150)),
    ];
    for (at, mood) in moods.into_iter().enumerate() {
        apart.wires().store.set(mood);
        let (version, digest) = publish(&apart, "busy", ["rank8", "rank16"][at % 2]).await;
        acknowledged.insert(version, digest.clone());
        let pinned = format!("busy@{version}");
        let reply = until_answered(&apart, &secret, &pinned).await;
        assert_eq!(reply.header("x-weft-adapter-digest"), Some(digest.as_str()), "{mood:?}");
    }
    apart.wires().store.set(Mood::Well);
    let there = versions(&apart, "busy").await;
    assert!(
        acknowledged.iter().all(|(version, digest)| there.get(version) == Some(digest)),
        "{acknowledged:?} {there:?}"
    );
    apart.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_answers_with_other_bytes_is_never_believed() {
    let (apart, secret) = mesh().await;
    let (_, digest) = publish(&apart, "far", "rank8").await;
    apart.wires().store.set(Mood::Lies);
    for _ in 0..3 {
        let reply = ask(&apart, &secret, "far").await;
        assert!(reply.status >= 500, "{}: {}", reply.status, reply.text);
        assert_eq!(ask(&apart, &secret, "base").await.status, 200);
    }
    apart.wires().store.set(Mood::Well);
    let reply = until("believed again", async || {
        let reply = ask(&apart, &secret, "far").await;
        (reply.status == 200).then_some(reply)
    })
    .await;
    assert_eq!(reply.header("x-weft-adapter-digest"), Some(digest.as_str()));
    apart.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_connections_hold_up_nothing_but_what_needs_them() {
    let (apart, secret) = mesh().await;
    publish(&apart, "near", "rank8").await;
    publish(&apart, "far", "rank16").await;
    until_answered(&apart, &secret, "near").await;

    apart.wires().daemon.set(Wire::Hangs);
    let far = ask(&apart, &secret, "far").await;
    assert_eq!(far.status, 503, "{}", far.text);
    is_to_be_tried_again(&far);
    assert_eq!(ask(&apart, &secret, "near").await.status, 200);
    assert_eq!(ask(&apart, &secret, "base").await.status, 200);
    apart.wires().daemon.set(Wire::Carries);
    until_answered(&apart, &secret, "far").await;

    apart.wires().registry.set(Wire::Hangs);
    is_to_be_tried_again(&create_key(&apart).await);
    for model in ["near", "far", "base"] {
        assert_eq!(ask(&apart, &secret, model).await.status, 200);
    }
    apart.wires().registry.set(Wire::Carries);
    until("writable", async || (create_key(&apart).await.status == 201).then_some(())).await;
    apart.stop().await;
}
