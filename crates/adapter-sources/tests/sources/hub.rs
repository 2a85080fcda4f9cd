//! Repositories: what is found, and what is refused.

use crate::support::hub::{Behaviour, COMMIT, CONFIG, Hub, TOKEN};
use crate::support::{bytes, weights};
use std::path::Path;
use weft_adapter_sources::{Access, Error, Opened, Sources};
use weft_fault::{Fault, Kind};

async fn open(access: Access, source: &str) -> Result<Opened, Error> {
    Sources::new(access).unwrap().open(&source.parse().unwrap()).await
}

fn with_token(access: Access, dir: &Path) -> Access {
    let path = dir.join("token");
    std::fs::write(&path, format!("{TOKEN}\n")).unwrap();
    Access { hub_token_file: Some(path), ..access }
}

#[tokio::test]
async fn a_repository_is_found_at_its_commit() {
    let hub = Hub::start(Behaviour::default()).await;
    let opened = open(hub.access(), "hf://org/adapter").await.unwrap();
    assert_eq!(opened.config, CONFIG);
    assert_eq!(opened.weights_bytes, Some(3_000_000));
    assert_eq!(opened.origin, format!("hf://org/adapter@{COMMIT}"));
    assert_eq!(opened.other_files, ["tokenizer.json", "README.md"]);
    assert_eq!(weights(opened).await.unwrap(), bytes(3_000_000));
    let asked = hub.hub_asked();
    assert_eq!(asked[0].path, "/api/models/org/adapter/revision/main?blobs=true");
    assert!(asked[1..].iter().all(|asked| asked.path.contains(COMMIT) || asked.path.contains("resolve-cache")));
    assert!(asked.iter().all(|asked| !asked.headers.contains_key("authorization")));
}

#[tokio::test]
async fn a_revision_is_one_name_of_the_path_whatever_it_has() {
    let hub = Hub::start(Behaviour { revision: "refs%2Fpr%2F1".to_owned(), ..Behaviour::default() }).await;
    open(hub.access(), "hf://org/adapter@refs/pr/1").await.unwrap();
    let error = open(hub.access(), "hf://org/adapter@v2").await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (Kind::NotFound, "hf://org/adapter@v2 does not exist"));
}

#[tokio::test]
async fn a_hub_below_a_path_is_asked_there() {
    let hub = Hub::start(Behaviour::default()).await;
    let access = Access { hub_endpoint: format!("http://{}/mirror/hf/", hub.address), ..hub.access() };
    assert_eq!(open(access, "hf://org/adapter").await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(hub.hub_asked()[0].path, "/mirror/hf/api/models/org/adapter/revision/main?blobs=true");
}

#[tokio::test]
async fn a_private_repository_needs_the_token_and_the_token_goes_to_the_hub_alone() {
    let dir = tempfile::tempdir().unwrap();
    let hub = Hub::start(Behaviour { is_private: true, ..Behaviour::default() }).await;
    let error = open(hub.access(), "hf://org/adapter").await.unwrap_err();
    assert!(matches!(error, Error::Unauthenticated { .. }), "{error:?}");
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.to_string().contains("hub_token_file"), "{error}");

    let access = with_token(hub.access(), dir.path());
    // The storage breaks off once, so that it is asked twice.
    hub.behaviour().breaks = vec![1000];
    let opened = open(access.clone(), "hf://org/adapter").await.unwrap();
    assert_eq!(weights(opened).await.unwrap().len(), 3_000_000);
    assert_eq!(hub.storage_asked().len(), 2);
    for asked in hub.storage_asked() {
        let mut headers = asked.headers.values().chain([&asked.path]);
        assert!(!headers.any(|value| value.contains(TOKEN)), "{asked:?}");
        assert!(!asked.headers.contains_key("referer"), "{asked:?}");
    }

    // Read at each use, and not shown.
    std::fs::write(access.hub_token_file.as_ref().unwrap(), "hf_other").unwrap();
    let error = open(access.clone(), "hf://org/adapter").await.unwrap_err();
    assert!(matches!(error, Error::Unauthenticated { .. }) && !format!("{error:?}").contains("hf_other"));
    std::fs::write(access.hub_token_file.as_ref().unwrap(), "two words").unwrap();
    let error = open(access.clone(), "hf://org/adapter").await.unwrap_err();
    assert!(error.to_string().contains("hub_token_file") && !error.to_string().contains("two words"), "{error}");
    let folder = dir.path().to_str().unwrap();
    assert!(!Fault::from(error).message.contains(folder), "where the token is, is nobody's business");
    std::fs::remove_file(access.hub_token_file.as_ref().unwrap()).unwrap();
    let fault = Fault::from(open(access, "hf://org/adapter").await.unwrap_err());
    assert_eq!(fault.kind, Kind::Internal);
    assert!(fault.message.contains("hub_token_file") && !fault.message.contains(folder), "{fault}");
}

#[tokio::test]
async fn a_gated_repository_says_why() {
    let hub = Hub::start(Behaviour { is_gated: true, ..Behaviour::default() }).await;
    let error = open(hub.access(), "hf://org/adapter").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Refused);
    assert!(error.to_string().contains("Access to model org/adapter is restricted"), "{error}");
}

