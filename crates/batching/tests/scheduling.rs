//! Behaviour of the scheduler, one case at a time.

use weft_batching::{BlockPool, Error, Limits, NewRequest, Phase, RequestId, Scheduler, StepPlan};
use weft_types::Digest;

fn scheduler(blocks: usize, step_tokens_max: usize, running_max: usize) -> Scheduler {
    Scheduler::new(Limits { step_tokens_max, running_max, queue_max: 8 }, BlockPool::new(blocks, 4))
}

fn request(id: u64, tenant: &str, prompt_tokens: usize, output_tokens_max: usize) -> NewRequest {
    NewRequest {
        id: RequestId(id),
        tenant: tenant.into(),
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

#[test]
fn the_youngest_is_preempted_and_replays_what_it_had() {
    // Four blocks of four tokens: two requests of six tokens fit, until one needs a third block.
    let mut scheduler = scheduler(4, 16, 2);
    scheduler.submit(request(1, "a", 4, 9)).unwrap();
    assert_eq!(shape(&run(&mut scheduler)), [(1, 0, 4)]);
    scheduler.submit(request(2, "a", 3, 6)).unwrap();
    let mut preempted_at = None;
    for _ in 0..8 {
        let plan = run(&mut scheduler);
        if !plan.preempted.is_empty() {
            assert_eq!(plan.preempted, [RequestId(2)]);
            assert_eq!(scheduler.phase(RequestId(2)), Some(Phase::Preempted));
            preempted_at = Some(shape(&plan));
            break;
        }
    }
    assert_eq!(preempted_at, Some(vec![(1, 8, 9)]), "the oldest goes on");
    scheduler.remove(RequestId(1));
    let plan = run(&mut scheduler);
    // The prompt of three and the four tokens chosen before; it is not admitted a second time.
    assert_eq!((shape(&plan), plan.admitted), (vec![(2, 0, 7)], vec![]));
    assert!(plan.chunks[0].samples);
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
