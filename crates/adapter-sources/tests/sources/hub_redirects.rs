//! Where a hub may send us, and where it may not: from the outside. The rules one by one are tested where they are.

use crate::support::hub::{Behaviour, Hub, TOKEN};
use crate::support::weights;
use weft_adapter_sources::{Access, Error, Sources};
use weft_fault::Kind;

/// What becomes of weights that the hub redirects there.
async fn redirected(hub: &Hub, access: Access, to: &str) -> Result<(), Error> {
    hub.behaviour().redirect = Some(to.to_owned());
    let sources = Sources::new(access).unwrap();
    weights(sources.open(&"hf://org/adapter".parse().unwrap()).await?).await.map(drop)
}

#[tokio::test]
async fn nothing_inside_the_network_is_asked() {
    let hub = Hub::start(Behaviour::default()).await;
    let any = || Access { hub_redirect_hosts: vec!["*".to_owned()], ..hub.access() };
    let storage = hub.storage.port();
    for (to, class) in [
        ("http://169.254.169.254/latest/meta-data/".to_owned(), "link-local"),
        (format!("http://127.0.0.2:{storage}/"), "loopback"),
        (format!("https://[::1]:{storage}/"), "loopback"),
        ("https://[::ffff:10.0.0.1]/".to_owned(), "an IPv4 address in IPv6"),
        ("https://0x7f.2/".to_owned(), "loopback"),
        ("https://10.0.0.1/".to_owned(), "private"),
        // Only the resolver can tell.
        ("https://localhost/".to_owned(), "loopback"),
    ] {
        let error = redirected(&hub, any(), &to).await.unwrap_err();
        let Error::Address { class: told, .. } = &error else { panic!("{to}: {error:?}") };
        assert_eq!((*told, error.kind()), (class, Kind::Refused), "{to}");
        let text = weft_fault::Fault::from(error).message;
        let addresses = ["169.254", "127.0.0", "::1", "10.0.0.1", "a00:1"];
        assert!(!addresses.iter().any(|address| text.contains(address)), "{to}: {text}");
    }
    assert!(hub.storage_asked().is_empty());
}

#[tokio::test]
async fn only_hosts_and_ports_that_are_listed_are_asked() {
    let hub = Hub::start(Behaviour::default()).await;
    let storage = hub.storage.port();
    for (to, problem) in [
        ("http://localhost/".to_owned(), "not with this port"),
        ("https://evil.test/".to_owned(), "not in hub_redirect_hosts"),
        (format!("http://127.0.0.1:{storage}/blob/adapter_model.safetensors"), "not with this port"),
        ("file:///etc/passwd".to_owned(), "no host"),
    ] {
        let error = redirected(&hub, hub.access(), &to).await.unwrap_err();
        assert!(matches!(error, Error::Redirect { .. }), "{to}: {error:?}");
        assert!(error.to_string().contains(problem), "{to}: {error}");
        assert!(!error.to_string().contains("127.0.0.1"), "{error}");
    }
    assert!(hub.storage_asked().is_empty());
    let allowed = format!("http://localhost:{storage}/blob/adapter_model.safetensors");
    redirected(&hub, hub.access(), &allowed).await.unwrap();
}

#[tokio::test]
async fn a_signature_is_not_told() {
    let hub = Hub::start(Behaviour::default()).await;
    let error = redirected(&hub, hub.access(), "https://evil.test/blob?signature=geheim").await.unwrap_err();
    assert!(!format!("{error:?}").contains("geheim"), "{error:?}");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let access = Access { attempts: 1, hub_redirect_hosts: vec![closed.to_string()], ..hub.access() };
    let error = redirected(&hub, access, &format!("http://{closed}/blob?signature=geheim")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(!format!("{error:?}").contains("geheim"), "{error:?}");
}

#[tokio::test]
async fn redirects_have_an_end() {
    let hub = Hub::start(Behaviour::default()).await;
    let file = "adapter_model.safetensors";
    let itself = format!("http://{}/org/adapter/resolve/{}/{file}", hub.address, crate::support::hub::COMMIT);
    let error = redirected(&hub, hub.access(), &itself).await.unwrap_err();
    assert!(error.to_string().contains("5 redirects"), "{error}");
    assert_eq!(hub.hub_asked().iter().filter(|asked| asked.path.ends_with(file)).count(), 6);
}

#[tokio::test]
async fn a_token_is_not_kept_for_a_host_that_only_looks_like_the_hub() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, TOKEN).unwrap();
    // The same host on another port, allowed by name.
    let hub = Hub::start(Behaviour::default()).await;
    let access = Access {
        hub_token_file: Some(token),
        hub_redirect_hosts: vec![format!("127.0.0.1:{}", hub.storage.port())],
        ..hub.access()
    };
    let to = format!("http://127.0.0.1:{}/blob/adapter_model.safetensors", hub.storage.port());
    redirected(&hub, access, &to).await.unwrap();
    assert!(hub.hub_asked().iter().all(|asked| asked.headers["authorization"].contains(TOKEN)));
    assert!(hub.storage_asked().iter().all(|asked| !asked.headers.contains_key("authorization")));
}
