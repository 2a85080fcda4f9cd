use super::*;
use crate::catalog::Catalog;
use crate::layout::Place;
use crate::records::{Places, TenantRecord, VersionRecord};
use weft_object_store::ETag;
use weft_types::{Limits, TenantName};

fn digest(n: u64) -> Digest {
    Digest::of(&n.to_le_bytes())
}

fn tenant() -> TenantName {
    "harbour".parse().unwrap()
}

/// A catalog of one tenant with these places and adapters 0, 1 and 2.
fn known(places: Places) -> Known {
    let mut catalog = Catalog::default();
    let etag = || ETag::new("e");
    let record = TenantRecord {
        revision: 1,
        name: tenant(),
        created_ms: 1,
        actor: String::new(),
        salt: [1; 32],
        default_adapter: String::new(),
        weight: Default::default(),
        limits: Limits::default(),
        places,
        policy: Default::default(),
    };
    catalog.merge(&Place::Tenant(tenant()), record.into(), etag());
    for n in 0..3 {
        let version = VersionRecord {
            revision: 0,
            number: n + 1,
            digest: digest(n),
            bytes: 1000 + n,
            rank_max: 8,
            target_modules: Vec::new(),
            config_sha256: digest(0),
            weights_sha256: digest(0),
            base_digest: digest(0),
            created_ms: 1,
            actor: String::new(),
            warnings: Vec::new(),
            parameters: 0,
            signed_by: None,
            quarantined: false,
            again_ms: 0,
            lineage: None,
            origin: None,
            condemned: None,
            collected_ms: None,
        };
        catalog.merge(&Place::Version(tenant(), "a".parse().unwrap(), n + 1), version.into(), etag());
    }
    Known::of(&catalog)
}

fn beat(address: &str, sequence: u64) -> mesh::WorkerHeartbeat {
    mesh::WorkerHeartbeat {
        worker: "w".into(),
        address: address.into(),
        incarnation: format!("of {address}"),
        sequence,
        interval_ms: 1000,
        base_digest: digest(99).to_vec().into(),
        slot_bytes_max: 500,
        prepared_bytes_max: 1500,
        ..Default::default()
    }
}

fn names(observed: &Observed) -> Vec<&str> {
    observed.workers.iter().map(|worker| worker.name.as_str()).collect()
}

fn told(sequence: u64, rows: impl IntoIterator<Item = (Digest, u64, u64)>) -> mesh::GatewayDemand {
    let rows = rows.into_iter().map(|(digest, requests, output_tokens)| mesh::AdapterDemand {
        digest: digest.to_vec().into(),
        requests,
        output_tokens,
        ..Default::default()
    });
    mesh::GatewayDemand { incarnation: "g".into(), sequence, adapters: rows.collect() }
}

#[test]
fn a_plan_is_made_of_workers_that_are_there_serve_the_base_and_do_not_drain() {
    let mut observer = Observer::new(0);
    let mut known = known(Places::default());
    for address in ["http://a:1/", "b:1", "c:1", "d:1"] {
        observer.hear_worker(&beat(address, 1), 0).unwrap();
    }
    let other_base = mesh::WorkerHeartbeat { base_digest: digest(98).to_vec().into(), ..beat("b:1", 2) };
    observer.hear_worker(&other_base, 10).unwrap();
    observer.hear_worker(&mesh::WorkerHeartbeat { draining: true, ..beat("c:1", 2) }, 10).unwrap();
    assert_eq!(names(&observer.observed(&known, 10)), ["a:1", "b:1", "d:1"], "nobody has announced a base");
    known.base = Some(digest(99));
    let observed = observer.observed(&known, 10);
    assert_eq!(names(&observed), ["a:1", "d:1"]);
    assert_eq!(observed.workers[0].slot_bytes, 2000, "slots and packed memory together");
    observer.hear_worker(&beat("d:1", 2), GONE_AFTER_MS).unwrap();
    assert_eq!(names(&observer.observed(&known, GONE_AFTER_MS)), ["a:1", "d:1"]);
    assert_eq!(names(&observer.observed(&known, GONE_AFTER_MS + 1)), ["d:1"], "silent for too long");
}

#[test]
fn residency_follows_deltas_and_heals_with_the_next_whole_list() {
    let mut observer = Observer::new(0);
    let known = known(Places::default());
    let delta = |since, generation, held: &[u64]| {
        let change = |n: &u64| mesh::ResidencyChange { digest: digest(*n).to_vec().into(), tier: Tier::Slot.into() };
        Some(mesh::ResidencyDelta {
            since,
            generation,
            changes: held.iter().map(change).collect(),
            ..Default::default()
        })
    };
    let resident = |observer: &mut Observer| observer.observed(&known, 0).workers[0].resident.clone();
    observer.hear_worker(&mesh::WorkerHeartbeat { residency: delta(3, 4, &[1]), ..beat("a:1", 5) }, 0).unwrap();
    assert!(resident(&mut observer).is_empty(), "a gap from the start");
    observer.hear_worker(&mesh::WorkerHeartbeat { residency: delta(0, 4, &[1]), ..beat("a:1", 6) }, 0).unwrap();
    assert_eq!(resident(&mut observer), [digest(1)]);
    // One that comes late changes nothing, another process starts over.
    observer.hear_worker(&mesh::WorkerHeartbeat { draining: true, ..beat("a:1", 6) }, 0).unwrap();
    assert_eq!(resident(&mut observer), [digest(1)]);
    let restarted = mesh::WorkerHeartbeat { incarnation: "next".into(), ..beat("a:1", 1) };
    observer.hear_worker(&restarted, 0).unwrap();
    assert!(resident(&mut observer).is_empty());
}

