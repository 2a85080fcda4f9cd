//! `kill -9` at random moments, and a disk that fails: what was acknowledged stays.

use crate::child::{APPENDERS, Appending, acknowledged, credentials, record};
use crate::support::{self, BUCKET, day, small};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use weft_object_store::{EmbeddedS3, S3Store};
use weft_usage::{Ledger, Log, Record, Shipper};

const KILLS: usize = 20;
const PLAIN: &str = "exec \"$@\"";

fn random() -> StdRng {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

#[test]
fn kill_9_at_random_moments_loses_nothing_acknowledged() {
    let mut random = random();
    let dir = tempfile::tempdir().unwrap();
    let mut next = vec![0; APPENDERS];
    let mut acknowledged_all = 0;
    let mut torn = 0;
    for round in 0..KILLS {
        let child = Appending::start("child::appends", dir.path(), &next, None, PLAIN);
        // When the kill comes is the point of the test; nothing waits for this.
        let said = child.kill_after(Duration::from_micros(random.random_range(1_000..80_000)));
        acknowledged_all += acknowledged(&said, &mut next);
        let log = Log::open(dir.path(), small()).unwrap();
        let found: BTreeMap<String, Record> =
            support::records(&log).into_iter().map(|record| (record.id().to_owned(), record)).collect();
        for (appender, next) in next.iter().enumerate() {
            for number in 0..*next {
                let expected = record(appender, number);
                assert_eq!(found.get(expected.id()), Some(&expected), "round {round}: lost");
            }
        }
        // At most one append of each appender was under way.
        let beyond = found.len() as u64 - next.iter().sum::<u64>();
        assert!(beyond <= APPENDERS as u64, "round {round}: {beyond} records beyond the acknowledged");
        assert_eq!(log.state().damaged_bytes, 0, "round {round}");
        torn += u64::from(log.state().torn_bytes > 0);
    }
    println!("{acknowledged_all} acknowledged, {torn} of {KILLS} kills tore a record");
    assert!(acknowledged_all > KILLS as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_between_put_and_forget_counts_everything_once() {
    let mut random = random();
    let folder = tempfile::tempdir().unwrap();
    let server = EmbeddedS3::start_with(folder.path(), "127.0.0.1:0".parse().unwrap(), credentials()).await.unwrap();
    let store = S3Store::connect(&server.settings(BUCKET)).await.unwrap();
    store.ensure_bucket().await.unwrap();
    let ledger = Ledger::new(Arc::new(store));
    let endpoint = format!("http://{}", server.address());
    let dir = tempfile::tempdir().unwrap();
    let mut next = vec![0; APPENDERS];
    let mut interrupted = 0;
    for _ in 0..10 {
        let child = Appending::start("child::appends_and_ships", dir.path(), &next, Some(&endpoint), PLAIN);
        let pause = Duration::from_millis(random.random_range(50..400));
        let said = tokio::task::spawn_blocking(move || child.kill_after(pause)).await.unwrap();
        acknowledged(&said, &mut next);
        // Every record that is in the ledger and still in the log was killed between put and forget.
        let log = Log::open(dir.path(), small()).unwrap();
        let shipped = day(&ledger).await;
        let is_shipped = |record: &Record| shipped.contains_key(record.id());
        interrupted += u64::from(support::records(&log).iter().any(is_shipped));
    }
    // What was under way when a child died is acknowledged now, whether it was durable already or not.
    let log = Arc::new(Log::open(dir.path(), small()).unwrap());
    for (appender, next) in next.iter_mut().enumerate() {
        log.append(&record(appender, *next)).await.unwrap();
        *next += 1;
    }
    let shipper = Shipper::new(Arc::clone(&log), ledger.clone(), 100).unwrap();
    shipper.ship_once().await.unwrap();
    assert_eq!((log.unshipped(), log.state().unshipped_bytes), (Vec::new(), 0));

    let expected: Vec<Record> =
        next.iter().enumerate().flat_map(|(of, next)| (0..*next).map(move |number| record(of, number))).collect();
    let found = day(&ledger).await;
    assert_eq!(support::totals(found.values()), support::totals(&expected));
    println!("{} acknowledged, {interrupted} of 10 kills fell between put and forget", expected.len());
    assert!(interrupted > 0, "no kill fell between put and forget");
}

#[test]
fn a_disk_that_fails_stops_the_log_and_keeps_what_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut next = vec![0; APPENDERS];
    // No file may grow beyond 24 KiB: a write fails in the middle of a segment, as on a full disk.
    let limited = "ulimit -f 24; trap '' XFSZ; exec \"$@\"";
    let said = Appending::start("child::appends", dir.path(), &next, None, limited).said();
    let acknowledged = acknowledged(&said, &mut next);
    assert!(acknowledged > 10, "{said}");
    let failed = said.lines().filter(|line| line.starts_with("failed")).collect::<Vec<_>>();
    assert_eq!(failed.len(), APPENDERS, "{said}");
    assert!(
        failed.iter().all(|line| line.contains(" unavailable: usage log takes no more records since cannot write"))
    );
    let later = said.lines().filter(|line| line.starts_with("later unavailable: ")).count();
    assert_eq!(later, 2, "{said}");
    assert!(said.contains("poisoned cannot write"), "{said}");

    let log = Log::open(dir.path(), small()).unwrap();
    let found = support::records(&log);
    for (appender, next) in next.iter().enumerate() {
        for number in 0..*next {
            assert!(found.contains(&record(appender, number)), "lost {appender} {number}");
        }
    }
}
