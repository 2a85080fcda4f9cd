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
    assert_eq!(body, json!({"adapter": "fresh", "version": 1, "digest": digest, "warnings": ["base name differs"]}));
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
