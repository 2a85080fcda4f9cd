//! What an operator can write, and what is wrong with it.

use weft_adapter_sources::{Access, Error, Source, Sources};

#[tokio::test]
async fn by_default_nothing_is_allowed() {
    let sources = Sources::new(Access::default()).unwrap();
    for (text, field) in
        [("hf://org/name", "hub_owners"), ("s3://bucket/x", "s3_buckets"), ("file:///etc", "file_roots")]
    {
        let source: Source = text.parse().unwrap();
        let error = sources.open(&source).await.unwrap_err();
        assert!(matches!(error, Error::NotAllowed { setting, .. } if setting == field), "{error:?}");
    }
}

#[test]
fn every_problem_is_told_at_once() {
    let text = r#"{
        "file_roots": ["relative"], "s3_buckets": ["bucket"], "s3": {"endpoint": "ftp://x"}, "hub_endpoint": "https://u:p@host?q",
        "hub_owners": [""], "hub_redirect_hosts": ["https://cdn"], "weights_bytes_max": 0, "idle_timeout_ms": 0, "attempts": 0
    }"#;
    let access: Access = serde_json::from_str(text).unwrap();
    let error = access.check().unwrap_err().to_string();
    for field in [
        "file_roots",
        "s3.endpoint",
        "hub_endpoint",
        "hub_owners",
        "hub_redirect_hosts",
        "weights_bytes_max",
        "idle_timeout_ms",
        "attempts",
    ] {
        assert!(error.contains(field), "{field}: {error}");
    }
    assert_eq!(Sources::new(access).unwrap_err().to_string(), error);
}

#[test]
fn a_token_is_not_sent_in_the_clear_beyond_this_machine() {
    let access = |endpoint: &str| Access {
        hub_endpoint: endpoint.to_owned(),
        hub_token_file: Some("/run/token".into()),
        ..Access::default()
    };
    for endpoint in ["https://hub.test", "http://127.0.0.1:8080", "http://[::1]:8080", "http://localhost"] {
        access(endpoint).check().unwrap();
    }
    let error = access("http://hub.test").check().unwrap_err().to_string();
    assert!(error.contains("hub_token_file"), "{error}");
}

#[test]
fn unknown_fields_are_refused_and_secrets_are_not_shown() {
    assert!(serde_json::from_str::<Access>(r#"{"file_root": []}"#).is_err());
    assert!(serde_json::from_str::<Access>(r#"{"s3": {"bucket": "x"}}"#).is_err());
    let access: Access =
        serde_json::from_str(r#"{"s3": {"access_key_id": "id", "secret_access_key": "geheim"}}"#).unwrap();
    assert_eq!(access.s3.secret_access_key.as_deref(), Some("geheim"));
    assert!(!format!("{access:?}").contains("geheim"));
    assert!(!serde_json::to_string(&access).unwrap().contains("geheim"));
}
