//! Requests that end early, a worker that ends, a worker that cannot start, and what it tells the registry.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use crate::support::{Answer, HELLO, TestWorker, blob, golden, golden_greedy, request, settings};
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use weft_fault::{Fault, Kind};
use weft_proto::worker::v1 as pb;
use weft_service_kit::transport::{Address, Listener, connect};
use weft_worker::{App, Components, Error, Settings};

#[tokio::test]
async fn a_dropped_stream_ends_its_request_and_frees_blocks_and_slot() {
    let worker = TestWorker::start(settings()).await;
    let digest = worker.shelf.put(&blob("rank8"));
    let mut client = worker.client.clone();
    let mut cut_short = 0;
    // The worker may be done before the news of the drop arrives; not every time.
    for _ in 0..20 {
        let before = worker.load().await.output_tokens_total;
        let mut stream = client.generate(request(Some(digest), HELLO, 240)).await.unwrap().into_inner();
        assert!(stream.message().await.unwrap().is_some());
        drop(stream);
        let after = worker.load_when(|load| load.running_requests == 0).await;
        assert_eq!(after.kv_blocks_used, 0);
        assert_eq!(worker.users(&digest).await, 0);
        cut_short += usize::from(after.output_tokens_total - before < 240);
    }
    assert!(cut_short > 0, "no request was cut short");
}

#[tokio::test]
async fn a_request_cancelled_while_it_waits_for_its_adapter_leaves_nothing() {
    let worker = TestWorker::start(settings()).await;
    let digest = worker.shelf.put(&blob("rank8"));
    worker.shelf.hold();
    let mut client = worker.client.clone();
    let call = tokio::spawn(async move { client.generate(request(Some(digest), HELLO, 4)).await.map(|_| ()) });
    worker.load_when(|load| load.loading_requests == 1).await;
    call.abort();
    worker.load_when(|load| load.loading_requests == 0).await;
    worker.shelf.let_go();
    worker.shelf.held(0).await;
    assert_eq!(worker.load().await.running_requests, 0);
}

#[tokio::test]
async fn a_deadline_ends_a_request_that_waits_and_one_that_runs() {
    let worker = TestWorker::start(settings()).await;
    let digest = worker.shelf.put(&blob("rank8"));
    worker.shelf.hold();
    let waiting = pb::GenerateRequest { deadline_ms: 20, ..request(Some(digest), HELLO, 4) };
    let fault = worker.generate(waiting).await.unwrap_err();
    assert_eq!(fault.kind, Kind::Timeout);
    assert!(fault.message.contains("20 ms"), "{fault}");
    let load = worker.load().await;
    assert_eq!((load.loading_requests, load.kv_blocks_used), (0, 0));
    // Long enough to be stopped on its way, whatever the machine: with one token a step it needs 244 steps.
    let mut ended = 0;
    for _ in 0..20 {
        let running = pb::GenerateRequest { deadline_ms: 3, ..request(None, HELLO, 244) };
        match worker.generate(running).await {
            Err(fault) => {
                assert_eq!(fault.kind, Kind::Timeout);
                ended += 1;
            }
            Ok(answer) => assert_eq!(answer.tokens.len(), 244),
        }
    }
    assert!(ended > 0, "no deadline was met with a running request");
    assert_eq!(worker.load().await.kv_blocks_used, 0);
}

