//! The promises of the scheduler, checked against a memory that really holds what the plans write.

use std::collections::HashMap;

use proptest::prelude::*;
use weft_batching::{BlockPool, Error, Limits, NewRequest, Phase, Priority, RequestId, Scheduler, StepPlan, Weight};
use weft_types::Digest;

const BLOCK: usize = 4;

/// What a request has got so far.
#[derive(Clone, Debug)]
struct Seen {
    adapter: Option<Digest>,
    prompt: usize,
    output_max: usize,
    output: usize,
    computed: usize,
}

/// Runs plans as an engine would: a block's cell remembers which position of which request was written there.
struct World {
    scheduler: Scheduler,
    limits: Limits,
    memory: Vec<[Option<(RequestId, usize)>; BLOCK]>,
    seen: HashMap<RequestId, Seen>,
    next: u64,
    finished: usize,
    /// Requests have different classes and weights.
    mixed: bool,
    /// What adapters have of the blocks.
    lent: Vec<Vec<u32>>,
}

impl World {
    fn new(blocks: usize, limits: Limits) -> Self {
        Self {
            scheduler: Scheduler::new(limits, BlockPool::new(blocks, BLOCK)),
            limits,
            memory: vec![[None; BLOCK]; blocks],
            seen: HashMap::new(),
            next: 0,
            finished: 0,
            mixed: false,
            lent: Vec::new(),
        }
    }

    fn submit(
        &mut self,
        tenant: &str,
        adapter: Option<Digest>,
        prompt: usize,
        output_max: usize,
    ) -> Result<RequestId, Error> {
        let id = RequestId(self.next);
        self.next += 1;
        let kind = |seed: usize| if self.mixed { seed % 3 } else { 0 };
        let priority = [Priority::Normal, Priority::High, Priority::Low][kind(id.0 as usize)];
        let weight = [1.0, 0.3, 8.0][kind(tenant.bytes().map(usize::from).sum())];
        let new = NewRequest {
            id,
            tenant: tenant.into(),
            weight: Weight::new(weight).unwrap(),
            priority,
            adapter,
            prompt_tokens: prompt,
            output_tokens_max: output_max,
            prefix: None,
        };
        let submitted = self.scheduler.submit(new)?;
        if let Some(pushed_out) = submitted.pushed_out {
            let seen = self.seen.remove(&pushed_out).expect("only known requests are pushed out");
            assert_eq!((seen.computed, seen.output), (0, 0), "a request that ran is not pushed out");
        }
        self.seen.insert(id, Seen { adapter, prompt, output_max, output: 0, computed: 0 });
        Ok(id)
    }

    fn cancel(&mut self, id: RequestId) {
        let before = self.scheduler.load().blocks_used;
        let known = self.scheduler.remove(id).is_some();
        assert_eq!(known, self.seen.remove(&id).is_some());
        assert_eq!(self.scheduler.phase(id), None);
        assert!(self.scheduler.load().blocks_used <= before);
    }

    /// One step; returns the ids that took part.
    fn step(&mut self) -> StepPlan {
        let plan = self.scheduler.plan();
        for id in &plan.preempted {
            self.seen.get_mut(id).expect("known").computed = 0;
        }
        let tokens: usize = plan.chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        assert!(tokens <= self.limits.step_tokens_max, "{tokens} tokens in a step");
        assert!(plan.chunks.len() <= self.limits.running_max);
        assert!(self.scheduler.load().running <= self.limits.running_max);

        let mut owner: HashMap<u32, RequestId> = HashMap::new();
        for chunk in &plan.chunks {
            assert!(!chunk.tokens.is_empty());
            for block in &chunk.blocks {
                assert!(!self.lent.iter().flatten().any(|lent| lent == block), "block {block} is an adapter's");
                assert_eq!(owner.insert(*block, chunk.id), None, "block {block} has two owners");
            }
            let seen = &self.seen[&chunk.id];
            assert_eq!(chunk.tokens.start, seen.computed, "a token is skipped or computed twice");
            assert_eq!(chunk.samples, chunk.tokens.end == seen.prompt + seen.output);
            assert!(chunk.blocks.len() * BLOCK >= chunk.tokens.end);
            for position in chunk.tokens.clone() {
                self.memory[chunk.blocks[position / BLOCK] as usize][position % BLOCK] = Some((chunk.id, position));
            }
        }
        // All writes happen before any read, as in a kernel: an aliased block shows up here.
        for chunk in &plan.chunks {
            for position in 0..chunk.tokens.end {
                let cell = self.memory[chunk.blocks[position / BLOCK] as usize][position % BLOCK];
                assert_eq!(cell, Some((chunk.id, position)), "KV of another request or position");
            }
        }
        self.scheduler.commit(&plan);
        // A machine on which a step costs a millisecond and each token a tenth of it, so that prompts are paced.
        self.scheduler.observe(&plan, 1000.0 + 100.0 * tokens as f64);
        for chunk in &plan.chunks {
            let seen = self.seen.get_mut(&chunk.id).expect("known");
            seen.computed = chunk.tokens.end;
            if chunk.samples {
                seen.output += 1;
                if seen.output == seen.output_max {
                    assert_eq!(seen.computed, seen.prompt + seen.output_max - 1);
                    self.scheduler.remove(chunk.id);
                    self.seen.remove(&chunk.id);
                    self.finished += 1;
                } else {
                    self.scheduler.sampled(chunk.id);
                }
            }
        }
        plan
    }

