//! `weft merge`, from the command line to an answer.

use crate::support::{ADMIN_KEY, Weft, tiny_adapter, tiny_model, weft};
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn merged_adapters_answer_as_their_deltas_say() {
    let mesh = Weft::up(&tiny_model(), &[]);
    let secret = mesh.tenant("harbour").await;
    let (admin, data) = (mesh.admin(), mesh.data(&secret));
    for name in ["rank8", "rank16"] {
        admin.publish("harbour", name, &tiny_adapter(name), Some("live")).await.unwrap();
    }
    let ask = async |model: &str| data.complete_tokens(model, &[72, 105, 33], 12).await.unwrap();
    let merge = |into: &str, more: &[&str]| -> (bool, Value, String) {
        let mut args =
            vec!["merge", "--admin-url", &mesh.admin_url, "--admin-key", ADMIN_KEY, "--tenant", "harbour", into];
        args.extend(more);
        let (status, out, err) = weft(&args);
        (status.success(), serde_json::from_str(&out).unwrap_or_default(), err)
    };

    // All of one and nothing of another is the one.
    let (done, made, err) = merge("alone", &["--method", "linear", "--parent", "rank8", "--parent", "rank16@live=0.0"]);
    assert!(done, "{err}");
    assert_eq!((&made["version"], &made["lineage"]["error"]), (&1.into(), &0.0.into()));
    let (alone, rank8, rank16) = (ask("alone").await, ask("rank8").await, ask("rank16").await);
    assert_eq!(alone.text, rank8.text);
    assert_ne!(alone.digest, rank8.digest, "other bytes all the same");
    assert_ne!(rank8.text, rank16.text, "or this would show nothing");
    assert_eq!(alone.digest, made["digest"]);

    // The lineage is listed with the version.
    let versions = admin.versions("harbour", "alone").await.unwrap();
    assert_eq!(versions["versions"][0]["lineage"]["parents"][1]["adapter"], "rank16");

    let (done, made, err) = merge(
        "mixed",
        &[
            "--method",
            "dare_ties",
            "--density",
            "0.5",
            "--seed",
            "7",
            "--target-rank",
            "4",
            "--parent",
            "rank8=1",
            "--parent",
            "rank16=1",
        ],
    );
    assert!(done, "{err}");
    assert!(made["lineage"]["error"].as_f64().unwrap() > 0.0);
    ask("mixed").await;

    let (done, _, err) = merge("mixed", &["--method", "ties", "--parent", "rank8"]);
    assert!(!done && err.contains("density"), "{err}");
    let (done, _, err) = merge("mixed", &["--method", "linear", "--parent", "rank8=x"]);
    assert!(!done && err.contains("no number"), "{err}");

    // DoRA is served, and is no parent.
    let dora = admin.publish("harbour", "dora", &tiny_adapter("dora"), Some("live")).await.unwrap();
    let answer = ask("dora").await;
    assert_eq!(answer.digest, dora.digest);
    assert!(answer.text != rank16.text && answer.text != rank8.text, "{}", answer.text);
    let (done, _, err) = merge("mixed", &["--method", "linear", "--parent", "rank8", "--parent", "dora"]);
    assert!(!done && err.contains("version 1 of dora: it is a DoRA adapter"), "{err}");
}

