//! The command line answers bad input with one sentence and an exit status.

mod support;

use support::{ADMIN_KEY, Weft, tiny_adapter, tiny_model, weft};

#[test]
fn a_missing_or_broken_model_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let up = |model: &str| {
        weft(&[
            "up",
            "--listen",
            "127.0.0.1:0",
            "--admin-listen",
            "127.0.0.1:0",
            "--data-dir",
            data.to_str().unwrap(),
            "--model",
            model,
        ])
    };
    let (status, _, err) = up("/nowhere/model.gguf");
    assert!(!status.success() && err.contains("/nowhere/model.gguf"), "{err}");

    let short = dir.path().join("short.gguf");
    std::fs::write(&short, b"GGUF\x03\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00\x00").unwrap();
    let (status, _, err) = up(short.to_str().unwrap());
    assert!(!status.success() && err.contains("short.gguf"), "{err}");

    let folder = dir.path().join("cut");
    std::fs::create_dir(&folder).unwrap();
    for entry in std::fs::read_dir(tiny_model()).unwrap().flatten() {
        let bytes = std::fs::read(entry.path()).unwrap();
        let cut = if entry.file_name() == "model.safetensors" { bytes.len() / 2 } else { bytes.len() };
        std::fs::write(folder.join(entry.file_name()), &bytes[..cut]).unwrap();
    }
    let (status, _, err) = up(folder.to_str().unwrap());
    assert!(!status.success() && err.contains("model.safetensors"), "{err}");
}

#[test]
fn a_taken_port_and_a_taken_folder_are_named() {
    let first = Weft::up(&tiny_model(), &[]);
    let taken = first.data_url.trim_start_matches("http://").to_owned();
    let dir = tempfile::tempdir().unwrap();
    let model = tiny_model();
    let args = |listen: &str, dir: &std::path::Path| {
        let all = [
            "up",
            "--listen",
            listen,
            "--admin-listen",
            "127.0.0.1:0",
            "--model",
            model.to_str().unwrap(),
            "--data-dir",
            dir.to_str().unwrap(),
        ];
        weft(&all)
    };
    let (status, _, err) = args(&taken, dir.path());
    assert!(!status.success() && err.contains(&taken), "{err}");
    let (status, _, err) = args("127.0.0.1:0", first.dir.path());
    assert!(!status.success() && err.contains(first.dir.path().to_str().unwrap()), "{err}");
}

#[test]
fn wrong_settings_are_all_reported_and_leave_with_2() {
    let (status, _, err) = weft(&["up", "--dtype", "int3", "--worker-step-tokens-max", "many"]);
    assert_eq!(status.code(), Some(2), "{err}");
    assert!(err.contains("many"), "{err}");
    let (status, _, err) = weft(&[
        "up",
        "--dtype",
        "int3",
        "--model",
        tiny_model().to_str().unwrap(),
        "--listen",
        "127.0.0.1:0",
        "--admin-listen",
        "127.0.0.1:0",
        "--data-dir",
        tempfile::tempdir().unwrap().path().to_str().unwrap(),
    ]);
    assert!(!status.success() && err.contains("int3"), "{err}");
    assert_eq!(weft(&["up", "--no-such-flag"]).0.code(), Some(2));
}

#[test]
fn lorax_launcher_names_are_accepted() {
    let up = Weft::up(
        &tiny_model(),
        &[
            "--max-input-length",
            "40",
            "--max-total-tokens",
            "60",
            "--max-concurrent-requests",
            "9",
            "--max-batch-prefill-tokens",
            "128",
        ],
    );
    let info: serde_json::Value = reqwest_blocking(&format!("{}/info", up.data_url));
    assert_eq!(info["max_input_length"], 40, "{info}");
    assert_eq!(info["max_total_tokens"], 60, "{info}");
    assert_eq!(info["max_concurrent_requests"], 9, "{info}");
}

fn reqwest_blocking(url: &str) -> serde_json::Value {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { serde_json::from_str(&reqwest::get(url).await.unwrap().text().await.unwrap()).unwrap() })
}

#[test]
fn a_made_admin_key_is_private_and_works() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap().to_owned();
    let model = tiny_model();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["up", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--data-dir", &data, "--model"])
        .arg(&model)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    use std::io::BufRead;
    let mut lines = Vec::new();
    for line in std::io::BufReader::new(child.stdout.take().unwrap()).lines() {
        lines.push(line.unwrap());
        if lines.last().is_some_and(|line| line.starts_with("serving ")) {
            break;
        }
    }
    let value = |name: &str| {
        lines
            .iter()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or_else(|| panic!("{name} in {lines:?}"))
            .trim()
            .to_owned()
    };
    let key_file = value("admin key ");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&key_file).unwrap().permissions().mode() & 0o777, 0o600);
    let (status, out, err) =
        weft(&["tenant", "create", "harbour", "--admin-url", &value("admin plane "), "--admin-key-file", &key_file]);
    assert!(status.success(), "{out}{err}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn publish_list_alias_and_keys_work_from_the_command_line() {
    let up = Weft::up(&tiny_model(), &[]);
    let admin_url = up.admin_url.clone();
    let run = move |args: &[&str]| {
        let mut all = args.to_vec();
        all.extend(["--admin-url", &admin_url, "--admin-key", ADMIN_KEY]);
        let (status, out, err) = weft(&all);
        (status.success(), out, err)
    };
    assert!(run(&["tenant", "create", "harbour"]).0);
    let folder = tiny_adapter("rank8");
    let (ok, out, err) = run(&["publish", folder.to_str().unwrap(), "--tenant", "harbour", "--name", "org/pirate"]);
    assert!(ok, "{err}");
    let published: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(published["version"], 1);
    let folder = tiny_adapter("rank16");
    assert!(
        run(&["publish", folder.to_str().unwrap(), "--tenant", "harbour", "--name", "org/pirate", "--alias", "none"]).0
    );
    let (ok, out, err) = run(&["adapters", "--tenant", "harbour", "org/pirate"]);
    assert!(ok && out.contains(published["digest"].as_str().unwrap()), "{out}{err}");
    let (ok, out, err) = run(&["alias", "--tenant", "harbour", "org/pirate", "live", "2"]);
    assert!(ok, "{out}{err}");
    let (ok, _, err) = run(&["alias", "--tenant", "harbour", "org/pirate", "live", "9"]);
    assert!(!ok && err.contains('9'), "{err}");
    let (ok, out, _) = run(&["key", "create", "--tenant", "harbour"]);
    assert!(ok);
    let key: serde_json::Value = serde_json::from_str(&out).unwrap();
    let reply = support::post(
        &format!("{}/v1/completions", up.data_url),
        key["secret"].as_str().unwrap(),
        serde_json::json!({ "model": "org/pirate", "prompt": "hi", "max_tokens": 2 }),
    )
    .await;
    assert_eq!(reply.header("x-weft-adapter"), Some("harbour/org/pirate@2"), "{}", reply.text);
    assert!(run(&["key", "revoke", "--tenant", "harbour", key["id"].as_str().unwrap()]).0);

    let pickle = tempfile::tempdir().unwrap();
    std::fs::write(pickle.path().join("adapter_config.json"), "{}").unwrap();
    std::fs::write(pickle.path().join("adapter_model.bin"), "x").unwrap();
    let (ok, _, err) = run(&["publish", pickle.path().to_str().unwrap(), "--tenant", "harbour", "--name", "p"]);
    assert!(!ok && err.contains("adapter_model.bin"), "{err}");
}
