//! A hub and its storage, on two ports, that answer as the Hugging Face Hub and its CDN do, and misbehave on demand.

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Request, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use weft_adapter_sources::Access;
use weft_certificate_testkit::Signed;

mod tls;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
pub(crate) const TOKEN: &str = "hf_secret";
pub(crate) const CONFIG: &str = r#"{"peft_type":"LORA"}"#;

/// How the two behave.
pub(crate) struct Behaviour {
    /// Files of `org/adapter`; those in a digest-addressed storage with `true`.
    pub(crate) files: Vec<(&'static str, Vec<u8>, bool)>,
    pub(crate) revision: String,
    pub(crate) is_private: bool,
    pub(crate) is_gated: bool,
    /// What the hub says of itself instead of `org/adapter`.
    pub(crate) id: String,
    /// Answers of these statuses, with these headers, come first.
    pub(crate) hub_failures: Vec<(u16, Vec<(&'static str, &'static str)>)>,
    /// Instead of the information of a repository.
    pub(crate) info: Option<String>,
    /// Whether digests and lengths are told, and which digest.
    pub(crate) tells_digest: bool,
    pub(crate) tells_length: bool,
    pub(crate) digest: Option<String>,
    /// Where the weights are instead of the storage.
    pub(crate) redirect: Option<String>,
    /// After how many bytes each of the storage's next answers breaks off.
    pub(crate) breaks: Vec<usize>,
    pub(crate) knows_ranges: bool,
    pub(crate) etags: Etags,
    pub(crate) storage_failures: Vec<u16>,
    /// The storage's content is another one from its second answer on.
    pub(crate) changes: bool,
    pub(crate) is_endless: bool,
    /// The storage sends so many bytes and then nothing.
    pub(crate) stalls_after: Option<usize>,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self {
            files: vec![
                ("README.md", b"# mine".to_vec(), false),
                ("adapter_config.json", CONFIG.into(), false),
                ("adapter_model.safetensors", super::bytes(3_000_000), true),
                ("tokenizer.json", b"{}".to_vec(), false),
                ("checkpoint-1/adapter_model.bin", b"x".to_vec(), true),
            ],
            revision: "main".to_owned(),
            is_private: false,
            is_gated: false,
            id: "org/adapter".to_owned(),
            hub_failures: Vec::new(),
            info: None,
            tells_digest: true,
            tells_length: true,
            digest: None,
            redirect: None,
            breaks: Vec::new(),
            knows_ranges: true,
            etags: Etags::Strong,
            storage_failures: Vec::new(),
            changes: false,
            is_endless: false,
            stalls_after: None,
        }
    }
}

/// Which states the storage tells apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Etags {
    Strong,
    /// All alike.
    Weak,
    /// Only its first answer has one.
    First,
}

/// What a server was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
}

/// Both servers. They end with the test's runtime.
pub(crate) struct Hub {
    pub(crate) address: SocketAddr,
    pub(crate) storage: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    behaviour: Mutex<Behaviour>,
    hub_asked: Mutex<Vec<Asked>>,
    storage_asked: Mutex<Vec<Asked>>,
    storage: Mutex<Option<SocketAddr>>,
}

impl Hub {
    pub(crate) async fn start(behaviour: Behaviour) -> Self {
        Self::start_with(behaviour, None).await
    }

    /// The same with a hub that speaks TLS; its storage does not.
    pub(crate) async fn start_over_tls(behaviour: Behaviour, signed: &Signed) -> Self {
        Self::start_with(behaviour, Some(signed)).await
    }

