//! The bounds of `docs/fairness.md`, with weights and classes, under preemption.

mod sim;

use proptest::prelude::*;
use sim::{Asks, Machine, Sim, When};
use weft_batching::{BlockPool, Fairness, Limits, NewRequest, Pace, Priority, RequestId, Scheduler, StepPlan, Weight};

/// What running requests of one tenant can still be charged: the most that its counter may run ahead of another's.
fn ahead_max(running_max: usize, prompt: usize, output: usize) -> f64 {
    (running_max * (prompt + 2 * output)) as f64
}

fn sim(running_max: usize, kv_tokens: usize, fairness: Fairness) -> Sim {
    let limits = Limits { step_tokens_max: 64, running_max, queue_max: 4096 };
    Sim::new(Machine::default(), limits, kv_tokens, fairness, Pace::default())
}

fn asks(tenant: &str, always: usize) -> Asks {
    Asks { adapters: 0, ..Asks::new(tenant, When::Always(always)) }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn busy_tenants_are_served_by_their_weights_within_the_bound_at_every_step(
        tenants in proptest::collection::vec((0.2f64..5.0, 1usize..150, 1usize..40, 0usize..80), 2..6),
        running_max in 1usize..7,
        kv_blocks in 16usize..40,
    ) {
        let mut sim = sim(running_max, 16 * kv_blocks, Fairness::default());
        let (mut longest_prompt, mut longest_output, mut least_weight) = (0, 0, f64::MAX);
        for (number, (weight, prompt, output, unused)) in tenants.iter().copied().enumerate() {
            let (weight, output_max) = ((weight * 1000.0).round() / 1000.0, output + unused);
            let busy = asks(&format!("t-{number}"), running_max + 1);
            sim.add(Asks { weight, prompt, output, output_max, ..busy });
            longest_prompt = longest_prompt.max(prompt);
            longest_output = longest_output.max(output);
            least_weight = weight.min(least_weight);
        }
        let bound = ahead_max(running_max, longest_prompt, longest_output) / least_weight + 1.0;
        while sim.steps < 600 {
            sim.run_until(sim.now + 1.0);
            let normalized = tenants.iter().enumerate().map(|(number, (weight, ..))| {
                sim.got(&format!("t-{number}")).service / ((weight * 1000.0).round() / 1000.0)
            });
            let served: Vec<f64> = normalized.collect();
            let spread = served.iter().copied().fold(0.0, f64::max) - served.iter().copied().fold(f64::MAX, f64::min);
            prop_assert!(spread <= bound, "step {}: {spread} of {bound}: {served:?}", sim.steps);
        }
    }

    #[test]
    fn calling_everything_urgent_gains_a_head_start_once_and_no_share(
        running_max in 1usize..5,
        priority_tokens in 0u64..2000,
        prompt in 1usize..100,
        output in 1usize..30,
    ) {
        let mut sim = sim(running_max, 1 << 14, Fairness { priority_tokens, ..Fairness::default() });
        for (tenant, priority) in [("urgent", Priority::High), ("patient", Priority::Low)] {
            sim.add(Asks { priority, prompt, output, ..asks(tenant, running_max + 1) });
        }
        let bound = 2.0 * priority_tokens as f64 + ahead_max(running_max, prompt, output);
        while sim.steps < 1500 {
            sim.run_until(sim.now + 1.0);
            let lead = sim.got("urgent").service - sim.got("patient").service;
            prop_assert!(lead.abs() <= bound, "step {}: {lead} of {bound}", sim.steps);
        }
    }

    #[test]
    fn a_tenant_that_comes_waits_at_most_one_admission_of_each_other(
        weights in proptest::collection::vec(0.2f64..5.0, 1..6),
        running_max in 1usize..4,
        steps in 0usize..60,
    ) {
        let mut floods = Floods::new(&weights, running_max);
        (0..steps).for_each(|_| drop(floods.step()));
        let calm = floods.submit("calm", 1.0, Priority::Normal);
        let mut before = 0;
        for step in 0.. {
            prop_assert!(step < 400, "still waits");
            let plan = floods.step();
            if plan.admitted.contains(&calm) {
                break;
            }
            before += plan.admitted.len();
        }
        prop_assert!(before <= weights.len(), "{before} went first");
    }
}

/// Tenants with something queued at any time.
struct Floods {
    scheduler: Scheduler,
    weights: Vec<f64>,
    next: u64,
    left: std::collections::HashMap<RequestId, (Option<usize>, usize)>,
}

impl Floods {
    fn new(weights: &[f64], running_max: usize) -> Self {
        let limits = Limits { step_tokens_max: 32, running_max, queue_max: 1000 };
        let scheduler = Scheduler::new(limits, BlockPool::new(256, 16))
            .with_fairness(Fairness { priority_tokens: 300, ..Fairness::default() });
        let mut floods = Self { scheduler, weights: weights.to_vec(), next: 0, left: Default::default() };
        for who in (0..weights.len()).flat_map(|who| vec![who; running_max + 2]) {
            floods.again(who);
        }
        floods
    }

