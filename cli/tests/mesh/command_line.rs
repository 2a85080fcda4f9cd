//! The command line answers bad input with one sentence and an exit status.

use crate::support::{ADMIN_KEY, Weft, tiny_adapter, tiny_model, weft};

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
    let (status, _, err) = weft(&["up", "--dtype", "f32", "--worker-dtype", "int8"]);
    assert!(!status.success() && err.contains("dtype is \"f32\" and worker-dtype is \"int8\""), "{err}");
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

/// LoRAX's name, a value, and where it arrives. `-p` and `--hostname` are no variables.
const LAUNCHER_NAMES: &[(&str, &str, &str, &str)] = &[
    ("--model-id", "/models/x", "", "model=/models/x"),
    ("--quantize", "f32", "", "dtype=f32"),
    ("--hostname", "0.0.0.0", "gateway", "hostname=0.0.0.0"),
    ("--port", "81", "gateway", "port=81"),
    ("-p", "82", "gateway", "port=82"),
    ("--max-input-length", "41", "worker", "prompt_tokens_max=41"),
    ("--max-total-tokens", "61", "worker", "context_tokens_max=61"),
    ("--max-batch-total-tokens", "901", "worker", "kv_tokens_max=901"),
    ("--max-batch-prefill-tokens", "129", "worker", "step_tokens_max=129"),
    ("--adapter-memory-fraction", "0.25", "worker", "adapter_memory_fraction=0.25"),
    ("--validation-workers", "3", "worker", "tokenize_concurrency=3"),
    ("--max-concurrent-requests", "9", "gateway", "max_concurrent_requests=9"),
    ("--max-best-of", "5", "gateway", "max_best_of=5"),
    ("--max-stop-sequences", "6", "gateway", "max_stop_sequences=6"),
    ("--max-stop-sequences", "6", "worker", "stop_strings_max=6"),
    ("--cors-allow-origin", "https://a.example", "gateway", "cors_allow_origins=[\"https://a.example\"]"),
    ("--json-output", "true", "", "json_output=true"),
];

