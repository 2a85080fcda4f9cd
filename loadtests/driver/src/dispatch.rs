//! Sends the requests of a trace when they are due, whatever has become of those before.
//!
//! An open loop never waits for an answer: where a server falls behind, requests pile up in it, not here, and the wait
//! is in the figures, which count from when a request was due. What is bounded is how many are in flight; one that
//! comes above that is dropped and counted. Closed loops send their next request when one has ended.

use crate::arrivals::Arrivals;
use crate::client::Ask;
use crate::outcome::{End, Outcome};
use crate::target::Target;
use crate::trace::{Request, Trace};
use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// Bounds of a run.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Most requests of open loops in flight.
    pub in_flight_max: usize,
    /// Makes the prompts of this run differ from every other's.
    pub salt: u64,
}

impl Default for Options {
    /// A salt of its own, and more in flight than a server would queue.
    fn default() -> Self {
        Self { in_flight_max: 2048, salt: rand::random() }
    }
}

struct Run {
    target: Target,
    tenants: Vec<String>,
    salt: u64,
    start: Instant,
    seen: Mutex<HashSet<(usize, String)>>,
}

/// Plays a trace to its end and waits for all answers. Outcomes come in no order.
///
/// # Cancel safety
/// Dropping it ends all requests in flight.
pub async fn run(trace: &Trace, target: &Target, options: Options) -> Vec<Outcome> {
    let sources = &trace.workload.sources;
    let run = Arc::new(Run {
        target: target.clone(),
        tenants: sources.iter().map(|source| source.tenant.clone()).collect(),
        salt: options.salt,
        start: Instant::now(),
        seen: Mutex::default(),
    });
    let mut closed: Vec<VecDeque<Request>> = vec![VecDeque::new(); sources.len()];
    let mut open = Vec::new();
    for request in &trace.requests {
        match sources[request.source].arrivals {
            Arrivals::Closed { .. } => closed[request.source].push_back(request.clone()),
            _ => open.push(request.clone()),
        }
    }
    let until = run.start + Duration::from_secs_f64(trace.workload.duration_s);
    let mut tasks: JoinSet<Vec<Outcome>> = JoinSet::new();
    for (source, requests) in sources.iter().zip(closed) {
        if let Arrivals::Closed { concurrency } = source.arrivals {
            let requests = Arc::new(Mutex::new(requests));
            for _ in 0..concurrency {
                tasks.spawn(closed_loop(Arc::clone(&run), Arc::clone(&requests), until));
            }
        }
    }
    let mut outcomes = open_loop(&run, open, options.in_flight_max, &mut tasks).await;
    while let Some(done) = tasks.join_next().await {
        outcomes.extend(done.expect("a request's task does not panic"));
    }
    outcomes
}

async fn open_loop(
    run: &Arc<Run>,
    requests: Vec<Request>,
    in_flight_max: usize,
    tasks: &mut JoinSet<Vec<Outcome>>,
) -> Vec<Outcome> {
    let room = Arc::new(Semaphore::new(in_flight_max.min(Semaphore::MAX_PERMITS)));
    let mut dropped = Vec::new();
    for request in requests {
        tokio::time::sleep_until(run.start + Duration::from_micros(request.due_us)).await;
        match Arc::clone(&room).try_acquire_owned() {
            Ok(permit) => {
                let run = Arc::clone(run);
                tasks.spawn(async move {
                    let due = request.due_us;
                    let outcome = run.one(request, due).await;
                    drop(permit);
                    vec![outcome]
                });
            }
            Err(_) => dropped.push(run.unsent(request)),
        }
    }
    dropped
}

async fn closed_loop(run: Arc<Run>, requests: Arc<Mutex<VecDeque<Request>>>, until: Instant) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    while Instant::now() < until {
        let Some(request) = requests.lock().expect("no holder panics").pop_front() else { break };
        outcomes.push(run.one(request, run.now_us()).await);
    }
    outcomes
}

impl Run {
    fn now_us(&self) -> u64 {
        micros(self.start.elapsed())
    }

    async fn one(&self, request: Request, due_us: u64) -> Outcome {
        let tenant = &self.tenants[request.source];
        let first_use = request.model != "base"
            && self.seen.lock().expect("no holder panics").insert((request.source, request.model.clone()));
        let prompt = self.target.prompt(&request, self.salt);
        let ask = Ask {
            model: &request.model,
            key: self.target.key(tenant),
            prompt: &prompt,
            output_tokens: request.output_tokens,
        };
        let sent_us = self.now_us();
        let result = self.target.client.ask(ask).await;
        let end_us = self.now_us();
        let (answer, end) = match result {
            Ok(answer) => (answer, End::Completed),
            Err((answer, reason)) => (answer, End::Failed(reason)),
        };
        let start = self.start.into_std();
        let pieces_us: Vec<u64> = answer.pieces.iter().map(|at| micros(at.saturating_duration_since(start))).collect();
        let usage = answer.usage;
        Outcome {
            source: request.source,
            tenant: tenant.clone(),
            due_us,
            sent_us,
            end_us,
            prompt_tokens: usage.map_or(u64::from(request.prompt_tokens), |usage| usage.prompt_tokens),
            cached_tokens: usage.map_or(0, |usage| usage.cached_tokens),
            completion_tokens: usage.map_or(pieces_us.len() as u64, |usage| usage.completion_tokens),
            pieces_us,
            adapter_wait_us: answer.adapter_wait_us,
            first_use,
            model: request.model,
            end,
        }
    }

    fn unsent(&self, request: Request) -> Outcome {
        Outcome {
            source: request.source,
            tenant: self.tenants[request.source].clone(),
            due_us: request.due_us,
            sent_us: request.due_us,
            end_us: request.due_us,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
            pieces_us: Vec::new(),
            adapter_wait_us: None,
            first_use: false,
            model: request.model,
            end: End::Dropped,
        }
    }
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros().try_into().unwrap_or(u64::MAX)
}
