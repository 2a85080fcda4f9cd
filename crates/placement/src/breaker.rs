//! Whom to leave alone after failures: a circuit for each worker.
//!
//! Closed: requests go; failures and successes are counted with a half-life. With enough failures, as many as a share
//! of all, the circuit opens. Open: nothing goes until a time that doubles with every opening in a row and is jittered,
//! so that gateways do not come back together. Half-open: so many trials at once; one failure opens it again, enough
//! successes close it. (Nygard, *Release It!*, 2nd ed. 2018, ch. 5.)

/// When circuits open and close.
#[derive(Clone, Copy, Debug)]
pub struct BreakerSettings {
    /// Decayed failures that open a circuit. At least 1.
    pub failures: f64,
    /// Share of failures among all that opens it. 0 to 1.
    pub failure_share: f64,
    /// After so long a failure counts half. At least 1.
    pub half_life_ms: u64,
    /// How long it stays open the first time.
    pub open_ms: u64,
    /// How long it stays open at most.
    pub open_ms_max: u64,
    /// Requests let through at once to try.
    pub trials: u32,
    /// Successes of trials that close it.
    pub successes: u32,
    /// A trial that has not ended after so long no longer counts as one: its answer may be lost.
    pub trial_ms: u64,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            failures: 5.0,
            failure_share: 0.5,
            half_life_ms: 10_000,
            open_ms: 1_000,
            open_ms_max: 30_000,
            trials: 1,
            successes: 2,
            trial_ms: 30_000,
        }
    }
}

/// Whether a request may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// It may.
    Yes,
    /// It may, and decides whether others may: tell the circuit how it ended.
    Trial,
    /// Not before this time.
    No {
        /// When asking again makes sense.
        until_ms: u64,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Closed { failures: f64, successes: f64, at_ms: u64 },
    Open { until_ms: u64 },
    HalfOpen { trials: u32, since_ms: u64, successes: u32 },
}

/// A circuit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Breaker {
    state: State,
    /// Openings since it was last closed.
    openings: u32,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { state: State::Closed { failures: 0.0, successes: 0.0, at_ms: 0 }, openings: 0 }
    }
}

impl Breaker {
    /// Whether a request would be let through, without asking for it: what routing looks at.
    #[must_use]
    pub fn is_open(&self, now_ms: u64, settings: &BreakerSettings) -> bool {
        let mut copy = *self;
        matches!(copy.ask(now_ms, settings), Permit::No { .. })
    }

    /// Asks for one request. A `Trial` must be followed by [`Breaker::succeeded`], [`Breaker::failed`] or [`Breaker::forgo`].
    pub fn ask(&mut self, now_ms: u64, settings: &BreakerSettings) -> Permit {
        match &mut self.state {
            State::Closed { .. } => Permit::Yes,
            State::Open { until_ms } if now_ms < *until_ms => Permit::No { until_ms: *until_ms },
            State::Open { .. } => {
                self.state = State::HalfOpen { trials: 1, since_ms: now_ms, successes: 0 };
                Permit::Trial
            }
            State::HalfOpen { trials, since_ms, .. } => {
                if *trials < settings.trials.max(1) {
                    *trials += 1;
                    *since_ms = now_ms;
                    return Permit::Trial;
                }
                let until_ms = since_ms.saturating_add(settings.trial_ms);
                if now_ms < until_ms {
                    return Permit::No { until_ms };
                }
                // The trials were lost: one more takes their place.
                *since_ms = now_ms;
                Permit::Trial
            }
        }
    }

    /// A request ended well.
    pub fn succeeded(&mut self, now_ms: u64, settings: &BreakerSettings) {
        match &mut self.state {
            State::Closed { failures, successes, at_ms } => {
                let factor = decay(at_ms, now_ms, settings);
                *failures *= factor;
                *successes = *successes * factor + 1.0;
            }
            // It was sent before the circuit opened.
            State::Open { .. } => {}
            State::HalfOpen { trials, successes, .. } => {
                *trials = trials.saturating_sub(1);
                *successes += 1;
                if *successes >= settings.successes.max(1) {
                    *self = Self { state: State::Closed { failures: 0.0, successes: 0.0, at_ms: now_ms }, openings: 0 };
                }
            }
        }
    }

    /// A request failed in a way that says something about the worker (unreachable, timed out, internal): refusals of the
    /// request itself and `overloaded` do not count. `draw` is a random number of the caller.
    pub fn failed(&mut self, now_ms: u64, draw: u64, settings: &BreakerSettings) {
        match &mut self.state {
            State::Closed { failures, successes, at_ms } => {
                let factor = decay(at_ms, now_ms, settings);
                *failures = *failures * factor + 1.0;
                *successes *= factor;
                // A little below: failures that come one after the other decay a little meanwhile.
                let enough = *failures > settings.failures.max(1.0) - 0.5;
                if enough && *failures >= settings.failure_share * (*failures + *successes) {
                    self.open(now_ms, draw, settings);
                }
            }
            State::Open { .. } => {}
            State::HalfOpen { .. } => self.open(now_ms, draw, settings),
        }
    }

    /// A trial that was not made, or whose end says nothing about the worker: another one may be made.
    pub fn forgo(&mut self) {
        if let State::HalfOpen { trials, .. } = &mut self.state {
            *trials = trials.saturating_sub(1);
        }
    }

