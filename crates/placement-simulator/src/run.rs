//! The events of a run.

use crate::arrivals::{Arrivals, Scenario};
use crate::gateway::{Heartbeat, Seen, Sent};
use crate::measure::{Meter, Outcome};
use crate::policy::{Authority, Policy, Router};
use crate::shape::{Micros, Shape};
use crate::worker::{Begun, Job, Worker};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use weft_types::Digest;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives {
        id: usize,
    },
    PromptDone {
        worker: usize,
        life: u32,
        id: usize,
    },
    Ends {
        worker: usize,
        life: u32,
        id: usize,
    },
    Loaded {
        worker: usize,
        life: u32,
    },
    Beats {
        worker: usize,
    },
    Plans,
    /// Gateways and workers have the last epoch.
    Epoch,
    Lost {
        worker: usize,
    },
    Back {
        worker: usize,
    },
}

struct Run<'a> {
    shape: &'a Shape,
    arrivals: &'a Arrivals,
    policy: Policy,
    events: BinaryHeap<Reverse<(Micros, u64, Event)>>,
    next_event: u64,
    workers: Vec<Worker>,
    /// Grows when a worker is lost: events of its earlier life mean nothing.
    lives: Vec<u32>,
    is_there: Vec<bool>,
    heartbeats: Vec<Heartbeat>,
    sent: Vec<Vec<Sent>>,
    router: Router,
    authority: Authority,
    random: StdRng,
    had_first_token: Vec<bool>,
    meter: Meter,
}

/// Runs a scenario. Deterministic in its arguments. Cost: about a second for a million events.
#[must_use]
pub fn simulate(scenario: Scenario, policy: Policy, shape: &Shape, seed: u64) -> Outcome {
    let arrivals = Arrivals::new(scenario, shape, seed);
    let digests: Vec<Digest> = (0..arrivals.adapters).map(|number| Digest::of(&number.to_le_bytes())).collect();
    let workers: Vec<Worker> = (0..shape.workers).map(|_| Worker::new(shape, arrivals.adapters)).collect();
    let mut run = Run {
        shape,
        arrivals: &arrivals,
        policy,
        events: BinaryHeap::new(),
        next_event: 0,
        lives: vec![0; workers.len()],
        is_there: vec![true; workers.len()],
        heartbeats: workers.iter().map(|worker| Heartbeat::of(worker, 0)).collect(),
        sent: vec![vec![Sent::default(); workers.len()]; shape.gateways],
        workers,
        router: Router::new(policy, shape, digests.clone()),
        authority: Authority::new(digests, &arrivals.tenants),
        random: StdRng::seed_from_u64(seed ^ 0x5eed),
        had_first_token: vec![false; arrivals.all.len()],
        meter: Meter::new(shape),
    };
    for (id, arrival) in arrivals.all.iter().enumerate() {
        run.at(arrival.at, Event::Arrives { id });
    }
    for worker in 0..shape.workers {
        // Not all at once.
        let first = run.random.random_range(0..shape.heartbeat_ms * 1000);
        run.at(first, Event::Beats { worker });
    }
    if policy == Policy::Placement {
        run.at(shape.epoch_ms * 1000, Event::Plans);
    }
    if let Some((worker, lost, back)) = scenario.loss(shape) {
        run.at(lost, Event::Lost { worker });
        run.at(back, Event::Back { worker });
    }
    let end = shape.seconds * 1_000_000;
    while let Some(Reverse((now, _, event))) = run.events.pop() {
        if run.meter.is_window_over(now) && now < end {
            run.window(now);
        }
        run.handle(event, now, end);
    }
    run.meter.outcome()
}

