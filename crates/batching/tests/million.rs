//! A million random events: requests, cancellations, loads that end or fail, evictions, steps. No block is lost or held
//! twice, no request runs without its own adapter in a slot, nobody is forgotten.

use std::collections::{BTreeMap, HashMap};

use weft_batching::{BlockPool, Error, Fairness, Limits, NewRequest, Phase, Priority, RequestId, Scheduler, Weight};
use weft_types::Digest;

const EVENTS: u64 = 1_000_000;
const BLOCK: usize = 4;
const BLOCKS: usize = 48;
const LIMITS: Limits = Limits { step_tokens_max: 24, running_max: 8, queue_max: 32 };

struct Live {
    adapter: Option<Digest>,
    prompt: usize,
    output_max: usize,
    /// Where it would end by itself.
    output_end: usize,
    output: usize,
    computed: usize,
    started: bool,
}

#[derive(Default)]
struct Worker {
    live: BTreeMap<RequestId, Live>,
    loading: Vec<Digest>,
    /// Users by resident adapter.
    slots: HashMap<Digest, usize>,
    next: u64,
    finished: u64,
    cancelled: u64,
    preempted: u64,
    pushed_out: u64,
    loads: u64,
    evictions: u64,
    random: u64,
}

impl Worker {
    fn below(&mut self, limit: u64) -> u64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 33) % limit
    }

    fn submit(&mut self, scheduler: &mut Scheduler) {
        self.next += 1;
        let id = RequestId(self.next);
        let tenant = self.below(9);
        let adapter = (self.below(4) > 0).then(|| Digest::of(&[tenant as u8, self.below(12) as u8]));
        let (prompt, output_max) = (1 + self.below(60) as usize, 1 + self.below(40) as usize);
        let output_end = 1 + self.below(output_max as u64) as usize;
        let new = NewRequest {
            id,
            tenant: format!("t-{tenant}").into(),
            weight: Weight::new([0.01, 1.0, 100.0][tenant as usize % 3]).unwrap(),
            priority: [Priority::High, Priority::Normal, Priority::Low][self.below(3) as usize],
            adapter,
            prompt_tokens: prompt,
            output_tokens_max: output_max,
            prefix: None,
        };
        match scheduler.submit(new) {
            Ok(submitted) => {
                if let Some(victim) = submitted.pushed_out {
                    assert!(!self.live.remove(&victim).expect("known").started, "whoever ran is not pushed out");
                    self.pushed_out += 1;
                }
                let live = Live { adapter, prompt, output_max, output_end, output: 0, computed: 0, started: false };
                self.live.insert(id, live);
            }
            Err(Error::QueueFull { queued, limit }) => assert!(queued >= limit),
            Err(other) => panic!("{other}"),
        }
    }

    fn end(&mut self, scheduler: &mut Scheduler, id: RequestId) {
        let live = self.live.remove(&id).expect("known");
        let phase = scheduler.remove(id).expect("known");
        assert_eq!(live.started, matches!(phase, Phase::Running | Phase::Preempted));
        if let (true, Some(digest)) = (live.started, live.adapter) {
            *self.slots.get_mut(&digest).expect("its adapter stayed") -= 1;
        }
    }

    fn load(&mut self, scheduler: &mut Scheduler) {
        let (loading, slots) = (&self.loading, &self.slots);
        let here = |digest: &Digest| loading.contains(digest) || slots.contains_key(digest);
        if self.loading.len() < 4
            && let Some(digest) = scheduler.next_wanted(here)
        {
            self.loading.push(digest);
        }
    }

    fn loaded(&mut self, scheduler: &mut Scheduler) {
        if self.loading.is_empty() {
            return;
        }
        let at = self.below(self.loading.len() as u64) as usize;
        let digest = self.loading.swap_remove(at);
        if self.below(8) == 0 {
            scheduler.loaded(&digest, None);
            for id in scheduler.of_adapter(&digest, Phase::Beside) {
                self.end(scheduler, id);
            }
            return;
        }
        let bytes = self.below(4 << 20);
        scheduler.loaded(&digest, Some(bytes));
        self.loads += 1;
        self.slots.insert(digest, 0);
        scheduler.open(digest);
    }

    fn evict(&mut self, scheduler: &mut Scheduler) {
        let mut idle: Vec<Digest> = self.slots.iter().filter(|(_, users)| **users == 0).map(|(key, _)| *key).collect();
        idle.sort_unstable();
        if idle.is_empty() {
            return;
        }
        let victim = idle[self.below(idle.len() as u64) as usize];
        scheduler.close(&victim);
        self.slots.remove(&victim);
        self.evictions += 1;
    }

    fn step(&mut self, scheduler: &mut Scheduler) {
        let plan = scheduler.plan();
        for id in &plan.preempted {
            self.live.get_mut(id).expect("known").computed = 0;
            self.preempted += 1;
        }
        for id in &plan.admitted {
            let live = self.live.get_mut(id).expect("known");
            live.started = true;
            if let Some(digest) = live.adapter {
                *self.slots.get_mut(&digest).expect("admitted with its adapter") += 1;
            }
        }
        let tokens: usize = plan.chunks.iter().map(|chunk| chunk.tokens.len()).sum();
        assert!(tokens <= LIMITS.step_tokens_max && plan.chunks.len() <= LIMITS.running_max);
        let mut owners = [false; BLOCKS];
        for chunk in &plan.chunks {
            let live = &self.live[&chunk.id];
            assert_eq!(chunk.tokens.start, live.computed);
            assert!(chunk.blocks.len() * BLOCK >= chunk.tokens.end);
            assert!(live.adapter.is_none_or(|digest| self.slots.contains_key(&digest)), "runs without its adapter");
            for block in &chunk.blocks {
                assert!(!std::mem::replace(&mut owners[*block as usize], true), "block {block} has two owners");
            }
        }
        scheduler.commit(&plan);
        scheduler.observe(&plan, 900.0 + 100.0 * tokens as f64);
        for chunk in &plan.chunks {
            let live = self.live.get_mut(&chunk.id).expect("known");
            live.computed = chunk.tokens.end;
            assert_eq!(chunk.samples, live.computed == live.prompt + live.output);
            if !chunk.samples {
                continue;
            }
            live.output += 1;
            assert!(live.output <= live.output_max);
            if live.output == live.output_end {
                self.end(scheduler, chunk.id);
                self.finished += 1;
            } else {
                scheduler.sampled(chunk.id);
            }
        }
    }

    fn check(&self, scheduler: &Scheduler) {
        let load = scheduler.load();
        assert_eq!(load.running + load.waiting + load.beside, self.live.len());
        assert!(load.running <= LIMITS.running_max && load.waiting + load.beside <= LIMITS.queue_max);
        assert!(load.blocks_used <= BLOCKS && (load.running > 0 || load.blocks_used == 0), "{load:?}");
    }
}

