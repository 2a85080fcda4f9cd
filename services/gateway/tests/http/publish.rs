//! `POST …/versions`: an upload on its way to the registry.

use crate::support::{Mesh, mesh, mesh_with, read, settings};
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_gateway::Settings;
use weft_types::Digest;

fn file(name: &str, bytes: impl Into<Vec<u8>>) -> Part {
    Part::bytes(bytes.into()).file_name(name.to_owned())
}

fn package(weights: &[u8]) -> Form {
    Form::new()
        .part("config", file("adapter_config.json", "{\"r\": 8}"))
        .part("weights", file("adapter_model.safetensors", weights))
}

async fn publish(mesh: &Mesh, path: &str, form: Form) -> (u16, Value) {
    read(mesh.operate("POST", &format!("/tenants/{path}")).multipart(form).send().await.unwrap()).await
}

#[tokio::test]
async fn a_package_becomes_a_version_that_answers_at_once() {
    let mesh = mesh().await;
    let weights: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
    let (status, body) = publish(&mesh, "harbour/adapters/fresh/versions", package(&weights)).await;
    assert_eq!(status, 201);
    let digest = Digest::of(&weights);
    let shown = json!({"adapter": "fresh", "version": 1, "digest": digest, "warnings": ["base name differs"]});
    assert!(shown.as_object().unwrap().iter().all(|(name, value)| body[name] == *value), "{body}");
    let response = mesh.post("/v1/chat/completions", &crate::support::chat_body("fresh")).send().await.unwrap();
    assert_eq!(response.headers()["x-weft-adapter-digest"], digest.to_string().as_str());
    let upload = mesh.registry.uploads().pop().unwrap();
    assert!(upload.whole && upload.weights == weights && upload.config == b"{\"r\": 8}");
    assert!(upload.piece_bytes_max <= 1 << 20, "{}", upload.piece_bytes_max);
    assert_eq!(
        (upload.start.tenant.as_str(), upload.start.alias.as_str(), upload.start.actor.as_str()),
        ("harbour", "live", "admin")
    );

    let (status, again) = publish(&mesh, "harbour/adapters/fresh/versions", package(&weights)).await;
    assert_eq!((status, &again["version"]), (200, &json!(1)));
    assert!(!again["warnings"].to_string().contains("stays"), "{again}");
}

#[tokio::test]
async fn old_bytes_again_say_that_the_alias_stays() {
    let mesh = mesh().await;
    for (bytes, status) in [(b"one", 201), (b"two", 201)] {
        assert_eq!(publish(&mesh, "harbour/adapters/fresh/versions", package(bytes)).await.0, status);
    }
    let (status, again) = publish(&mesh, "harbour/adapters/fresh/versions", package(b"one")).await;
    assert_eq!((status, &again["version"]), (200, &json!(1)));
    let warnings = again["warnings"].to_string();
    assert!(warnings.contains("alias live stays at version 2"), "{warnings}");
    let (_, none) = publish(&mesh, "harbour/adapters/fresh/versions?alias=none", package(b"one")).await;
    assert!(!none["warnings"].to_string().contains("stays"), "{none}");
}

#[tokio::test]
async fn the_alias_is_the_callers_choice() {
    let mesh = mesh().await;
    let (status, _) = publish(&mesh, "harbour/adapters/org%2Fnew/versions?alias=none", package(b"one")).await;
    assert_eq!(status, 201);
    assert_eq!(mesh.chat("org/new").await.0, 404);
    assert_eq!(mesh.chat("org/new@1").await.0, 200);
    let (status, _) = publish(&mesh, "harbour/adapters/org%2Fnew/versions?alias=canary", package(b"two")).await;
    assert_eq!(status, 201);
    assert_eq!(mesh.chat("org/new@canary").await.0, 200);
    let (status, body) = publish(&mesh, "harbour/adapters/x/versions?alias=Wrong", package(b"x")).await;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("alias")));
    let (status, body) = publish(&mesh, "harbour/adapters/a%2Fb%2Fc/versions", package(b"x")).await;
    assert_eq!((status, &body["error"]["param"]), (400, &json!("name")));
}

#[tokio::test]
async fn weights_may_come_before_their_config() {
    let mesh = mesh().await;
    let weights = vec![7u8; 2_500_000];
    let form = Form::new()
        .part("weights", file("adapter_model.safetensors", weights.clone()))
        .part("config", file("adapter_config.json", "{}"));
    let (status, body) = publish(&mesh, "harbour/adapters/turned/versions", form).await;
    assert_eq!(status, 201, "{body}");
    let upload = mesh.registry.uploads().pop().unwrap();
    assert!(upload.whole && upload.weights == weights && upload.piece_bytes_max <= 1 << 20);
}