fn up_settings(args: &[&str], variables: &[(&str, &str)]) -> [(&'static str, String); 5] {
    let args = args.iter().map(|arg| (*arg).to_owned()).collect();
    let variables: Vec<_> = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let loaded = weft_cli::embedded::Settings::load(args, variables);
    loaded.unwrap_or_else(|error| panic!("{error}")).shown()
}

fn has(shown: &[(&'static str, String)], section: &str, setting: &str) -> bool {
    let of_section = shown.iter().find(|(name, _)| *name == section);
    of_section.is_some_and(|(_, line)| line.split(' ').any(|shown| shown == setting))
}

#[test]
fn every_launcher_name_arrives_as_a_flag_and_as_a_variable() {
    for (name, value, section, setting) in LAUNCHER_NAMES {
        let flag = if *name == "--json-output" { vec![*name] } else { vec![*name, *value] };
        assert!(!has(&up_settings(&[], &[]), section, setting), "{setting} is the default");
        assert!(has(&up_settings(&flag, &[]), section, setting), "{name}");
        let variable = name.trim_start_matches('-').replace('-', "_").to_uppercase();
        let is_variable = !["P", "HOSTNAME"].contains(&variable.as_str());
        assert_eq!(has(&up_settings(&[], &[(&variable, value)]), section, setting), is_variable, "{variable}");
    }
    let documented = std::fs::read_to_string(crate::support::root().join("docs/settings.md")).unwrap();
    let cells = documented.lines().filter_map(|line| line.strip_prefix("| `-")?.split('|').next());
    let mut documented: Vec<String> = cells
        .flat_map(|cell| format!("`-{cell}").split('`').skip(1).step_by(2).map(ToOwned::to_owned).collect::<Vec<_>>())
        .collect();
    documented.sort();
    let mut tested: Vec<String> = LAUNCHER_NAMES.iter().map(|(name, ..)| (*name).to_owned()).collect();
    tested.sort();
    tested.dedup();
    assert_eq!(documented, tested, "docs/settings.md and this test list the same names");
}

#[test]
fn an_origin_may_be_given_several_times() {
    let shown = up_settings(&["--cors-allow-origin", "https://a", "--cors-allow-origin", "https://b"], &[]);
    assert!(has(&shown, "gateway", "cors_allow_origins=[\"https://a\",\"https://b\"]"), "{shown:?}");
}

#[test]
fn a_ports_variable_does_not_beat_listen() {
    let shown = up_settings(&["--listen", "127.0.0.1:0"], &[("PORT", "81")]);
    assert!(has(&shown, "gateway", "port=-"), "{shown:?}");
    assert!(has(&up_settings(&[], &[("PORT", "81")]), "gateway", "port=81"));
}

#[test]
fn settings_that_have_no_effect_in_one_process_are_refused_by_name() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "[worker]\nmodel = 'x'\n[cache]\ndir = '/x'\n").unwrap();
    let flags = [
        "--gateway-listen",
        "--gateway-admin-listen",
        "--gateway-admin-key-file",
        "--gateway-registry",
        "--gateway-workers",
        "--worker-listen",
        "--worker-metrics-listen",
        "--worker-model",
        "--worker-cache",
        "--worker-registry",
        "--registry-listen",
        "--registry-metrics-listen",
        "--registry-s3-endpoint",
        "--registry-s3-bucket",
        "--registry-s3-prefix",
        "--registry-s3-region",
        "--registry-s3-access-key-id",
        "--registry-s3-secret-access-key",
        "--cache-listen",
        "--cache-metrics-listen",
        "--cache-dir",
        "--cache-s3-endpoint",
        "--cache-s3-bucket",
        "--gateway-tls-cert-file",
        "--worker-tls-key-file",
        "--registry-tls-ca-file",
        "--cache-tls-cert-file",
    ];
    let mut args: Vec<String> = flags.iter().flat_map(|flag| [(*flag).to_owned(), "x".to_owned()]).collect();
    args.extend(["--config".to_owned(), file.path().display().to_string(), "--cache-s3-path-style=false".to_owned()]);
    args.push("--worker-insecure-network".to_owned());
    let variables = [("WEFT_GATEWAY_ADMIN_KEY".to_owned(), "hush".to_owned())];
    let Err(error) = weft_cli::embedded::Settings::load(args, variables) else { panic!("accepted") };
    let said = error.to_string();
    for name in flags.iter().chain(&[
        "--cache-s3-path-style",
        "--worker-insecure-network",
        "WEFT_GATEWAY_ADMIN_KEY",
        "worker.model",
        "cache.dir",
    ]) {
        assert!(said.lines().any(|line| line.contains(&format!("{name}: has no effect"))), "{name} in {said}");
    }
    assert!(!said.contains("hush"), "{said}");
    let (status, _, err) = weft(&["up", "--cache-dir", "/x"]);
    assert_eq!(status.code(), Some(2));
    assert!(err.contains("--cache-dir: has no effect"), "{err}");
}

#[test]
fn what_is_not_utf_8_is_refused_and_no_panic() {
    use std::os::unix::ffi::OsStrExt;
    let odd = std::ffi::OsStr::from_bytes(b"a\xff");
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_weft"));
    let services = ["weft-gateway", "weft-worker", "weft-adapter-registry", "weft-cache-daemon"];
    for (name, up) in [("weft", true)].into_iter().chain(services.map(|name| (name, false))) {
        let path = program.with_file_name(name);
        assert!(path.exists(), "{} is not built: cargo build --release --workspace", path.display());
        let run = |change: &dyn Fn(&mut std::process::Command)| {
            let mut command = std::process::Command::new(&path);
            if up {
                command.arg("up");
            }
            change(&mut command);
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(2), "{name}: {said}");
            assert!(!said.contains("panicked"), "{name}: {said}");
            said
        };
        let said = run(&|command| {
            command.env("WEFT_LOG", odd);
        });
        assert!(said.contains("WEFT_LOG: the value is not UTF-8"), "{name}: {said}");
        // A variable that is nobody's does no harm: what is refused is the flag.
        let said = run(&|command| {
            command.env("OTHER", odd).env(odd, "x").arg("--no-such-flag");
        });
        assert!(said.contains("--no-such-flag"), "{name}: {said}");
        let said = run(&|command| {
            command.arg("--listen").arg(odd);
        });
        assert!(said.to_lowercase().contains("utf-8"), "{name}: {said}");
    }
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
    let (ok, out, err) = run(&["tenant", "weight", "harbour", "2.5"]);
    assert!(ok && out.contains("2.5"), "{out}{err}");
    let (ok, _, err) = run(&["tenant", "weight", "harbour", "0"]);
    assert!(!ok && err.contains("0.01 to 100"), "{err}");
    let (ok, out, err) =
        run(&["tenant", "limits", "harbour", "--requests-per-minute", "1000", "--tokens-per-day", "5"]);
    assert!(ok && out.contains("1000"), "{out}{err}");
    let (ok, out, err) = run(&["tenant", "limits", "harbour", "--tokens-per-day", "none"]);
    let tenant: serde_json::Value = serde_json::from_str(&out).unwrap_or_default();
    let limits = &tenant["limits"];
    let now = (limits["requests_per_minute"].as_u64(), limits["tokens_per_day"].is_null());
    assert!(ok && now == (Some(1000), true), "{out}{err}");
    let (ok, _, err) = run(&["tenant", "limits", "harbour", "--queue-length", "0"]);
    assert!(!ok && err.contains("queue_length is 0, allowed are 1 to"), "{err}");
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
    let id = key["id"].as_str().unwrap();
    let (ok, out, err) = run(&["key", "limits", "--tenant", "harbour", id, "--concurrent-requests", "9"]);
    assert!(ok && out.contains("\"concurrent_requests\": 9"), "{out}{err}");
    let reply = crate::support::post(
        &format!("{}/v1/completions", up.data_url),
        key["secret"].as_str().unwrap(),
        serde_json::json!({ "model": "org/pirate", "prompt": "hi", "max_tokens": 2 }),
    )
    .await;
    assert_eq!(reply.header("x-weft-adapter"), Some("harbour/org/pirate@2"), "{}", reply.text);
    let (ok, out, err) = run(&["key", "revoke", "--tenant", "harbour", id]);
    assert!(ok && out.contains("\"revoked\": true"), "{out}{err}");
    let kept = run(&["delete", "--tenant", "harbour", "org/pirate", "2"]);
    let reasons = kept.2.matches("live").count();
    assert!(!kept.0 && reasons == 1, "what holds it is said once: {}", kept.2);
    let (ok, out, err) = run(&["alias", "--tenant", "harbour", "org/pirate", "other", "1"]);
    assert!(ok, "{out}{err}");

    let pickle = tempfile::tempdir().unwrap();
    std::fs::write(pickle.path().join("adapter_config.json"), "{}").unwrap();
    std::fs::write(pickle.path().join("adapter_model.bin"), "x").unwrap();
    let (ok, _, err) = run(&["publish", pickle.path().to_str().unwrap(), "--tenant", "harbour", "--name", "p"]);
    assert!(!ok && err.contains("adapter_model.bin"), "{err}");
}

