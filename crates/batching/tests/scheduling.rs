//! Behaviour of the scheduler, one case at a time.

use weft_batching::{BlockPool, Error, Limits, NewRequest, Phase, Priority, RequestId, Scheduler, StepPlan, Weight};
use weft_types::Digest;

fn scheduler(blocks: usize, step_tokens_max: usize, running_max: usize) -> Scheduler {
    Scheduler::new(Limits { step_tokens_max, running_max, queue_max: 8 }, BlockPool::new(blocks, 4))
}

fn request(id: u64, tenant: &str, prompt_tokens: usize, output_tokens_max: usize) -> NewRequest {
    NewRequest {
        id: RequestId(id),
        tenant: tenant.into(),
        weight: Weight::default(),
        priority: Priority::Normal,
        adapter: None,
        prompt_tokens,
        output_tokens_max,
        prefix: None,
    }
}

/// Runs the step; everybody who sampled goes on.
fn run(scheduler: &mut Scheduler) -> StepPlan {
    let plan = scheduler.plan();
    scheduler.commit(&plan);
    for chunk in plan.chunks.iter().filter(|chunk| chunk.samples) {
        scheduler.sampled(chunk.id);
    }
    plan
}

fn shape(plan: &StepPlan) -> Vec<(u64, usize, usize)> {
    plan.chunks.iter().map(|chunk| (chunk.id.0, chunk.tokens.start, chunk.tokens.end)).collect()
}

#[test]
fn a_long_prompt_is_cut_and_mixed_with_decodes() {
    let mut scheduler = scheduler(64, 8, 4);
    scheduler.submit(request(1, "a", 3, 20)).unwrap();
    assert_eq!(shape(&run(&mut scheduler)), [(1, 0, 3)]);
    scheduler.submit(request(2, "b", 17, 5)).unwrap();
    assert_eq!(shape(&run(&mut scheduler)), [(1, 3, 4), (2, 0, 7)]);
    assert_eq!(shape(&run(&mut scheduler)), [(1, 4, 5), (2, 7, 14)]);
    assert_eq!(shape(&run(&mut scheduler)), [(1, 5, 6), (2, 14, 17)]);
    assert_eq!(shape(&run(&mut scheduler)), [(1, 6, 7), (2, 17, 18)]);
}

#[test]
fn a_short_prompt_does_not_wait_for_the_end_of_a_long_one() {
    let mut scheduler = scheduler(64, 8, 4);
    scheduler.submit(request(1, "a", 100, 2)).unwrap();
    run(&mut scheduler);
    scheduler.submit(request(2, "b", 4, 2)).unwrap();
    assert_eq!(shape(&run(&mut scheduler)), [(1, 8, 12), (2, 0, 4)]);
}

/// Lets the scheduler see that this tenant's outputs are one token long, so that it expects no more of the next.
fn learn_short_outputs(scheduler: &mut Scheduler, tenant: &str, first_id: u64) {
    for id in first_id..first_id + 30 {
        scheduler.submit(request(id, tenant, 1, 9)).unwrap();
        run(scheduler);
        scheduler.remove(RequestId(id));
    }
}

#[test]
fn a_request_is_let_in_when_the_expected_peak_fits() {
    // Four blocks of four tokens. At its end the first holds three, the second two: they fit one after the other only.
    let mut one = scheduler(4, 16, 2);
    one.submit(request(1, "a", 4, 9)).unwrap();
    run(&mut one);
    one.submit(request(2, "a", 3, 6)).unwrap();
    assert_eq!(shape(&run(&mut one)), [(1, 4, 5)], "as long as nothing is known, the whole output is expected");
    // The first ends long before the second needs its second block.
    let mut other = scheduler(4, 16, 2);
    other.submit(request(1, "a", 4, 4)).unwrap();
    run(&mut other);
    other.submit(request(2, "a", 3, 9)).unwrap();
    assert_eq!(shape(&run(&mut other)), [(1, 4, 5), (2, 0, 3)]);
}

#[test]
fn whoever_outgrows_the_prediction_preempts_the_youngest_which_replays_what_it_had() {
    let mut scheduler = scheduler(6, 32, 2);
    learn_short_outputs(&mut scheduler, "a", 100);
    scheduler.submit(request(201, "a", 4, 13)).unwrap();
    assert_eq!(shape(&run(&mut scheduler)), [(201, 0, 4)]);
    scheduler.submit(request(202, "a", 3, 13)).unwrap();
    let mut preempted_at = None;
    for _ in 0..12 {
        let plan = run(&mut scheduler);
        if !plan.preempted.is_empty() {
            assert_eq!(plan.preempted, [RequestId(202)]);
            assert_eq!(scheduler.phase(RequestId(202)), Some(Phase::Preempted));
            preempted_at = Some(shape(&plan));
            break;
        }
    }
    assert_eq!(preempted_at, Some(vec![(201, 12, 13)]), "the oldest goes on");
    let charged = scheduler.charged("a");
    scheduler.remove(RequestId(201));
    let plan = run(&mut scheduler);
    // The prompt of three and the tokens chosen before; it is not admitted a second time.
    assert_eq!((shape(&plan), plan.admitted), (vec![(202, 0, 11)], vec![]));
    assert!(plan.chunks[0].samples);
    assert_eq!(scheduler.charged("a") - charged, 2.0, "the new token is charged, the replay is not");
}

