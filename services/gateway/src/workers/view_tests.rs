use super::*;
use std::sync::Arc;

const PACE: Pace = Pace {
    poll: Duration::from_secs(1),
    relist: Duration::from_secs(15),
    intervals_max: 3,
    forget: Duration::from_secs(60),
};

fn after(start: Instant, ms: u64) -> Instant {
    start + Duration::from_millis(ms)
}

fn digest(byte: u8) -> Digest {
    Digest::from_raw([byte; 32])
}

fn beat(incarnation: &str, sequence: u64, since: u64, generation: u64) -> mesh::WorkerHeartbeat {
    mesh::WorkerHeartbeat {
        incarnation: incarnation.into(),
        sequence,
        interval_ms: 1000,
        running_requests: 3,
        queued_requests: 4,
        step_us: 500,
        residency: Some(mesh::ResidencyDelta { since, generation, ..Default::default() }),
        ..Default::default()
    }
}

fn look(incarnation: &str, base: Option<Digest>, generation: u64, slots: &[u8], prepared: &[u8]) -> Look {
    let description = pb::DescribeResponse { incarnation: incarnation.into(), ..Default::default() };
    let rows = |bytes: &[u8]| {
        let rows = bytes
            .iter()
            .map(|byte| pb::ResidentAdapter { digest: digest(*byte).to_vec().into(), ..Default::default() });
        rows.collect()
    };
    Look {
        base: base.map(|digest| Base { digest, description: Arc::new(description) }),
        load: pb::GetLoadResponse { kv_blocks_used: 3, kv_blocks_max: 10, ..Default::default() },
        residency: pb::ListResidencyResponse {
            adapters: rows(slots),
            prepared: rows(prepared),
            generation,
            incarnation: incarnation.into(),
            ..Default::default()
        },
    }
}

/// Heard once and looked at, at this time.
fn known(now: Instant) -> View {
    let mut view = View::default();
    assert!(view.hear(&beat("a", 1, 5, 5), digest(1), now));
    view.see(look("a", Some(digest(1)), 5, &[10], &[11]), now);
    view
}

#[test]
fn a_heartbeat_alone_makes_nobody_good_and_a_look_does() {
    let now = Instant::now();
    let mut view = View::default();
    assert!(view.hear(&beat("a", 1, 0, 1), digest(1), now), "it must be described");
    assert!(!view.is_up(now, &PACE));
    assert_eq!(view.next_look(now, &PACE, PACE.relist), now);
    view.see(look("a", Some(digest(1)), 1, &[], &[]), now);
    assert!(view.is_up(now, &PACE));
    assert!(!view.hear(&beat("a", 2, 1, 1), digest(1), after(now, 1000)));
    assert_eq!(view.next_look(after(now, 1000), &PACE, PACE.relist), after(now, 2500), "when the next one is overdue");
}

#[test]
fn a_look_that_began_before_a_restart_was_heard_is_followed_by_one_that_describes() {
    let now = Instant::now();
    let mut view = known(now);
    // It waits where the new process will listen, and did not ask for a description.
    view.hear(&beat("b", 1, 0, 1), digest(1), now);
    view.see(look("b", None, 1, &[], &[]), now);
    assert!(!view.is_up(now, &PACE));
    assert_eq!(view.next_look(now, &PACE, PACE.relist), now);
    view.see(look("b", Some(digest(1)), 1, &[], &[]), now);
    assert!(view.is_up(now, &PACE));
}

#[test]
fn it_expires_after_three_missed_heartbeats_unless_a_later_look_succeeds() {
    let now = Instant::now();
    let mut view = known(now);
    assert!(view.is_up(after(now, 3000), &PACE));
    assert!(!view.is_up(after(now, 3001), &PACE));
    // Looked at before it expires, so that losing the bus alone changes nothing.
    assert_eq!(view.next_look(after(now, 900), &PACE, PACE.relist), after(now, 1500));
    view.see(look("a", None, 5, &[], &[]), after(now, 1600));
    assert!(view.is_up(after(now, 3001), &PACE));
    assert_eq!(view.next_look(after(now, 1700), &PACE, PACE.relist), after(now, 2600), "polled from then on");
    assert!(!view.is_up(after(now, 1600 + 8001), &PACE), "a look lasts for three polls and its own time");
}

#[test]
fn a_look_from_before_the_silence_does_not_keep_it() {
    let now = Instant::now();
    let mut view = known(now);
    view.see(look("a", None, 5, &[], &[]), after(now, 500));
    assert!(!view.is_up(after(now, 3001), &PACE));
}

#[test]
fn without_a_bus_looks_alone_keep_it() {
    let now = Instant::now();
    let mut view = View::default();
    view.see(look("a", Some(digest(1)), 5, &[], &[]), now);
    assert!(view.is_up(after(now, 8000), &PACE) && !view.is_up(after(now, 8001), &PACE));
    assert_eq!(view.next_look(now, &PACE, PACE.relist), after(now, 1000));
}

