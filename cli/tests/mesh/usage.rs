//! Usage: what answers say that they took is what the ledger adds up to, whatever is killed.

use crate::support::{ADMIN_KEY, Weft, tiny_adapter, tiny_model, weft};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

type Sums = BTreeMap<Option<String>, (u64, u64, u64)>;

async fn complete(mesh: &Weft, secret: &str, model: &str, n: u64) -> Value {
    let body = json!({"model": model, "prompt": [72, 105, 33], "max_tokens": 5, "n": n, "seed": 1});
    let answer =
        reqwest::Client::new().post(format!("{}/v1/completions", mesh.data_url)).bearer_auth(secret).json(&body);
    let answer: Value = answer.send().await.unwrap().json().await.unwrap();
    assert!(answer["usage"]["total_tokens"].as_u64() > Some(0), "{answer}");
    answer
}

fn usage(mesh: &Weft, more: &[&str]) -> String {
    let mut args = vec!["usage", "--admin-url", &mesh.admin_url, "--admin-key", ADMIN_KEY];
    args.extend(more);
    let (status, out, err) = weft(&args);
    assert!(status.success(), "{err}");
    out
}

/// By adapter: answers, prompt tokens, tokens of answers.
fn sums(mesh: &Weft, tenant: &str) -> Sums {
    let told: Value = serde_json::from_str(&usage(mesh, &["--tenant", tenant])).unwrap();
    let mut sums = Sums::new();
    for row in told["usage"].as_array().unwrap() {
        assert_eq!(row["tenant"], tenant);
        let sum = sums.entry(row["adapter"].as_str().map(ToOwned::to_owned)).or_default();
        for (sum, name) in [(&mut sum.0, "requests"), (&mut sum.1, "prompt_tokens"), (&mut sum.2, "completion_tokens")]
        {
            *sum += row[name].as_u64().unwrap();
        }
    }
    sums
}

async fn until_sums(mesh: &Weft, tenant: &str, expected: &Sums) {
    for _ in 0..200 {
        if sums(mesh, tenant) == *expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(sums(mesh, tenant), *expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_is_the_sum_of_all_answers_and_a_kill_takes_none_away() {
    let flags = ["--gateway-usage-ship-ms", "200"];
    let mut mesh = Weft::up(&tiny_model(), &flags);
    let secret = mesh.tenant("harbour").await;
    let other = mesh.tenant("helpdesk").await;
    mesh.admin().publish("harbour", "rank8", &tiny_adapter("rank8"), Some("live")).await.unwrap();
    let mut expected = Sums::new();
    for round in 0..3 {
        for (model, n) in [("rank8", 1), ("base", 1), ("rank8", 3)] {
            let answer = complete(&mesh, &secret, model, n).await;
            let sum = expected.entry((model != "base").then(|| model.to_owned())).or_default();
            sum.0 += n;
            sum.1 += answer["usage"]["prompt_tokens"].as_u64().unwrap();
            sum.2 += answer["usage"]["completion_tokens"].as_u64().unwrap();
        }
        // At once: what the last answers took is on the disk and nowhere else.
        let dir = mesh.kill();
        mesh = Weft::up_in(dir, &tiny_model(), &flags);
        until_sums(&mesh, "harbour", &expected).await;
        assert_eq!(expected[&None].0, round + 1);
    }
    complete(&mesh, &other, "base", 1).await;
    until_sums(&mesh, "harbour", &expected).await;

    // Streams and clients that leave early are accounted for as well.
    let body = json!({"model": "rank8", "prompt": [72, 105, 33], "max_tokens": 5, "seed": 1, "stream": true,
        "stream_options": {"include_usage": true}});
    let stream =
        reqwest::Client::new().post(format!("{}/v1/completions", mesh.data_url)).bearer_auth(&secret).json(&body);
    let text = stream.send().await.unwrap().text().await.unwrap();
    let last = text.lines().rfind(|line| line.contains("\"usage\":{")).unwrap();
    let last: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    let sum = expected.get_mut(&Some("rank8".to_owned())).unwrap();
    sum.0 += 1;
    sum.1 += last["usage"]["prompt_tokens"].as_u64().unwrap();
    sum.2 += last["usage"]["completion_tokens"].as_u64().unwrap();
    until_sums(&mesh, "harbour", &expected).await;

    let csv = usage(&mesh, &["--tenant", "harbour", "--records"]);
    let answers: u64 = expected.values().map(|sum| sum.0).sum();
    assert_eq!(csv.lines().count() as u64, answers + 1, "{csv}");
    assert!(csv.lines().next().unwrap().starts_with("kind,id,tenant,key_id,adapter,version,digest"), "{csv}");
    assert!(!csv.contains("helpdesk"));
    let table = mesh.dir.path().join("usage.parquet");
    usage(&mesh, &["--format", "parquet", "--output", table.to_str().unwrap()]);
    let table = std::fs::read(table).unwrap();
    assert!(table.starts_with(b"PAR1") && table.ends_with(b"PAR1"));
    for (wrong, part) in [("--format=xml", "xml"), ("--from-ms=9999999999999", "range")] {
        let (status, _, err) = weft(&["usage", "--admin-url", &mesh.admin_url, "--admin-key", ADMIN_KEY, wrong]);
        assert!(!status.success() && err.contains(part), "{wrong}: {err}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_adapter_takes_of_a_worker_is_in_its_owners_ledger_and_adds_up() {
    let mesh = Weft::up(&tiny_model(), &["--worker-residency-report-ms", "200"]);
    let secret = mesh.tenant("harbour").await;
    mesh.tenant("helpdesk").await;
    mesh.admin().publish("harbour", "rank8", &tiny_adapter("rank8"), Some("live")).await.unwrap();
    let before = std::time::Instant::now();
    complete(&mesh, &secret, "rank8", 1).await;
    let taken = |tenant: &str| -> [u64; 3] {
        let told: Value = serde_json::from_str(&usage(&mesh, &["--tenant", tenant])).unwrap();
        let rows = told["usage"].as_array().unwrap().iter().filter(|row| row["adapter"] == "rank8");
        rows.fold([0; 3], |sum, row| {
            let of = |name: &str| row[name].as_u64().unwrap();
            [sum[0] + of("slot_ms"), sum[1] + of("memory_ms"), sum[2] + of("bytes_moved")]
        })
    };
    let versions = mesh.admin().versions("harbour", "rank8").await.unwrap();
    let blob = versions["versions"][0]["bytes"].as_u64().unwrap();
    for _ in 0..200 {
        if taken("harbour")[0] > 1_000 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let [slot_ms, _, bytes_moved] = taken("harbour");
    // Several reports: none is lost or counted twice, and time in a slot is no more than time.
    let passed = before.elapsed().as_millis() as u64;
    assert!(slot_ms > 1_000 && slot_ms <= passed, "{slot_ms} of {passed} ms");
    assert_eq!(bytes_moved, blob, "brought once");
    assert_eq!(taken("helpdesk"), [0; 3]);
}