impl Run<'_> {
    fn at(&mut self, time: Micros, event: Event) {
        self.next_event += 1;
        self.events.push(Reverse((time, self.next_event, event)));
    }

    fn handle(&mut self, event: Event, now: Micros, end: Micros) {
        match event {
            Event::Arrives { id } => self.route(id, now),
            Event::PromptDone { worker, life, id } if life == self.lives[worker] => {
                if !std::mem::replace(&mut self.had_first_token[id], true) {
                    self.meter.first_token(self.arrivals.all[id].at, now);
                }
                self.workers[worker].prompt_done();
                let decode = self.job(id).decode;
                self.at(now + decode, Event::Ends { worker, life, id });
                self.begin(worker, now);
            }
            Event::Ends { worker, life, id } if life == self.lives[worker] => {
                self.workers[worker].ended(id, now);
                self.begin(worker, now);
            }
            Event::Loaded { worker, life } if life == self.lives[worker] => {
                self.workers[worker].loaded(now);
                self.begin(worker, now);
            }
            Event::PromptDone { .. } | Event::Ends { .. } | Event::Loaded { .. } => {}
            Event::Beats { worker } => {
                self.beat(worker, now);
                if now < end {
                    self.at(now + self.shape.heartbeat_ms * 1000, Event::Beats { worker });
                }
            }
            Event::Plans => {
                let moves = self.authority.next(self.shape, &self.workers, &self.is_there, now);
                self.meter.moves += if self.meter.is_measured(now) { moves } else { 0 };
                // Published and read.
                self.at(now + 300_000, Event::Epoch);
                if now < end {
                    self.at(now + self.shape.epoch_ms * 1000, Event::Plans);
                }
            }
            Event::Epoch => self.take_epoch(now),
            Event::Lost { worker } => self.lose(worker, now),
            Event::Back { worker } => {
                self.is_there[worker] = true;
                self.beat(worker, now);
            }
        }
    }

    fn job(&self, id: usize) -> Job {
        let arrival = &self.arrivals.all[id];
        let (prefill, decode) = self.shape.work_ms(arrival);
        Job { id, adapter: arrival.adapter, prefill: (prefill * 1000.0) as Micros, decode: (decode * 1000.0) as Micros }
    }

    fn route(&mut self, id: usize, now: Micros) {
        let arrival = self.arrivals.all[id];
        let gateway = id % self.shape.gateways;
        let seen = Seen {
            shape: self.shape,
            heartbeats: &self.heartbeats,
            sent: &self.sent[gateway],
            is_there: &self.is_there,
            adapter: arrival.adapter,
            now,
        };
        let (worker, is_spill) = self.router.choose(&seen, &arrival, &mut self.random);
        let job = self.job(id);
        let (prefill_ms, decode_ms) = self.shape.work_ms(&arrival);
        let sent = &mut self.sent[gateway][worker];
        sent.requests += 1;
        sent.prefill_ms += prefill_ms;
        sent.work_ms += prefill_ms + decode_ms;
        sent.adapters.insert(arrival.adapter);
        if self.policy == Policy::Placement {
            self.authority.asked(arrival.adapter, prefill_ms + decode_ms, now);
        }
        if self.meter.is_measured(now) {
            self.meter.sent += 1;
            self.meter.spilled += usize::from(is_spill);
            self.meter.cold_requests += usize::from(self.workers[worker].is_cold(arrival.adapter));
        }
        self.workers[worker].arrive(job, now);
        self.begin(worker, now);
    }

    fn begin(&mut self, worker: usize, now: Micros) {
        let life = self.lives[worker];
        for begun in self.workers[worker].begin(now) {
            match begun {
                Begun::Prompt(job, at) => self.at(at, Event::PromptDone { worker, life, id: job.id }),
                Begun::Load(load) => {
                    if load.from >= 2 && self.meter.is_measured(now) {
                        self.meter.cold_loads += 1;
                    }
                    self.at(load.at, Event::Loaded { worker, life });
                }
            }
        }
    }

    fn beat(&mut self, worker: usize, now: Micros) {
        if self.is_there[worker] {
            self.heartbeats[worker] = Heartbeat::of(&self.workers[worker], now);
            for sent in &mut self.sent {
                sent[worker] = Sent::default();
            }
        }
    }

    fn take_epoch(&mut self, now: Micros) {
        self.router.take(self.authority.document(), self.shape);
        for worker in 0..self.workers.len() {
            let desired = self.authority.desired(worker);
            self.workers[worker].desire(&desired);
            self.begin(worker, now);
        }
    }

    /// Its connections break: what it had is routed again at once.
    fn lose(&mut self, worker: usize, now: Micros) {
        self.is_there[worker] = false;
        self.lives[worker] += 1;
        let lost = std::mem::replace(&mut self.workers[worker], Worker::new(self.shape, self.arrivals.adapters));
        self.heartbeats[worker] = Heartbeat::of(&self.workers[worker], now);
        for job in lost.jobs() {
            self.route(job.id, now);
        }
    }

    fn window(&mut self, now: Micros) {
        let seat_times: Vec<f64> = self.workers.iter_mut().map(|worker| worker.take_seat_time(now)).collect();
        let there: Vec<f64> =
            seat_times.iter().zip(&self.is_there).filter(|(_, is)| **is).map(|(time, _)| *time).collect();
        self.meter.window(&there);
    }
}
