//! The operations listener over real HTTP.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_service_kit::operations::{Operations, check_listen};
use weft_service_kit::readiness::Readiness;
use weft_service_kit::shutdown::Shutdown;

/// Status and body.
async fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[tokio::test]
async fn it_shows_the_start_the_readiness_the_drain_and_the_metrics() {
    let (metrics, draining) = (prometheus::Registry::new(), Shutdown::new());
    let counter = prometheus::IntCounter::new("test_things_total", "Things.").unwrap();
    metrics.register(Box::new(counter.clone())).unwrap();
    counter.inc_by(3);
    let operations = Operations::start("127.0.0.1:0", &metrics, &draining).await.unwrap();
    let address = operations.address().unwrap().to_owned();
    assert_eq!(get(&address, "/livez").await, (200, r#"{"alive":true}"#.to_owned()));
    let (status, body) = get(&address, "/readyz").await;
    assert!(status == 503 && body.contains("the service is starting"), "{status} {body}");

    let readiness = Readiness::new();
    readiness.wait_for("base", "reading the model");
    operations.follow(&readiness);
    let (status, body) = get(&address, "/readyz").await;
    assert!(status == 503 && body.contains("reading the model") && !body.contains("starting"), "{status} {body}");
    readiness.met("base");
    assert_eq!(get(&address, "/readyz").await, (200, r#"{"ready":true,"waiting_for":[],"degraded":[]}"#.to_owned()));
    let (status, body) = get(&address, "/metrics").await;
    assert!(status == 200 && body.contains("test_things_total 3"), "{status} {body}");
    assert_eq!(get(&address, "/admin/v1").await.0, 404);
    draining.trigger();
    let (status, body) = get(&address, "/readyz").await;
    assert!(status == 503 && body.contains("draining"), "{status} {body}");
    assert_eq!(get(&address, "/livez").await.0, 200);
}

#[tokio::test]
async fn connections_over_the_limit_wait_for_one_to_end() {
    let operations = Operations::start("127.0.0.1:0", &prometheus::Registry::new(), &Shutdown::new()).await.unwrap();
    let address = operations.address().unwrap().to_owned();
    let mut idle = Vec::new();
    for _ in 0..32 {
        let mut stream = TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        // Answered: this connection has its place.
        stream.read_u8().await.unwrap();
        idle.push(stream);
    }
    let mut waiting = Box::pin(get(&address, "/livez"));
    tokio::select! {
        biased;
        answer = &mut waiting => panic!("answered beyond the limit: {answer:?}"),
        // Enough turns of the runtime for an answer, were it given.
        () = async { for _ in 0..1000 { tokio::task::yield_now().await } } => {}
    }
    drop(idle.pop());
    assert_eq!(waiting.await.0, 200);
}

#[tokio::test]
async fn empty_is_off_and_what_cannot_be_listened_on_is_named() {
    let (metrics, draining) = (prometheus::Registry::new(), Shutdown::new());
    assert_eq!(Operations::start("", &metrics, &draining).await.unwrap().address(), None);
    let first = Operations::start("127.0.0.1:0", &metrics, &draining).await.unwrap();
    let taken = first.address().unwrap();
    let Err(error) = Operations::start(taken, &metrics, &draining).await else { panic!("bound twice") };
    assert!(error.to_string().contains(taken), "{error}");
    assert!(check_listen("nowhere").unwrap_err().contains("metrics_listen") && check_listen("").is_ok());
}