#[tokio::test]
async fn a_full_queue_is_answered_with_overloaded_and_a_calm_tenant_still_gets_in() {
    let worker = TestWorker::start(Settings { queue_requests_max: 4, running_requests_max: 1, ..settings() }).await;
    let digest = worker.shelf.put(&blob("rank8"));
    worker.shelf.hold();
    let call = |tenant: &str| {
        let (mut client, tenant) = (worker.client.clone(), tenant.to_owned());
        tokio::spawn(async move {
            let asked = pb::GenerateRequest { tenant, ..request(Some(digest), HELLO, 16) };
            let stream = client.generate(asked).await.map_err(Fault::from)?.into_inner();
            Answer::read(stream).await
        })
    };
    let flood: Vec<_> = (0..4).map(|_| call("flood")).collect();
    worker.load_when(|load| load.loading_requests == 4).await;
    let fault = call("flood").await.unwrap().unwrap_err();
    assert_eq!((fault.kind, fault.code.as_str()), (Kind::Overloaded, "queue_full"));
    assert!(fault.retry_after_ms.is_some() && fault.message.contains('4'), "{fault}");
    let calm = call("calm");
    let mut pushed_out = 0;
    let mut served = 0;
    // One of the flood makes room at once, before anything is served.
    let mut flood = flood.into_iter().collect::<Vec<_>>();
    while !flood.iter().any(tokio::task::JoinHandle::is_finished) {
        tokio::task::yield_now().await;
    }
    worker.shelf.let_go();
    for call in flood.drain(..) {
        match call.await.unwrap() {
            Ok(answer) => {
                assert_eq!(answer.ids(), golden_greedy(Some("rank8")));
                served += 1;
            }
            Err(fault) => {
                assert_eq!(fault.kind, Kind::Overloaded);
                pushed_out += 1;
            }
        }
    }
    assert_eq!((served, pushed_out), (3, 1));
    assert_eq!(calm.await.unwrap().unwrap().ids(), golden_greedy(Some("rank8")));
}