    fn again(&mut self, who: usize) {
        let id = self.submit(&format!("flood-{who}"), self.weights[who], Priority::Normal);
        self.left.insert(id, (Some(who), 8));
    }

    fn submit(&mut self, tenant: &str, weight: f64, priority: Priority) -> RequestId {
        self.next += 1;
        let id = RequestId(self.next);
        let new = NewRequest {
            id,
            tenant: tenant.into(),
            weight: Weight::new(weight).unwrap(),
            priority,
            adapter: None,
            prompt_tokens: 10,
            output_tokens_max: 8,
            prefix: None,
        };
        self.scheduler.submit(new).unwrap();
        self.left.insert(id, (None, 8));
        id
    }

    fn step(&mut self) -> StepPlan {
        let plan = self.scheduler.plan();
        self.scheduler.commit(&plan);
        for chunk in plan.chunks.iter().filter(|chunk| chunk.samples) {
            let (who, left) = self.left.get_mut(&chunk.id).unwrap();
            *left -= 1;
            if *left > 0 {
                self.scheduler.sampled(chunk.id);
                continue;
            }
            let who = *who;
            self.left.remove(&chunk.id);
            self.scheduler.remove(chunk.id);
            if let Some(who) = who {
                self.again(who);
            }
        }
        plan
    }
}

/// Of one tenant: everything queued is high, one is low. Says how much the tenant was charged until the low one ran.
fn charged_until_low_runs(priority_tokens: u64) -> f64 {
    let limits = Limits { step_tokens_max: 32, running_max: 2, queue_max: 1000 };
    let mut floods = Floods::new(&[], 2);
    floods.scheduler = Scheduler::new(limits, BlockPool::new(256, 16))
        .with_fairness(Fairness { priority_tokens, ..Fairness::default() });
    let low = floods.submit("a", 1.0, Priority::Low);
    let before = floods.scheduler.charged("a");
    for _ in 0..10_000 {
        while floods.scheduler.load().waiting < 100 {
            floods.submit("a", 1.0, Priority::High);
        }
        if floods.step().admitted.contains(&low) {
            return floods.scheduler.charged("a") - before;
        }
    }
    panic!("starved");
}

#[test]
fn within_a_tenant_a_class_goes_first_until_its_head_start_is_used_up() {
    // Two run at once, each of 10 + 2 * 8 tokens.
    let slack = ahead_max(2, 10, 8);
    for priority_tokens in [0, 100, 1000] {
        let charged = charged_until_low_runs(priority_tokens);
        let head_start = 2.0 * priority_tokens as f64;
        assert!(charged >= head_start && charged <= head_start + slack, "{priority_tokens}: {charged}");
    }
}

#[test]
fn classes_are_strict_among_what_waits_together() {
    let mut floods = Floods::new(&[], 1);
    let low = floods.submit("a", 1.0, Priority::Low);
    let normal = floods.submit("a", 1.0, Priority::Normal);
    let other = floods.submit("b", 1.0, Priority::Normal);
    let high = floods.submit("b", 1.0, Priority::High);
    let mut order = Vec::new();
    while order.len() < 4 {
        order.extend(floods.step().admitted);
    }
    assert_eq!(order, [high, normal, other, low]);
}

#[test]
fn time_in_which_a_tenant_wanted_nothing_is_no_credit() {
    let mut sim = sim(4, 1 << 14, Fairness::default());
    sim.add(asks("steady", 8));
    sim.run_until(60e6);
    sim.measure_from_now();
    sim.add(asks("back", 8));
    sim.run_until(90e6);
    let (steady, back) = (sim.got("steady").service, sim.got("back").service);
    assert!((back - steady).abs() <= ahead_max(4, 64, 32), "{back} against {steady}");
    assert!(back > 10_000.0);
}

