use super::*;
use std::time::Duration;
use tonic::transport::Endpoint;
use weft_proto::worker::v1 as pb;
use weft_types::Digest;

fn pool(count: usize) -> Pool {
    let second = Duration::from_secs(1);
    let pace = Pace { poll: second, relist: second, intervals_max: 3, forget: second };
    let channel = || Endpoint::from_static("http://nowhere").connect_lazy();
    Pool::new((0..count).map(|number| (format!("worker-{number}:1"), channel())), pace)
}

fn serve(worker: &Worker, base: &[u8]) {
    let base = Base { digest: Digest::of(base), description: Arc::default() };
    let look = view::Look {
        base: Some(base),
        load: pb::GetLoadResponse::default(),
        residency: pb::ListResidencyResponse::default(),
    };
    worker.write(|view| view.see(look, Instant::now()));
}

#[test]
fn an_address_has_one_spelling() {
    assert_eq!(canonical("http://h:1/"), "h:1");
    assert_eq!(
        (canonical("h:1"), canonical("unix:/a"), canonical("memory")),
        ("h:1".into(), "unix:/a".into(), "memory".into())
    );
}

#[tokio::test]
async fn the_base_of_most_is_the_base_and_others_get_nothing() {
    let pool = pool(3);
    assert!(pool.base().is_err() && pool.choose(&Asked::of_base(&Digest::of(b"x"))).is_none());
    let workers = pool.workers();
    serve(&workers[0], b"odd");
    assert_eq!(pool.base().unwrap().digest, Digest::of(b"odd"));
    serve(&workers[1], b"base");
    assert_eq!(pool.base().unwrap().digest, Digest::of(b"odd"), "of equals the first");
    serve(&workers[2], b"base");
    let base = pool.base().unwrap().digest;
    assert_eq!((base, pool.ready()), (Digest::of(b"base"), 2));
    for _ in 0..20 {
        let at = pool.choose(&Asked::of_base(&base)).unwrap();
        assert_ne!(at.worker().id, workers[0].id);
        std::mem::forget(at);
    }
    assert_eq!([workers[1].in_flight(), workers[2].in_flight()], [10, 10]);
}

#[tokio::test]
async fn ids_stay_when_workers_come_and_go() {
    let pool = pool(2);
    for worker in pool.workers().iter() {
        serve(worker, b"base");
    }
    let base = Digest::of(b"base");
    let at = pool.choose(&Asked::of_base(&base)).unwrap();
    let worker = Arc::clone(at.worker());
    let first = worker.id;
    assert_eq!(worker.in_flight(), 1);
    pool.remove(|other| other.id == first);
    assert!(worker.is_gone());
    drop(at);
    assert_eq!(worker.in_flight(), 0, "a stream outlives its worker's place in the pool");
    let added = pool.add("worker-9:1", Endpoint::from_static("http://nowhere").connect_lazy(), false);
    serve(&added, b"base");
    assert!(added.id > first && !pool.workers().iter().any(|worker| worker.id == first));
    let second = pool.choose(&Asked { tried: &[added.id], ..Asked::of_base(&base) }).unwrap().worker().id;
    assert!(pool.choose(&Asked { tried: &[added.id, second], ..Asked::of_base(&base) }).is_none());
}

#[tokio::test]
async fn a_trial_without_a_word_on_the_worker_leaves_room_for_the_next_and_one_answer_counts_once() {
    let pool = pool(1);
    let worker = Arc::clone(&pool.workers()[0]);
    serve(&worker, b"base");
    (0..5).for_each(|_| worker.failed(Instant::now()));
    assert!(InFlight::permitted(&worker, Instant::now()).is_none(), "left alone");
    let later = Instant::now() + Duration::from_secs(2);
    for _ in 0..3 {
        let trial = InFlight::permitted(&worker, later).expect("a trial");
        assert!(InFlight::permitted(&worker, later).is_none(), "one at a time");
        // Its client hung up, or the worker refused what was wrong with the request.
        drop(trial);
    }
    let answered = || {
        let mut trial = InFlight::permitted(&worker, later).expect("a trial");
        trial.succeeded();
    };
    answered();
    let second = InFlight::permitted(&worker, later);
    assert!(second.is_some() && InFlight::permitted(&worker, later).is_none(), "still tried one at a time");
    drop(second);
    answered();
    let both = [(); 2].map(|()| InFlight::permitted(&worker, later));
    assert!(both.iter().all(Option::is_some), "closed after two");
}

#[test]
fn what_is_typical_follows_what_is_said_and_nonsense_says_nothing() {
    let typical = Typical::default();
    assert_eq!(typical.value(), None);
    [f64::NAN, f64::INFINITY, -1.0, 0.0].into_iter().for_each(|said| typical.hear(said));
    assert_eq!(typical.value(), None);
    typical.hear(1600.0);
    typical.hear(3200.0);
    assert_eq!(typical.value(), Some(1700.0));
}