/// LoRAX's `/generate` with these parameters: status, body, and the headers that say what answered.
async fn generate(mesh: &Weft, secret: &str, mut parameters: Value) -> (u16, Value, [String; 3]) {
    parameters["max_new_tokens"] = 12.into();
    let request = reqwest::Client::new().post(format!("{}/generate", mesh.data_url)).bearer_auth(secret);
    let answer = request.json(&json!({"inputs": "Hi!", "parameters": parameters})).send().await.unwrap();
    let header = |name: &str| {
        let value = answer.headers().get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let headers = [header("x-weft-adapter"), header("x-weft-adapter-digest"), header("x-weft-recipe-digest")];
    (answer.status().as_u16(), answer.json().await.unwrap(), headers)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_may_ask_for_a_merge_and_gets_what_a_published_one_would_answer() {
    let mesh = Weft::up(&tiny_model(), &[]);
    let secret = mesh.tenant("harbour").await;
    let admin = mesh.admin();
    for name in ["rank8", "rank16"] {
        admin.publish("harbour", name, &tiny_adapter(name), Some("live")).await.unwrap();
    }
    let parents = json!([{"adapter": "rank8", "weight": 0.75}, {"adapter": "rank16", "weight": 0.5}]);
    let made =
        admin.merge("harbour", "both", &json!({"method": "linear", "parents": parents}), Some("live")).await.unwrap();
    let (status, published, [_, digest, recipe]) = generate(&mesh, &secret, json!({"adapter_id": "both"})).await;
    assert_eq!((status, digest.as_str(), recipe.as_str()), (200, made["digest"].as_str().unwrap(), ""));

    let merged = |weights: Value| json!({"merged_adapters": {"ids": ["rank8", "rank16@live"], "weights": weights}});
    let asked = || generate(&mesh, &secret, merged(json!([0.75, 0.5])));
    // Several at once: it is made once.
    let (first, second, third) = tokio::join!(asked(), asked(), asked());
    for (status, answer, [adapter, digest, recipe]) in [first, second, third, asked().await] {
        assert_eq!((status, &answer["generated_text"]), (200, &published["generated_text"]), "{answer}");
        assert_eq!(digest, made["digest"], "the same bytes as the merge that was published");
        assert_eq!(recipe, made["lineage"]["recipe_digest"]);
        assert_eq!(adapter, format!("harbour/weft-merged/{}@1", &recipe["sha256:".len()..]));
    }
    let (_, other, [_, digest, _]) = generate(&mesh, &secret, merged(json!([0.75, -0.5]))).await;
    assert_ne!(digest, made["digest"]);
    assert_ne!(other["generated_text"], published["generated_text"], "or weights would do nothing");

    // Models do not list it, nobody may publish under its name, and what is wrong is named in LoRAX's shape.
    let models = reqwest::Client::new().get(format!("{}/v1/models", mesh.data_url)).bearer_auth(&secret);
    let models = models.send().await.unwrap().text().await.unwrap();
    assert!(models.contains("rank8") && !models.contains("weft-merged"), "{models}");
    let refused = admin.publish("harbour", "weft-merged/mine", &tiny_adapter("rank8"), None).await.unwrap_err();
    assert!(refused.to_string().contains("weft-merged/"), "{refused}");
    for (merge, status, part) in [
        (json!({"ids": ["rank8"], "weights": []}), 422, "number of adapter IDs must match"),
        (json!({"ids": ["rank8"], "weights": [1.0], "merge_strategy": "ties"}), 422, "density"),
        (json!({"ids": ["rank8"], "weights": [1000.0]}), 422, "weight"),
        (json!({"ids": ["nobody"], "weights": [1.0]}), 404, "nobody"),
        (json!({"ids": ["base"], "weights": [1.0]}), 422, "base model"),
    ] {
        let (got, body, _) = generate(&mesh, &secret, json!({"merged_adapters": merge})).await;
        let text = body["error"].as_str().unwrap_or_default();
        assert!(got == status && text.contains(part), "{got} {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_keeps_as_many_merges_of_requests_as_its_policy_says() {
    let mesh = Weft::up(&tiny_model(), &[]);
    let secret = mesh.tenant("harbour").await;
    let admin = mesh.admin();
    admin.publish("harbour", "rank8", &tiny_adapter("rank8"), Some("live")).await.unwrap();
    let set = async |most: u64| admin.set_policy("harbour", &json!({"request_merges_max": most})).await.unwrap();
    let ask = async |weight: f64| {
        let merged = json!({"merged_adapters": {"ids": ["rank8"], "weights": [weight]}});
        let (status, body, [_, digest, _]) = generate(&mesh, &secret, merged).await;
        (status, digest, body)
    };
    let kept = async || {
        let adapters = admin.adapters("harbour").await.unwrap();
        let names = adapters["adapters"].as_array().unwrap().iter().map(|adapter| adapter["name"].to_string());
        names.filter(|name| name.contains("weft-merged/")).count()
    };
    assert_eq!(set(2).await["policy"]["request_merges_max"], 2);
    let (status, first, _) = ask(0.1).await;
    assert_eq!(status, 200);
    for weight in [0.2, 0.3, 0.4] {
        assert_eq!(ask(weight).await.0, 200);
    }
    assert_eq!(kept().await, 2, "the oldest went");
    // What went is made again, and is the same.
    let (status, again, _) = ask(0.1).await;
    assert_eq!((status, again), (200, first));

    set(0).await;
    let (status, _, body) = ask(0.9).await;
    assert!(status != 200 && body["error"].as_str().unwrap().contains("merges of tenant harbour"), "{status} {body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_made_for_a_request_that_the_limits_refuse() {
    let mesh = Weft::up(&tiny_model(), &[]);
    let secret = mesh.tenant("harbour").await;
    let admin = mesh.admin();
    admin.publish("harbour", "rank8", &tiny_adapter("rank8"), Some("live")).await.unwrap();
    let limits = async |text: &str| {
        let args = ["tenant", "limits", "harbour", "--requests-per-minute", text];
        let (status, _, err) = weft(&[&args[..], &["--admin-url", &mesh.admin_url, "--admin-key", ADMIN_KEY]].concat());
        assert!(status.success(), "{err}");
    };
    let merged = || generate(&mesh, &secret, json!({"merged_adapters": {"ids": ["rank8"], "weights": [0.5]}}));
    let made = async || admin.adapters("harbour").await.unwrap().to_string().contains("weft-merged/");
    limits("1").await;
    assert_eq!(generate(&mesh, &secret, json!({"adapter_id": "rank8"})).await.0, 200);
    let (status, body, _) = merged().await;
    assert_eq!((status, &body["error_type"]), (429, &json!("overloaded")), "{body}");
    assert!(!made().await);
    // What is wrong with a merge is said to whoever has none left, too.
    let wrong = json!({"merged_adapters": {"ids": ["rank8"], "weights": [1000.0]}});
    assert_eq!(generate(&mesh, &secret, wrong).await.0, 422);
    limits("3").await;
    assert_eq!(merged().await.0, 200);
    assert!(made().await);
}
