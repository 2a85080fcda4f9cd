//! Captures and graphs of the shim: the calls that were captured, made again by each replay.

use super::clock::Clock;
use super::queue::{Job, Point, State};
use crate::driver::EventId;
use crate::error::Error;
use std::collections::{HashMap, HashSet};

/// A call within a capture, and the place of its stream among those of the capture.
#[derive(Debug)]
enum Call {
    Do(usize, Job),
    Record(usize, EventId),
    Wait(usize, EventId),
}

/// A capture under way.
#[derive(Debug)]
pub(super) struct Script {
    /// The first is the one that was captured; others came by waiting for events.
    branches: Vec<usize>,
    calls: Vec<Call>,
    events: HashSet<EventId>,
}

/// A graph.
#[derive(Debug)]
pub(super) struct Replayable {
    calls: Vec<Call>,
    /// Streams of the graph's own, for branches from the second on.
    streams: Vec<usize>,
    /// The end of the last replay.
    last: Option<Point>,
}

impl Script {
    pub(super) fn new(stream: usize) -> Self {
        Self { branches: vec![stream], calls: Vec::new(), events: HashSet::new() }
    }

    fn branch(&self, stream: usize) -> Option<usize> {
        self.branches.iter().position(|branch| *branch == stream)
    }

    /// Takes the job, if its stream is in the capture.
    pub(super) fn enqueue(&mut self, stream: usize, job: Job) -> Option<Job> {
        let Some(branch) = self.branch(stream) else { return Some(job) };
        self.calls.push(Call::Do(branch, job));
        None
    }

    /// Whether it took the event.
    pub(super) fn record(&mut self, event: EventId, stream: usize) -> bool {
        let Some(branch) = self.branch(stream) else {
            self.events.remove(&event);
            return false;
        };
        self.events.insert(event);
        self.calls.push(Call::Record(branch, event));
        true
    }

    /// Whether it took the wait.
    pub(super) fn wait(&mut self, stream: usize, event: EventId) -> bool {
        if !self.events.contains(&event) {
            return false;
        }
        let branch = self.branch(stream).unwrap_or_else(|| {
            self.branches.push(stream);
            self.branches.len() - 1
        });
        self.calls.push(Call::Wait(branch, event));
        true
    }

    /// Makes the graph.
    pub(super) fn end(self, state: &mut State) -> Result<Replayable, Error> {
        if let Some(branch) = self.unjoined() {
            let name = state.name(self.branches[branch]);
            return Err(Error::Capture(format!("work of stream {name} does not come back by an event")));
        }
        let names: Vec<_> = self.branches[1..].iter().map(|stream| state.name(*stream)).collect();
        let streams = names.iter().map(|name| state.new_stream(&format!("{name} of a graph"))).collect();
        Ok(Replayable { calls: self.calls, streams, last: None })
    }

    /// A branch whose last job the first branch does not come after.
    fn unjoined(&self) -> Option<usize> {
        let mut clocks = vec![Clock::default(); self.branches.len()];
        let mut events = HashMap::new();
        for call in &self.calls {
            match call {
                Call::Do(branch, _) => clocks[*branch].tick(*branch),
                Call::Record(branch, event) => {
                    events.insert(event, clocks[*branch].clone());
                }
                Call::Wait(branch, event) => clocks[*branch].join(&events[event]),
            }
        }
        (1..clocks.len()).find(|branch| clocks[0].get(*branch) < clocks[*branch].get(*branch))
    }
}

impl Replayable {
    /// Makes the calls again, on `stream` and on streams of its own.
    pub(super) fn replay(&mut self, stream: usize, state: &mut State) {
        if let Some(last) = &self.last {
            state.wait(stream, last);
        }
        let of = |branch: usize| if branch == 0 { stream } else { self.streams[branch - 1] };
        let mut events = HashMap::new();
        for call in &self.calls {
            match call {
                Call::Do(branch, job) => state.enqueue(of(*branch), job.clone()),
                Call::Record(branch, event) => {
                    events.insert(event, state.point(of(*branch)));
                }
                Call::Wait(branch, event) => state.wait(of(*branch), &events[event]),
            }
        }
        self.last = Some(state.point(stream));
    }
}
