//! An adapter as a release: published, split, judged by feedback, promoted, rolled back; from the command line to an answer.

use crate::support::{ADMIN_KEY, Weft, tiny_adapter, tiny_model, weft};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// `weft COMMAND … ` for the tenant: its answer, or what it complains of.
fn run(mesh: &Weft, args: &[&str]) -> Result<String, String> {
    let mut all = args.to_vec();
    all.extend(["--admin-url", &mesh.admin_url, "--admin-key", ADMIN_KEY, "--tenant", "harbour"]);
    let (status, out, err) = weft(&all);
    if status.success() { Ok(out) } else { Err(err) }
}

fn json_of(mesh: &Weft, args: &[&str]) -> Value {
    serde_json::from_str(&run(mesh, args).unwrap()).unwrap()
}

async fn post(mesh: &Weft, secret: &str, path: &str, body: Value) -> (BTreeMap<String, String>, Value) {
    let answer = reqwest::Client::new().post(format!("{}{path}", mesh.data_url)).bearer_auth(secret).json(&body);
    let answer = answer.send().await.unwrap();
    let headers = answer.headers().iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
    let headers = headers.collect();
    let status = answer.status();
    let body: Value = answer.json().await.unwrap();
    assert!(status.is_success(), "{status} {body}");
    (headers, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_is_split_judged_promoted_and_rolled_back() {
    let mesh = Weft::up(&tiny_model(), &["--gateway-experiment-report-ms", "100"]);
    let secret = mesh.tenant("harbour").await;
    let admin = mesh.admin();
    admin.publish("harbour", "pirate", &tiny_adapter("rank8"), Some("live")).await.unwrap();
    admin.publish("harbour", "pirate", &tiny_adapter("rank16"), None).await.unwrap();
    let description = mesh.dir.path().join("experiment.json");
    let wanted = json!({
        "id": "canary", "adapter": "pirate", "primary": "feedback",
        "arms": [{"name": "old", "version": "live", "role": "control", "weight": 1}, {"name": "new", "version": 2, "weight": 1}],
        "metrics": [
            {"name": "feedback", "kind": "binary", "better": "higher"},
            {"name": "error", "kind": "binary", "better": "lower"},
        ],
    });
    std::fs::write(&description, wanted.to_string()).unwrap();
    let created = json_of(&mesh, &["experiment", "create", description.to_str().unwrap(), "--start"]);
    assert_eq!((&created["experiment"]["state"], &created["actor"]), (&json!("running"), &json!("admin")));

    // The clients of the new version like it, those of the old one do not.
    let ask = async |user: &str| {
        let body = json!({"model": "pirate", "prompt": [72, 105, 33], "max_tokens": 4, "temperature": 0, "user": user});
        post(&mesh, &secret, "/v1/completions", body).await
    };
    let mut texts = BTreeMap::new();
    for n in 0..60 {
        let (headers, body) = ask(&format!("user-{n}")).await;
        let arm = headers["x-weft-experiment"].clone();
        texts.insert(arm.clone(), body["choices"][0]["text"].clone());
        let score = u8::from(arm == "canary/new");
        let (_, taken) = post(&mesh, &secret, "/v1/feedback", json!({"id": body["id"], "score": score})).await;
        assert_eq!((&taken["counted"], &taken["arm"]), (&json!(true), &json!(&arm["canary/".len()..])));
    }
    assert_eq!(texts.len(), 2, "{texts:?}");
    assert_ne!(texts["canary/old"], texts["canary/new"], "or this would show nothing");

    let shown = json_of(&mesh, &["experiment", "show", "canary"]);
    let report = &shown["report"];
    assert_eq!(report["decision"], json!({"winner": {"arm": "new"}}), "{report}");
    let table = run(&mesh, &["experiment", "show", "canary", "--table"]).unwrap();
    assert!(table.contains("better") && table.contains("winner"), "{table}");
    let page = reqwest::Client::new().get(format!("{}/admin/v1/tenants/harbour/experiments/canary", mesh.admin_url));
    let page = page.bearer_auth(ADMIN_KEY).header("accept", "text/html").send().await.unwrap();
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    assert!(page.text().await.unwrap().contains("new is better"));
    let log = run(&mesh, &["experiment", "exposures", "canary"]).unwrap();
    let kinds = |kind: &str| log.lines().filter(|line| line.contains(&format!("\"kind\":\"{kind}\""))).count();
    assert_eq!((kinds("exposure"), kinds("feedback")), (60, 60), "{log}");

    let refused = run(&mesh, &["alias", "pirate", "live", "2"]).unwrap_err();
    assert!(refused.contains("experiment canary"), "{refused}");
    let promoted = json_of(&mesh, &["experiment", "promote", "canary", "new"]);
    assert_eq!(promoted["experiment"]["state"], json!({"promoted": {"arm": "new"}}));
    let (headers, body) = ask("user-0").await;
    assert_eq!((headers["x-weft-adapter"].as_str(), headers.get("x-weft-experiment")), ("harbour/pirate@2", None));
    assert_eq!(body["choices"][0]["text"], texts["canary/new"]);

    let back = json_of(&mesh, &["rollback", "pirate"]);
    assert_eq!((&back["alias"], &back["version"]), (&json!("live"), &json!(1)));
    let (headers, body) = ask("user-0").await;
    assert_eq!(headers["x-weft-adapter"], "harbour/pirate@1");
    assert_eq!(body["choices"][0]["text"], texts["canary/old"]);
    let history = json_of(&mesh, &["history", "pirate", "live"]);
    let versions: Vec<u64> =
        history["earlier"].as_array().unwrap().iter().map(|it| it["version"].as_u64().unwrap()).collect();
    assert_eq!(versions, [2, 1]);
    let listed = json_of(&mesh, &["experiment", "list"]);
    assert_eq!(listed["experiments"].as_array().unwrap().len(), 1);
    let completion = weft(&["completion", "bash"]);
    assert!(completion.0.success() && completion.1.contains("experiment"));
}
