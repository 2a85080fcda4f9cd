//! One pool for adapters and cached prefixes, in which goes what is worth least, against pools that are cut in two: what has to be loaded and computed again when
//! what is asked for changes.

use std::collections::HashMap;

use weft_batching::{BlockHash, BlockPool, BlockTable, Tenant};
use weft_residency::{Ledger, Room, Worth};

const BLOCKS: usize = 600;
/// Positions of a block; only whole blocks are asked for here.
const POSITIONS: usize = 16;
/// Of an adapter.
const RUNS: [usize; 4] = [1; 4];
/// Of the part of a prompt that others begin with.
const PREFIX: usize = 12;
/// An adapter's load.
const LOAD_MS: f64 = 40.0;
/// The computation of a block's tokens.
const COMPUTE_MS: f64 = 8.0;
const HALF_LIFE_MS: u64 = 120_000;
/// Between requests.
const EVERY_MS: u64 = 100;

/// Numbers that a seed draws (SplitMix64: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
struct Dice(u64);

impl Dice {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// The first ones of so many far more often, by a power law.
    fn popular(&mut self, of: usize) -> u16 {
        ((of as f64 + 1.0).powf(self.unit()) - 1.0) as u16
    }
}

struct World {
    pool: BlockPool,
    ledger: Ledger<u16>,
    places: HashMap<u16, Vec<u32>>,
    /// Adapters take no block that prefixes have, and the other way round.
    is_cut: bool,
    now_ms: u64,
    lost_ms: f64,
}

impl World {
    /// Blocks that are an adapter's alone, in a pool that is cut; none: shared.
    fn new(of_adapters: Option<usize>) -> Self {
        let pool = BlockPool::new(of_adapters.map_or(BLOCKS, |blocks| BLOCKS - blocks), POSITIONS);
        Self {
            pool: pool.with_half_life_ms(HALF_LIFE_MS),
            ledger: Ledger::new(of_adapters.unwrap_or(BLOCKS) as u64).with_half_life_ms(HALF_LIFE_MS),
            places: HashMap::new(),
            is_cut: of_adapters.is_some(),
            now_ms: 0,
            lost_ms: 0.0,
        }
    }

    fn evict(&mut self, adapter: u16) {
        self.ledger.remove(&adapter);
        if let Some(blocks) = self.places.remove(&adapter) {
            self.pool.take_back(&blocks);
        }
    }

    /// Blank blocks, of what is worth least: the rule of the worker.
    fn make_blank(&mut self, blocks: usize) {
        while self.pool.blank() < blocks {
            let block = self.pool.next_to_go().map(|worth| worth.with_reload_cost(COMPUTE_MS).value(1, HALF_LIFE_MS));
            let adapter = match block {
                Some(block) => self.ledger.goes_before(block),
                None => self.ledger.next_to_go(),
            };
            match adapter.copied() {
                Some(adapter) if !self.is_cut => self.evict(adapter),
                _ => assert!(self.pool.reclaim_one(), "something is idle"),
            }
        }
    }

    fn request(&mut self, adapter: u16, prefix: u16) {
        self.now_ms += EVERY_MS;
        self.pool.tell_time(self.now_ms);
        if self.ledger.worth(&adapter).is_none() {
            self.lost_ms += LOAD_MS;
            if let Room::Evict(victims) = self.ledger.make_room(RUNS.len() as u64, self.now_ms) {
                victims.into_iter().for_each(|victim| self.evict(victim));
            }
            if !self.is_cut {
                self.make_blank(RUNS.len());
                self.places.insert(adapter, self.pool.lend(&RUNS).expect("they are blank"));
            }
            self.ledger.insert_worth(adapter, RUNS.len() as u64, Worth::new(LOAD_MS, self.now_ms));
        }
        assert!(self.ledger.lease(&adapter, self.now_ms));
        let hash = |block: u8| {
            let mut hash = [block; 32];
            hash[..2].copy_from_slice(&prefix.to_le_bytes());
            BlockHash(hash)
        };
        let hashes: Vec<BlockHash> = (0..PREFIX as u8).map(hash).collect();
        let mut table = BlockTable::new();
        self.pool.adopt(&mut table, &hashes);
        let cached = table.len();
        self.lost_ms += (PREFIX - cached) as f64 * COMPUTE_MS;
        self.make_blank(PREFIX - cached);
        assert!(self.pool.try_grow(&mut table, PREFIX * POSITIONS));
        let tenant: Tenant = "a".into();
        for (&block, hash) in table.blocks().to_vec().iter().zip(hashes).skip(cached) {
            self.pool.cache(block, hash, &tenant);
        }
        self.pool.release(&mut table);
        self.ledger.release(&adapter);
    }

    /// Milliseconds lost in each of three times: of many adapters and few prefixes, of few and many, of some of both.
    fn run(mut self) -> [f64; 3] {
        let dice = &mut Dice(7);
        [(400, 4), (8, 200), (80, 30)].map(|(adapters, prefixes)| {
            let before = self.lost_ms;
            for _ in 0..6_000 {
                let (adapter, prefix) = (dice.popular(adapters), dice.popular(prefixes));
                self.request(adapter, prefix);
            }
            self.lost_ms - before
        })
    }
}

#[test]
fn a_shared_pool_loses_no_more_at_any_time_than_the_best_cut_and_less_over_all() {
    let total = |lost: &[f64; 3]| lost.iter().sum::<f64>();
    let shared = World::new(None).run();
    let cuts = [60, 150, 300, 450, 540].map(|blocks| (blocks, World::new(Some(blocks)).run()));
    for (blocks, lost) in &cuts {
        println!(
            "{blocks} of {BLOCKS} blocks for adapters: {:.0?} s, {:.2} of it shared",
            lost.map(|ms| ms / 1e3),
            total(&shared) / total(lost)
        );
    }
    println!("shared: {:.0?} s", shared.map(|ms| ms / 1e3));
    for (time, lost) in shared.iter().enumerate() {
        let best = cuts.iter().map(|(_, lost)| lost[time]).fold(f64::INFINITY, f64::min);
        assert!(*lost < 1.1 * best, "time {time}: {lost} against {best}");
    }
    let best = cuts.iter().map(|(_, lost)| total(lost)).fold(f64::INFINITY, f64::min);
    assert!(total(&shared) < 0.9 * best, "{} against {best}", total(&shared));
}