    fn drain(&mut self) {
        let work: usize = self.seen.values().map(|seen| seen.prompt + seen.output_max).sum();
        // Every step computes at least one token of somebody; preemption repeats at most everybody's tokens for each
        // request that finishes.
        let steps_max = (work + 1) * (self.seen.len() + 1);
        for _ in 0..steps_max {
            if self.seen.is_empty() {
                break;
            }
            // An adapter that waits is served or gives up; what requests miss, and no more, comes back from adapters.
            self.scheduler.owe_blocks(0);
            self.scheduler.set_lent_idle(usize::MAX);
            while self.scheduler.blocks_wanted().to_admit > 0
                && let Some(lent) = self.lent.pop()
            {
                self.scheduler.take_blocks_back(&lent);
            }
            assert!(!self.step().chunks.is_empty(), "nobody runs while somebody could: {:?}", self.seen);
        }
        assert!(self.seen.is_empty(), "starved: {:?}", self.seen);
        assert_eq!(self.scheduler.load().blocks_used, 0, "blocks are lost");
    }
}

#[derive(Clone, Debug)]
enum Event {
    Submit {
        tenant: u8,
        adapter: Option<u8>,
        prompt: usize,
        output_max: usize,
    },
    Open(u8),
    Close(u8),
    Cancel(u64),
    /// To an adapter; else as many are owed.
    Lend(Vec<usize>),
    TakeBack,
    Step,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0u8..4, proptest::option::of(0u8..3), 1usize..40, 1usize..16)
            .prop_map(|(tenant, adapter, prompt, output_max)| Event::Submit { tenant, adapter, prompt, output_max }),
        1 => (0u8..3).prop_map(Event::Open),
        1 => (0u8..3).prop_map(Event::Close),
        1 => (0u64..60).prop_map(Event::Cancel),
        1 => proptest::collection::vec(1usize..4, 1..4).prop_map(Event::Lend),
        1 => Just(Event::TakeBack),
        8 => Just(Event::Step),
    ]
}

