//! Gateways that share limits through a real Redis.

#[allow(dead_code, reason = "the room of limits uses all of it")]
#[path = "../../../../crates/limits/tests/support/redis.rs"]
mod redis;

use crate::support::worker::FakeWorker;
use crate::support::{Mesh, mesh_with, read, settings};
use redis::Redis;
use serde_json::{Value, json};
use weft_gateway::Settings;

async fn gateway(url: &str, change: impl FnOnce(&mut Settings)) -> Mesh {
    let mut settings = Settings { redis_url: Some(url.into()), redis_timeout_ms: 1000, ..settings() };
    change(&mut settings);
    mesh_with(settings, vec![FakeWorker::new("w")]).await
}

async fn ready(mesh: &Mesh) -> Value {
    let (status, body) = read(mesh.client.get(format!("{}/readyz", mesh.admin)).send().await.unwrap()).await;
    assert_eq!(status, 200);
    body["limits"].clone()
}

async fn until_shared(mesh: &Mesh, gateways: u64) {
    mesh.until("shared", async || {
        let limits = ready(mesh).await;
        limits["shared"] == json!(true) && limits["gateways"] == json!(gateways)
    })
    .await;
}

/// Answers until the first 429, at most so many.
async fn answered(mesh: &Mesh, most: u64) -> u64 {
    for count in 0..most {
        let status = mesh.post("/v1/completions", &json!({"prompt": "x"})).send().await.unwrap().status().as_u16();
        match status {
            200 => {}
            429 => return count,
            other => panic!("{other}"),
        }
    }
    most
}

#[tokio::test]
async fn two_gateways_let_a_tenant_do_what_one_would() {
    let redis = Redis::start();
    let limited = |settings: &mut Settings| {
        settings.default_tokens_per_day = Some(2_000);
        settings.limits_slice_percent = 1.0;
    };
    let (one, two) = (gateway(&redis.url(), limited).await, gateway(&redis.url(), limited).await);
    until_shared(&one, 2).await;
    until_shared(&two, 2).await;
    // The worker's answers have 7 tokens of prompt and some of their own; a single gateway shows how many fit.
    let alone =
        mesh_with(Settings { default_tokens_per_day: Some(2_000), ..settings() }, vec![FakeWorker::new("w")]).await;
    let fit = answered(&alone, 1_000).await;
    assert!(fit > 50 && fit < 1_000, "{fit}");
    let mut shared = 0;
    loop {
        let more = answered(&one, 5).await + answered(&two, 5).await;
        shared += more;
        if more == 0 {
            break;
        }
    }
    // Each may hold a slice of 20 tokens that the other could have used, and reserves more than an answer needs.
    assert!(shared <= fit + 1 && shared + 12 >= fit, "{shared} of {fit}");
    // One that ends gives back what it held; its own drain is seen below.
    assert!(one.metric("gateway_limits_shared").await == 1.0 && one.metric("gateway_limits_gateways").await == 2.0);
    assert!(one.metric("gateway_limits_calls_total").await > 0.0);
    assert_eq!(one.metric("gateway_limits_calls_failed_total").await, 0.0);
}

#[tokio::test]
async fn without_redis_a_gateway_is_ready_says_so_and_goes_on_with_its_part() {
    let port = Redis::start().kill();
    let mesh = gateway(&format!("redis://127.0.0.1:{port}"), |settings| {
        settings.default_requests_per_minute = Some(1_000);
        settings.limits_slice_percent = 1.0;
        settings.limits_gateways = 100;
    })
    .await;
    mesh.until("told", async || ready(&mesh).await["why"].as_str().is_some_and(|why| why != "not asked yet")).await;
    let limits = ready(&mesh).await;
    let told = (&limits["kept_in"], &limits["shared"], &limits["gateways"]);
    assert_eq!(told, (&json!("redis"), &json!(false), &json!(100)));
    let (_, public) = read(mesh.client.get(format!("{}/readyz", mesh.data)).send().await.unwrap()).await;
    assert_eq!((&public["limits"]["shared"], &public["limits"]["why"]), (&json!(false), &Value::Null));
    // A slice of 10, and a hundredth of the rate: one every 6 s.
    let alone = answered(&mesh, 100).await;
    assert!((10..100).contains(&alone), "{alone}");
    assert_eq!(mesh.metric("gateway_limits_shared").await, 0.0);
    assert_eq!(mesh.metric("gateway_limits_allowed_alone_total").await as u64, alone);
    let redis = Redis::start_on(port);
    mesh.until("shared", async || mesh.metric("gateway_limits_shared").await == 1.0).await;
    assert!(answered(&mesh, 200).await >= 200);
    drop(redis);
}