#[test]
fn demand_of_a_gateway_counts_once_and_only_for_adapters_of_the_mesh() {
    let mut observer = Observer::new(0);
    let known = known(Places::default());
    let measured = mesh::WorkerHeartbeat { step_us: 10_000, ..beat("a:1", 1) };
    observer.hear_worker(&measured, 0).unwrap();
    let message = told(1, [(digest(1), 4, 100), (digest(77), 9, 9)]);
    for _ in 0..3 {
        observer.hear_demand(&message, |digest| known.has(digest), 0).unwrap();
    }
    let observed = observer.observed(&known, 0);
    assert_eq!(observed.adapters.len(), 1);
    let adapter = &observed.adapters[0];
    assert_eq!((adapter.digest, adapter.bytes, adapter.rank, &adapter.tenant), (digest(1), 1001, 8, &tenant()));
    let once = observer.demand.of(&digest(1), 0);
    assert_eq!((adapter.requests_per_s, adapter.work_ms_per_s), (once.requests_per_s, once.work_ms_per_s));
    assert_eq!(adapter.recent_requests_per_s, once.recent_requests_per_s);
    let mut again = Demand::new(DemandSettings::default());
    again.add(digest(1), 4.0, 1000.0, 0);
    assert_eq!(once, again.of(&digest(1), 0), "100 tokens of 10 ms");
}

#[test]
fn what_is_beyond_a_limit_is_refused_by_name() {
    let mut observer = Observer::new(0);
    let known = known(Places::default());
    let many = told(1, (0..=ROWS_MAX as u64).map(|n| (digest(n), 1, 1)));
    let refused = observer.hear_demand(&many, |digest| known.has(digest), 0).unwrap_err();
    assert!(refused.contains("1001 rows"), "{refused}");
    for address in [String::new(), "x".repeat(WORKER_NAME_BYTES_MAX + 1), "a\"b:1".to_owned()] {
        assert!(observer.hear_worker(&beat(&address, 1), 0).unwrap_err().contains("address"), "{address}");
    }
    let nobody = mesh::WorkerHeartbeat { incarnation: String::new(), ..beat("a:1", 1) };
    assert!(observer.hear_worker(&nobody, 0).unwrap_err().contains("incarnation"));
    for n in 0..WORKERS_MAX {
        observer.hear_worker(&beat(&format!("w-{n}:1"), 1), 0).unwrap();
    }
    assert!(observer.hear_worker(&beat("late:1", 1), 0).unwrap_err().contains("1024 workers"));
    observer.hear_worker(&beat("late:1", 1), GONE_AFTER_MS + 1).unwrap();
    for n in 0..2 * GATEWAYS_MAX as u64 {
        let message = mesh::GatewayDemand { incarnation: format!("g-{n}"), ..told(1, []) };
        observer.hear_demand(&message, |_| true, n).unwrap();
    }
    assert_eq!(observer.gateways.len(), GATEWAYS_MAX);
}

#[test]
fn pins_and_floors_of_the_records_are_in_the_plan_also_if_nobody_asks() {
    let places = Places { floor: 2, ceiling: Some(5), pins: [(digest(2), 0), (digest(1), 3)].into() };
    let known = known(places);
    let mut observer = Observer::new(0);
    observer.hear_demand(&told(1, [(digest(1), 4, 100)]), |_| true, 0).unwrap();
    let mut pinned: Vec<(Digest, u32)> =
        observer.observed(&known, 0).adapters.iter().map(|adapter| (adapter.digest, adapter.pinned_copies)).collect();
    pinned.sort();
    let mut wanted = vec![(digest(1), 3), (digest(2), u32::MAX)];
    wanted.sort();
    assert_eq!(pinned, wanted, "0 stands for all workers");
    let observed = observer.observed(&known, 0);
    let tenant = &observed.tenants[&tenant()];
    assert_eq!((tenant.floor, tenant.ceiling), (2, Some(5)));
}

#[test]
fn nobody_plans_before_every_worker_could_be_heard() {
    let mut observer = Observer::new(0);
    assert!(!observer.is_settled(1_000_000), "nobody was heard");
    observer.hear_worker(&beat("a:1", 1), 0).unwrap();
    assert!(!observer.is_settled(2_999) && observer.is_settled(3_000));
    observer.missed(10_000);
    assert!(!observer.is_settled(12_999) && observer.is_settled(13_000));
    assert!(!observer.is_warm(WARM_AFTER_MS - 1) && observer.is_warm(WARM_AFTER_MS));
}