#[tokio::test]
async fn a_refusal_brings_every_reason() {
    let mesh = mesh().await;
    mesh.registry.refuse_packages(&["tensor x holds NaN", "r is 0"]);
    let (status, body) = publish(&mesh, "harbour/adapters/bad/versions", package(b"x")).await;
    assert_eq!((status, &body["error"]["reasons"]), (422, &json!(["tensor x holds NaN", "r is 0"])));
    assert_eq!(body["error"]["code"], "package_refused");
}

#[tokio::test]
async fn what_is_no_package_is_refused_and_never_ends_as_one() {
    let settings = Settings { package_config_bytes_max: 100, package_weights_bytes_max: 1000, ..settings() };
    let mesh = mesh_with(settings, vec![crate::support::worker::FakeWorker::new("w")]).await;
    let config = || file("adapter_config.json", "{}");
    for (form, status, text) in [
        (Form::new().part("config", config()), 400, "adapter_model.safetensors"),
        (Form::new().part("weights", file("a.safetensors", "x")), 400, "adapter_config.json"),
        (Form::new(), 400, "multipart"),
        (package(b"x").part("config", config()), 400, "twice"),
        (package(b"x").part("readme", file("README.md", "x")), 400, "readme"),
        (Form::new().part("config", file("adapter_config.json", vec![b' '; 101])), 413, "limit of 100 bytes"),
        (package(&[0; 1001]), 413, "limit of 1000 bytes"),
        (Form::new().part("weights", file("a.safetensors", vec![0; 1001])), 413, "limit of 1000 bytes"),
        (Form::new().part("config", config()).part("weights", file("adapter_model.bin", "PK")), 422, "pickle"),
        (
            Form::new().part("config", config()).part("adapter_model.bin", file("adapter_model.bin", "PK")),
            422,
            "pickle",
        ),
    ] {
        let (got, body) = publish(&mesh, "harbour/adapters/bad/versions", form).await;
        assert_eq!(got, status, "{body}");
        assert!(body["error"]["message"].as_str().unwrap().contains(text), "{body}");
    }
    let plain = mesh.operate("POST", "/tenants/harbour/adapters/bad/versions").json(&json!({})).send().await.unwrap();
    assert_eq!(read(plain).await.0, 400);
    // Every call to the registry ends, none of them as a whole package.
    mesh.until("all calls ended", async || mesh.registry.publishing() == 0).await;
    assert!(mesh.registry.uploads().iter().all(|upload| !upload.whole), "{:?}", mesh.registry.uploads());
    assert_eq!(mesh.chat("bad@1").await.0, 404);
}

