//! The promises of the prefix cache, checked against a memory that really holds what the plans write.

use std::collections::HashMap;

use proptest::prelude::*;
use weft_batching::{
    BlockHash, BlockPool, Limits, NewRequest, Prefix, Priority, RequestId, Scheduler, StepPlan, Weight,
};
use weft_types::Digest;

const BLOCK: usize = 4;
const TENANTS: u64 = 3;

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0) % limit
    }
}

fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    value ^ (value >> 31)
}

/// What a cell of memory holds: a position's keys and values, which depend on the namespace and all tokens up to it.
fn contents(namespace: u64, tokens: &[u8]) -> Vec<u64> {
    let step = |state: &mut u64, token: &u8| {
        *state = mix(*state ^ (u64::from(*token) + 1));
        Some(*state)
    };
    tokens.iter().scan(mix(namespace + 1), step).collect()
}

fn block_hash(content_of_last: u64) -> BlockHash {
    BlockHash(*Digest::of(&content_of_last.to_le_bytes()).as_bytes())
}

struct Seen {
    namespace: u64,
    tokens: Vec<u8>,
    known_max: usize,
    reads: bool,
    computed: usize,
    /// Not running: its next chunk may begin behind a cached prefix.
    starts: bool,
    table: Vec<u32>,
}

struct World {
    scheduler: Scheduler,
    memory: Vec<[u64; BLOCK]>,
    seen: HashMap<RequestId, Seen>,
    next: u64,
    /// Namespaces and tokens of some that ended: prompts of later turns begin with them.
    told: Vec<(u64, Vec<u8>)>,
    computed_tokens: usize,
    preemptions: usize,
}

impl World {
    fn new(blocks: usize, limits: Limits) -> Self {
        Self {
            scheduler: Scheduler::new(limits, BlockPool::new(blocks, BLOCK)),
            memory: vec![[0; BLOCK]; blocks],
            seen: HashMap::new(),
            next: 0,
            told: Vec::new(),
            computed_tokens: 0,
            preemptions: 0,
        }
    }

    /// Tenant `namespace % TENANTS` sends a prompt.
    fn submit(&mut self, namespace: u64, tokens: Vec<u8>, output_max: usize, reads: bool) -> Option<RequestId> {
        let id = RequestId(self.next);
        self.next += 1;
        let hashes =
            contents(namespace, &tokens).chunks_exact(BLOCK).map(|block| block_hash(block[BLOCK - 1])).collect();
        let submitted = self.scheduler.submit(NewRequest {
            id,
            tenant: format!("tenant-{}", namespace % TENANTS).into(),
            weight: Weight::default(),
            priority: Priority::Normal,
            adapter: None,
            prompt_tokens: tokens.len(),
            output_tokens_max: output_max,
            prefix: Some(Prefix { hashes, reads }),
        });
        if let Some(victim) = submitted.ok()?.pushed_out {
            self.seen.remove(&victim);
        }
        let known_max = tokens.len() + output_max;
        let seen = Seen { namespace, tokens, known_max, reads, computed: 0, starts: true, table: Vec::new() };
        self.seen.insert(id, seen);
        Some(id)
    }

    fn remove(&mut self, id: RequestId) {
        self.scheduler.remove(id);
        if let Some(seen) = self.seen.remove(&id) {
            self.told.push((seen.namespace, seen.tokens));
            if self.told.len() > 20 {
                self.told.remove(0);
            }
        }
    }

    fn step(&mut self) -> StepPlan {
        let plan = self.scheduler.plan();
        self.preemptions += plan.preempted.len();
        for id in &plan.preempted {
            let seen = self.seen.get_mut(id).expect("known");
            (seen.computed, seen.starts) = (0, true);
            seen.table.clear();
        }
        for chunk in &plan.chunks {
            let seen = self.seen.get_mut(&chunk.id).expect("known");
            if seen.starts {
                let cached = chunk.tokens.start;
                assert!(cached % BLOCK == 0 && cached < seen.tokens.len() && (seen.reads || cached == 0), "{cached}");
                (seen.computed, seen.starts) = (cached, false);
            }
            assert_eq!(chunk.tokens.start, seen.computed, "a token is skipped or computed twice");
            seen.table = chunk.blocks.clone();
        }
        self.write(&plan);
        self.read(&plan);
        for chunk in &plan.chunks {
            self.scheduler.commit_chunk(chunk);
            self.advance(chunk.id, chunk.tokens.end, chunk.samples);
        }
        plan
    }