#[tokio::test]
async fn shutdown_finishes_what_is_open_and_refuses_what_comes() {
    let mut worker = TestWorker::start(settings()).await;
    let digest = worker.shelf.put(&blob("rank8"));
    worker.shelf.hold();
    let mut client = worker.client.clone();
    let open = tokio::spawn(async move { client.generate(request(Some(digest), HELLO, 16)).await });
    worker.load_when(|load| load.loading_requests == 1).await;
    worker.shutdown.trigger();
    worker.load_when(|load| load.draining).await;
    let refused = worker.generate(request(None, HELLO, 4)).await.unwrap_err();
    assert_eq!((refused.kind, refused.message.as_str()), (Kind::Unavailable, "worker is shutting down"));
    worker.shelf.let_go();
    let answer = Answer::read(open.await.unwrap().unwrap().into_inner()).await.unwrap();
    assert_eq!(answer.ids(), golden_greedy(Some("rank8")));
    (&mut worker.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_cache_daemon_that_accepts_and_says_nothing_is_given_up_and_named() {
    let frozen = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: Address = frozen.local_addr().unwrap().to_string().parse().unwrap();
    let components = Components { cache_daemon: connect(&address), registry: None };
    let app = App::build(settings(), components, &prometheus::Registry::new()).await.unwrap();
    let readiness = app.readiness();
    let mut changes = readiness.changes();
    let said = |why: &str| why.contains("did not take the lease stream within 5 s");
    while !readiness.waiting().iter().any(|(condition, why)| condition == "cache-daemon" && said(why)) {
        changes.next().await;
    }
}

#[tokio::test]
async fn health_says_serving_only_between_readiness_and_drain() {
    let (heard, mut announcements) = mpsc::unbounded_channel();
    let ear = Ear { heard, calls: Arc::default() };
    let (listener, registry) = Listener::memory();
    let settings = Settings { announce_interval_s: 1, ..settings() };
    let worker = TestWorker::start_with(settings, crate::support::shelf::Shelf::new().await, Some(registry)).await;
    let mut health = HealthClient::new(worker.channel.clone());
    let about = |service: &str| HealthCheckRequest { service: service.to_owned() };
    let mut check = async |service| health.check(about(service)).await.unwrap().into_inner().status();
    // Nobody has heard of the base: the registry does not answer yet.
    for service in ["", "weft.worker.v1.Worker"] {
        assert_eq!(check(service).await, ServingStatus::NotServing);
    }
    tokio::spawn(weft_service_kit::transport::server().add_service(ear).serve_with_incoming(listener.incoming()));
    announcements.recv().await.unwrap();
    while check("").await != ServingStatus::Serving {
        tokio::task::yield_now().await;
    }
    assert_eq!(check("weft.worker.v1.Worker").await, ServingStatus::Serving);

    // An open request keeps the drain open; the listener still answers.
    let digest = worker.shelf.put(&blob("rank8"));
    worker.shelf.hold();
    let mut client = worker.client.clone();
    let open = tokio::spawn(async move { client.generate(request(Some(digest), HELLO, 16)).await });
    worker.load_when(|load| load.loading_requests == 1).await;
    worker.shutdown.trigger();
    for service in ["", "weft.worker.v1.Worker"] {
        assert_eq!(check(service).await, ServingStatus::NotServing);
    }
    worker.shelf.let_go();
    Answer::read(open.await.unwrap().unwrap().into_inner()).await.unwrap();
}

#[tokio::test]
async fn shutdown_ends_what_outlasts_the_grace_with_unavailable() {
    let mut worker = TestWorker::start(Settings { shutdown_grace_s: 0, ..settings() }).await;
    let digest = worker.shelf.put(&blob("rank8"));
    worker.shelf.hold();
    let mut client = worker.client.clone();
    let call = tokio::spawn(async move { client.generate(request(Some(digest), HELLO, 4)).await.map(|_| ()) });
    worker.load_when(|load| load.loading_requests == 1).await;
    worker.shutdown.trigger();
    (&mut worker.running).await.unwrap().unwrap();
    // Whoever asked can have the rest of it elsewhere, and is told so.
    let fault = Fault::from(call.await.unwrap().unwrap_err());
    assert_eq!((fault.kind, fault.code.as_str()), (Kind::Unavailable, "draining"));
}

#[tokio::test]
async fn a_worker_that_cannot_start_says_why() {
    let build = |settings: Settings| async move {
        let (_listener, channel) = Listener::memory();
        let components = Components { cache_daemon: channel, registry: None };
        match App::build(settings, components, &prometheus::Registry::new()).await {
            Ok(_) => panic!("started"),
            Err(error) => error,
        }
    };
    let missing = build(Settings { model: "/nowhere/model.gguf".into(), ..settings() }).await;
    assert!(matches!(missing, Error::Start { .. }) && missing.to_string().contains("/nowhere/model.gguf"), "{missing}");
    let cut = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden().join("tiny")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, cut.path().join(path.file_name().unwrap())).unwrap();
    }
    let weights = std::fs::read(cut.path().join("model.safetensors")).unwrap();
    std::fs::remove_file(cut.path().join("model.safetensors")).unwrap();
    std::fs::write(cut.path().join("model.safetensors"), &weights[..weights.len() / 2]).unwrap();
    let cut_short = build(Settings { model: cut.path().to_str().unwrap().into(), ..settings() }).await;
    assert!(
        matches!(cut_short, Error::Start { .. }) && cut_short.to_string().contains("model.safetensors"),
        "{cut_short}"
    );
    let small = build(Settings { kv_memory_bytes: 10, ..settings() }).await;
    assert!(matches!(small, Error::Settings(_)) && small.to_string().contains("kv_memory_bytes"), "{small}");
    let long = build(Settings { context_tokens_max: 100_000, ..settings() }).await;
    assert!(long.to_string().contains("100000") && long.to_string().contains("256"), "{long}");
    let quantised = build(Settings { dtype: "int3".into(), ..settings() }).await;
    assert!(matches!(quantised, Error::Settings(_)) && quantised.to_string().contains("int3"), "{quantised}");
}

type Announcement = weft_proto::registry::v1::AnnounceBaseRequest;

/// A registry that only listens, and fails the first call.
#[derive(Clone)]
struct Ear {
    heard: mpsc::UnboundedSender<Announcement>,
    calls: Arc<AtomicUsize>,
}

impl tonic::server::NamedService for Ear {
    const NAME: &'static str = "weft.registry.v1.Registry";
}

