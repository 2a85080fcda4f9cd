//! Bad input gets a clear answer through HTTP, and the service goes on.

use crate::support::{ADMIN_KEY, Reply, Weft, package, post, publish, send, tiny_adapter, tiny_model, tiny_shape};
use serde_json::{Value, json};

fn chat(model: &str) -> Value {
    json!({ "model": model, "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 2 })
}

fn openai_error(reply: &Reply) -> (u16, String, String) {
    let error = &reply.json()["error"];
    let word = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    (reply.status, word("code"), word("message"))
}

#[tokio::test]
async fn requests_that_cannot_be_served_say_why() {
    let weft = Weft::up(&tiny_model(), &[]);
    let secret = weft.tenant("harbour").await;
    let other = weft.tenant("helpdesk").await;
    weft.admin().publish("harbour", "pirate", &tiny_adapter("rank8"), Some("live")).await.unwrap();
    let chat_url = format!("{}/v1/chat/completions", weft.data_url);

    // Who asks, and for what.
    let none = send(reqwest::Client::new().post(&chat_url).json(&chat("base"))).await;
    assert_eq!(none.status, 401, "{}", none.text);
    assert_eq!(openai_error(&post(&chat_url, "wrong", chat("base")).await).0, 401);
    let unknown = post(&chat_url, &secret, chat("nobody")).await;
    let foreign = post(&chat_url, &other, chat("pirate")).await;
    assert_eq!((openai_error(&unknown).0, openai_error(&unknown).1.as_str()), (404, "model_not_found"));
    assert_eq!((openai_error(&foreign).0, openai_error(&foreign).1.as_str()), (404, "model_not_found"));
    // Another tenant's adapter and one that does not exist cannot be told apart.
    assert_eq!(unknown.text.replace("nobody", "X"), foreign.text.replace("pirate", "X"));
    let path = post(&chat_url, &secret, chat("../../etc/passwd")).await;
    assert_eq!(openai_error(&path).0, 404);

    // The body.
    let http = reqwest::Client::new();
    let malformed =
        send(http.post(&chat_url).bearer_auth(&secret).header("content-type", "application/json").body("{\"model\": "))
            .await;
    assert_eq!(openai_error(&malformed).0, 400);
    assert!(malformed.header("content-type").unwrap().starts_with("application/json"));
    let mut wrong = chat("base");
    wrong["temperature"] = "hot".into();
    let (status, _, message) = openai_error(&post(&chat_url, &secret, wrong).await);
    assert_eq!(status, 400);
    assert!(message.contains("temperature"), "{message}");
    let mut wrong = chat("base");
    wrong["top_p"] = json!(7.5);
    let (status, _, message) = openai_error(&post(&chat_url, &secret, wrong).await);
    assert_eq!(status, 400);
    assert!(message.contains("top_p") && message.contains("7.5"), "{message}");
    let huge = json!({ "model": "base", "prompt": "x".repeat(8 << 20) });
    let reply = post(&format!("{}/v1/completions", weft.data_url), &secret, huge).await;
    assert_eq!(openai_error(&reply).0, 413);

    // The prompt.
    let context = tiny_shape().context;
    let long = json!({ "model": "base", "prompt": "x".repeat(context * 2) });
    let (status, code, message) =
        openai_error(&post(&format!("{}/v1/completions", weft.data_url), &secret, long).await);
    assert_eq!((status, code.as_str()), (400, "context_length_exceeded"));
    let numbers: Vec<&str> = message.split(|c: char| !c.is_ascii_digit()).filter(|part| part.len() > 1).collect();
    assert!(numbers.len() >= 2, "both numbers are named: {message}");

    // LoRAX routes keep LoRAX's flat shape.
    let lorax = post(
        &format!("{}/generate", weft.data_url),
        &secret,
        json!({ "inputs": "hi", "parameters": { "adapter_id": "nobody" } }),
    )
    .await;
    assert_eq!(lorax.status, 404);
    assert!(lorax.json()["error"].is_string() && lorax.json()["error_type"].is_string(), "{}", lorax.text);
    let lorax = post(&format!("{}/generate", weft.data_url), &secret, json!({ "inputs": "" })).await;
    assert_eq!((lorax.status, lorax.json()["error_type"].as_str()), (422, Some("validation")));

    // What is only for administrators is not there.
    for path in ["/metrics", "/admin/v1/tenants"] {
        assert_eq!(send(http.get(format!("{}{path}", weft.data_url)).bearer_auth(ADMIN_KEY)).await.status, 404);
    }
    assert_eq!(send(http.get(format!("{}/admin/v1/tenants", weft.admin_url))).await.status, 401);
    assert_eq!(send(http.get(format!("{}/admin/v1/tenants", weft.admin_url)).bearer_auth(&secret)).await.status, 401);

    // A revoked key is refused at once by the gateway that revoked it.
    let spare = weft.admin().create_key("harbour", None).await.unwrap();
    assert_eq!(post(&chat_url, &spare.secret, chat("base")).await.status, 200);
    weft.admin().revoke_key("harbour", &spare.id).await.unwrap();
    assert_eq!(post(&chat_url, &spare.secret, chat("base")).await.status, 401);

    // After all that, the service serves.
    let fine = post(&chat_url, &secret, chat("pirate")).await;
    assert_eq!(fine.status, 200, "{}", fine.text);
    assert_eq!(fine.header("x-weft-adapter"), Some("harbour/pirate@1"));
}

/// Every file under the object store's folder.
fn objects(weft: &Weft) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![weft.dir.path().join("s3")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    files.sort();
    assert!(!files.is_empty(), "the object folder is where the test looks");
    files
}

#[tokio::test]
async fn a_bad_package_is_refused_with_every_reason_and_leaves_nothing() {
    let weft = Weft::up(&tiny_model(), &[]);
    weft.tenant("harbour").await;
    let hidden = tiny_shape().hidden;
    let (config, good) = package(hidden, 0.01);
    let before = objects(&weft);

    let mut nan_b = package(hidden, 0.01).1;
    let end = nan_b.len();
    nan_b[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let with = |key: &str, value: Value| {
        let mut changed: Value = serde_json::from_slice(&config).unwrap();
        changed[key] = value;
        changed.to_string().into_bytes()
    };
    let cases: Vec<(&str, Vec<u8>, Vec<u8>, &str)> = vec![
        ("truncated", config.clone(), good[..good.len() / 2].to_vec(), "truncated|short|beyond|end"),
        (
            "not safetensors",
            config.clone(),
            b"PK\x03\x04 a zip as torch writes it".repeat(20),
            "pickle|zip|safetensors",
        ),
        ("wrong base", config.clone(), package(hidden + 8, 0.01).1, "shape"),
        ("NaN", config.clone(), nan_b, "NaN|nan|finite"),
        ("biases on B", with("lora_bias", json!(true)), good.clone(), "lora_bias"),
        ("DoRA without magnitudes", with("use_dora", json!(true)), good.clone(), "lora_magnitude_vector"),
        ("modules_to_save", with("modules_to_save", json!(["lm_head"])), good.clone(), "modules_to_save"),
        ("bias", with("bias", json!("all")), good.clone(), "bias"),
        ("unknown type", with("peft_type", json!("IA3")), good.clone(), "peft_type"),
        ("unknown key", with("surprise", json!(1)), good.clone(), "surprise"),
        ("not JSON", b"{".to_vec(), good.clone(), "adapter_config.json|JSON|json"),
    ];
    for (case, config, weights, expected) in cases {
        let reply = publish(&weft, "harbour", "pirate", config, weights).await;
        assert_eq!(reply.status, 422, "{case}: {}", reply.text);
        let reasons = reply.json()["error"]["reasons"].to_string();
        assert!(expected.split('|').any(|word| reasons.contains(word)), "{case}: {reasons}");
    }
    // Two faults, two reasons, one answer.
    let reply = publish(&weft, "harbour", "pirate", with("lora_bias", json!(true)), package(hidden + 8, 0.01).1).await;
    let reasons = reply.json()["error"]["reasons"].as_array().unwrap().len();
    assert!(reasons >= 2, "{}", reply.text);
    for name in ["base", "default", "a%2Fb%2Fc", "..%2Fx"] {
        let status = publish(&weft, "harbour", name, config.clone(), good.clone()).await.status;
        assert!((400..=422).contains(&status), "{name}: {status}");
    }
    assert_eq!(publish(&weft, "nobody", "pirate", config.clone(), good.clone()).await.status, 404);
    assert_eq!(objects(&weft), before, "a refused package left something behind");

    // A package that is fine, twice: one version.
    let first = publish(&weft, "harbour", "pirate", config.clone(), good.clone()).await;
    assert_eq!((first.status, first.json()["version"].as_u64()), (201, Some(1)), "{}", first.text);
    let again = publish(&weft, "harbour", "pirate", config, good).await;
    assert_eq!((again.status, again.json()["version"].as_u64()), (200, Some(1)), "{}", again.text);
    assert_eq!(first.json()["digest"], again.json()["digest"]);
}

#[tokio::test]
async fn an_upload_over_the_cap_is_413() {
    let weft = Weft::up(&tiny_model(), &["--registry-package-bytes-max", "100000"]);
    weft.tenant("harbour").await;
    let (config, good) = package(tiny_shape().hidden, 0.01);
    let before = objects(&weft);
    let reply = publish(&weft, "harbour", "pirate", config.clone(), vec![0; 400_000]).await;
    assert_eq!(reply.status, 413, "{}", reply.text);
    assert!(reply.text.contains("100000"), "{}", reply.text);
    assert_eq!(objects(&weft), before, "an upload over the cap left something behind");
    assert_eq!(publish(&weft, "harbour", "pirate", config, good).await.status, 201);
    assert_ne!(objects(&weft), before);
}