/// Two requests that both outgrow six blocks; says who is preempted.
fn preempted_of(older: NewRequest, younger: NewRequest) -> u64 {
    let mut scheduler = scheduler(6, 32, 2);
    learn_short_outputs(&mut scheduler, "others", 100);
    for new in [older, younger] {
        scheduler.submit(new).unwrap();
        run(&mut scheduler);
    }
    let preempted = (0..16).find_map(|_| run(&mut scheduler).preempted.first().copied());
    preempted.expect("they outgrow the blocks").0
}

#[test]
fn the_lowest_class_is_preempted_then_the_most_charged_tenant_then_the_youngest() {
    let of = |id: u64, tenant: &str, weight: f64, priority: Priority| NewRequest {
        priority,
        weight: Weight::new(weight).unwrap(),
        ..request(200 + id, tenant, 4, 16)
    };
    use Priority::{High, Low, Normal};
    assert_eq!(preempted_of(of(1, "a", 1.0, Normal), of(2, "a", 1.0, Normal)), 202, "the youngest");
    assert_eq!(preempted_of(of(1, "a", 0.1, Normal), of(2, "b", 1.0, Normal)), 201, "whose tenant is over its share");
    assert_eq!(preempted_of(of(1, "a", 0.1, Normal), of(2, "b", 1.0, Low)), 202, "the lower class, whoever is over");
    assert_eq!(preempted_of(of(1, "a", 1.0, Low), of(2, "a", 1.0, High)), 201, "the lower class, whoever is older");
}

#[test]
fn a_request_without_its_adapter_waits_beside_and_blocks_nobody() {
    let adapter = Digest::of(b"a");
    let mut scheduler = scheduler(16, 8, 4);
    scheduler.submit(NewRequest { adapter: Some(adapter), ..request(1, "a", 2, 2) }).unwrap();
    scheduler.submit(request(2, "a", 2, 2)).unwrap();
    assert_eq!(shape(&run(&mut scheduler)), [(2, 0, 2)]);
    assert_eq!(scheduler.next_wanted(|_| false), Some(adapter));
    assert_eq!(scheduler.next_wanted(|digest| *digest == adapter), None);
    scheduler.open(adapter);
    assert_eq!(scheduler.next_wanted(|_| false), None);
    let plan = run(&mut scheduler);
    assert_eq!((shape(&plan), plan.admitted), (vec![(2, 2, 3), (1, 0, 2)], vec![RequestId(1)]));
}

#[test]
fn closing_an_adapter_keeps_those_that_run() {
    let adapter = Digest::of(b"a");
    let mut scheduler = scheduler(16, 8, 1);
    scheduler.open(adapter);
    for id in [1, 2] {
        scheduler.submit(NewRequest { adapter: Some(adapter), ..request(id, "a", 2, 3) }).unwrap();
    }
    run(&mut scheduler);
    scheduler.close(&adapter);
    assert_eq!(scheduler.of_adapter(&adapter, Phase::Running), [RequestId(1)]);
    assert_eq!(scheduler.of_adapter(&adapter, Phase::Beside), [RequestId(2)]);
    assert_eq!(shape(&run(&mut scheduler)), [(1, 2, 3)]);
    scheduler.remove(RequestId(1));
    assert!(run(&mut scheduler).chunks.is_empty());
}

#[test]
fn adapters_are_wanted_in_turn_of_their_tenants() {
    let mut scheduler = scheduler(16, 8, 4);
    let name = |byte: u8| Digest::of(&[byte]);
    for (id, tenant, byte) in [(1, "flood", 1), (2, "flood", 2), (3, "flood", 3), (4, "calm", 4)] {
        scheduler.submit(NewRequest { adapter: Some(name(byte)), ..request(id, tenant, 1, 1) }).unwrap();
    }
    let mut order = Vec::new();
    while let Some(digest) = scheduler.next_wanted(|digest| order.contains(digest)) {
        order.push(digest);
    }
    assert_eq!(order, [name(1), name(4), name(2), name(3)]);
}

#[test]
fn a_full_queue_refuses_and_a_flood_pushes_out_its_own() {
    let mut scheduler = scheduler(16, 8, 1);
    for id in 0..8 {
        scheduler.submit(request(id, "flood", 1, 1)).unwrap();
    }
    let full = Error::QueueFull { queued: 8, limit: 8 };
    assert_eq!(scheduler.submit(request(8, "flood", 1, 1)), Err(full.clone()));
    assert_eq!(scheduler.submit(request(9, "calm", 1, 1)).unwrap().pushed_out, Some(RequestId(7)));
    for id in 10..13 {
        scheduler.submit(request(id, "calm", 1, 1)).unwrap();
    }
    assert_eq!(scheduler.submit(request(13, "calm", 1, 1)), Err(full), "an equal share pushes nobody out");
}

#[test]
fn what_can_never_run_is_refused_at_once() {
    let mut scheduler = scheduler(4, 8, 1);
    assert_eq!(scheduler.submit(request(1, "a", 16, 2)), Err(Error::TooLong { tokens: 17, limit: 16 }));
    assert_eq!(scheduler.submit(request(1, "a", 0, 2)), Err(Error::Empty { what: "prompt_tokens" }));
    assert_eq!(scheduler.submit(request(1, "a", 1, 0)), Err(Error::Empty { what: "output_tokens_max" }));
    scheduler.submit(request(1, "a", 16, 1)).unwrap();
    assert_eq!(scheduler.submit(request(1, "a", 1, 1)), Err(Error::Duplicate(1)));
}