fn adapter(number: u8) -> Digest {
    Digest::of(&[number])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_budgets_hold_blocks_never_alias_and_everybody_finishes(
        blocks in 14usize..40,
        step_tokens_max in 1usize..24,
        running_max in 1usize..8,
        queue_max in 1usize..12,
        events in proptest::collection::vec(event(), 1..120),
    ) {
        let running_max = running_max.min(step_tokens_max);
        let mut world = World::new(blocks, Limits { step_tokens_max, running_max, queue_max });
        world.mixed = true;
        let mut open = [false; 3];
        for event in events {
            match event {
                Event::Submit { tenant, adapter: number, prompt, output_max } => {
                    let tenant = format!("tenant-{tenant}");
                    match world.submit(&tenant, number.map(adapter), prompt, output_max) {
                        Ok(id) => {
                            let ready = number.is_none_or(|number| open[number as usize]);
                            let expected = if ready { Phase::Waiting } else { Phase::Beside };
                            prop_assert_eq!(world.scheduler.phase(id), Some(expected));
                        }
                        Err(Error::QueueFull { queued, limit }) => prop_assert!(queued >= limit && limit == queue_max),
                        Err(other) => prop_assert!(false, "{}", other),
                    }
                    let load = world.scheduler.load();
                    prop_assert!(load.waiting + load.beside <= queue_max);
                }
                Event::Open(number) => {
                    open[number as usize] = true;
                    world.scheduler.open(adapter(number));
                }
                Event::Close(number) => {
                    open[number as usize] = false;
                    world.scheduler.close(&adapter(number));
                }
                Event::Cancel(id) => world.cancel(RequestId(id)),
                Event::Lend(runs) => {
                    let (wanted, blank) = (runs.iter().sum::<usize>(), world.scheduler.blank_blocks());
                    // What every request may need together is never lent.
                    let lent: usize = world.lent.iter().map(Vec::len).sum();
                    if lent + wanted + 14 <= blocks {
                        match world.scheduler.lend_blocks(&runs) {
                            Some(given) => {
                                prop_assert_eq!(given.len(), wanted);
                                let mut rest = &given[..];
                                for count in runs {
                                    let (run, others) = rest.split_at(count);
                                    prop_assert!(run.windows(2).all(|two| two[1] == two[0] + 1));
                                    rest = others;
                                }
                                world.lent.push(given);
                            }
                            None => {
                                prop_assert!(blank < wanted || runs.iter().any(|&run| run > 1));
                                world.scheduler.owe_blocks(wanted.saturating_sub(blank));
                            }
                        }
                    }
                }
                Event::TakeBack => {
                    if let Some(lent) = world.lent.pop() {
                        world.scheduler.take_blocks_back(&lent);
                    }
                }
                Event::Step => {
                    let plan = world.step();
                    for id in plan.admitted {
                        if let Some(Some(digest)) = world.seen.get(&id).map(|seen| seen.adapter) {
                            let number = (0..3).find(|number| adapter(*number) == digest).unwrap();
                            prop_assert!(open[number as usize], "admitted without its adapter");
                        }
                    }
                }
            }
        }
        for number in 0..3 {
            world.scheduler.open(adapter(number));
        }
        world.drain();
    }

    #[test]
    fn cancelling_everything_frees_everything(
        requests in proptest::collection::vec((1usize..30, 1usize..10), 1..20),
        steps in 0usize..10,
    ) {
        let mut world = World::new(24, Limits { step_tokens_max: 8, running_max: 4, queue_max: 100 });
        for (prompt, output_max) in requests {
            world.submit("a", None, prompt, output_max).unwrap();
        }
        for _ in 0..steps {
            world.step();
        }
        let ids: Vec<RequestId> = world.seen.keys().copied().collect();
        for id in ids {
            world.cancel(id);
        }
        let load = world.scheduler.load();
        prop_assert_eq!((load.running, load.waiting, load.beside, load.blocks_used), (0, 0, 0, 0));
        prop_assert!(world.step().chunks.is_empty());
    }

    #[test]
    fn a_calm_tenant_is_admitted_within_its_turn_whatever_a_flood_does(
        flood_prompt in 1usize..60,
        flood_output in 1usize..8,
        running_max in 1usize..4,
        seed_steps in 0usize..20,
    ) {
        let mut world = World::new(64, Limits { step_tokens_max: 16, running_max, queue_max: 16 });
        let flood = |world: &mut World| while world.submit("flood", None, flood_prompt, flood_output).is_ok() {};
        flood(&mut world);
        for _ in 0..seed_steps {
            world.step();
            flood(&mut world);
        }
        let calm = world.submit("calm", None, 5, 2).expect("a flood pushes out its own");
        // Those that run when it comes, and at most one more, may go first.
        let ahead = running_max + 1;
        let steps_max = ahead * (flood_prompt.div_ceil(4) + flood_output + 2) + 8;
        let mut admitted_before = 0;
        for step in 0.. {
            prop_assert!(step < steps_max, "still waits after {} steps", steps_max);
            let plan = world.step();
            if plan.admitted.contains(&calm) {
                break;
            }
            admitted_before += plan.admitted.len();
            flood(&mut world);
        }
        prop_assert!(admitted_before <= 1, "{} of the flood went first", admitted_before);
    }
}
