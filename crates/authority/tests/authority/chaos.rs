//! Many authorities with kills, pauses and lost replies: numbers never go down and are never used twice.

use crate::support::{SETTINGS, Troubled, World, plan_of};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use weft_authority::{Decision, Event, Settings, latest_epoch, run};
use weft_object_store::ObjectStore;
use weft_placement::{Document, Epoch};

const CONTENDERS: usize = 4;
/// At least so many, and on until enough has happened: how far they get in a round depends on the machine.
const ROUNDS: usize = 40;
const TERMS: usize = 4;
const EPOCHS: usize = 40;

#[derive(Default)]
struct Log {
    acknowledged: Vec<Document>,
}

impl Log {
    fn is_long_enough(&self) -> bool {
        let terms: BTreeSet<u64> = self.acknowledged.iter().map(|document| document.epoch.term()).collect();
        terms.len() >= TERMS && self.acknowledged.len() >= EPOCHS
    }
}

fn start(store: Arc<Troubled>, name: String, log: Arc<Mutex<Log>>) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        let mut number = 0;
        let decide = move |_: Option<&Document>| {
            number += 1;
            Decision::Publish(plan_of(number))
        };
        let on = move |event: Event| {
            if let Event::Published(document) = event {
                log.lock().unwrap().acknowledged.push(document);
            }
        };
        let settings = Settings { epoch_ms: 30, ..SETTINGS };
        run(store, &name, settings, decide, on, std::future::pending()).await;
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_never_go_down_through_kills_pauses_and_lost_replies() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let world = World::new().await;
    let log: Arc<Mutex<Log>> = Arc::default();
    let observer = world.store().await;

    let watching = {
        let observer = Arc::clone(&observer);
        tokio::spawn(async move {
            let mut seen: Vec<Epoch> = Vec::new();
            loop {
                if let Some(document) = latest_epoch(&*observer).await.unwrap() {
                    let last = seen.last().copied().unwrap_or_default();
                    assert!(document.epoch >= last, "epoch {} after {last}", document.epoch);
                    if document.epoch > last {
                        seen.push(document.epoch);
                    }
                    if document.holder.starts_with("last.") && document.epoch.number() % Epoch::PER_TERM > 2 {
                        return seen;
                    }
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
            }
        })
    };

    let mut running = Vec::new();
    for at in 0..CONTENDERS {
        let store = world.store().await;
        running.push((Arc::clone(&store), start(store, format!("registry-{at}"), Arc::clone(&log))));
    }
    for round in 0.. {
        if round >= ROUNDS && log.lock().unwrap().is_long_enough() {
            break;
        }
        let at = random.random_range(0..CONTENDERS);
        match random.random_range(0..4) {
            0 => {
                // Killed and started again, under another name.
                running[at].1.abort();
                let store = world.store().await;
                let task = start(Arc::clone(&store), format!("round-{round}"), Arc::clone(&log));
                running[at] = (store, task);
            }
            1 => running[at].0.pause(),
            2 => running[at].0.lose_replies(random.random_range(1..4)),
            _ => running.iter().for_each(|(store, _)| store.wake()),
        }
        // How far they get meanwhile is the point of the test; nothing waits for this.
        tokio::time::sleep(Duration::from_millis(random.random_range(5..150))).await;
    }
    for (store, task) in &running {
        store.wake();
        task.abort();
    }
    let last = start(world.store().await, "last".to_owned(), Arc::clone(&log));
    let seen = watching.await.unwrap();
    last.abort();

    let acknowledged = log.lock().unwrap().acknowledged.clone();
    let numbers: BTreeSet<Epoch> = acknowledged.iter().map(|document| document.epoch).collect();
    assert_eq!(numbers.len(), acknowledged.len(), "a number was acknowledged twice");
    let mut holders: BTreeMap<u64, BTreeSet<&str>> = BTreeMap::new();
    for document in &acknowledged {
        holders.entry(document.epoch.term()).or_default().insert(&document.holder);
    }
    assert!(holders.values().all(|holders| holders.len() == 1), "two authorities in one term: {holders:?}");
    assert!(seen.len() >= TERMS, "only {} epochs were seen", seen.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_is_told_to_stop_gives_its_office_back() {
    let world = World::new().await;
    let patient = Settings { silence_ms: 3_600_000, epoch_ms: 30 };
    for term in 1..=3u64 {
        let store = world.store().await as Arc<dyn ObjectStore>;
        let (published, mut epochs) = tokio::sync::mpsc::unbounded_channel();
        let on = move |event: Event| {
            if let Event::Published(document) = event {
                let _ = published.send(document.epoch);
            }
        };
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let stop_wait = async move {
            let _ = stopped.await;
        };
        let running = tokio::spawn(run(store, "a", patient, |_| Decision::Keep, on, stop_wait));
        // With an hour's silence, only a lease that was given back can be taken.
        assert_eq!(epochs.recv().await, Epoch::first_of(term));
        stop.send(()).unwrap();
        running.await.unwrap();
    }
}
