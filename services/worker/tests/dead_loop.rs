//! A step loop that dies must not leave a worker that looks alive. Its own program, because it sets a trap for the
//! whole process: the first event that the loop's thread logs after the trap is armed panics there.

#[path = "worker/support/mod.rs"]
mod support;
mod trap;

use std::sync::atomic::{AtomicBool, Ordering};

use support::shelf::Shelf;
use support::{HELLO, blob, request, settings};
use weft_fault::{Fault, Kind};
use weft_proto::worker::v1::worker_client::WorkerClient;
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::transport::Listener;
use weft_worker::{App, Components, Error};

static ARMED: AtomicBool = AtomicBool::new(false);

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_step_loop_fails_what_runs_and_ends_the_worker() {
    trap::set(|| assert!(!ARMED.load(Ordering::SeqCst), "provoked"));
    let shelf = Shelf::new().await;
    let digest = shelf.put(&blob("rank8"));
    let components = Components { cache_daemon: shelf.channel(), registry: None };
    let app = App::build(settings(), components, &prometheus::Registry::new()).await.unwrap();
    let readiness = app.readiness();
    readiness.ready().await;
    let (listener, channel) = Listener::memory();
    let running = tokio::spawn(app.run(listener, Shutdown::new()));
    let client = WorkerClient::new(channel);

    // Callers that are never without an open stream, until it fails: how many events they had of it, and how it ended.
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move {
                loop {
                    let mut events = 0;
                    let mut stream = match client.generate(request(None, HELLO, 240)).await {
                        Ok(response) => response.into_inner(),
                        Err(status) => return (events, Fault::from(status)),
                    };
                    loop {
                        match stream.message().await {
                            Ok(Some(_)) => events += 1,
                            Ok(None) if events > 0 => break,
                            Ok(None) => panic!("a stream without an end"),
                            Err(status) => return (events, Fault::from(status)),
                        }
                    }
                }
            })
        })
        .collect();
    // One whose adapter comes in while all the others run; the loop logs that, and dies.
    shelf.hold();
    let waiting = tokio::spawn({
        let mut client = client.clone();
        async move { client.generate(request(Some(digest), HELLO, 4)).await.map(|_| ()) }
    });
    while shelf.asked(&digest) == 0 {
        tokio::task::yield_now().await;
    }
    ARMED.store(true, Ordering::SeqCst);
    shelf.let_go();

    let mut cut_short = 0;
    for caller in callers {
        let (events, fault) = caller.await.unwrap();
        assert_eq!(fault.kind, Kind::Unavailable, "{fault}");
        cut_short += usize::from(events > 0);
    }
    assert!(cut_short > 0, "no stream was open when the loop died");
    let fault = Fault::from(waiting.await.unwrap().unwrap_err());
    assert_eq!(fault.kind, Kind::Unavailable, "{fault}");
    assert!(matches!(running.await.unwrap(), Err(Error::LoopEnded)));
    let why = readiness.waiting();
    assert!(why.iter().any(|(condition, why)| condition == "step loop" && why.contains("provoked")), "{why:?}");
}
