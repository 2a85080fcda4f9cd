//! A real Redis that comes back with less than it had: restarted from an older snapshot, or a replica that lagged when it
//! took over. What gateways remember of the rest still counts.

mod support;

use support::gateways::{Gateway, LIMIT, SLICE, alone, gateways, shared_by, use_up};
use support::proxy::{Proxy, Way};
use support::redis::{Redis, free_port};
use support::until;

/// The limit holds although only the second of the gateways, which asks no more, saw most of what was used.
async fn assert_the_rest_is_all_that_is_left(mut used: u64, gateways: &[Gateway]) {
    used += use_up(&gateways[0], LIMIT).await;
    used += use_up(&gateways[1], LIMIT).await;
    assert!(used <= LIMIT + 2 * SLICE + 1, "{used} of {LIMIT}");
    assert!(used >= LIMIT - 2 * SLICE, "{used} of {LIMIT}");
}

async fn a_restart_from_an_older_snapshot(arguments: &[&str]) {
    let port = free_port();
    let port_text = port.to_string();
    let arguments = [&["--port", &port_text], arguments].concat();
    let redis = Redis::start_with(port, &arguments);
    let gateways = gateways(&redis.url(), 2);
    shared_by(&gateways, 2).await;
    let mut used = use_up(&gateways[0], 200).await + use_up(&gateways[1], 100).await;
    redis.save().await;
    used += use_up(&gateways[1], 500).await;
    assert_eq!(used, 800);
    let (port, folder) = redis.kill_keeping_the_snapshot();
    alone(&gateways).await;
    let redis = Redis::start_in(folder, port, &arguments);
    shared_by(&gateways, 2).await;
    assert_the_rest_is_all_that_is_left(used, &gateways).await;
    drop(redis);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_restarted_from_an_older_snapshot_is_told_what_came_after_it() {
    a_restart_from_an_older_snapshot(&[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_is_one_that_does_not_say_which_server_it_is() {
    a_restart_from_an_older_snapshot(&["--rename-command", "INFO", ""]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lagged_when_it_took_over_is_told_what_it_missed() {
    let main = Redis::start();
    let replication = Proxy::start(Way::To(main.port)).await;
    let port = free_port();
    let (own, from) = (port.to_string(), replication.port.to_string());
    let replica = Redis::start_with(port, &["--port", &own, "--replicaof", "127.0.0.1", &from]);
    let address = Proxy::start(Way::To(main.port)).await;
    let gateways = gateways(&address.url(), 2);
    shared_by(&gateways, 2).await;
    let mut used = use_up(&gateways[0], 200).await + use_up(&gateways[1], 100).await;
    let charges = "weft:limits:{harbour}:charges";
    until("replicated", async || {
        replica.ask(&["INFO", "replication"]).await.contains("master_link_status:up")
            && replica.ask(&["EXISTS", charges]).await == "1"
    })
    .await;
    replication.set(Way::Shut);
    used += use_up(&gateways[1], 500).await;
    assert_eq!(used, 800);
    main.kill();
    alone(&gateways).await;
    replica.ask(&["REPLICAOF", "NO", "ONE"]).await;
    address.set(Way::To(replica.port));
    shared_by(&gateways, 2).await;
    assert_the_rest_is_all_that_is_left(used, &gateways).await;
}

/// Without anybody hearing of it: connections stay, and the server is the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_notices_by_its_own_charge_that_a_book_is_older() {
    let redis = Redis::start();
    let gateways = gateways(&redis.url(), 1);
    shared_by(&gateways, 1).await;
    let mut used = use_up(&gateways[0], 200).await;
    let keys = ["weft:limits:{harbour}:buckets", "weft:limits:{harbour}:charges"];
    for key in keys {
        redis.ask(&["COPY", key, &format!("{key}:older")]).await;
    }
    used += use_up(&gateways[0], 500).await;
    for key in keys {
        redis.ask(&["RENAME", &format!("{key}:older"), key]).await;
    }
    used += use_up(&gateways[0], LIMIT).await;
    assert!(used <= LIMIT + SLICE + 1, "{used} of {LIMIT}");
    assert!(used >= LIMIT - SLICE, "{used} of {LIMIT}");
}