    async fn start_with(behaviour: Behaviour, tls: Option<&Signed>) -> Self {
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(behaviour),
            hub_asked: Mutex::default(),
            storage_asked: Mutex::default(),
            storage: Mutex::default(),
        });
        let storage = serve(Router::new().fallback(storage).with_state(shared.clone())).await;
        *shared.storage.lock().unwrap() = Some(storage);
        let router = Router::new().fallback(hub).with_state(shared.clone());
        let address = match tls {
            Some(signed) => tls::serve(router, signed).await,
            None => serve(router).await,
        };
        Self { address, storage, shared }
    }

    /// What lets one read from it. The storage has another host name than the hub.
    pub(crate) fn access(&self) -> Access {
        Access {
            hub_endpoint: format!("http://{}", self.address),
            hub_owners: vec!["org".to_owned()],
            hub_redirect_hosts: vec![format!("localhost:{}", self.storage.port())],
            connect_timeout_ms: 2_000,
            idle_timeout_ms: 2_000,
            whole_timeout_ms: 60_000,
            ..Access::default()
        }
    }

    pub(crate) fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.shared.behaviour.lock().unwrap()
    }

    pub(crate) fn hub_asked(&self) -> Vec<Asked> {
        self.shared.hub_asked.lock().unwrap().clone()
    }

    pub(crate) fn storage_asked(&self) -> Vec<Asked> {
        self.shared.storage_asked.lock().unwrap().clone()
    }
}

async fn serve(router: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    address
}

fn note(asked: &Mutex<Vec<Asked>>, request: &Request<Body>) -> usize {
    let headers = request.headers().iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
    let path = request.uri().path_and_query().unwrap().to_string();
    let mut asked = asked.lock().unwrap();
    asked.push(Asked { path, headers: headers.collect() });
    asked.len()
}

fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.into()).unwrap()
}

async fn hub(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    let count = note(&shared.hub_asked, &request);
    let mut behaviour = shared.behaviour.lock().unwrap();
    if !behaviour.hub_failures.is_empty() {
        let (status, headers) = behaviour.hub_failures.remove(0);
        return answer(status, &headers, "");
    }
    let has_token = request.headers().get("authorization").is_some_and(|value| value == &format!("Bearer {TOKEN}"));
    if behaviour.is_private && !has_token {
        let headers = [("x-error-code", "RepoNotFound"), ("x-error-message", "Repository not found")];
        return answer(401, &headers, "Invalid username or password.");
    }
    if behaviour.is_gated {
        let headers = [("x-error-code", "GatedRepo"), ("x-error-message", "Access to model org/adapter is restricted")];
        return answer(403, &headers, "");
    }
    let path = request.uri().path();
    if path == format!("/api/models/org/adapter/revision/{}", behaviour.revision) {
        return answer(200, &[("content-type", "application/json")], info(&behaviour));
    }
    if path == "/api/models/org/old-name/revision/main" {
        return answer(307, &[("location", "/api/models/org/adapter/revision/main?blobs=true")], "");
    }
    let prefix = format!("/{}/resolve/{COMMIT}/", behaviour.id);
    let cached = "/api/resolve-cache/models/";
    let name = path.strip_prefix(&prefix).or(path.strip_prefix(cached)).unwrap_or_default();
    let Some((_, content, is_stored)) = behaviour.files.iter().find(|(file, ..)| *file == name) else {
        return answer(404, &[("x-error-code", "EntryNotFound")], "Entry not found");
    };
    if path.starts_with(cached) {
        return answer(200, &[("etag", "\"0a1b2c\"")], content.clone());
    }
    if !is_stored {
        return answer(307, &[("location", &format!("{cached}{name}")), ("x-repo-commit", COMMIT)], "");
    }
    let storage = shared.storage.lock().unwrap().unwrap();
    let signed = format!("http://localhost:{}/blob/{name}?signature={count}", storage.port());
    let to = behaviour.redirect.clone().unwrap_or(signed);
    let mut headers = vec![("location", to), ("x-repo-commit", COMMIT.to_owned())];
    if behaviour.tells_digest {
        headers.push(("x-linked-etag", format!("\"{}\"", digest(&behaviour, content))));
    }
    if behaviour.tells_length {
        headers.push(("x-linked-size", content.len().to_string()));
    }
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    answer(302, &headers, "")
}