#[test]
fn a_million_random_events_lose_no_block_and_no_request() {
    let fairness = Fairness { priority_tokens: 200, loads_ahead_max: 3, ..Fairness::default() };
    let mut scheduler = Scheduler::new(LIMITS, BlockPool::new(BLOCKS, BLOCK)).with_fairness(fairness);
    let mut worker = Worker { random: 42, ..Worker::default() };
    for _ in 0..EVENTS {
        match worker.below(100) {
            0..16 => worker.submit(&mut scheduler),
            16..19 if worker.next > 0 => {
                let back = worker.below(60).min(worker.next - 1);
                let id = RequestId(worker.next - back);
                if worker.live.contains_key(&id) {
                    worker.end(&mut scheduler, id);
                    worker.cancelled += 1;
                } else {
                    assert_eq!(scheduler.remove(id), None);
                }
            }
            19..28 => worker.load(&mut scheduler),
            28..37 => worker.loaded(&mut scheduler),
            37..42 => worker.evict(&mut scheduler),
            _ => worker.step(&mut scheduler),
        }
        worker.check(&scheduler);
    }
    println!(
        "{} requests, {} finished, {} cancelled, {} pushed out, {} preemptions, {} loads, {} evictions",
        worker.next,
        worker.finished,
        worker.cancelled,
        worker.pushed_out,
        worker.preempted,
        worker.loads,
        worker.evictions
    );
    for (what, count) in [
        ("finished", worker.finished),
        ("cancelled", worker.cancelled),
        ("pushed out", worker.pushed_out),
        ("preempted", worker.preempted),
        ("loads", worker.loads),
        ("evictions", worker.evictions),
    ] {
        assert!(count > 500, "{what}: only {count}");
    }
    // Everybody who is left gets done once nothing is in the way.
    for _ in 0..1_000_000 {
        if worker.live.is_empty() {
            break;
        }
        worker.load(&mut scheduler);
        worker.loaded(&mut scheduler);
        worker.step(&mut scheduler);
    }
    worker.check(&scheduler);
    assert_eq!((worker.live.len(), scheduler.load().blocks_used), (0, 0));
}