    /// Whoever writes a block is the only one who has it.
    fn write(&mut self, plan: &StepPlan) {
        for chunk in &plan.chunks {
            let content = contents(self.seen[&chunk.id].namespace, &self.seen[&chunk.id].tokens);
            for position in chunk.tokens.clone() {
                let block = chunk.blocks[position / BLOCK];
                for (other, seen) in &self.seen {
                    assert!(
                        *other == chunk.id || !seen.table.contains(&block),
                        "a block is written that {other:?} has"
                    );
                }
                self.memory[block as usize][position % BLOCK] = content[position];
            }
            self.computed_tokens += chunk.tokens.len();
        }
    }

    /// Whatever a request has in its blocks is what its own tokens in its own namespace give.
    fn read(&self, plan: &StepPlan) {
        for chunk in &plan.chunks {
            let content = contents(self.seen[&chunk.id].namespace, &self.seen[&chunk.id].tokens);
            for (position, wanted) in content[..chunk.tokens.end].iter().enumerate() {
                let cell = self.memory[chunk.blocks[position / BLOCK] as usize][position % BLOCK];
                assert_eq!(cell, *wanted, "keys and values of other tokens or of another namespace");
            }
        }
    }

    fn advance(&mut self, id: RequestId, computed: usize, samples: bool) {
        let seen = self.seen.get_mut(&id).expect("known");
        seen.computed = computed;
        if !samples {
            return;
        }
        let content = contents(seen.namespace, &seen.tokens);
        // An answer follows from what came before it, so that two who ask the same hear the same.
        seen.tokens.push((content[content.len() - 1] % 3) as u8);
        if seen.tokens.len() == seen.known_max {
            return self.remove(id);
        }
        self.scheduler.sampled(id);
        if seen.tokens.len().is_multiple_of(BLOCK) {
            let content = contents(seen.namespace, &seen.tokens);
            self.scheduler.block_filled(id, block_hash(content[content.len() - 1]));
        }
    }

    fn drain(&mut self) {
        for _ in 0..100_000 {
            if self.seen.is_empty() {
                break;
            }
            self.step();
        }
        assert!(self.seen.is_empty(), "starved");
        let load = self.scheduler.load();
        assert_eq!(load.blocks_used, 0, "references are lost");
        assert!(load.blocks_idle <= load.blocks_total);
    }

    /// Runs one request alone; says how many of its prompt tokens were cached.
    fn ask(&mut self, namespace: u64, tokens: &[u8], output_max: usize) -> usize {
        let before = self.scheduler.prefix_counts().hit_tokens;
        self.submit(namespace, tokens.to_vec(), output_max, true).expect("taken");
        self.drain();
        (self.scheduler.prefix_counts().hit_tokens - before) as usize
    }
}

/// One thing that happens. Prompts are short words over three letters, so that beginnings often agree.
fn event(world: &mut World, random: &mut Random) -> Option<StepPlan> {
    match random.below(16) {
        0..=4 => {
            let namespace = random.below(2 * TENANTS);
            let prompt = (0..1 + random.below(20)).map(|_| (random.below(8) / 5) as u8).collect();
            world.submit(namespace, prompt, 1 + random.below(12) as usize, random.below(8) > 0);
        }
        5 if !world.told.is_empty() => {
            // A further turn of a conversation, in its own namespace or in one where nobody has heard it.
            let (namespace, mut tokens) = world.told[random.below(world.told.len() as u64) as usize].clone();
            let namespace = if random.below(4) == 0 { random.below(2 * TENANTS) } else { namespace };
            tokens.truncate(30);
            tokens.push(random.below(3) as u8);
            world.submit(namespace, tokens, 1 + random.below(6) as usize, true);
        }
        6 => {
            let known: Vec<RequestId> = {
                let mut ids: Vec<_> = world.seen.keys().copied().collect();
                ids.sort_unstable();
                ids
            };
            if !known.is_empty() {
                world.remove(known[random.below(known.len() as u64) as usize]);
            }
        }
        _ => return Some(world.step()),
    }
    None
}

