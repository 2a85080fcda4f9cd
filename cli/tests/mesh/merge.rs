//! `weft merge`, from the command line to an answer.

use crate::support::{ADMIN_KEY, Weft, tiny_adapter, tiny_model, weft};
use serde_json::Value;

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