#[tokio::test]
async fn an_upload_that_breaks_off_never_looks_whole() {
    let mesh = mesh().await;
    let mut stream = tokio::net::TcpStream::connect(mesh.admin.strip_prefix("http://").unwrap()).await.unwrap();
    let head = format!(
        "POST /admin/v1/tenants/harbour/adapters/cut/versions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: multipart/form-data; boundary=b\r\ncontent-length: 100000\r\n\r\n",
        crate::support::ADMIN_KEY
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(b"--b\r\ncontent-disposition: form-data; name=\"config\"\r\n\r\n{}\r\n--b\r\ncontent-disposition: form-data; name=\"weights\"\r\n\r\nhalf of the").await.unwrap();
    drop(stream);
    mesh.until("the call ended", async || mesh.registry.uploads().len() == 1).await;
    assert!(!mesh.registry.uploads()[0].whole);
}

#[tokio::test]
async fn a_stalled_upload_is_408() {
    let mesh =
        mesh_with(Settings { body_timeout_s: 1, ..settings() }, vec![crate::support::worker::FakeWorker::new("w")])
            .await;
    let mut stream = tokio::net::TcpStream::connect(mesh.admin.strip_prefix("http://").unwrap()).await.unwrap();
    let head = format!(
        "POST /admin/v1/tenants/harbour/adapters/slow/versions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: multipart/form-data; boundary=b\r\ncontent-length: 100000\r\nconnection: close\r\n\r\n--b\r\n",
        crate::support::ADMIN_KEY
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

/// A header of tar, and what it is followed by.
fn tar_entry(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    header[148..156].fill(b' ');
    header[156] = b'0';
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut entry = [&header[..], content].concat();
    entry.resize(entry.len().next_multiple_of(512), 0);
    entry
}

fn archive(before: &[u8]) -> Vec<u8> {
    let config = tar_entry("adapter_config.json", b"{}");
    let weights = tar_entry("adapter_model.safetensors", &[7; 2000]);
    [before, &config, &weights, &[0; 1024]].concat()
}

/// Sends the head of an upload of an archive.
async fn archive_upload(mesh: &Mesh, name: &str, bytes: usize) -> tokio::net::TcpStream {
    let mut stream = tokio::net::TcpStream::connect(mesh.admin.strip_prefix("http://").unwrap()).await.unwrap();
    let head = format!(
        "POST /admin/v1/tenants/harbour/adapters/{name}/versions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/x-tar\r\ncontent-length: {bytes}\r\nconnection: close\r\n\r\n",
        crate::support::ADMIN_KEY
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn answer(mut stream: tokio::net::TcpStream) -> String {
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

#[tokio::test]
async fn an_archive_has_its_time_piece_by_piece_whatever_is_passed_over() {
    let settings = Settings { body_timeout_s: 2, ..settings() };
    let mesh = mesh_with(settings, vec![crate::support::worker::FakeWorker::new("w")]).await;
    let whole = archive(&tar_entry("README.md", &[b'x'; 8000]));
    let mut stream = archive_upload(&mesh, "slow", whole.len()).await;
    // The first file alone takes longer than a piece may.
    for piece in whole.chunks(2000) {
        stream.write_all(piece).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    }
    let told = answer(stream).await;
    assert!(told.starts_with("HTTP/1.1 201"), "{told}");
    assert_eq!(mesh.registry.uploads().pop().unwrap().weights, [7; 2000]);

    let mut stream = archive_upload(&mesh, "stalled", whole.len()).await;
    stream.write_all(&whole[..3000]).await.unwrap();
    let told = answer(stream).await;
    assert!(told.starts_with("HTTP/1.1 408") && told.contains("brought nothing for 2 s"), "{told}");
}

#[tokio::test]
async fn who_still_sends_an_archive_that_is_refused_gets_to_read_why() {
    let mesh = mesh().await;
    let whole = archive(&tar_entry("/etc/passwd", &vec![b'x'; 16 << 20]));
    let mut stream = archive_upload(&mesh, "bad", whole.len()).await;
    stream.write_all(&whole).await.unwrap();
    let told = answer(stream).await;
    assert!(told.starts_with("HTTP/1.1 400") && told.contains("/etc/passwd"), "{told}");
}

#[tokio::test]
async fn an_import_has_a_time_of_its_own() {
    let settings = Settings { import_timeout_ms: 300, registry_timeout_ms: 100, ..settings() };
    let mesh = mesh_with(settings, vec![crate::support::worker::FakeWorker::new("w")]).await;
    let begun = std::time::Instant::now();
    let import = mesh.operate("POST", "/tenants/harbour/adapters/fresh/imports").json(&json!({"source": "hf://a/b"}));
    let (status, body) = read(import.send().await.unwrap()).await;
    assert!(begun.elapsed() >= std::time::Duration::from_millis(300));
    assert_eq!(status, 504, "{body}");
    assert!(body["error"]["message"].as_str().unwrap().contains("within 0.3 s"), "{body}");
    // As long as a registry takes by default, and to judge and store then.
    assert!(Settings::default().import_timeout_ms >= 1_800_000 + 300_000);
}

#[tokio::test]
async fn aliases_move_under_their_preconditions() {
    let mesh = mesh().await;
    let path = "/tenants/harbour/adapters/pirate/aliases/live";
    let response = mesh.operate("GET", path).send().await.unwrap();
    let etag = response.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(read(response).await.1["version"], 2);
    let move_to = async |version: u64, header: Option<(&'static str, String)>| {
        let request = mesh.operate("PUT", path).json(&json!({"version": version}));
        let request = match header {
            Some((name, value)) => request.header(name, value),
            None => request,
        };
        read(request.send().await.unwrap()).await
    };
    let (status, body) = move_to(1, Some(("if-match", etag.clone()))).await;
    assert_eq!((status, &body["version"]), (200, &json!(1)));
    let (status, body) = move_to(2, Some(("if-match", etag))).await;
    assert_eq!((status, &body["error"]["code"]), (412, &json!("precondition_failed")));
    assert_eq!(move_to(2, Some(("if-none-match", "*".into()))).await.0, 412);
    assert_eq!(move_to(9, None).await.0, 404);
    assert_eq!(move_to(2, Some(("if-match", "*".into()))).await.0, 200);
    let (status, list) =
        read(mesh.operate("GET", "/tenants/harbour/adapters/pirate/aliases").send().await.unwrap()).await;
    assert_eq!((status, list["aliases"].as_array().unwrap().len()), (200, 2));
    let (status, list) = read(mesh.operate("GET", "/tenants/harbour/adapters").send().await.unwrap()).await;
    assert_eq!((status, &list["adapters"][1]["name"]), (200, &json!("pirate")));
    let (status, list) =
        read(mesh.operate("GET", "/tenants/harbour/adapters/org%2Ftuned/versions").send().await.unwrap()).await;
    assert_eq!((status, &list["versions"][1]["version"]), (200, &json!(2)));
}