fn limits(random: &mut Random) -> Limits {
    Limits {
        step_tokens_max: 4 + random.below(28) as usize,
        running_max: 1 + random.below(6) as usize,
        queue_max: 1 + random.below(10) as usize,
    }
}

#[test]
fn a_million_events_mix_up_no_block_and_lose_none() {
    let random = &mut Random(7);
    let (mut hits, mut reclaimed, mut preemptions, mut looked_up) = (0, 0, 0, 0);
    for _ in 0..100 {
        let limits = limits(random);
        let mut world = World::new(11 + random.below(20) as usize, limits);
        for _ in 0..10_000 {
            event(&mut world, random);
        }
        world.drain();
        let counts = world.scheduler.prefix_counts();
        hits += counts.hit_tokens;
        looked_up += counts.lookup_tokens;
        reclaimed += counts.reclaimed_blocks;
        preemptions += world.preemptions;
    }
    assert!(hits > 10_000 && hits < looked_up, "{hits} of {looked_up} tokens were cached");
    assert!(reclaimed > 1_000 && preemptions > 100, "{reclaimed} blocks reclaimed, {preemptions} preemptions");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_every_request_reads_only_what_its_own_tokens_give(seed: u64, events in 1usize..400) {
        let random = &mut Random(seed);
        let limits = limits(random);
        let mut world = World::new(11 + random.below(30) as usize, limits);
        for _ in 0..events {
            event(&mut world, random);
        }
        world.drain();
    }

    #[test]
    fn reclaimed_blocks_are_found_no_more(seed: u64) {
        let random = &mut Random(seed);
        let blocks = 12 + random.below(20) as usize;
        let mut world = World::new(blocks, Limits { step_tokens_max: 32, running_max: 4, queue_max: 8 });
        for _ in 0..100 {
            event(&mut world, random);
        }
        world.drain();
        let old = world.told.clone();
        // One request without a cache fills the whole memory.
        let new = NewRequest {
            id: RequestId(u64::MAX), tenant: "big".into(), weight: Weight::default(), priority: Priority::Normal, adapter: None,
            prompt_tokens: blocks * BLOCK, output_tokens_max: 1, prefix: None,
        };
        world.scheduler.submit(new).unwrap();
        let mut samples = false;
        while !samples {
            let plan = world.scheduler.plan();
            for chunk in &plan.chunks {
                world.scheduler.commit_chunk(chunk);
                samples |= chunk.samples;
            }
        }
        prop_assert_eq!(world.scheduler.load().blocks_idle, 0);
        world.scheduler.remove(RequestId(u64::MAX));
        prop_assert_eq!(world.scheduler.load().blocks_idle, 0, "it left nothing behind either");
        for (namespace, tokens) in old.into_iter().take(1) {
            prop_assert_eq!(world.ask(namespace, &tokens, 1), 0);
        }
    }

    #[test]
    fn plans_do_not_tell_what_others_asked(seed: u64, events in 1usize..300) {
        // The same events twice. In the second world the tenants have other namespaces, that is other contents.
        let run = |shift: u64| {
            let random = &mut Random(seed);
            let limits = limits(random);
            let mut world = World::new(11 + random.below(20) as usize, limits);
            (0..events).filter_map(|_| shifted(&mut world, random, shift)).collect::<Vec<_>>()
        };
        prop_assert_eq!(run(0), run(1));
    }
}

/// As [`event`], without turns of conversations: prompts of all but tenant 0 get other letters.
fn shifted(world: &mut World, random: &mut Random, shift: u64) -> Option<StepPlan> {
    if random.below(3) == 0 {
        let namespace = random.below(TENANTS);
        let letter = |letter: u64| letter as u8 + if namespace > 0 { 50 * shift as u8 } else { 0 };
        let prompt = (0..1 + random.below(20)).map(|_| letter(random.below(8) / 5)).collect();
        // One output token: answers would not be shifted alike.
        world.submit(namespace, prompt, 1, true);
        return None;
    }
    Some(world.step())
}

