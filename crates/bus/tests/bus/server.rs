//! What a server does to us: not there, killed, empty again, frozen, full of strangers' rules.

use crate::support::{A, client, connected, listen, message, metric, next, settings, state};
use prometheus::Registry;
use std::sync::Arc;
use weft_bus::{Bus, Error, Heard, State, Subscription};
use weft_nats_testkit::NatsServer;
use weft_service_kit::readiness::Readiness;

/// Publishes until it is heard: after a break nobody can know when both ends are back.
async fn heard_again(near: &Arc<dyn Bus>, subscription: &mut Subscription) {
    let sending = async {
        loop {
            // An error means that it is not back yet.
            let _ = near.publish(A, message(77));
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    let hearing = async { while next(subscription).await != Heard::Message(message(77)) {} };
    tokio::select! { () = sending => {}, () = hearing => {} }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_waited_for_and_named() {
    let port = NatsServer::free_port();
    let metrics = Registry::new();
    let bus = client(&format!("nats://user:secret@127.0.0.1:{port}"), &metrics);
    let mut subscription = bus.subscribe(A, 4);
    let readiness = Readiness::new();
    tokio::spawn(weft_bus::report(Arc::clone(&bus), readiness.clone()));
    let refused = |state: &State| matches!(state, State::Away { why } if why.contains("refused"));
    let State::Away { why } = state(&bus, refused).await else { panic!() };
    assert!(why.contains(&format!("127.0.0.1:{port}")) && !why.contains("secret"), "{why}");
    assert!(matches!(bus.publish(A, message(1)), Err(Error::Away(_))));
    assert_eq!((metric(&metrics, "bus_connected"), metric(&metrics, "bus_dropped_messages_total")), (0.0, 1.0));
    let mut changes = readiness.changes();
    while readiness.degradations().is_empty() {
        changes.next().await;
    }
    assert!(readiness.is_ready());
    assert_eq!(readiness.degradations()[0].0, "bus");

    let _server = NatsServer::start_at(port);
    connected(&bus).await;
    assert_eq!(next(&mut subscription).await, Heard::Missed { dropped: 0 });
    bus.publish(A, message(2)).unwrap();
    assert_eq!(next(&mut subscription).await, Heard::Message(message(2)));
    assert_eq!((metric(&metrics, "bus_connected"), metric(&metrics, "bus_connections_total")), (1.0, 1.0));
    while !readiness.degradations().is_empty() {
        changes.next().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_killed_and_started_empty_is_heard_again_and_the_gap_is_told() {
    let server = NatsServer::start();
    let port = server.port();
    let metrics = Registry::new();
    let (near, far) = (client(&server.url(), &Registry::new()), client(&server.url(), &metrics));
    connected(&near).await;
    let mut subscription = listen(&far, A, 64).await;
    drop(server);
    state(&near, |state| *state != State::Connected).await;
    state(&far, |state| *state != State::Connected).await;
    assert!(matches!(near.publish(A, message(1)), Err(Error::Away(_))));
    let _server = NatsServer::start_at(port);
    assert_eq!(next(&mut subscription).await, Heard::Missed { dropped: 0 });
    heard_again(&near, &mut subscription).await;
    assert_eq!(metric(&metrics, "bus_connections_total"), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_server_is_noticed_and_nobody_hangs() {
    let server = NatsServer::start();
    let metrics = Registry::new();
    let (near, far) = (client(&server.url(), &metrics), client(&server.url(), &Registry::new()));
    connected(&near).await;
    let mut subscription = listen(&far, A, 64).await;
    server.freeze();
    // Never waits, whatever piles up.
    for number in 0..20_000 {
        let _ = near.publish(A, message(number));
    }
    assert!(metric(&metrics, "bus_dropped_messages_total") > 0.0);
    near.flush().await;
    state(&near, |state| *state != State::Connected).await;
    state(&far, |state| *state != State::Connected).await;
    // It accepts connections even now, and says nothing.
    let silent =
        |state: &State| matches!(state, State::Away { why } if why.contains("timed out") || why.contains("no answer"));
    state(&near, silent).await;
    server.thaw();
    heard_again(&near, &mut subscription).await;
    connected(&near).await;
}

/// Others leaked hundreds in one storm of reconnects.
#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_that_nobody_holds_are_taken_back_and_reconnects_leave_none() {
    let server = NatsServer::start();
    let bus = client(&server.url(), &Registry::new());
    let _kept = listen(&bus, A, 4).await;
    let before = server.subscriptions();
    for _ in 0..50 {
        drop(listen(&bus, A, 4).await);
    }
    // The next one sweeps up.
    let _last = listen(&bus, A, 4).await;
    while server.subscriptions() > before + 2 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    for _ in 0..20 {
        let other = client(&server.url(), &Registry::new());
        drop(listen(&other, A, 4).await);
    }
    while server.subscriptions() > before + 2 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login_is_told_and_tried_again() {
    let server = NatsServer::start_with(&["--user", "weft", "--pass", "ri/ght@"]);
    let url = |password: &str| format!("nats://weft:{password}@127.0.0.1:{}", server.port());
    let wrong = client(&url("wrong"), &Registry::new());
    let refused = |state: &State| matches!(state, State::Away { why } if why.to_lowercase().contains("authorization"));
    let State::Away { why } = state(&wrong, refused).await else { panic!() };
    assert!(!why.contains("wrong"), "{why}");
    connected(&client(&url("ri%2Fght%40"), &Registry::new())).await;

    let server = NatsServer::start_with(&["--auth", "a-token"]);
    connected(&client(&format!("nats://a-token@127.0.0.1:{}", server.port()), &Registry::new())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_servers_are_tried_in_turn_and_meshes_do_not_hear_each_other() {
    let server = NatsServer::start();
    let urls = format!("nats://127.0.0.1:{}, {}", NatsServer::free_port(), server.url());
    let near = client(&urls, &Registry::new());
    let mut other = settings(&urls);
    other.subject_prefix = "weft.other".to_owned();
    let other = weft_bus::connect(other, &Registry::new()).unwrap();
    connected(&near).await;
    connected(&other).await;
    let (mut ours, mut theirs) = (listen(&near, A, 4).await, listen(&other, A, 4).await);
    near.publish(A, message(1)).unwrap();
    other.publish(A, message(2)).unwrap();
    assert_eq!(next(&mut ours).await, Heard::Message(message(1)));
    assert_eq!(next(&mut theirs).await, Heard::Message(message(2)));
}
