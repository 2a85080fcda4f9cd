//! What probes and scrapers see.

use crate::support::{BUCKET, World, client, smollm2};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use weft_service_kit::transport::{Address, connect};

const SERVICE: &str = "weft.registry.v1.Registry";

#[tokio::test]
async fn health_serves_packages_once_a_base_is_known_and_nothing_while_draining() {
    let world = World::new().await;
    let mut registry = world.start().await;
    let mut health = HealthClient::new(registry.channel.clone());
    let about = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let mut check = async |service| health.check(about(service)).await.unwrap().into_inner().status();
    assert_eq!(check(SERVICE).await, ServingStatus::NotServing);
    // The worker that will announce the base must get through a balancer.
    assert_eq!(check("").await, ServingStatus::Serving);
    registry.client.announce_base(smollm2()).await.unwrap();
    while check(SERVICE).await != ServingStatus::Serving {
        tokio::task::yield_now().await;
    }
    let mut watches = Vec::new();
    for service in ["", SERVICE] {
        let mut watch = health.watch(about(service)).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
        watches.push(watch);
    }
    registry.stop().await;
    for mut watch in watches {
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
        assert!(watch.message().await.unwrap().is_none());
    }
}

/// Status and body of a plain HTTP GET.
fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_binary_shows_metrics_and_readiness_over_http() {
    let world = World::new().await;
    let s3 = world.s3.settings(BUCKET);
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft-adapter-registry"))
        .args(["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"])
        .env("WEFT_S3_ENDPOINT", s3.endpoint.unwrap())
        .env("WEFT_S3_ACCESS_KEY_ID", s3.access_key_id.unwrap())
        .env("WEFT_S3_SECRET_ACCESS_KEY", s3.secret_access_key.unwrap())
        .env("WEFT_LOG", "error")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let metrics = lines.next().unwrap();
    let metrics = metrics.strip_prefix("metrics on ").unwrap_or_else(|| panic!("said {metrics:?}"));
    let listening: Address = lines.next().unwrap().strip_prefix("listening on ").unwrap().parse().unwrap();
    let (status, body) = get(metrics, "/readyz");
    assert!(status == 503 && body.contains("no worker has announced its base"), "{status} {body}");
    client(connect(&listening)).announce_base(smollm2()).await.unwrap();
    while get(metrics, "/readyz").0 != 200 {
        tokio::task::yield_now().await;
    }
    let (status, body) = get(metrics, "/metrics");
    assert!(status == 200 && body.contains("registry_calls_total"), "{status} {body}");
    child.kill().unwrap();
    child.wait().unwrap();
}