fn calm_world() -> World {
    World::new(40, Limits { step_tokens_max: 16, running_max: 4, queue_max: 8 })
}

const PROMPT: [u8; 18] = [9, 8, 7, 6, 5, 4, 3, 2, 1, 9, 8, 7, 6, 5, 4, 3, 2, 1];

#[test]
fn a_prompt_is_computed_once_and_its_last_token_always() {
    let mut world = calm_world();
    assert_eq!(world.ask(0, &PROMPT, 1), 0);
    assert_eq!((world.ask(0, &PROMPT, 1), world.computed_tokens), (16, 18 + 2));
    assert_eq!(world.ask(0, &PROMPT[..16], 1), 12, "a prompt that is cached to its end leaves a block to compute");
    assert_eq!(world.ask(0, &PROMPT[..3], 1), 0, "less than a block is not shared");
    let mut other = PROMPT;
    other[5] = 0;
    assert_eq!(world.ask(0, &other, 1), 4, "up to the block that differs");
    assert_eq!(world.ask(1, &PROMPT, 1), 0, "another namespace");
    assert_eq!(world.ask(3, &PROMPT, 1), 0, "another namespace of the same tenant");
}

#[test]
fn an_answer_is_cached_for_the_next_turn() {
    let mut world = calm_world();
    world.ask(0, &PROMPT, 8);
    let (_, mut conversation) = world.told.last().unwrap().clone();
    assert_eq!(conversation.len(), 26);
    conversation.extend([7, 7, 7]);
    // The last token of the answer was delivered, never computed: 25 are in the blocks, 24 of them in full ones.
    assert_eq!(world.ask(0, &conversation, 1), 24);
}

#[test]
fn a_request_that_does_not_read_computes_everything_and_fills_the_cache() {
    let mut world = calm_world();
    for _ in 0..2 {
        world.submit(0, PROMPT.to_vec(), 1, false).unwrap();
        world.drain();
    }
    assert_eq!(world.computed_tokens, 2 * PROMPT.len());
    assert_eq!(world.ask(0, &PROMPT, 1), 16);
}

#[test]
fn requests_side_by_side_share_what_the_first_has_computed() {
    let mut world = calm_world();
    world.submit(0, PROMPT.to_vec(), 6, true).unwrap();
    world.step();
    world.step();
    let used = world.scheduler.load().blocks_used;
    world.submit(0, PROMPT.to_vec(), 6, true).unwrap();
    world.step();
    assert_eq!(world.scheduler.load().blocks_used, used + 1, "one block of its own");
    world.drain();
    assert_eq!(world.scheduler.prefix_counts().hit_tokens, 16);
}

#[test]
fn a_flood_of_prompts_pushes_out_its_own_and_nobody_elses() {
    let mut world = calm_world();
    assert_eq!(world.ask(0, &PROMPT, 1), 0);
    for number in 0..200u8 {
        let prompt: Vec<u8> = (0..30).map(|position| number ^ position).collect();
        world.ask(1, &prompt, 4);
    }
    assert!(world.scheduler.prefix_counts().reclaimed_blocks > 1_000);
    assert_eq!(world.ask(0, &PROMPT, 1), 16);
}

#[test]
fn shared_blocks_let_requests_run_that_would_not_fit_apart() {
    // Seven blocks: two requests of five blocks fit only because they share four.
    let mut world = World::new(7, Limits { step_tokens_max: 32, running_max: 4, queue_max: 8 });
    world.submit(0, PROMPT.to_vec(), 2, true).unwrap();
    world.step();
    let second = world.submit(0, PROMPT.to_vec(), 2, true).unwrap();
    assert_eq!(world.step().admitted, [second]);
    world.drain();
    assert_eq!(world.scheduler.prefix_counts().hit_tokens, 16);
}