fn digest(behaviour: &Behaviour, content: &[u8]) -> String {
    behaviour.digest.clone().unwrap_or_else(|| hex::encode(Sha256::digest(content)))
}

fn info(behaviour: &Behaviour) -> String {
    if let Some(info) = &behaviour.info {
        return info.clone();
    }
    let sibling = |(name, content, is_stored): &(&str, Vec<u8>, bool)| {
        let mut sibling = json!({"rfilename": name, "blobId": "0a1b2c"});
        if behaviour.tells_length {
            sibling["size"] = json!(content.len());
        }
        if *is_stored && behaviour.tells_digest {
            let digest = digest(behaviour, content);
            sibling["lfs"] = json!({"sha256": digest, "size": content.len(), "pointerSize": 134});
        }
        sibling
    };
    let siblings: Vec<_> = behaviour.files.iter().map(sibling).collect();
    json!({"_id": "1", "id": behaviour.id, "modelId": behaviour.id, "sha": COMMIT, "private": behaviour.is_private,
        "siblings": siblings})
    .to_string()
}

async fn storage(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    let count = note(&shared.storage_asked, &request);
    let mut behaviour = shared.behaviour.lock().unwrap();
    if !behaviour.storage_failures.is_empty() {
        let status = behaviour.storage_failures.remove(0);
        return StatusCode::from_u16(status).unwrap().into_response();
    }
    if behaviour.is_endless {
        let piece = Bytes::from(vec![0; 64 << 10]);
        return Body::from_stream(stream::repeat_with(move || io::Result::Ok(piece.clone()))).into_response();
    }
    let name = request.uri().path().trim_start_matches("/blob/");
    let Some((_, content, _)) = behaviour.files.iter().find(|(file, ..)| *file == name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let mut content = content.clone();
    let state = if behaviour.changes { count } else { 0 };
    content[0] ^= state as u8;
    let etag = match behaviour.etags {
        Etags::Weak => "W/\"state\"".to_owned(),
        Etags::Strong | Etags::First => format!("\"state-{state}\""),
    };
    let first = first_byte(request.headers(), &etag).filter(|_| behaviour.knows_ranges).unwrap_or(0);
    let (whole_bytes, rest) = (content.len(), Bytes::from(content).slice(first..));
    let response = match behaviour.etags {
        Etags::First if count > 1 => Response::builder(),
        _ => Response::builder().header(header::ETAG, etag),
    };
    let response = match first {
        0 => response.status(200),
        _ => {
            let range = format!("bytes {first}-{}/{whole_bytes}", whole_bytes - 1);
            response.status(206).header(header::CONTENT_RANGE, range)
        }
    };
    // Without a length, bodies are chunked.
    let response = match behaviour.tells_length {
        true => response.header(header::CONTENT_LENGTH, rest.len()),
        false => response,
    };
    let breaks = if behaviour.breaks.is_empty() { None } else { Some(behaviour.breaks.remove(0)) };
    let body = match (breaks, behaviour.stalls_after) {
        (Some(bytes), _) => {
            let broken = io::Error::other("broken off");
            // What was handed over just before an error may be lost with the connection.
            let pieces = [Ok(rest.slice(..bytes.min(rest.len()))), Err(broken)];
            Body::from_stream(stream::unfold(pieces.into_iter(), |mut pieces| async {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                Some((pieces.next()?, pieces))
            }))
        }
        (None, Some(bytes)) => {
            let some = stream::iter([io::Result::Ok(rest.slice(..bytes))]);
            Body::from_stream(futures::StreamExt::chain(some, stream::pending()))
        }
        (None, None) => Body::from(rest),
    };
    response.body(body).unwrap()
}

fn first_byte(headers: &HeaderMap, etag: &str) -> Option<usize> {
    let range = headers.get(header::RANGE)?.to_str().unwrap();
    if headers.get(header::IF_RANGE).is_some_and(|state| state != etag) {
        return None;
    }
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
}