#[test]
fn heartbeats_do_not_excuse_a_failed_request() {
    let now = Instant::now();
    let mut view = known(now);
    view.suspect("it went away");
    assert!(view.hear(&beat("a", 2, 5, 5), digest(1), after(now, 10)));
    assert!(!view.is_up(after(now, 10), &PACE));
    assert_eq!((view.next_look(now, &PACE, PACE.relist), view.problem.as_deref()), (now, Some("it went away")));
    view.see(look("a", Some(digest(1)), 5, &[], &[]), after(now, 20));
    assert!(view.is_up(after(now, 20), &PACE));
}

#[test]
fn a_gap_asks_for_a_look_and_a_delta_in_order_does_not() {
    let now = Instant::now();
    let mut view = known(now);
    assert_eq!(
        (view.adapters.tier(&digest(10)), view.adapters.tier(&digest(11))),
        (Some(Tier::Slot), Some(Tier::Memory))
    );
    let mut next = beat("a", 2, 5, 6);
    next.residency.as_mut().unwrap().changes =
        vec![mesh::ResidencyChange { digest: digest(12).to_vec().into(), tier: Tier::Slot.into() }];
    assert!(!view.hear(&next, digest(1), now));
    assert_eq!(view.adapters.tier(&digest(12)), Some(Tier::Slot));
    assert!(view.hear(&beat("a", 4, 7, 8), digest(1), now));
    assert!(view.is_up(now, &PACE), "a gap makes nobody bad");
    view.see(look("a", None, 8, &[10], &[]), now);
    assert!(!view.hear(&beat("a", 5, 8, 8), digest(1), now));
    assert_eq!(view.adapters.tier(&digest(12)), None);
}

#[test]
fn a_late_heartbeat_is_left_out() {
    let now = Instant::now();
    let mut view = known(now);
    let drained = mesh::WorkerHeartbeat { draining: true, ..beat("a", 3, 5, 5) };
    view.hear(&drained, digest(1), now);
    view.hear(&beat("a", 2, 5, 5), digest(1), now);
    assert!(view.load.draining);
}

#[test]
fn a_restarted_process_or_another_base_is_described_anew() {
    let now = Instant::now();
    for (incarnation, base) in [("b", digest(1)), ("a", digest(2))] {
        let mut view = known(now);
        assert!(view.hear(&beat(incarnation, 2, 0, 0), base, now));
        assert!(view.base.is_none() && !view.is_described() && !view.is_up(now, &PACE));
    }
    // Without heartbeats too.
    let mut view = known(now);
    view.see(look("b", None, 1, &[], &[]), now);
    assert!(view.base.is_none() && !view.is_up(now, &PACE) && view.next_look(now, &PACE, PACE.relist) == now);
    view.see(look("b", Some(digest(2)), 1, &[], &[]), now);
    assert!(view.is_up(now, &PACE) && view.base.is_some_and(|base| base.digest == digest(2)));
    let mut view = known(now);
    view.hear(&beat("b", 1, 0, 0), digest(1), now);
    assert_eq!(view.adapters.held().len(), 0, "nothing of the dead process is left");
}

#[test]
fn it_is_forgotten_long_after_its_last_word() {
    let now = Instant::now();
    assert!(!View::default().is_forgotten(now, &PACE));
    let mut view = known(now);
    assert_eq!(view.age(after(now, 40)), Some(Duration::from_millis(40)));
    assert!(!view.is_forgotten(after(now, 60_000), &PACE) && view.is_forgotten(after(now, 60_001), &PACE));
    view.hear(&beat("a", 2, 5, 5), digest(1), after(now, 50_000));
    assert!(!view.is_forgotten(after(now, 60_001), &PACE));
}

#[test]
fn what_is_claimed_is_bounded() {
    let now = Instant::now();
    let mut view = known(now);
    let forever = mesh::WorkerHeartbeat { interval_ms: u32::MAX, prefill_tokens_per_s: f64::NAN, ..beat("a", 2, 5, 5) };
    view.hear(&forever, digest(1), now);
    assert!(!view.is_up(after(now, 180_001), &PACE));
    assert_eq!(view.load.prefill_tokens_per_s, 0.0);
    assert_eq!((view.load.requests(), view.load.step), (7, Duration::from_micros(500)));
}

#[test]
fn a_speed_is_known_for_as_long_as_the_worker_says_so() {
    let now = Instant::now();
    let mut view = known(now);
    view.hear(&mesh::WorkerHeartbeat { prefill_tokens_per_s: 900.0, ..beat("a", 2, 5, 5) }, digest(1), now);
    assert_eq!(view.load.prefill_tokens_per_s, 900.0);
    view.hear(&beat("a", 3, 5, 5), digest(1), now);
    assert_eq!(view.load.prefill_tokens_per_s, 0.0);
    let mut seen = look("a", None, 5, &[], &[]);
    seen.load.prefill_tokens_per_s = 700.0;
    view.see(seen, now);
    assert_eq!((view.load.prefill_tokens_per_s, view.load.kv_blocks_free), (700.0, 7));
}