#[test]
fn completion_knows_the_settings_of_up() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (status, out, err) = weft(&["completion", shell]);
        assert!(status.success(), "{err}");
        for flag in ["worker-adapter-memory-bytes", "admin-listen", "quarantine"] {
            assert!(out.contains(flag), "{shell}: {flag}");
        }
    }
}

#[test]
fn who_cannot_reach_the_admin_api_is_told_which_flag_says_where_it_is() {
    for command in [&["tenant", "list"][..], &["usage"]] {
        let all = [command, &["--admin-url", "http://127.0.0.1:9", "--admin-key", "k"]].concat();
        let (status, _, err) = weft(&all);
        assert!(!status.success() && err.contains("http://127.0.0.1:9 (--admin-url"), "{err}");
    }
}

#[test]
fn a_probe_tells_by_its_status_whether_a_url_answers_with_success() {
    let up = Weft::up(&tiny_model(), &[]);
    let (status, _, err) = weft(&["probe", &format!("{}/readyz", up.data_url)]);
    assert!(status.success(), "{err}");
    let (status, _, err) = weft(&["probe", &format!("{}/nowhere", up.data_url)]);
    assert!(!status.success() && err.contains("404"), "{err}");
    let (status, _, err) = weft(&["probe", &up.data_url.replace("http://", "tcp://")]);
    assert!(status.success(), "{err}");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for url in [format!("http://{closed}/readyz"), format!("tcp://{closed}")] {
        let (status, _, err) = weft(&["probe", &url, "--timeout-s", "1"]);
        assert!(!status.success() && err.contains("does not answer"), "{err}");
    }
}

#[test]
fn each_service_checks_its_settings_without_starting() {
    let check = |service: &str, args: &[&str]| {
        let path = std::path::Path::new(env!("CARGO_BIN_EXE_weft")).with_file_name(service);
        assert!(path.exists(), "{service} is not built: cargo build --release --workspace");
        let output = std::process::Command::new(path).args(args).arg("--check-settings").output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    // What each needs, then something that only its own check can find.
    let services: [(&str, &[&str], &[&str], &str); 4] = [
        ("weft-gateway", &["--admin-key", "k"], &["--registry", "nowhere"], "registry"),
        ("weft-worker", &["--model", "/nowhere"], &["--isa", "mmx"], "mmx"),
        ("weft-adapter-registry", &[], &["--rank-max", "0"], "rank_max"),
        ("weft-cache-daemon", &[], &["--memory-bytes-max", "1"], "memory_dir"),
    ];
    for (service, needed, wrong, named) in services {
        assert_eq!(check(service, needed), (Some(0), "settings hold\n".to_owned(), String::new()), "{service}");
        let beyond = if service == "weft-gateway" { "--registry" } else { "--listen" };
        let plaintext = ([beyond, "10.0.0.1:7001"], "insecure");
        for (wrong, named) in [
            (wrong, named),
            (&plaintext.0[..], plaintext.1),
            (&["--nats-url", "http://n:1"][..], "nats_url"),
            (&["--x"][..], "--x"),
        ] {
            let (status, out, err) = check(service, &[needed, wrong].concat());
            assert_eq!((status, out.as_str()), (Some(2), ""), "{service} {wrong:?}: {err}");
            assert!(err.contains("error") && err.contains(named), "{service} {wrong:?}: {err}");
        }
    }
}
