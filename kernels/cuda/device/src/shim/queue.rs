//! Streams and events of the shim: what is enqueued waits, and runs in any order that streams and events allow.

use super::clock::Clock;
use super::ranks::Exchange;
use super::script::{Replayable, Script};
use super::shadow::{Label, Now, Shadow};
use super::{Measured, run};
use crate::driver::{EventId, GraphId, Operation};
use crate::error::Error;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// The host's place in clocks; stream `s` has `s + 1`.
pub(super) const HOST: usize = 0;

/// What a stream does.
#[derive(Clone, Debug)]
pub(super) enum Job {
    Operation(Operation),
    Exchange(Exchange),
}

/// A stream, and how many of its jobs must be done.
type After = (usize, u64);

#[derive(Debug)]
struct Queued {
    job: Job,
    after: Vec<After>,
    clock: Clock,
    label: Arc<Label>,
}

#[derive(Debug)]
struct Queue {
    name: Arc<str>,
    /// What its last job knows to have happened.
    clock: Clock,
    enqueued: u64,
    done: u64,
    jobs: VecDeque<Queued>,
    /// What the next job waits for.
    waits: Vec<After>,
}

/// All that was enqueued on a stream, at the time of an event.
#[derive(Clone, Debug)]
pub(super) struct Point {
    after: Vec<After>,
    clock: Clock,
}

/// All that the shim knows.
#[derive(Debug)]
pub(super) struct State {
    random: fastrand::Rng,
    streams: Vec<Queue>,
    pub(super) host: Clock,
    pub(super) events: HashMap<EventId, Point>,
    pub(super) capture: Option<Script>,
    pub(super) graphs: HashMap<GraphId, Replayable>,
    pub(super) shadow: Shadow,
    operations: u64,
    fails_at: u64,
    /// Ranks meet in the order in which each of them enqueued its calls.
    last_exchange: Option<After>,
    failed: Option<Error>,
    has_told: bool,
    pub(super) measured: Option<Vec<Measured>>,
}

impl State {
    pub(super) fn new(seed: u64, fails_at: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            streams: Vec::new(),
            host: Clock::default(),
            events: HashMap::new(),
            capture: None,
            graphs: HashMap::new(),
            shadow: Shadow::default(),
            operations: 0,
            fails_at,
            last_exchange: None,
            failed: None,
            has_told: false,
            measured: None,
        }
    }

    pub(super) fn new_stream(&mut self, name: &str) -> usize {
        let (name, clock) = (name.into(), Clock::default());
        self.streams.push(Queue { name, clock, enqueued: 0, done: 0, jobs: VecDeque::new(), waits: Vec::new() });
        self.streams.len() - 1
    }

    pub(super) fn name(&self, stream: usize) -> Arc<str> {
        Arc::clone(&self.streams[stream].name)
    }

    /// The failure of earlier work: itself when it is told first, wrapped from then on.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        let Some(error) = &self.failed else { return Ok(()) };
        if std::mem::replace(&mut self.has_told, true) {
            return Err(Error::Failed(Box::new(error.clone())));
        }
        Err(error.clone())
    }

    pub(super) fn enqueue(&mut self, stream: usize, job: Job) {
        self.operations += 1;
        let queue = &mut self.streams[stream];
        queue.clock.join(&self.host);
        queue.clock.tick(stream + 1);
        queue.enqueued += 1;
        let mut after = std::mem::take(&mut queue.waits);
        if let Job::Exchange(_) = job {
            after.extend(self.last_exchange.replace((stream, queue.enqueued)));
        }
        let (what, stream) = (run::name(&job), Arc::clone(&queue.name));
        if self.operations == self.fails_at {
            let reason = "made to fail".to_owned();
            self.failed.get_or_insert_with(|| Error::Kernel { operation: what.to_string(), reason });
        }
        let label = Arc::new(Label::Operation { number: self.operations, what, stream });
        queue.jobs.push_back(Queued { job, after, clock: queue.clock.clone(), label });
    }

    pub(super) fn point(&self, stream: usize) -> Point {
        let queue = &self.streams[stream];
        let mut after = queue.waits.clone();
        after.push((stream, queue.enqueued));
        Point { after, clock: queue.clock.clone() }
    }

    pub(super) fn wait(&mut self, stream: usize, point: &Point) {
        let queue = &mut self.streams[stream];
        queue.clock.join(&point.clock);
        queue.waits.extend(&point.after);
    }

    fn is_over(&self, after: &[After]) -> bool {
        after.iter().all(|(stream, count)| self.streams[*stream].done >= *count)
    }

    /// Runs jobs of all streams until the point is reached; the host knows then that it is.
    pub(super) fn reach(&mut self, point: &Point) -> Result<(), Error> {
        while !self.is_over(&point.after) {
            self.step();
        }
        self.host.join(&point.clock);
        self.check()
    }

    /// A few jobs more or less, as time passes on a device between two looks.
    pub(super) fn look(&mut self, point: &Point) -> Result<bool, Error> {
        for _ in 0..self.random.usize(0..4) {
            self.step();
        }
        let is_over = self.is_over(&point.after);
        if is_over {
            self.host.join(&point.clock);
        }
        self.check()?;
        Ok(is_over)
    }

    pub(super) fn finish(&mut self) {
        while self.step() {}
    }

    pub(super) fn is_idle(&self) -> bool {
        self.streams.iter().all(|queue| queue.jobs.is_empty())
    }

    /// Runs one of the jobs that can run now. False: there is none.
    fn step(&mut self) -> bool {
        let can_run = |queue: &Queue| queue.jobs.front().is_some_and(|job| self.is_over(&job.after));
        let ready: Vec<usize> = (0..self.streams.len()).filter(|stream| can_run(&self.streams[*stream])).collect();
        if ready.is_empty() {
            debug_assert!(self.is_idle(), "what a job waits for was enqueued before it");
            return false;
        }
        let stream = ready[self.random.usize(..ready.len())];
        let Queued { job, clock, label, .. } = self.streams[stream].jobs.pop_front().expect("it is ready");
        let order = self.random.u32(..8);
        let now = Now { agent: stream + 1, clock: &clock, label: &label };
        let result = run::run(job, now, order, &mut self.shadow, self.measured.as_mut());
        self.streams[stream].done += 1;
        if let Err(error) = result {
            // As on a device: nothing that was enqueued is to be relied upon.
            self.failed = Some(error);
            for queue in &mut self.streams {
                queue.jobs.clear();
                queue.done = queue.enqueued;
            }
        }
        true
    }
}
