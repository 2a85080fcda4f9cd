//! What is asked for, when: made before a run, so that all policies see the same.

use crate::shape::{Micros, Shape};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Exp};

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Simulated time in microseconds.
    pub at: Micros,
    /// The adapter's number.
    pub adapter: u32,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Tokens of its answer.
    pub output_tokens: u32,
}

/// A kind of traffic, in shares of what all workers can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scenario {
    /// Zipf with exponent 1 (flattened by [`Shape::popularity_offset`]) over all adapters, at 65 %.
    PowerLaw,
    /// The same for three groups of adapters, of eight tenants each, in three time zones: each swings between 10 % and 100 % of
    /// its share.
    Diurnal,
    /// At 45 %; for a minute, one adapter that nobody asked for gets another 25 %.
    FlashCrowd,
    /// At 50 %; from a quarter on, one tenant asks for 4,000 further adapters in turn, with 8 %.
    TenantScan,
    /// At 60 %; a worker is lost after a third and is back, empty, after two thirds.
    NodeLoss,
}

impl Scenario {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::PowerLaw, Self::Diurnal, Self::FlashCrowd, Self::TenantScan, Self::NodeLoss];

    /// For tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PowerLaw => "power law",
            Self::Diurnal => "diurnal",
            Self::FlashCrowd => "flash crowd",
            Self::TenantScan => "tenant scan",
            Self::NodeLoss => "node loss",
        }
    }

    fn share(self) -> f64 {
        match self {
            Self::PowerLaw => 0.65,
            Self::Diurnal => 0.85,
            Self::FlashCrowd => 0.45,
            Self::TenantScan => 0.5,
            Self::NodeLoss => 0.6,
        }
    }

    /// The worker that is lost, when, and when it is back.
    pub(crate) fn loss(self, shape: &Shape) -> Option<(usize, Micros, Micros)> {
        let end = shape.seconds * 1_000_000;
        (self == Self::NodeLoss).then_some((3 % shape.workers, end / 3, end * 2 / 3))
    }
}

const GROUPS: usize = 3;
const TENANTS_PER_GROUP: usize = 8;
const SCANNED: u32 = 4000;

/// The requests of a run, in order.
#[derive(Clone, Debug)]
pub struct Arrivals {
    /// In order of time.
    pub all: Vec<Arrival>,
    /// One more than the largest adapter number.
    pub adapters: usize,
    /// The tenant of each adapter, as a number. Tenants keep the hours of one time zone; who scans is one of its own.
    pub tenants: Vec<usize>,
}

impl Arrivals {
    /// Deterministic in its arguments.
    #[must_use]
    pub fn new(scenario: Scenario, shape: &Shape, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let end = shape.seconds * 1_000_000;
        let capacity = shape.capacity_per_s();
        // Popularity has nothing to do with an adapter's number, which decides its rank.
        let mut order: Vec<u32> = (0..shape.adapters as u32).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, random.random_range(0..=at));
        }
        let groups: Vec<&[u32]> = order.chunks(order.len().div_ceil(GROUPS)).collect();
        // In every scenario; popular and unpopular ones alike.
        let mut tenants = vec![0; shape.adapters];
        for (zone, group) in groups.iter().enumerate() {
            for (at, adapter) in group.iter().enumerate() {
                tenants[*adapter as usize] = zone * TENANTS_PER_GROUP + at % TENANTS_PER_GROUP;
            }
        }
        let mut all = Vec::new();
        match scenario {
            Scenario::Diurnal => {
                for (at, group) in groups.iter().enumerate() {
                    let phase = at as f64 / GROUPS as f64;
                    let swing = move |time: Micros| {
                        let turn = time as f64 / end as f64 * 2.0 + phase;
                        0.55 + 0.45 * (turn * std::f64::consts::TAU).sin()
                    };
                    let rate = capacity * scenario.share() / GROUPS as f64;
                    stream(
                        &mut all,
                        &mut random,
                        shape,
                        (0, end),
                        rate,
                        swing,
                        &mut Zipf::new(group, shape.popularity_offset),
                    );
                }
            }
            _ => stream(
                &mut all,
                &mut random,
                shape,
                (0, end),
                capacity * scenario.share(),
                |_| 1.0,
                &mut Zipf::new(&order, shape.popularity_offset),
            ),
        }
        let new = shape.adapters as u32;
        if scenario == Scenario::FlashCrowd {
            let times = (end / 2, end / 2 + 60_000_000);
            stream(&mut all, &mut random, shape, times, capacity * 0.25, |_| 1.0, &mut Zipf::new(&[new], 0));
        }
        if scenario == Scenario::TenantScan {
            let mut scan = Scan { first: new, next: 0 };
            stream(&mut all, &mut random, shape, (end / 4, end), capacity * 0.08, |_| 1.0, &mut scan);
        }
        all.sort_by_key(|arrival| arrival.at);
        let adapters = all.iter().map(|arrival| arrival.adapter as usize + 1).max().unwrap_or(0).max(shape.adapters);
        tenants.resize(adapters, GROUPS * TENANTS_PER_GROUP);
        Self { all, adapters, tenants }
    }
}

trait Pick {
    fn pick(&mut self, random: &mut StdRng) -> u32;
}

/// Zipf and Mandelbrot, exponent 1: the n-th of the adapters has weight 1 / (n + offset).
struct Zipf<'a> {
    adapters: &'a [u32],
    sums: Vec<f64>,
}

impl<'a> Zipf<'a> {
    fn new(adapters: &'a [u32], offset: u32) -> Self {
        let mut sum = 0.0;
        let sums = (0..adapters.len())
            .map(|at| {
                sum += 1.0 / ((at + 1) as f64 + f64::from(offset));
                sum
            })
            .collect();
        Self { adapters, sums }
    }
}

impl Pick for Zipf<'_> {
    fn pick(&mut self, random: &mut StdRng) -> u32 {
        let total = self.sums.last().copied().unwrap_or(0.0);
        let drawn = random.random::<f64>() * total;
        let at = self.sums.partition_point(|sum| *sum <= drawn);
        self.adapters[at.min(self.adapters.len() - 1)]
    }
}

/// One after the other, round and round.
struct Scan {
    first: u32,
    next: u32,
}

impl Pick for Scan {
    fn pick(&mut self, _random: &mut StdRng) -> u32 {
        let adapter = self.first + self.next % SCANNED;
        self.next += 1;
        adapter
    }
}

/// A Poisson stream, thinned by `swing` (0 to 1).
fn stream(
    all: &mut Vec<Arrival>,
    random: &mut StdRng,
    shape: &Shape,
    (from, to): (Micros, Micros),
    per_s: f64,
    swing: impl Fn(Micros) -> f64,
    pick: &mut dyn Pick,
) {
    let length = |random: &mut StdRng, mean: f64| {
        let drawn: f64 = Exp::new(1.0 / mean).map_or(mean, |exponential| exponential.sample(random));
        drawn.ceil().clamp(1.0, mean * 10.0) as u32
    };
    let Ok(gaps) = Exp::new(per_s / 1e6) else { return };
    let mut at = from as f64;
    loop {
        at += gaps.sample(random);
        if at >= to as f64 {
            return;
        }
        if random.random::<f64>() >= swing(at as Micros) {
            continue;
        }
        let adapter = pick.pick(random);
        let prompt_tokens = length(random, shape.prompt_tokens);
        let output_tokens = length(random, shape.output_tokens);
        all.push(Arrival { at: at as Micros, adapter, prompt_tokens, output_tokens });
    }
}