#[tokio::test]
async fn only_listed_owners_are_read_under_whatever_name() {
    let hub = Hub::start(Behaviour::default()).await;
    for source in ["hf://other/adapter", "hf://adapter", "hf://Org/adapter"] {
        let error = open(hub.access(), source).await.unwrap_err();
        assert!(matches!(error, Error::NotAllowed { setting: "hub_owners", .. }), "{source}: {error:?}");
    }
    assert!(hub.hub_asked().is_empty(), "what is not allowed is not asked for");
    let nobody = Access { hub_owners: Vec::new(), ..hub.access() };
    assert_eq!(open(nobody, "hf://org/adapter").await.unwrap_err().kind(), Kind::Refused);

    // A name that the hub redirects.
    let opened = open(hub.access(), "hf://org/old-name").await.unwrap();
    assert_eq!(opened.origin, format!("hf://org/adapter@{COMMIT}"));
    // It belongs to somebody else now.
    hub.behaviour().id = "other/adapter".to_owned();
    let error = open(hub.access(), "hf://org/old-name").await.unwrap_err();
    assert!(matches!(error, Error::NotAllowed { setting: "hub_owners", .. }), "{error:?}");
    let all = Access { hub_owners: vec!["*".to_owned()], ..hub.access() };
    let opened = open(all, "hf://org/old-name").await.unwrap();
    assert_eq!(opened.origin, format!("hf://other/adapter@{COMMIT}"));
}

#[tokio::test]
async fn what_is_no_package_is_told_apart() {
    let hub = Hub::start(Behaviour::default()).await;
    let config = ("adapter_config.json", CONFIG.as_bytes().to_vec(), false);
    let weights = ("adapter_model.safetensors", bytes(1000), true);

    hub.behaviour().files = vec![config.clone(), ("adapter_model.bin", bytes(1000), true)];
    let error = open(hub.access(), "hf://org/adapter").await.unwrap_err();
    assert!(matches!(error, Error::PickleOnly { .. }), "{error:?}");
    assert!(error.to_string().contains("save the adapter as safetensors"), "{error}");

    hub.behaviour().files = vec![config.clone()];
    let error = open(hub.access(), "hf://org/adapter").await.unwrap_err();
    assert!(matches!(error, Error::Missing { file: "adapter_model.safetensors", .. }), "{error:?}");

    hub.behaviour().files = vec![weights.clone()];
    let error = open(hub.access(), "hf://org/adapter").await.unwrap_err();
    assert!(matches!(error, Error::Missing { file: "adapter_config.json", .. }), "{error:?}");

    hub.behaviour().files = vec![("adapter_config.json", bytes((1 << 20) + 1), false), weights.clone()];
    let error = open(hub.access(), "hf://org/adapter").await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { part: "adapter_config.json", .. }), "{error:?}");
    // A hub that tells no lengths.
    hub.behaviour().tells_length = false;
    let error = open(hub.access(), "hf://org/adapter").await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { part: "adapter_config.json", .. }), "{error:?}");

    *hub.behaviour() = Behaviour { files: vec![config, weights], ..Behaviour::default() };
    let small = Access { weights_bytes_max: 999, ..hub.access() };
    let error = open(small, "hf://org/adapter").await.unwrap_err();
    let text = error.to_string();
    assert_eq!(text, "adapter_model.safetensors has more than 999 bytes, the limit of weights_bytes_max");
    assert!(hub.storage_asked().is_empty(), "weights that are too large are not asked for");
}

#[tokio::test]
async fn an_answer_that_cannot_be_used_is_told() {
    let hub = Hub::start(Behaviour::default()).await;
    let huge = format!(r#"{{"sha":"{COMMIT}","x":"{}"}}"#, "x".repeat(4 << 20));
    for (info, problem) in [
        ("<html>".to_owned(), "expected value"),
        ("{}".to_owned(), "sha is missing"),
        (r#"{"sha":"main"}"#.to_owned(), "40 hexadecimal digits"),
        (format!(r#"{{"sha":"{COMMIT}","id":"../x"}}"#), "id: name"),
        (huge, "more than 4194304 bytes"),
    ] {
        hub.behaviour().info = Some(info);
        let error = open(hub.access(), "hf://org/adapter").await.unwrap_err();
        assert_eq!(error.kind(), Kind::Internal, "{error}");
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[tokio::test]
async fn a_hub_that_is_busy_is_asked_again_if_it_is_not_for_long() {
    let hub = Hub::start(Behaviour::default()).await;
    hub.behaviour().hub_failures = vec![(503, vec![]), (500, vec![]), (429, vec![("retry-after", "1")])];
    open(hub.access(), "hf://org/adapter").await.unwrap();

    hub.behaviour().hub_failures = vec![(429, vec![("retry-after", "3600")])];
    let asked = hub.hub_asked().len();
    let error = open(hub.access(), "hf://org/adapter").await.unwrap_err();
    assert_eq!(hub.hub_asked().len(), asked + 1);
    let fault = Fault::from(error);
    assert_eq!((fault.kind, fault.retry_after_ms), (Kind::Overloaded, Some(3_600_000)));

    hub.behaviour().hub_failures = vec![(503, vec![]); 3];
    let twice = Access { attempts: 2, ..hub.access() };
    assert_eq!(open(twice, "hf://org/adapter").await.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(hub.behaviour().hub_failures.len(), 1);
}

#[tokio::test]
async fn nobody_at_the_hub_is_unavailable_and_a_silent_hub_is_too_late() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let access = Access {
        hub_endpoint: format!("http://{address}"),
        hub_owners: vec!["*".to_owned()],
        idle_timeout_ms: 100,
        attempts: 2,
        ..Access::default()
    };
    let error = open(access.clone(), "hf://org/adapter").await.unwrap_err();
    assert!(matches!(error, Error::Timeout { setting: "idle_timeout_ms", .. }), "{error:?}");
    let impatient = Access { idle_timeout_ms: 60_000, whole_timeout_ms: 100, ..access.clone() };
    let error = open(impatient, "hf://org/adapter").await.unwrap_err();
    assert!(matches!(error, Error::Timeout { setting: "whole_timeout_ms", ms: 100, .. }), "{error:?}");
    drop(listener);
    let error = open(access, "hf://org/adapter").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    assert!(error.to_string().contains("refused"), "{error}");
}
