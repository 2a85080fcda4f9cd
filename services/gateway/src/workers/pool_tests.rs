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
        let (id, _, in_flight) = pool.choose(&Asked::of_base(&base)).unwrap();
        assert_ne!(id, workers[0].id);
        std::mem::forget(in_flight);
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
    let (first, worker, in_flight) = pool.choose(&Asked::of_base(&base)).unwrap();
    assert_eq!(worker.in_flight(), 1);
    pool.remove(|other| other.id == first);
    assert!(worker.is_gone());
    drop(in_flight);
    assert_eq!(worker.in_flight(), 0, "a stream outlives its worker's place in the pool");
    let added = pool.add("worker-9:1", Endpoint::from_static("http://nowhere").connect_lazy(), false);
    serve(&added, b"base");
    assert!(added.id > first && !pool.workers().iter().any(|worker| worker.id == first));
    let (second, ..) = pool.choose(&Asked { tried: &[added.id], ..Asked::of_base(&base) }).unwrap();
    assert!(pool.choose(&Asked { tried: &[added.id, second], ..Asked::of_base(&base) }).is_none());
}
