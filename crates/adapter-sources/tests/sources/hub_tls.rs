//! A hub that speaks TLS.

use crate::support::hub::{Behaviour, CONFIG, Hub, TOKEN};
use crate::support::{bytes, weights};
use weft_adapter_sources::{Access, Error, Sources};
use weft_certificate_testkit::Authority;
use weft_fault::Kind;

#[tokio::test]
async fn only_a_hub_that_proves_its_name_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(&dir.path().join("ours"));
    let other = Authority::new(&dir.path().join("other"));
    let files =
        vec![("adapter_config.json", CONFIG.into(), false), ("adapter_model.safetensors", bytes(2_000_000), false)];
    let signed = authority.sign("hub", &["localhost"]);
    let hub = Hub::start_over_tls(Behaviour { files, is_private: true, ..Behaviour::default() }, &signed).await;
    let token = dir.path().join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let access = Access {
        hub_endpoint: format!("https://localhost:{}", hub.address.port()),
        hub_token_file: Some(token),
        hub_ca_file: Some(authority.ca()),
        attempts: 1,
        ..hub.access()
    };
    let source = "hf://org/adapter".parse().unwrap();
    let open = async |access: &Access| Sources::new(access.clone()).unwrap().open(&source).await;

    assert_eq!(weights(open(&access).await.unwrap()).await.unwrap(), bytes(2_000_000));

    for (what, wrong) in [
        ("nobody vouches", Access { hub_ca_file: None, ..access.clone() }),
        ("another vouches", Access { hub_ca_file: Some(other.ca()), ..access.clone() }),
        ("another name", Access { hub_endpoint: format!("https://{}", hub.address), ..access.clone() }),
    ] {
        let asked = hub.hub_asked().len();
        let error = open(&wrong).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{what}: {error:?}");
        assert!(error.to_string().contains("certificate"), "{what}: {error}");
        assert_eq!(hub.hub_asked().len(), asked, "{what}: the token was sent");
    }

    // From TLS nothing leads to a place without, be it listed.
    hub.behaviour().files[1].2 = true;
    let error = open(&access).await.unwrap_err();
    assert!(matches!(error, Error::Redirect { .. }) && error.to_string().contains("not https"), "{error:?}");
}

#[test]
fn a_file_without_certificates_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    for (content, problem) in [(None, "cannot be read"), (Some("nonsense"), "no certificate")] {
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let error = Sources::new(Access { hub_ca_file: Some(path.clone()), ..Access::default() }).unwrap_err();
        assert!(error.to_string().contains("hub_ca_file") && error.to_string().contains(problem), "{error}");
    }
}
