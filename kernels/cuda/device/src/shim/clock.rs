//! Vector clocks: what is known to have happened before what.

/// For each agent (the host, each stream), how many of its steps are known to be over. Agents that it does not hold count zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Clock(Vec<u64>);

impl Clock {
    pub(crate) fn get(&self, agent: usize) -> u64 {
        self.0.get(agent).copied().unwrap_or(0)
    }

    /// One more step of `agent`.
    pub(crate) fn tick(&mut self, agent: usize) {
        if self.0.len() <= agent {
            self.0.resize(agent + 1, 0);
        }
        self.0[agent] += 1;
    }

    /// All that either knows.
    pub(crate) fn join(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine = (*mine).max(*theirs);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_knows_what_both_knew() {
        let (mut a, mut b) = (Clock::default(), Clock::default());
        a.tick(0);
        a.tick(0);
        b.tick(2);
        a.join(&b);
        assert_eq!([0, 1, 2, 3].map(|agent| a.get(agent)), [2, 0, 1, 0]);
        b.join(&a);
        assert_eq!(a, b);
    }
}
