//! The changes that an experiment may go through; each gives a new description with the next revision.

use crate::experiment::{ARMS_MAX, Experiment, PHASES_MAX, Role, State, WEIGHT_MAX};

/// Phases that changes of weights may begin; the rest of [`PHASES_MAX`] is kept so that each arm can still be stopped.
pub const PHASES_REWEIGHTED_MAX: usize = PHASES_MAX - (ARMS_MAX - 1);

/// A change that is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// It does not stand where this change begins.
    #[error("experiment {id} is {is}, this needs it to be {needs}")]
    State {
        /// The experiment.
        id: String,
        /// Where it stands.
        is: &'static str,
        /// Where it would have to stand.
        needs: &'static str,
    },
    /// No such arm, or none that this can be done to.
    #[error("experiment {id} has no arm {arm:?} that {what}")]
    Arm {
        /// The experiment.
        id: String,
        /// The name, at most 80 characters of it.
        arm: String,
        /// What the arm would have to be.
        what: &'static str,
    },
    /// A weight beyond its limits.
    #[error("weight is {weight}, allowed is {least} to {WEIGHT_MAX}")]
    Weight {
        /// The weight asked for.
        weight: u32,
        /// The smallest one of this arm.
        least: u32,
    },
    /// Its weights were changed as often as they may be.
    #[error("experiment {id} has {phases} phases, weights may be changed up to {PHASES_REWEIGHTED_MAX}")]
    Phases {
        /// The experiment.
        id: String,
        /// How many it has.
        phases: usize,
    },
}

impl State {
    /// The word that is used on the wire.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Draft => "draft",
            Self::Running => "running",
            Self::Stopped => "stopped",
            Self::Promoted { .. } => "promoted",
        }
    }
}

impl Experiment {
    fn need(&self, state: &State) -> Result<(), ChangeError> {
        if self.state == *state {
            return Ok(());
        }
        Err(ChangeError::State { id: self.id.clone(), is: self.state.as_str(), needs: state.as_str() })
    }

    fn need_arm(&self, arm: &str, what: &'static str, is: impl Fn(Role) -> bool) -> Result<usize, ChangeError> {
        let found = self.arm(arm).filter(|at| is(self.arms[*at].role));
        let arm = || arm.chars().take(80).collect();
        found.ok_or_else(|| ChangeError::Arm { id: self.id.clone(), arm: arm(), what })
    }

    fn next(&self, state: State) -> Self {
        Self { state, revision: self.revision.saturating_add(1), ..self.clone() }
    }

    /// From draft to running.
    ///
    /// # Errors
    /// It is no draft.
    pub fn started(&self) -> Result<Self, ChangeError> {
        self.need(&State::Draft)?;
        Ok(self.next(State::Running))
    }

    /// One arm with another weight; a running experiment begins a new phase, so that what was observed under one
    /// split is compared only with what was observed under the same.
    ///
    /// # Errors
    /// It has ended, the arm is unknown, the weight beyond its limits, or there were too many phases.
    pub fn reweighted(&self, arm: &str, weight: u32) -> Result<Self, ChangeError> {
        if self.state != State::Draft {
            self.need(&State::Running)?;
        }
        let at = self.need_arm(arm, "can be weighted", |_| true)?;
        let least = u32::from(self.arms[at].role == Role::Control);
        if !(least..=WEIGHT_MAX).contains(&weight) {
            return Err(ChangeError::Weight { weight, least });
        }
        self.weighted(at, weight, PHASES_REWEIGHTED_MAX)
    }

    fn weighted(&self, at: usize, weight: u32, phases_max: usize) -> Result<Self, ChangeError> {
        let mut next = self.next(self.state.clone());
        if self.state == State::Running {
            if self.phase() + 1 >= phases_max {
                return Err(ChangeError::Phases { id: self.id.clone(), phases: self.phase() + 1 });
            }
            next.earlier_weights.push(self.arms.iter().map(|arm| arm.weight).collect());
        }
        next.arms[at].weight = weight;
        Ok(next)
    }

    /// An arm that gets nothing any more: weight 0, in a new phase. There is always a phase left for it.
    ///
    /// # Errors
    /// It does not run, or there is no such arm beside the control, or it gets nothing already.
    pub fn without_arm(&self, arm: &str) -> Result<Self, ChangeError> {
        self.need(&State::Running)?;
        let at = self.need_arm(arm, "can be stopped", |role| role != Role::Control)?;
        if self.arms[at].weight == 0 {
            return Err(ChangeError::Weight { weight: 0, least: 1 });
        }
        self.weighted(at, 0, PHASES_MAX)
    }

    /// Ended without a winner.
    ///
    /// # Errors
    /// It does not run.
    pub fn stopped(&self) -> Result<Self, ChangeError> {
        self.need(&State::Running)?;
        Ok(self.next(State::Stopped))
    }

    /// Ended with this arm as the winner; moving the alias is the caller's work.
    ///
    /// # Errors
    /// It does not run, or there is no such treatment.
    pub fn promoted(&self, arm: &str) -> Result<Self, ChangeError> {
        self.need(&State::Running)?;
        self.need_arm(arm, "can win", |role| role == Role::Treatment)?;
        Ok(self.next(State::Promoted { arm: arm.to_owned() }))
    }
}
