//! How long others may take for an answer, and that they hear of it.

use crate::support::registry::FakeRegistry;
use crate::support::worker::FakeWorker;
use crate::support::{mesh, read, settings, start};
use tokio::net::TcpListener;
use weft_gateway::Settings;
use weft_service_kit::transport::{Address, connect};

/// Milliseconds of a `grpc-timeout`.
fn ms(timeout: &str) -> u64 {
    let (number, unit) = timeout.split_at(timeout.len() - 1);
    let number: u64 = number.parse().unwrap();
    match unit {
        "m" => number,
        "u" => number / 1000,
        "n" => number / 1_000_000,
        "S" => number * 1000,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn workers_and_the_registry_hear_when_an_answer_is_too_late() {
    let mesh = mesh().await;
    assert_eq!(mesh.chat("pirate").await.0, 200);
    let deadlines = mesh.workers[0].deadlines();
    let [deadline] = &deadlines[..] else { panic!("{deadlines:?}") };
    let most = Settings::default().request_timeout_s * 1000;
    // What is left of the request's time: the test has not run for the other half of it.
    assert!((most / 2..most + 1000).contains(&ms(deadline)), "{deadline}");

    assert_eq!(mesh.operate("GET", "/tenants").send().await.unwrap().status(), 200);
    let deadlines = mesh.registry.deadlines("ListTenants");
    let [deadline] = &deadlines[..] else { panic!("{deadlines:?}") };
    let most = Settings::default().registry_timeout_ms;
    assert!((most..most + 1000).contains(&ms(deadline)), "{deadline}");
    // A stream that lasts has none.
    assert!(mesh.registry.deadlines("WatchDirectory").iter().all(String::is_empty));
    assert!(!mesh.registry.deadlines("WatchDirectory").is_empty());
}

#[tokio::test]
async fn a_registry_that_accepts_and_says_nothing_keeps_no_operator() {
    let frozen = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: Address = frozen.local_addr().unwrap().to_string().parse().unwrap();
    let settings = Settings { registry_timeout_ms: 200, ..settings() };
    let registry = FakeRegistry::with_tenants();
    let nobody: Vec<FakeWorker> = Vec::new();
    let mesh = start(settings, connect(&address), Vec::new(), registry, nobody, Vec::new()).await;
    let (status, body) = read(mesh.operate("GET", "/tenants").send().await.unwrap()).await;
    let message = body["error"]["message"].as_str().unwrap();
    assert!(status == 504 && message.contains("did not answer within 200 ms"), "{status} {body}");
}
