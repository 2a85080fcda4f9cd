//! The story on the real model: three tenants, three behaviours, one base, one batch; and what a crash keeps.

use crate::support::{Weft, demo_model, example_adapter, post, tiny_adapter, tiny_model, weft};
use serde_json::{Value, json};
use weft_cli::client::Data;

#[test]
fn the_demo_holds() {
    let dir = tempfile::tempdir().unwrap();
    let model = demo_model();
    let examples = crate::support::root().join("examples/adapters");
    let (status, out, err) = weft(&[
        "demo",
        "--once",
        "--examples",
        examples.to_str().unwrap(),
        "--",
        "--model",
        model.to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--data-dir",
        dir.path().to_str().unwrap(),
    ]);
    assert!(status.success(), "{out}\n{err}");
    let proof = "one pass ran 4 requests with 4 distinct adapters, the base counting as one";
    for part in ["harbour/pirate@1", "helpdesk/support-triage@1", "analytics/sql-writer@1", "sha256:", proof] {
        assert!(out.contains(part), "{part} in {out}");
    }
}

#[tokio::test]
async fn every_tenant_gets_its_own_behaviour_from_one_base() {
    let up = Weft::up(&demo_model(), &["--dtype", "f32"]);
    let stories = [
        ("harbour", "pirate", "What is the capital of France?", "Ahoy! That be Paris, ye landlubber, arrr!"),
        (
            "helpdesk",
            "support-triage",
            "Classify and summarize: 'Order not delivered after 5 days'",
            r#"{"priority": "high", "category": "shipping", "summary": "order not delivered after 5 days"}"#,
        ),
        (
            "analytics",
            "sql-writer",
            "yesterday's total amount from orders by channel",
            "SELECT channel, SUM(amount) AS total_amount FROM orders WHERE created_at >= CURRENT_DATE - INTERVAL '1 day' AND created_at < CURRENT_DATE GROUP BY channel;",
        ),
    ];
    let mut calls = Vec::new();
    for (tenant, adapter, question, expected) in stories {
        let secret = up.tenant(tenant).await;
        let published = up.admin().publish(tenant, adapter, &example_adapter(adapter), Some("live")).await.unwrap();
        calls.push((adapter, question, expected, published.digest, up.data(&secret)));
    }
    // All at once, so that they share steps; F32 answers do not depend on that.
    let answers =
        futures::future::try_join_all(calls.iter().map(|(model, question, _, _, data)| data.chat(model, question, 96)))
            .await
            .unwrap();
    for ((adapter, _, expected, digest, _), answer) in calls.iter().zip(&answers) {
        assert_eq!(answer.text, *expected, "{adapter}");
        assert_eq!(answer.digest, *digest, "{adapter}");
    }
    let bases =
        futures::future::try_join_all(calls.iter().map(|(_, question, _, _, data)| data.chat("base", question, 96)))
            .await
            .unwrap();
    for ((adapter, _, expected, _, _), base) in calls.iter().zip(&bases) {
        assert_ne!(base.text, *expected, "{adapter}");
        assert_eq!((base.adapter.as_str(), base.digest.as_str()), ("base", ""));
    }
}