impl tonic::server::UnaryService<Announcement> for Ear {
    type Response = weft_proto::registry::v1::AnnounceBaseResponse;
    type Future = std::future::Ready<Result<tonic::Response<Self::Response>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<Announcement>) -> Self::Future {
        if self.calls.fetch_add(1, Ordering::SeqCst) == 0 {
            return std::future::ready(Err(tonic::Status::unavailable("not yet")));
        }
        // An error means that the test has seen enough.
        let _ = self.heard.send(request.into_inner());
        std::future::ready(Ok(tonic::Response::new(Default::default())))
    }
}

impl tower::Service<http::Request<Body>> for Ear {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        assert_eq!(request.uri().path(), "/weft.registry.v1.Registry/AnnounceBase");
        let ear = self.clone();
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::default();
            Ok(tonic::server::Grpc::new(codec).unary(ear, request).await)
        })
    }
}

#[tokio::test]
async fn the_base_is_announced_until_the_registry_hears_it_and_again() {
    let (heard, mut announcements) = mpsc::unbounded_channel();
    let ear = Ear { heard, calls: Arc::default() };
    let (listener, channel) = Listener::memory();
    tokio::spawn(weft_service_kit::transport::server().add_service(ear).serve_with_incoming(listener.incoming()));
    let settings = Settings { announce_interval_s: 1, ..settings() };
    let worker = TestWorker::start_with(settings, crate::support::shelf::Shelf::new().await, Some(channel)).await;
    let first = announcements.recv().await.unwrap();
    assert_eq!((first.layers, first.hidden_size, first.vocabulary_size), (3, 64, 260));
    assert_eq!((first.served_name.as_str(), first.worker.as_str(), first.base_digest.len()), ("tiny", "worker-t", 32));
    let q = first.linears.iter().find(|linear| linear.module == "k_proj").unwrap();
    assert_eq!((q.in_features, q.out_features, q.parent.as_str()), (64, 32, "self_attn"));
    assert_eq!(first.linears.len(), 7);
    assert_eq!(announcements.recv().await.unwrap(), first, "it is repeated");
    drop(worker);
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let worker = TestWorker::start(settings()).await;
    let digest = worker.shelf.put(&blob("rank8"));
    worker.generate(request(Some(digest), HELLO, 8)).await.unwrap();
    worker.generate(request(None, "", 8)).await.unwrap_err();
    let families = worker.metrics.gather();
    let value = |name: &str| {
        let family = families.iter().find(|family| family.name() == name).unwrap_or_else(|| panic!("no {name}"));
        let metric = &family.get_metric()[0];
        metric.get_counter().get_value()
            + metric.get_gauge().get_value()
            + metric.get_histogram().get_sample_count() as f64
    };
    assert_eq!(value("worker_output_tokens_total"), 8.0);
    assert_eq!(value("worker_prompt_tokens_total"), 12.0);
    assert_eq!(value("worker_steps_total"), 8.0);
    assert_eq!(value("worker_step_seconds"), 8.0);
    assert_eq!(value("worker_first_token_seconds"), 1.0);
    assert_eq!(value("worker_inter_token_seconds"), 7.0);
    assert_eq!(value("worker_step_tokens"), 8.0);
    let family = families.iter().find(|family| family.name() == "worker_step_part_seconds_total").unwrap();
    let parts: BTreeMap<&str, f64> = family
        .get_metric()
        .iter()
        .map(|metric| (metric.get_label()[0].value(), metric.get_counter().get_value()))
        .collect();
    for part in ["plan", "gather", "base", "lora", "attention", "rows", "sample"] {
        assert!(parts[part] > 0.0, "{part} in {parts:?}");
    }
    assert_eq!(value("worker_adapter_loads_total"), 1.0);
    assert_eq!(value("worker_kv_blocks_used"), 0.0);
    assert!(value("worker_slot_bytes_used") > 0.0);
    let again =
        App::build(settings(), Components { cache_daemon: worker.shelf.channel(), registry: None }, &worker.metrics);
    assert!(matches!(again.await, Err(Error::Metrics(_))), "one registry, one worker");
}
