//! Ranks in one process: each is a device of its own, run by a thread of its own, and they meet.

use super::Shim;
use super::queue::Job;
use super::run::{numbers, put_numbers, whole};
use crate::collective::Collective;
use crate::driver::{StreamId, Touch, Type};
use crate::error::Error;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    AllReduce,
    AllGather,
}

/// What every rank must call alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Call {
    what: What,
    count: usize,
    of: Type,
}

/// One call of each rank.
#[derive(Debug)]
struct Round {
    /// Of the rank that came first.
    first: (usize, Call),
    given: Vec<Option<Vec<f32>>>,
    result: Option<Result<Arc<Vec<f32>>, String>>,
    /// Ranks that have the result.
    left: usize,
}

/// Where ranks meet.
#[derive(Debug)]
struct Meeting {
    ranks: usize,
    patience: Duration,
    rounds: Mutex<Rounds>,
    /// Or the meeting was ended.
    somebody_came: Condvar,
}

#[derive(Debug, Default)]
struct Rounds {
    open: HashMap<u64, Round>,
    /// Nobody waits any more.
    is_ended: bool,
}

impl Meeting {
    /// Gives this rank's numbers, waits for those of the others, and returns what they make together.
    fn meet(&self, rank: usize, number: u64, call: Call, given: Vec<f32>) -> Result<Arc<Vec<f32>>, String> {
        let ended = || Err("the group was ended".to_owned());
        let mut rounds = self.rounds.lock().expect("no panic while it is held");
        if rounds.is_ended {
            return ended();
        }
        let round = rounds.open.entry(number).or_insert_with(|| Round {
            first: (rank, call),
            given: vec![None; self.ranks],
            result: None,
            left: 0,
        });
        if round.first.1 != call {
            let (other, theirs) = round.first;
            round.result = Some(Err(format!("rank {rank} calls {call:?}, rank {other} {theirs:?}")));
        } else {
            round.given[rank] = Some(given);
            if round.given.iter().all(Option::is_some) {
                let given: Vec<Vec<f32>> = round.given.iter_mut().filter_map(Option::take).collect();
                round.result = Some(Ok(Arc::new(together(call.what, &given))));
            }
        }
        self.somebody_came.notify_all();
        let is_open = |rounds: &mut Rounds| !rounds.is_ended && rounds.open[&number].result.is_none();
        let (mut rounds, _) =
            self.somebody_came.wait_timeout_while(rounds, self.patience, is_open).expect("no panic while it is held");
        let is_ended = rounds.is_ended;
        let round = rounds.open.get_mut(&number).expect("the last rank to leave removes it");
        let missing: Vec<usize> = (0..self.ranks).filter(|other| round.given[*other].is_none()).collect();
        let result = round.result.get_or_insert_with(|| {
            if is_ended {
                return ended();
            }
            let patience = self.patience;
            Err(format!("ranks {missing:?} did not come within {patience:?}; each rank needs a thread of its own"))
        });
        let result = result.clone();
        round.left += 1;
        if round.left == self.ranks {
            rounds.open.remove(&number);
        }
        result
    }

    fn end(&self) {
        self.rounds.lock().expect("no panic while it is held").is_ended = true;
        self.somebody_came.notify_all();
    }
}

/// Ranks are added in order.
fn together(what: What, given: &[Vec<f32>]) -> Vec<f32> {
    match what {
        What::AllGather => given.concat(),
        What::AllReduce => {
            let mut sums = given[0].clone();
            for numbers in &given[1..] {
                for (sum, number) in sums.iter_mut().zip(numbers) {
                    *sum += number;
                }
            }
            sums
        }
    }
}

/// A rank's part in a call.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    meeting: Arc<Meeting>,
    /// Which call the next one is, in the order in which this rank's calls run.
    turn: Arc<AtomicU64>,
    rank: usize,
    call: Call,
    from: u64,
    to: u64,
}

impl Exchange {
    pub(super) fn name(&self) -> String {
        let what = match self.call.what {
            What::AllReduce => "all_reduce",
            What::AllGather => "all_gather",
        };
        format!("{what} of {} {:?}, rank {}", self.call.count, self.call.of, self.rank)
    }

    pub(super) fn touches(&self) -> [Touch; 2] {
        let bytes = (self.call.count * self.call.of.bytes()) as u64;
        let rows = if self.call.what == What::AllGather { self.meeting.ranks as u64 } else { 1 };
        [whole(self.from..self.from + bytes, false), whole(self.to..self.to + rows * bytes, true)]
    }

    /// Waits for the other ranks.
    pub(super) fn run(&self, operation: &str) -> Result<(), Error> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller of `all_reduce` or `all_gather` said so.
        let given = unsafe { numbers(self.from, self.call.count, self.call.of) };
        let result = self
            .meeting
            .meet(self.rank, turn, self.call, given)
            .map_err(|reason| Error::Collective { operation: operation.to_owned(), reason })?;
        // SAFETY: as above. A gather of what was rounded before rounds nothing.
        unsafe { put_numbers(self.to, &result, self.call.of) };
        Ok(())
    }
}

/// A rank: [`Collective`] over shims of one process.
#[derive(Debug)]
pub struct Rank {
    shim: Arc<Shim>,
    meeting: Arc<Meeting>,
    turn: Arc<AtomicU64>,
    rank: usize,
}

/// Connects shims, in the order of their ranks. Each needs a thread of its own, because waiting for a stream also waits for the other ranks; those that
/// do not come within `patience` make the call fail.
#[must_use]
pub fn ranks(shims: &[Arc<Shim>], patience: Duration) -> Vec<Arc<Rank>> {
    let ranks = shims.len();
    let meeting = Arc::new(Meeting { ranks, patience, rounds: Mutex::default(), somebody_came: Condvar::new() });
    let rank = |(rank, shim): (usize, &Arc<Shim>)| {
        let (shim, meeting) = (Arc::clone(shim), Arc::clone(&meeting));
        Arc::new(Rank { shim, meeting, turn: Arc::default(), rank })
    };
    shims.iter().enumerate().map(rank).collect()
}

impl Rank {
    fn enqueue(&self, stream: StreamId, call: Call, from: u64, to: u64) -> Result<(), Error> {
        let (meeting, turn) = (Arc::clone(&self.meeting), Arc::clone(&self.turn));
        self.shim.enqueue_job(stream, Job::Exchange(Exchange { meeting, turn, rank: self.rank, call, from, to }))
    }
}

impl Collective for Rank {
    fn ranks(&self) -> usize {
        self.meeting.ranks
    }

    fn rank(&self) -> usize {
        self.rank
    }

    unsafe fn all_reduce(&self, stream: StreamId, from: u64, to: u64, count: usize, of: Type) -> Result<(), Error> {
        self.enqueue(stream, Call { what: What::AllReduce, count, of }, from, to)
    }

    unsafe fn all_gather(&self, stream: StreamId, from: u64, to: u64, count: usize, of: Type) -> Result<(), Error> {
        self.enqueue(stream, Call { what: What::AllGather, count, of }, from, to)
    }

    fn end(&self) {
        self.meeting.end();
    }
}
