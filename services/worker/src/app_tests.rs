use super::*;
use crate::error::Error;
use std::path::Path;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::Request;
use weft_proto::worker::v1 as pb;
use weft_proto::worker::v1::worker_server::Worker;

/// A worker over the tiny golden model, without its gRPC server: calls go straight to the service.
async fn service(tokenize_concurrency: usize) -> (Service, RunningLoop) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/engine/tests/golden/tiny");
    let settings = Settings {
        model: model.display().to_string(),
        dtype: "f32".into(),
        threads: 1,
        kv_memory_bytes: 16 << 20,
        adapter_memory_bytes: 16 << 20,
        tokenize_concurrency,
        ..Settings::default()
    };
    let (_listener, cache_daemon) = Listener::memory();
    let components = Components { cache_daemon, registry: None };
    let app = App::build(settings, components, &prometheus::Registry::new()).await.unwrap();
    (app.service, app.step_loop)
}

fn request(max_tokens: u32) -> Request<pb::GenerateRequest> {
    let text = pb::TextPrompt { text: "Hello, loom!".into(), ..Default::default() };
    Request::new(pb::GenerateRequest {
        tenant: "harbour".into(),
        prompt: Some(pb::generate_request::Prompt::Text(text)),
        stopping: Some(pb::Stopping { max_tokens, ignore_eos: true, ..Default::default() }),
        ..Default::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_request_frees_its_blocks_within_one_step_while_others_run() {
    let (service, _step_loop) = service(2).await;
    let mut cut_short = 0;
    for _ in 0..30 {
        let mut other = service.generate(request(240)).await.unwrap().into_inner();
        let mut cancelled = service.generate(request(240)).await.unwrap().into_inner();
        while service.view.load().running_requests < 2 && cancelled.next().await.is_some() {}
        drop(cancelled);
        // The cancellation is with the loop, which may be within a step; the next must go without the request. A step
        // of both gives two tokens and one of the other alone gives one, so that tokens minus steps are the steps that the
        // cancelled one still took part in, however late this thread looks.
        let told = service.view.load();
        let freed = loop {
            let load = service.view.load();
            if load.running_requests < 2 {
                break load;
            }
            std::thread::yield_now();
        };
        if told.running_requests == 2 {
            cut_short += 1;
            let steps = freed.steps_total - told.steps_total;
            let together = (freed.output_tokens_total - told.output_tokens_total).saturating_sub(steps);
            assert!(together <= 1, "{together} more steps: {told:?} {freed:?}");
            // Of the other alone: its prompt and output fit 16 blocks of 16.
            assert!(freed.kv_blocks_used <= 16, "{freed:?}");
        }
        while let Some(event) = other.next().await {
            event.unwrap();
        }
        while service.view.load().kv_blocks_used > 0 {
            std::thread::yield_now();
        }
    }
    assert!(cut_short > 0, "no request was cut short");
}

#[tokio::test(flavor = "multi_thread")]
async fn text_that_nobody_waits_for_any_more_still_counts_until_it_is_read() {
    let (service, _step_loop) = service(1).await;
    let (started, mut starts) = mpsc::unbounded_channel();
    let (let_go, gate) = std::sync::mpsc::channel::<()>();
    let work = |name: &'static str, gate: Option<std::sync::mpsc::Receiver<()>>| {
        let (service, started) = (service.clone(), started.clone());
        async move {
            let read = move || {
                started.send(name).unwrap();
                gate.map_or(Ok(()), |gate| gate.recv().map_err(|_| Error::Panic("the test")))
            };
            service.off_the_runtime("flood", read).await.map(drop)
        }
    };
    let first = tokio::spawn(work("first", Some(gate)));
    assert_eq!(starts.recv().await, Some("first"));
    // The caller hangs up; its text is still being read.
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let mut second = Box::pin(work("second", None));
    tokio::select! {
        biased;
        _ = &mut second => panic!("read beside the first"),
        () = tokio::task::yield_now() => {}
    }
    assert!(starts.try_recv().is_err());
    let_go.send(()).unwrap();
    second.await.unwrap();
    assert_eq!(starts.recv().await, Some("second"));
}
