use super::*;
use proptest::prelude::*;

fn outcome(tenant: &str, due_us: u64, pieces_us: Vec<u64>, end: End) -> Outcome {
    Outcome {
        source: 0,
        tenant: tenant.to_owned(),
        model: "m".to_owned(),
        due_us,
        sent_us: due_us + 500,
        end_us: pieces_us.last().copied().unwrap_or(due_us),
        prompt_tokens: 10,
        cached_tokens: 5,
        completion_tokens: pieces_us.len() as u64,
        pieces_us,
        adapter_wait_us: None,
        first_use: false,
        end,
    }
}

#[test]
fn a_run_of_three_requests_by_hand() {
    let outcomes = [
        outcome("a", 1_000_000, vec![1_100_000, 1_150_000, 1_250_000], End::Completed),
        outcome("b", 2_000_000, vec![2_900_000, 3_000_000], End::Completed),
        outcome("b", 2_500_000, vec![2_600_000], End::Failed("cut off".to_owned())),
        outcome("b", 2_500_000, vec![], End::Dropped),
    ];
    let report = Report::of(&outcomes, Slo { ttft_ms: 500.0, tpot_ms: 100.0 });
    assert_eq!(report.seconds, 2.0);
    assert_eq!((report.all.requests, report.all.completed, report.all.failed, report.all.dropped), (4, 2, 1, 1));
    assert_eq!(report.all.output_tokens_per_second, 2.5);
    assert_eq!(report.all.goodput_per_second, 0.5);
    assert_eq!(report.all.attainment, 0.25);
    assert_eq!(report.all.cached_share, 0.5);
    assert_eq!(report.all.latencies.ttft_ms.unwrap().p50, 500.0);
    assert_eq!(report.all.latencies.itl_ms.unwrap().count, 3);
    assert_eq!(report.tenants["a"].latencies.tpot_ms.unwrap().mean, 75.0);
    assert_eq!(report.errors["cut off"], 1);
    assert_eq!(report.lateness_ms.unwrap().max, 0.5);
    assert!(report.table().contains("1 failed, 1 dropped"), "{}", report.table());
}

#[test]
fn the_server_says_what_is_cold_and_else_the_first_use_is() {
    let mut told_warm = outcome("a", 0, vec![1000], End::Completed);
    told_warm.first_use = true;
    told_warm.adapter_wait_us = Some(0);
    let mut told_cold = outcome("a", 0, vec![9000], End::Completed);
    told_cold.adapter_wait_us = Some(7000);
    let mut first = outcome("a", 0, vec![5000], End::Completed);
    first.first_use = true;
    let report = Report::of(&[told_warm, told_cold, first], Slo::default());
    assert_eq!(report.cold_requests, 2);
    assert_eq!(report.warm.ttft_ms.unwrap().max, 1.0);
    assert_eq!(report.cold.ttft_ms.unwrap().max, 9.0);
    assert_eq!(report.adapter_wait_ms.unwrap().mean, 7.0);
}

#[test]
fn nothing_is_reported_as_nothing() {
    let report = Report::of(&[], Slo::default());
    assert_eq!((report.seconds, report.all.requests, report.jain), (0.0, 0, 1.0));
    assert!(report.all.latencies.ttft_ms.is_none());
    assert!(serde_json::to_string(&report).unwrap().contains("\"ttft_ms\":null"));
}

#[test]
fn a_flood_of_different_errors_stays_short() {
    let outcomes: Vec<Outcome> = (0..500).map(|n| outcome("a", 0, vec![], End::Failed(format!("error {n}")))).collect();
    let report = Report::of(&outcomes, Slo::default());
    assert!(report.errors.len() <= ERRORS_MAX + 1);
    assert_eq!(report.errors.values().sum::<usize>(), 500);
}

fn some_outcome() -> impl Strategy<Value = Outcome> {
    let times = (0..1_000_000u64, proptest::collection::vec(0..1_000_000u64, 0..6));
    let ends = prop_oneof![Just(End::Completed), Just(End::Dropped), Just(End::Failed("x".to_owned()))];
    (prop_oneof![Just("a"), Just("b"), Just("c")], times, ends, any::<bool>()).prop_map(
        |(tenant, (due, gaps), end, first_use)| {
            let pieces = gaps.iter().scan(due, |at, gap| {
                *at += gap;
                Some(*at)
            });
            Outcome { first_use, ..outcome(tenant, due, pieces.collect(), end) }
        },
    )
}

proptest! {
    #[test]
    fn parts_add_up_to_the_whole(outcomes in proptest::collection::vec(some_outcome(), 1..40), ttft in 0.0..2000f64) {
        let report = Report::of(&outcomes, Slo { ttft_ms: ttft, tpot_ms: 300.0 });
        let sum = |of: fn(&Part) -> usize| report.tenants.values().map(of).sum::<usize>();
        prop_assert_eq!(report.all.requests, outcomes.len());
        prop_assert_eq!(report.all.completed + report.all.failed + report.all.dropped, outcomes.len());
        prop_assert_eq!(sum(|part| part.completed), report.all.completed);
        prop_assert_eq!(sum(|part| part.failed), report.all.failed);
        let answers = |latencies: &Latencies| latencies.ttft_ms.map_or(0, |quantiles| quantiles.count);
        prop_assert_eq!(answers(&report.warm) + answers(&report.cold), report.all.completed);
        prop_assert_eq!(answers(&report.cold), report.cold_requests);
        // Counted by hand.
        let tokens: usize = outcomes.iter().filter(|o| o.end == End::Completed).map(|o| o.pieces_us.len()).sum();
        prop_assert!((report.all.output_tokens_per_second * report.seconds - tokens as f64).abs() < 1e-6);
        let gaps: usize =
            outcomes.iter().filter(|o| o.end == End::Completed).map(|o| o.pieces_us.len().saturating_sub(1)).sum();
        prop_assert_eq!(report.all.latencies.itl_ms.map_or(0, |quantiles| quantiles.count), gaps);
        let good = outcomes.iter().filter(|o| {
            let span = o.pieces_us.last().unwrap_or(&o.due_us) - o.pieces_us.first().unwrap_or(&o.due_us);
            let first = o.pieces_us.first().unwrap_or(&o.end_us) - o.due_us;
            let after = o.pieces_us.len().saturating_sub(1) as f64;
            o.end == End::Completed && first as f64 / 1e3 <= ttft && (after == 0.0 || span as f64 / 1e3 / after <= 300.0)
        });
        prop_assert!((report.all.attainment - good.count() as f64 / outcomes.len() as f64).abs() < 1e-9);
    }
}
