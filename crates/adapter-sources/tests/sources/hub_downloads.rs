//! Weights on the way: broken off, changed, endless, damaged.

use crate::support::hub::{Behaviour, Etags, Hub};
use crate::support::{bytes, weights};
use weft_adapter_sources::{Access, Error, Sources};
use weft_fault::Kind;

/// The weights of the hub's repository, or the error of the opening or of the stream.
async fn bring(access: Access) -> Result<Vec<u8>, Error> {
    weights(Sources::new(access).unwrap().open(&"hf://org/adapter".parse().unwrap()).await?).await
}

#[tokio::test]
async fn a_download_goes_on_where_it_broke_off() {
    let hub = Hub::start(Behaviour { breaks: vec![1_000_000, 1, 500_000], ..Behaviour::default() }).await;
    assert_eq!(bring(hub.access()).await.unwrap(), bytes(3_000_000));
    let asked = hub.storage_asked();
    assert_eq!(asked.len(), 4);
    assert!(!asked[0].headers.contains_key("range"));
    for again in &asked[1..] {
        assert!(again.headers["range"].starts_with("bytes=1"), "{again:?}");
        assert_eq!(again.headers["if-range"], "\"state-0\"");
    }
    let paths: std::collections::HashSet<_> = asked.iter().map(|asked| &asked.path).collect();
    assert_eq!(paths.len(), 4, "each try has a signature of its own");
}

#[tokio::test]
async fn a_storage_without_ranges_has_the_first_bytes_skipped() {
    let hub = Hub::start(Behaviour { breaks: vec![70_000, 10_000], knows_ranges: false, ..Behaviour::default() }).await;
    assert_eq!(bring(hub.access()).await.unwrap(), bytes(3_000_000));
}

#[tokio::test]
async fn tries_have_an_end() {
    let hub = Hub::start(Behaviour { breaks: vec![10; 9], ..Behaviour::default() }).await;
    let error = bring(Access { attempts: 3, ..hub.access() }).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    assert_eq!(hub.storage_asked().len(), 3);
}

#[tokio::test]
async fn a_signature_that_the_storage_refuses_is_asked_for_again() {
    let hub = Hub::start(Behaviour { storage_failures: vec![403, 500], ..Behaviour::default() }).await;
    assert_eq!(bring(hub.access()).await.unwrap().len(), 3_000_000);
}

#[tokio::test]
async fn pieces_of_two_states_are_never_put_together() {
    let changing = || Behaviour { breaks: vec![1000], changes: true, ..Behaviour::default() };
    // The digest tells.
    let hub = Hub::start(changing()).await;
    let error = bring(hub.access()).await.unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error:?}");
    // Without one the ETag does, with ranges and without.
    for knows_ranges in [true, false] {
        let hub = Hub::start(Behaviour { tells_digest: false, knows_ranges, ..changing() }).await;
        let error = bring(hub.access()).await.unwrap_err();
        assert!(matches!(error, Error::Changed { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn without_a_digest_a_state_that_cannot_be_told_is_another_one() {
    let changing =
        |etags| Behaviour { breaks: vec![1000], changes: true, tells_digest: false, etags, ..Behaviour::default() };
    let hub = Hub::start(changing(Etags::First)).await;
    let error = bring(hub.access()).await.unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error:?}");
    // A weak one tells nothing: it is not even tried.
    let hub = Hub::start(changing(Etags::Weak)).await;
    let error = bring(hub.access()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    assert_eq!(hub.storage_asked().len(), 1);
}

#[tokio::test]
async fn a_wrong_digest_ends_the_stream_with_an_error() {
    let hub = Hub::start(Behaviour { digest: Some("0".repeat(64)), ..Behaviour::default() }).await;
    let error = bring(hub.access()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
    assert!(error.to_string().contains("the hub says 0000"), "{error}");
}

#[tokio::test]
async fn a_digest_in_the_redirect_is_checked_too() {
    let hub = Hub::start(Behaviour::default()).await;
    let info = r#"{"id":"org/adapter","sha":"0123456789abcdef0123456789abcdef01234567",
        "siblings":[{"rfilename":"adapter_config.json"},{"rfilename":"adapter_model.safetensors"}]}"#;
    hub.behaviour().info = Some(info.to_owned());
    assert_eq!(bring(hub.access()).await.unwrap(), bytes(3_000_000));
    hub.behaviour().digest = Some("0".repeat(64));
    assert_eq!(bring(hub.access()).await.unwrap_err().kind(), Kind::Corrupt);
}

#[tokio::test]
async fn a_body_without_a_length_ends_where_it_ends() {
    let hub = Hub::start(Behaviour { tells_length: false, tells_digest: false, ..Behaviour::default() }).await;
    assert_eq!(bring(hub.access()).await.unwrap(), bytes(3_000_000));
}

#[tokio::test]
async fn an_endless_body_is_cut_at_what_was_announced_or_allowed() {
    let hub = Hub::start(Behaviour { is_endless: true, ..Behaviour::default() }).await;
    let error = bring(hub.access()).await.unwrap_err();
    assert!(error.to_string().contains("more than the 3000000 bytes that were announced"), "{error}");

    let hub =
        Hub::start(Behaviour { is_endless: true, tells_length: false, tells_digest: false, ..Behaviour::default() });
    let hub = hub.await;
    let error = bring(Access { weights_bytes_max: 5_000_000, ..hub.access() }).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { bytes_max: 5_000_000, .. }), "{error:?}");
}

#[tokio::test]
async fn a_length_other_than_announced_is_told() {
    let hub = Hub::start(Behaviour::default()).await;
    let info = r#"{"id":"org/adapter","sha":"0123456789abcdef0123456789abcdef01234567","siblings":[
        {"rfilename":"adapter_config.json"},{"rfilename":"adapter_model.safetensors","size":2999999}]}"#;
    hub.behaviour().info = Some(info.to_owned());
    let error = bring(hub.access()).await.unwrap_err();
    assert!(error.to_string().contains("has 3000000 bytes, announced were 2999999"), "{error}");
}

#[tokio::test]
async fn a_body_that_stalls_is_continued_and_then_given_up() {
    let hub = Hub::start(Behaviour { stalls_after: Some(100_000), ..Behaviour::default() }).await;
    let error = bring(Access { idle_timeout_ms: 200, attempts: 3, ..hub.access() }).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { setting: "idle_timeout_ms", ms: 200, .. }), "{error:?}");
    let asked = hub.storage_asked();
    assert_eq!(asked.len(), 3);
    assert_eq!(asked[2].headers["range"], "bytes=200000-");
    let error = bring(Access { whole_timeout_ms: 300, ..hub.access() }).await.unwrap_err();
    assert!(matches!(error, Error::Timeout { setting: "whole_timeout_ms", .. }), "{error:?}");
}