#[test]
fn a_load_is_charged_to_whose_turn_it_was_by_its_bytes() {
    let limits = Limits { step_tokens_max: 32, running_max: 2, queue_max: 100 };
    let fairness = Fairness { load_tokens_per_mib: 16, ..Fairness::default() };
    let mut scheduler = Scheduler::new(limits, BlockPool::new(64, 16)).with_fairness(fairness);
    let mut next = 0;
    let mut wants = |scheduler: &mut Scheduler, tenant: &str, digest: weft_types::Digest| {
        next += 1;
        let new = NewRequest {
            id: RequestId(next),
            tenant: tenant.into(),
            weight: Weight::new(0.5).unwrap(),
            priority: Priority::Normal,
            adapter: Some(digest),
            prompt_tokens: 1,
            output_tokens_max: 1,
            prefix: None,
        };
        scheduler.submit(new).unwrap();
    };
    let digest = |byte: u8| weft_types::Digest::of(&[byte]);
    wants(&mut scheduler, "a", digest(1));
    wants(&mut scheduler, "b", digest(1));
    assert_eq!(scheduler.next_wanted(|_| false), Some(digest(1)));
    assert_eq!(scheduler.next_wanted(|_| false), Some(digest(1)), "its next stage is free");
    scheduler.loaded(&digest(1), Some(4 << 20));
    assert_eq!((scheduler.charged("a"), scheduler.charged("b")), (128.0, 0.0), "4 MiB at 16 tokens by a weight of 1/2");
    // Charged when it ends, for what it was, whatever was expected of it.
    wants(&mut scheduler, "b", digest(2));
    assert_eq!(scheduler.next_wanted(|wanted| *wanted == digest(1)), Some(digest(2)));
    assert_eq!(scheduler.charged("b"), 0.0);
    scheduler.loaded(&digest(2), Some(2 << 20));
    assert_eq!(scheduler.charged("b"), 64.0);
    // One that fails costs what is usual: here, the mean of the two.
    wants(&mut scheduler, "b", digest(3));
    assert_eq!(scheduler.next_wanted(|wanted| *wanted != digest(3)), Some(digest(3)));
    scheduler.loaded(&digest(3), None);
    assert!((scheduler.charged("b") - 64.0 - 16.0 * 3.5 / 0.5).abs() < 0.01, "{}", scheduler.charged("b"));
    // One that nobody waits for any more is charged all the same.
    wants(&mut scheduler, "b", digest(4));
    assert_eq!(scheduler.next_wanted(|wanted| *wanted != digest(4)), Some(digest(4)));
    let before = scheduler.charged("b");
    scheduler.remove(RequestId(next));
    scheduler.loaded(&digest(4), Some(1 << 20));
    assert_eq!(scheduler.charged("b") - before, 32.0);
}

#[test]
fn loads_under_way_are_no_credit_and_let_other_tenants_ask_in_between() {
    let limits = Limits { step_tokens_max: 32, running_max: 2, queue_max: 100 };
    let mut scheduler = Scheduler::new(limits, BlockPool::new(64, 16));
    let digest = |byte: u64| weft_types::Digest::of(&byte.to_le_bytes());
    let mut asked = Vec::new();
    let wants = |scheduler: &mut Scheduler, id: u64, tenant: &str| {
        let new = NewRequest {
            id: RequestId(id),
            tenant: tenant.into(),
            weight: Weight::default(),
            priority: Priority::Normal,
            adapter: Some(digest(id)),
            prompt_tokens: 1,
            output_tokens_max: 2,
            prefix: None,
        };
        scheduler.submit(new).unwrap();
    };
    for id in 0..40 {
        wants(&mut scheduler, id, "first");
    }
    while let Some(digest) = scheduler.next_wanted(|digest| asked.contains(digest)) {
        asked.push(digest);
    }
    assert_eq!(asked.len(), 40, "it is alone");
    for id in 40..46 {
        wants(&mut scheduler, id, if id % 2 == 0 { "second" } else { "third" });
    }
    for id in 40..46 {
        assert_eq!(scheduler.next_wanted(|digest| asked.contains(digest)), Some(digest(id)), "in turns");
        asked.push(digest(id));
    }
    // The adapters are far smaller than an unknown one was taken to be.
    for asked in &asked {
        scheduler.loaded(asked, Some(1 << 10));
    }
    assert_eq!(scheduler.charged("second"), scheduler.charged("third"));
    assert!(scheduler.charged("first") < 2.0 && scheduler.charged("second") < 0.2, "{}", scheduler.charged("first"));
}

#[test]
fn a_tenant_has_only_so_many_adapters_ahead_while_others_have_requests() {
    let limits = Limits { step_tokens_max: 32, running_max: 2, queue_max: 100 };
    let fairness = Fairness { loads_ahead_max: 2, ..Fairness::default() };
    let mut scheduler = Scheduler::new(limits, BlockPool::new(64, 16)).with_fairness(fairness);
    let digest = |byte: u64| weft_types::Digest::of(&byte.to_le_bytes());
    let new = |id: u64, tenant: &str, adapter| NewRequest {
        id: RequestId(id),
        tenant: tenant.into(),
        weight: Weight::default(),
        priority: Priority::Normal,
        adapter,
        prompt_tokens: 1,
        output_tokens_max: 2,
        prefix: None,
    };
    for id in 1..=6 {
        scheduler.submit(new(id, "cycler", Some(digest(id)))).unwrap();
    }
    let mut asked = Vec::new();
    let mut more = |scheduler: &mut Scheduler| {
        while let Some(digest) = scheduler.next_wanted(|digest| asked.contains(digest)) {
            asked.push(digest);
        }
        asked.len()
    };
    scheduler.submit(new(7, "calm", None)).unwrap();
    assert_eq!(more(&mut scheduler), 2);
    scheduler.loaded(&digest(1), Some(1 << 20));
    scheduler.open(digest(1));
    assert_eq!(more(&mut scheduler), 2, "the first has served nobody yet");
    scheduler.plan();
    assert_eq!(more(&mut scheduler), 3);
    scheduler.loaded(&digest(2), None);
    scheduler.remove(RequestId(2));
    assert_eq!(more(&mut scheduler), 4, "a failed load is not ahead");
    scheduler.remove(RequestId(7));
    assert_eq!(more(&mut scheduler), 6, "alone, it may have all");
}
