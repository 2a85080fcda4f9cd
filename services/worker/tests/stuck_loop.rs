//! A step loop that hangs must not leave a worker that looks well. Its own program, because it sets a trap for the whole process: the
//! first event that the loop's thread logs after the trap is armed holds it there until it is let go.

#[path = "worker/support/mod.rs"]
mod support;
mod trap;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::shelf::Shelf;
use support::{Answer, HELLO, blob, golden_greedy, request, settings};
use weft_fault::{Fault, Kind};
use weft_proto::worker::v1 as pb;
use weft_proto::worker::v1::worker_client::WorkerClient;
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::transport::Listener;
use weft_worker::{App, Components, Settings};

static ARMED: AtomicBool = AtomicBool::new(false);

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_step_loop_shows_until_it_goes_on() {
    trap::set(|| {
        while ARMED.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let shelf = Shelf::new().await;
    let digest = shelf.put(&blob("rank8"));
    let components = Components { cache_daemon: shelf.channel(), registry: None };
    let settings = Settings { step_stall_s: 1, ..settings() };
    let app = App::build(settings, components, &prometheus::Registry::new()).await.unwrap();
    let readiness = app.readiness();
    readiness.ready().await;
    let (listener, channel) = Listener::memory();
    let shutdown = Shutdown::new();
    let running = tokio::spawn(app.run(listener, shutdown.clone()));
    let client = WorkerClient::new(channel);
    let load = async || client.clone().get_load(pb::GetLoadRequest {}).await;
    load().await.unwrap();

    // The loop logs that the adapter has its slot.
    ARMED.store(true, Ordering::SeqCst);
    let waiting = tokio::spawn({
        let mut client = client.clone();
        async move { client.generate(request(Some(digest), HELLO, 4)).await }
    });
    let fault = loop {
        match load().await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(status) => break Fault::from(status),
        }
    };
    assert_eq!(fault.kind, Kind::Unavailable);
    assert!(fault.message.contains("step_stall_s"), "{fault}");
    let mut changes = readiness.changes();
    while readiness.is_ready() {
        changes.next().await;
    }
    assert_eq!(readiness.waiting()[0].0, "step loop");
    let refused = client.clone().generate(request(None, HELLO, 4)).await.unwrap_err();
    assert_eq!(Fault::from(refused).kind, Kind::Unavailable);
    assert!(!waiting.is_finished());

    ARMED.store(false, Ordering::SeqCst);
    let answer = Answer::read(waiting.await.unwrap().unwrap().into_inner()).await.unwrap();
    assert_eq!(answer.ids(), golden_greedy(Some("rank8"))[..4]);
    readiness.ready().await;
    load().await.unwrap();
    shutdown.trigger();
    running.await.unwrap().unwrap();
}