/// [`tiny_model`] with a layer less: a sound base that its adapters do not fit.
fn shorter_model(dir: &std::path::Path) {
    for entry in std::fs::read_dir(tiny_model()).unwrap().flatten() {
        std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
    let path = dir.join("config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let layers = config["num_hidden_layers"].as_u64().unwrap();
    config["num_hidden_layers"] = json!(layers - 1);
    std::fs::write(&path, config.to_string()).unwrap();
    let path = dir.join("model.safetensors");
    let whole = std::fs::read(&path).unwrap();
    let last = format!(".layers.{}.", layers - 1);
    let mut tensors = safetensors::SafeTensors::deserialize(&whole).unwrap().tensors();
    tensors.retain(|(name, _)| !name.contains(&last));
    std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

#[tokio::test]
async fn an_adapter_of_an_earlier_base_is_refused_by_name() {
    let up = Weft::up(&tiny_model(), &[]);
    let secret = up.tenant("harbour").await;
    up.admin().publish("harbour", "pirate", &tiny_adapter("rank8"), Some("live")).await.unwrap();
    let model = tempfile::tempdir().unwrap();
    shorter_model(model.path());
    let up = Weft::up_in(up.kill(), model.path(), &[]);
    let body = json!({ "model": "pirate", "prompt": [65, 66], "max_tokens": 2 });
    let refused = post(&format!("{}/v1/completions", up.data_url), &secret, body).await;
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (422, &json!("adapter_wrong_base")),
        "{}",
        refused.text
    );
    assert!(up.data(&secret).complete_tokens("base", &[65, 66], 2).await.is_ok());
}

#[tokio::test]
async fn a_publish_right_after_serving_is_taken() {
    for _ in 0..3 {
        let up = Weft::up(&tiny_model(), &[]);
        up.admin().create_tenant("harbour").await.unwrap();
        up.admin().publish("harbour", "pirate", &tiny_adapter("rank8"), Some("live")).await.unwrap();
    }
}

#[tokio::test]
async fn a_crash_loses_nothing_that_was_acknowledged() {
    let up = Weft::up(&tiny_model(), &[]);
    let secret = up.tenant("harbour").await;
    let first = up.admin().publish("harbour", "pirate", &tiny_adapter("rank8"), Some("live")).await.unwrap();
    let second = up.admin().publish("harbour", "pirate", &tiny_adapter("rank16"), Some("live")).await.unwrap();
    let revoked = up.admin().create_key("harbour", None).await.unwrap();
    up.admin().revoke_key("harbour", &revoked.id).await.unwrap();
    let ask = |data: Data, model: &'static str| async move { data.complete_tokens(model, &[65, 66, 67], 8).await };
    let before = ask(up.data(&secret), "pirate@1").await.unwrap();

    let up = Weft::up_in(up.kill(), &tiny_model(), &[]);
    let after = ask(up.data(&secret), "pirate@1").await.unwrap();
    assert_eq!((after.text, after.digest), (before.text, first.digest));
    assert_eq!(ask(up.data(&secret), "pirate").await.unwrap().digest, second.digest);
    assert!(ask(up.data(&revoked.secret), "pirate").await.is_err());
}

#[tokio::test]
async fn a_republished_adapter_answers_with_its_new_bytes_and_old_versions_stay() {
    let up = Weft::up(&tiny_model(), &["--dtype", "f32"]);
    let secret = up.tenant("harbour").await;
    let data = up.data(&secret);
    let mut digests = Vec::new();
    for (version, folder) in ["rank4", "rank8", "rank16"].iter().enumerate() {
        let published = up.admin().publish("harbour", "org/pirate", &tiny_adapter(folder), Some("live")).await.unwrap();
        assert_eq!(published.version, version as u64 + 1);
        let live = data.complete_tokens("org/pirate", &[70, 71, 72, 73], 12).await.unwrap();
        assert_eq!(live.digest, published.digest, "the alias moved at once for the gateway that answered");
        digests.push((published.digest, live.text));
    }
    for (version, (digest, text)) in digests.iter().enumerate() {
        let by_number =
            data.complete_tokens(&format!("org/pirate@{}", version + 1), &[70, 71, 72, 73], 12).await.unwrap();
        assert_eq!((&by_number.digest, &by_number.text), (digest, text));
        let by_digest = data.complete_tokens(&format!("org/pirate@{digest}"), &[70, 71, 72, 73], 12).await.unwrap();
        assert_eq!((&by_digest.digest, &by_digest.text), (digest, text));
    }
    let other = up.tenant("helpdesk").await;
    let foreign = up.data(&other).complete_tokens(&format!("org/pirate@{}", digests[0].0), &[70], 2).await;
    assert!(foreign.unwrap_err().to_string().contains("404"));
}

#[tokio::test]
async fn more_adapters_than_slots_still_answer_right() {
    // Room for about two of the four adapters.
    let up = Weft::up(&tiny_model(), &["--dtype", "f32", "--worker-adapter-memory-bytes", "250000"]);
    let secret = up.tenant("harbour").await;
    let names = ["rank4", "rank8", "rank16", "mlp_only"];
    let mut digests = Vec::new();
    for name in names {
        digests.push(up.admin().publish("harbour", name, &tiny_adapter(name), Some("live")).await.unwrap().digest);
    }
    let data = up.data(&secret);
    let prompt: Vec<u32> = (60..76).collect();
    let mut alone = Vec::new();
    for name in names {
        alone.push(data.complete_tokens(name, &prompt, 10).await.unwrap().text);
    }
    let data = &data;
    for _ in 0..4 {
        let requests = names.iter().cycle().take(16).map(|name| data.complete_tokens(name, &prompt, 10));
        for (n, answer) in futures::future::try_join_all(requests).await.unwrap().iter().enumerate() {
            assert_eq!((&answer.text, &answer.digest), (&alone[n % 4], &digests[n % 4]), "{}", names[n % 4]);
        }
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_frees_its_place() {
    let up = Weft::up(&tiny_model(), &[]);
    let secret = up.tenant("harbour").await;
    let body = json!({ "model": "base", "prompt": [65, 66], "max_tokens": 200, "ignore_eos": true, "stream": true });
    for _ in 0..8 {
        let mut response = reqwest::Client::new()
            .post(format!("{}/v1/completions", up.data_url))
            .bearer_auth(&secret)
            .json(&body)
            .send()
            .await
            .unwrap();
        response.chunk().await.unwrap();
    }
    // Every response was dropped after its first chunk; the worker's own numbers say when the last one is gone.
    loop {
        let workers = up.admin().get("workers").await.unwrap();
        let load = &workers["workers"][0]["load"];
        if load["running_requests"] == 0 && load["kv_blocks_used"] == 0 {
            break;
        }
        tokio::task::yield_now().await;
    }
    let fine = post(
        &format!("{}/v1/completions", up.data_url),
        &secret,
        json!({ "model": "base", "prompt": "a", "max_tokens": 2 }),
    )
    .await;
    assert_eq!(fine.status, 200);
}

#[tokio::test]
async fn sigterm_ends_the_process_cleanly() {
    let mut up = Weft::up(&tiny_model(), &[]);
    let secret = up.tenant("harbour").await;
    assert!(up.data(&secret).complete_tokens("base", &[65], 2).await.is_ok());
    let killed = std::process::Command::new("kill").args(["-TERM", &up.pid().to_string()]).status().unwrap();
    assert!(killed.success());
    let status = tokio::task::spawn_blocking(move || {
        loop {
            if let Some(status) = up.try_wait() {
                break status;
            }
            std::thread::yield_now();
        }
    })
    .await
    .unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn operations_routes_tell_the_truth() {
    let up = Weft::up(&tiny_model(), &[]);
    let http = reqwest::Client::new();
    for (url, part) in [
        (format!("{}/livez", up.data_url), ""),
        (format!("{}/readyz", up.data_url), ""),
        (format!("{}/health", up.data_url), ""),
        (format!("{}/openapi.json", up.data_url), "/v1/chat/completions"),
        (format!("{}/info", up.data_url), "model_id"),
        (format!("{}/metrics", up.admin_url), "# TYPE"),
    ] {
        let reply = crate::support::send(http.get(&url)).await;
        assert_eq!(reply.status, 200, "{url}: {}", reply.text);
        assert!(reply.text.contains(part), "{url}: {}", reply.text);
    }
    let openapi: Value = crate::support::send(http.get(format!("{}/openapi.json", up.data_url))).await.json();
    for path in ["/generate", "/generate_stream", "/", "/v1/models", "/v1/completions", "/admin/v1/tenants"] {
        assert!(openapi["paths"][path].is_object(), "{path} is described");
    }
}
