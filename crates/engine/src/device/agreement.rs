//! What threads of ranks must do alike, although each looks at a device of its own.

use crate::Error;
use std::sync::{Condvar, Mutex, MutexGuard};
use weft_cuda_device::Error as DeviceError;

/// Where the ranks of an engine compare numbers. Each asks as often as the others, in the same order.
#[derive(Debug)]
pub(crate) struct Agreement {
    ranks: usize,
    state: Mutex<State>,
    /// All have come, or one has failed.
    is_settled: Condvar,
}

#[derive(Debug)]
struct State {
    /// Which question is asked.
    round: u64,
    came: usize,
    /// Of the numbers that were given so far.
    least: usize,
    /// Of the last round.
    agreed: usize,
    is_ended: bool,
}

impl Agreement {
    pub(crate) fn new(ranks: usize) -> Self {
        let state = State { round: 0, came: 0, least: usize::MAX, agreed: 0, is_ended: false };
        Self { ranks, state: Mutex::new(state), is_settled: Condvar::new() }
    }

    /// The least of the numbers of all ranks. Waits until all have come.
    ///
    /// # Errors
    /// [`Error::Device`] once a rank has failed.
    pub(crate) fn least(&self, number: usize) -> Result<usize, Error> {
        let failed = || {
            let reason = "another rank has failed".to_owned();
            Err(DeviceError::Collective { operation: "agreement of ranks".to_owned(), reason }.into())
        };
        let mut state = self.state();
        if state.is_ended {
            return failed();
        }
        let round = state.round;
        state.least = state.least.min(number);
        state.came += 1;
        if state.came == self.ranks {
            state.agreed = state.least;
            (state.round, state.came, state.least) = (round + 1, 0, usize::MAX);
            self.is_settled.notify_all();
        }
        let is_open = |state: &mut State| state.round == round && !state.is_ended;
        let state = self.is_settled.wait_while(state, is_open).expect("no panic while it is held");
        if state.round == round { failed() } else { Ok(state.agreed) }
    }

    /// Nobody waits any more, now or later.
    pub(crate) fn end(&self) {
        self.state().is_ended = true;
        self.is_settled.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while it is held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn each_round_gives_all_ranks_its_least_number() {
        let agreement = Agreement::new(3);
        thread::scope(|scope| {
            for rank in 0..3usize {
                let agreement = &agreement;
                scope.spawn(move || {
                    for round in 0..200 {
                        let number = 10 * round + (rank + round) % 3;
                        assert_eq!(agreement.least(number).unwrap(), 10 * round, "rank {rank}");
                    }
                });
            }
        });
    }

    #[test]
    fn nobody_waits_for_a_rank_that_failed() {
        let agreement = Agreement::new(2);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| agreement.least(1));
            agreement.end();
            assert!(waiting.join().unwrap().unwrap_err().is_fatal());
        });
        assert!(agreement.least(1).unwrap_err().to_string().contains("device failed"));
    }
}
