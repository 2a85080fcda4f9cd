//! What a tenant's policy lets it publish and ask for, and what a publish says beforehand.

use crate::support::{ADMIN_KEY, Weft, tiny_adapter, tiny_model, weft};
use serde_json::{Value, json};

fn run(mesh: &Weft, args: &[&str]) -> Result<Value, String> {
    let mut all = args.to_vec();
    all.extend(["--admin-url", &mesh.admin_url, "--admin-key", ADMIN_KEY, "--json"]);
    let (status, out, err) = weft(&all);
    if status.success() { Ok(serde_json::from_str(&out).unwrap_or_default()) } else { Err(err) }
}

/// A copy of a package with one more file.
fn with(package: &str, name: &str, content: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(tiny_adapter(package).join(file), folder.path().join(file)).unwrap();
    }
    std::fs::write(folder.path().join(name), content).unwrap();
    folder
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_is_held_against_the_policy_and_says_what_it_costs() {
    let mesh = Weft::up(&tiny_model(), &[]);
    for tenant in ["harbour", "helpdesk"] {
        mesh.tenant(tenant).await;
    }
    let publish = |tenant: &str, package: &str| {
        let folder = tiny_adapter(package);
        run(&mesh, &["publish", folder.to_str().unwrap(), "--tenant", tenant, "--name", package])
    };
    let policy = run(&mesh, &["tenant", "policy", "harbour", "--rank-max", "8"]).unwrap();
    assert_eq!((&policy["policy"]["rank_max"], &policy["policy"]["package_bytes_max"]), (&8.into(), &Value::Null));
    publish("harbour", "rank8").unwrap();
    let refused = publish("harbour", "rank16").unwrap_err();
    assert!(refused.contains("16") && refused.contains('8'), "{refused}");
    let made = publish("helpdesk", "rank16").unwrap();
    assert_eq!(made["version"], 1, "another tenant has no such limit");

    let cost = &made["cost"];
    let (parameters, slot_bytes) = (cost["parameters"].as_u64().unwrap(), cost["slot_bytes"].as_u64().unwrap());
    assert!(parameters > 0 && slot_bytes >= parameters && cost["blob_bytes"].as_u64().unwrap() > 0, "{cost}");
    let share = cost["slot_share"].as_f64().unwrap();
    let (at_8, at_32) = (cost["decode_tax_at_8"].as_f64().unwrap(), cost["decode_tax_at_32"].as_f64().unwrap());
    assert!(share > 0.0 && at_8 > 0.0 && (at_32 / at_8 - 4.0).abs() < 1e-9, "{cost}");

    run(&mesh, &["tenant", "policy", "helpdesk", "--package-bytes-max", "100"]).unwrap();
    let refused = publish("helpdesk", "rank8").unwrap_err();
    assert!(refused.contains("100") && refused.contains("policy"), "{refused}");
    run(&mesh, &["tenant", "policy", "helpdesk", "--package-bytes-max", "none"]).unwrap();
    publish("helpdesk", "rank8").unwrap();

    for (args, part) in [
        (["--adapter-source", "ftp=s3://bucket/"], "ftp"),
        (["--adapter-source", "hub=https://example.org/"], "must begin with hf://"),
        (["--request-merges-max", "10001"], "10001"),
    ] {
        let refused = run(&mesh, &[&["tenant", "policy", "harbour"], &args[..]].concat()).unwrap_err();
        assert!(refused.contains(part), "{args:?}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_change_prompts_is_refused_from_a_folder_and_from_an_archive() {
    let mesh = Weft::up(&tiny_model(), &[]);
    mesh.tenant("harbour").await;
    for name in ["chat_template.jinja", "added_tokens.json"] {
        let folder = with("rank8", name, "{}");
        let archive = folder.path().with_extension("tar");
        let mut tar = std::process::Command::new("tar");
        tar.arg("-cf").arg(&archive).arg("-C").arg(folder.path()).arg(".");
        assert!(tar.status().unwrap().success());
        for path in [folder.path(), &archive] {
            let args = ["publish", path.to_str().unwrap(), "--tenant", "harbour", "--name", "a"];
            let refused = run(&mesh, &args).unwrap_err();
            assert!(refused.contains(name) && refused.contains("not honoured"), "{}: {refused}", path.display());
        }
    }
    let folder = with("rank8", "README.md", "An adapter.");
    let args = ["publish", folder.path().to_str().unwrap(), "--tenant", "harbour", "--name", "a"];
    assert_eq!(run(&mesh, &args).unwrap()["version"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_that_a_request_names_is_imported_where_the_policy_says_so() {
    let root = tempfile::tempdir().unwrap();
    let package = with("rank8", "README.md", "");
    std::fs::create_dir_all(root.path().join("org")).unwrap();
    std::fs::rename(package.keep(), root.path().join("org/pirate")).unwrap();
    let mesh = Weft::up(&tiny_model(), &["--registry-source-file-roots", root.path().to_str().unwrap()]);
    let secret = mesh.tenant("harbour").await;
    let ask = async |parameters: Value| {
        let request = reqwest::Client::new().post(format!("{}/generate", mesh.data_url)).bearer_auth(&secret);
        let answer = request.json(&json!({"inputs": "Hi!", "parameters": parameters})).send().await.unwrap();
        let adapter = answer.headers().get("x-weft-adapter").map(|value| value.to_str().unwrap().to_owned());
        (answer.status().as_u16(), adapter.unwrap_or_default(), answer.text().await.unwrap())
    };
    let pirate = |source: &str| json!({"adapter_id": "org/pirate", "adapter_source": source, "max_new_tokens": 4});
    assert_eq!(ask(pirate("local")).await.0, 404, "no policy, no source");

    let beginning = format!("local=file://{}/", root.path().display());
    run(&mesh, &["tenant", "policy", "harbour", "--adapter-source", &beginning]).unwrap();
    let (status, _, body) = ask(pirate("hub")).await;
    assert_eq!(status, 404, "another source: {body}");
    // Several at once: it is imported once.
    let (one, other) = tokio::join!(ask(pirate("local")), ask(pirate("local")));
    for (status, adapter, body) in [one, other, ask(pirate("hub")).await] {
        assert_eq!((status, adapter.as_str()), (200, "harbour/org/pirate@1"), "{body}");
    }
    let versions = mesh.admin().versions("harbour", "org/pirate").await.unwrap();
    let [version] = &versions["versions"].as_array().unwrap()[..] else { panic!("{versions}") };
    assert!(version["origin"].as_str().unwrap().starts_with("file://"), "{version}");

    let (status, _, body) = ask(json!({"adapter_id": "org/nobody", "adapter_source": "local"})).await;
    assert!((400..500).contains(&status), "{status} {body}");
    let (status, _, body) = ask(json!({"adapter_id": "../org/pirate", "adapter_source": "local"})).await;
    assert_eq!(status, 404, "a name is never a path: {body}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absent_name_and_the_bases_mean_the_default_adapter_where_the_operator_says_so() {
    let mesh = Weft::up(&tiny_model(), &[]);
    let secret = mesh.tenant("harbour").await;
    let folder = tiny_adapter("rank8");
    run(&mesh, &["publish", folder.to_str().unwrap(), "--tenant", "harbour", "--name", "pirate"]).unwrap();
    let data = mesh.data(&secret);
    let answers = async |model: &str| data.complete_tokens(model, &[72, 105, 33], 2).await.unwrap().adapter;
    assert_eq!(answers("").await, "base");
    let refused = run(&mesh, &["tenant", "default", "harbour", "nobody"]).unwrap_err();
    assert!(refused.contains("nobody"), "{refused}");
    run(&mesh, &["tenant", "default", "harbour", "pirate"]).unwrap();
    assert_eq!((answers("").await.as_str(), answers("base").await.as_str()), ("harbour/pirate@1", "base"));
    run(&mesh, &["tenant", "policy", "harbour", "--base-is-default", "true"]).unwrap();
    assert_eq!(answers("base").await, "harbour/pirate@1");
    run(&mesh, &["tenant", "default", "harbour", "none"]).unwrap();
    assert_eq!(answers("base").await, "base");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_shown_to_nobody_until_it_answers_as_it_should() {
    let mesh = Weft::up(&tiny_model(), &[]);
    let secret = mesh.tenant("harbour").await;
    let (admin, data) = (mesh.admin(), mesh.data(&secret));
    admin.publish("harbour", "pirate", &tiny_adapter("rank8"), Some("live")).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let publish = |prompts: Value| {
        let (file, package) = (folder.path().join("prompts.json"), tiny_adapter("rank16"));
        std::fs::write(&file, prompts.to_string()).unwrap();
        let (file, package) = (file.to_str().unwrap(), package.to_str().unwrap());
        run(&mesh, &["publish", package, "--tenant", "harbour", "--name", "pirate", "--smoke", file])
    };
    let live = async || data.complete_tokens("pirate", &[72, 105, 33], 2).await.unwrap().adapter;

    let refused = publish(json!({"prompts": [{"prompt": "Hi", "contains": ["no answer has this"]}]})).unwrap_err();
    assert!(refused.contains("prompts[0]") && refused.contains("no answer has this"), "{refused}");
    assert!(refused.contains("version 2 of pirate stays in quarantine"), "{refused}");
    assert_eq!(live().await, "harbour/pirate@1");
    assert!(data.complete_tokens("pirate@2", &[72], 1).await.is_err(), "nobody is shown it");
    let versions = admin.versions("harbour", "pirate").await.unwrap();
    let quarantined = |versions: &Value| -> Vec<bool> {
        versions["versions"].as_array().unwrap().iter().map(|version| version["quarantined"] == true).collect()
    };
    assert_eq!(quarantined(&versions), [false, true], "an operator is");
    // No alias and no experiment gets at it by its number.
    assert!(admin.set_alias("harbour", "pirate", "live", 2, None).await.is_err());

    // The same bytes are the same version: published once more they are asked once more, and do not get out by a plain publish.
    publish(json!({"prompts": [{"prompt": "Hi", "contains": ["no answer has this"]}]})).unwrap_err();
    let plain = admin.publish("harbour", "pirate", &tiny_adapter("rank16"), Some("live")).await.unwrap_err();
    assert!(plain.to_string().contains("version 2 of pirate has these bytes and is in quarantine"), "{plain}");
    assert_eq!(quarantined(&admin.versions("harbour", "pirate").await.unwrap()), [false, true]);

    // It survives a restart, and goes out with another word.
    let dir = mesh.kill();
    let mesh = Weft::up_in(dir, &tiny_model(), &[]);
    let (admin, data) = (mesh.admin(), mesh.data(&secret));
    assert_eq!(quarantined(&admin.versions("harbour", "pirate").await.unwrap()), [false, true]);
    let released = run(&mesh, &["release", "pirate", "2", "--tenant", "harbour"]).unwrap();
    assert_eq!((&released["version"], &released["quarantined"]), (&2.into(), &false.into()));
    assert_eq!(data.complete_tokens("pirate", &[72, 105, 33], 2).await.unwrap().adapter, "harbour/pirate@2");

    let package = tiny_adapter("rank8");
    let args = ["publish", package.to_str().unwrap(), "--tenant", "harbour", "--name", "fresh", "--quarantine"];
    let made = run(&mesh, &args).unwrap();
    assert_eq!((&made["version"], &made["quarantined"]), (&1.into(), &true.into()));
    assert!(data.complete_tokens("fresh", &[72], 1).await.is_err());
    let asked =
        json!({"prompts": [{"prompt": "Hi", "max_tokens": 4}, {"messages": [{"role": "user", "content": "Hi"}]}]});
    let done = admin.smoke("harbour", "fresh", 1, Some("live"), &asked).await;
    // The tiny model may have no template: then the chat is what is refused.
    if done.is_err() {
        let plain = json!({"prompts": [{"prompt": "Hi", "max_tokens": 4}]});
        let done = admin.smoke("harbour", "fresh", 1, Some("live"), &plain).await.unwrap();
        assert_eq!(done["results"].as_array().unwrap().len(), 1, "{done}");
    }
    assert_eq!(data.complete_tokens("fresh", &[72, 105, 33], 2).await.unwrap().adapter, "harbour/fresh@1");

    run(
        &mesh,
        &[
            "publish",
            tiny_adapter("rank16").to_str().unwrap(),
            "--tenant",
            "harbour",
            "--name",
            "fresh",
            "--quarantine",
        ],
    )
    .unwrap();
    let deleted = run(&mesh, &["delete", "fresh", "2", "--tenant", "harbour"]);
    assert!(deleted.as_ref().is_ok_and(|said| said["deleted"] == true), "{deleted:?}");
    assert_eq!(quarantined(&admin.versions("harbour", "fresh").await.unwrap()), [false]);
}
