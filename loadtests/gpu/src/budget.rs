//! The time that there is, and its parts: each takes its share of what is left, so that what began late ends in time.

use std::time::{Duration, Instant};

/// Time from its making to its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    begin: Instant,
    end: Instant,
}

impl Budget {
    pub(crate) fn new(length: Duration) -> Self {
        let begin = Instant::now();
        Self { begin, end: begin + length }
    }

    /// What the first of several gets of what is left, that has `share` of the shares of all.
    pub(crate) fn first_of(&self, share: u32, all: u32) -> Self {
        Self::new(self.end.saturating_duration_since(Instant::now()) * share / all)
    }

    pub(crate) fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }

    /// Since it began.
    pub(crate) fn spent(&self) -> Duration {
        self.begin.elapsed()
    }
}

/// Each with its share of the budget, when its turn has come.
pub(crate) fn in_turn<T>(all: Vec<T>, budget: &Budget) -> impl Iterator<Item = (T, Budget)> {
    let count = all.len() as u32;
    all.into_iter().zip(0..count).map(move |(one, done)| (one, budget.first_of(1, count - done)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_began_late_gets_less_and_what_ended_early_leaves_more() {
        let whole = Duration::from_secs(100);
        let budget = Budget { begin: Instant::now(), end: Instant::now() + whole };
        let lengths: Vec<Duration> = in_turn(vec![(); 4], &budget).map(|((), each)| each.end - each.begin).collect();
        // Nobody took any time, so each has its share of all of it.
        for (length, wanted) in lengths.iter().zip([25, 33, 50, 100]) {
            let wanted = Duration::from_secs(wanted);
            assert!(*length <= wanted + Duration::from_secs(1) && *length + Duration::from_secs(5) > wanted);
        }
        let late = Budget { begin: Instant::now(), end: Instant::now() };
        assert!(late.first_of(1, 2).is_over() && late.is_over());
    }
}