    /// Opens for `open_ms × 2^openings`, at most `open_ms_max`, times a factor from 0.5 to 1 (half of it jitter).
    fn open(&mut self, now_ms: u64, draw: u64, settings: &BreakerSettings) {
        let doubled = settings.open_ms.saturating_mul(1 << self.openings.min(20)).min(settings.open_ms_max).max(1);
        let jitter = (doubled / 2) as f64 * crate::hash::unit(crate::hash::mix(draw));
        self.openings = self.openings.saturating_add(1);
        self.state = State::Open { until_ms: now_ms.saturating_add(doubled - jitter as u64) };
    }
}

fn decay(at_ms: &mut u64, now_ms: u64, settings: &BreakerSettings) -> f64 {
    let elapsed = now_ms.saturating_sub(*at_ms) as f64;
    *at_ms = (*at_ms).max(now_ms);
    (-elapsed / settings.half_life_ms.max(1) as f64).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opened(settings: &BreakerSettings, draw: u64) -> (Breaker, u64) {
        let mut breaker = Breaker::default();
        for at in 0..5 {
            assert_eq!(breaker.ask(at, settings), Permit::Yes);
            breaker.failed(at, draw, settings);
        }
        let Permit::No { until_ms } = breaker.ask(5, settings) else { panic!("{breaker:?} is not open") };
        (breaker, until_ms)
    }

    #[test]
    fn five_failures_open_it_and_reopening_is_jittered() {
        let settings = BreakerSettings::default();
        let times: Vec<u64> = (0..100).map(|draw| opened(&settings, draw).1).collect();
        assert!(times.iter().all(|until| (504..=1004).contains(until)), "{times:?}");
        let distinct: std::collections::BTreeSet<_> = times.iter().collect();
        assert!(distinct.len() > 50, "gateways would come back together");
    }

    #[test]
    fn failures_among_many_successes_do_not_open_it_and_old_ones_are_forgotten() {
        let settings = BreakerSettings::default();
        let mut breaker = Breaker::default();
        for at in 0..1000 {
            breaker.succeeded(at, &settings);
            breaker.succeeded(at, &settings);
            breaker.failed(at, 1, &settings);
        }
        assert_eq!(breaker.ask(1000, &settings), Permit::Yes);
        let mut breaker = Breaker::default();
        for minute in 0..100 {
            breaker.failed(minute * 60_000, 1, &settings);
        }
        assert_eq!(breaker.ask(6_000_000, &settings), Permit::Yes);
    }

    #[test]
    fn one_trial_at_a_time_then_it_closes_or_opens_for_twice_as_long() {
        let settings = BreakerSettings::default();
        let (mut breaker, until) = opened(&settings, 1);
        assert_eq!(breaker.ask(until, &settings), Permit::Trial);
        assert!(matches!(breaker.ask(until, &settings), Permit::No { .. }), "one trial at a time");
        breaker.failed(until + 1, 1, &settings);
        let Permit::No { until_ms: again } = breaker.ask(until + 1, &settings) else { panic!("{breaker:?}") };
        assert!((1000..=2000).contains(&(again - until - 1)), "{again}");
        assert_eq!(breaker.ask(again, &settings), Permit::Trial);
        breaker.succeeded(again, &settings);
        assert_eq!(breaker.ask(again, &settings), Permit::Trial, "two successes close it");
        breaker.succeeded(again, &settings);
        assert_eq!(breaker.ask(again, &settings), Permit::Yes);
        assert_eq!(breaker.ask(again, &settings), Permit::Yes);
    }

    #[test]
    fn a_trial_whose_answer_is_lost_does_not_keep_the_worker_out_for_ever() {
        let settings = BreakerSettings::default();
        let (mut breaker, until) = opened(&settings, 1);
        assert_eq!(breaker.ask(until, &settings), Permit::Trial);
        let Permit::No { until_ms } = breaker.ask(until + 1, &settings) else { panic!("{breaker:?}") };
        assert_eq!(breaker.ask(until_ms, &settings), Permit::Trial);
    }

    #[test]
    fn routing_may_look_without_using_up_the_trial() {
        let settings = BreakerSettings::default();
        let (mut breaker, until) = opened(&settings, 1);
        assert!(breaker.is_open(until - 1, &settings));
        assert!(!breaker.is_open(until, &settings) && !breaker.is_open(until, &settings));
        assert_eq!(breaker.ask(until, &settings), Permit::Trial);
        assert!(breaker.is_open(until, &settings));
    }

    #[test]
    fn openings_in_a_row_stay_below_the_limit() {
        let settings = BreakerSettings::default();
        let (mut breaker, mut now) = opened(&settings, 1);
        for _ in 0..100 {
            assert_eq!(breaker.ask(now, &settings), Permit::Trial);
            breaker.failed(now, 1, &settings);
            let Permit::No { until_ms } = breaker.ask(now, &settings) else { panic!("{breaker:?}") };
            assert!(until_ms - now <= settings.open_ms_max);
            now = until_ms;
        }
    }

    #[test]
    fn a_trial_that_says_nothing_makes_room_for_another() {
        let settings = BreakerSettings::default();
        let (mut breaker, until_ms) = opened(&settings, 0);
        for _ in 0..3 {
            assert_eq!(breaker.ask(until_ms, &settings), Permit::Trial);
            assert!(matches!(breaker.ask(until_ms, &settings), Permit::No { .. }));
            breaker.forgo();
        }
        assert_eq!(breaker.ask(until_ms, &settings), Permit::Trial);
        let mut closed = Breaker::default();
        closed.forgo();
        assert_eq!(closed, Breaker::default());
    }
}
