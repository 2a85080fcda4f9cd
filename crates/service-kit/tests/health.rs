//! What a probe and a balancer hear over `grpc.health.v1`.

use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use weft_service_kit::health::Health;
use weft_service_kit::readiness::Readiness;
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::transport::{Listener, server};

const SERVICE: &str = "weft.test.v1.Test";

fn start(readiness: &Readiness, draining: &Shutdown) -> HealthClient<tonic::transport::Channel> {
    let (listener, channel) = Listener::memory();
    let health = Health::new(draining).report("", &Readiness::new()).report(SERVICE, readiness);
    tokio::spawn(server().add_service(health.into_server()).serve_with_incoming(listener.incoming()));
    HealthClient::new(channel)
}

fn about(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

#[tokio::test]
async fn a_check_follows_readiness_and_the_drain_at_once() {
    let (readiness, draining) = (Readiness::new(), Shutdown::new());
    readiness.wait_for("base", "reading the model");
    let mut client = start(&readiness, &draining);
    let mut status = async |service| client.check(about(service)).await.map(|answer| answer.into_inner().status());
    assert_eq!(status(SERVICE).await.unwrap(), ServingStatus::NotServing);
    assert_eq!(status("").await.unwrap(), ServingStatus::Serving);
    assert_eq!(status("weft.other").await.unwrap_err().code(), Code::NotFound);
    readiness.met("base");
    assert_eq!(status(SERVICE).await.unwrap(), ServingStatus::Serving);
    readiness.wait_for("base", "lost");
    assert_eq!(status(SERVICE).await.unwrap(), ServingStatus::NotServing);
    readiness.met("base");
    draining.trigger();
    for service in ["", SERVICE] {
        assert_eq!(status(service).await.unwrap(), ServingStatus::NotServing);
    }
}

#[tokio::test]
async fn a_watch_tells_each_change_once_and_ends_with_the_drain() {
    let (readiness, draining) = (Readiness::new(), Shutdown::new());
    readiness.wait_for("base", "reading the model");
    let mut client = start(&readiness, &draining);
    let mut watch = client.watch(about(SERVICE)).await.unwrap().into_inner();
    let mut unknown = client.watch(about("weft.other")).await.unwrap().into_inner();
    let mut next = async || watch.message().await.unwrap().map(|answer| answer.status());
    assert_eq!(next().await, Some(ServingStatus::NotServing));
    readiness.wait_for("base", "still reading");
    readiness.met("base");
    assert_eq!(next().await, Some(ServingStatus::Serving));
    draining.trigger();
    assert_eq!(next().await, Some(ServingStatus::NotServing));
    assert_eq!(next().await, None);
    assert_eq!(unknown.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    assert!(unknown.message().await.unwrap().is_none());
}

#[tokio::test]
async fn one_watch_more_than_allowed_is_refused_until_one_ends() {
    let mut client = start(&Readiness::new(), &Shutdown::new());
    let mut open = Vec::new();
    let refused = loop {
        match client.watch(about(SERVICE)).await {
            Ok(watch) => open.push(watch.into_inner()),
            Err(status) => break status,
        }
    };
    assert_eq!((refused.code(), open.len()), (Code::ResourceExhausted, 64));
    assert!(refused.message().contains("64"), "{refused}");
    open.pop();
    while client.watch(about(SERVICE)).await.is_err() {
        tokio::task::yield_now().await;
    }
}
