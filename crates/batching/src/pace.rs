//! How many prompt tokens a step may hold while others decode, from what steps were measured to cost.
//!
//! Everybody who decodes waits for the whole step, so that prompt tokens in it are paid for by others' inter-token
//! latency. The time of a step is taken as `decode(d) + c * p + e * a`: `d` requests decode, `p` prompt tokens are
//! computed, and these attend to `a` positions before them. `decode` is a running mean of steps without prompts, by the
//! power of two of `d`; `c` and `e` are a least-squares fit over steps with prompts in which old ones fade. Prompts get
//! what keeps the predicted time within [`Pace::stretch_max`] times `decode(n)`, `n` being all who are here and may run:
//! that is the step which everybody will wait for once all of them decode. With `decode(d)` instead, a burst of short
//! prompts would crawl behind its first few requests.

use crate::StepPlan;

/// How far prompts may slow down those who decode.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// A step with decodes may take so many times as long as one in which everybody who is here decodes. 1 and above;
    /// infinite: no bound.
    pub stretch_max: f64,
    /// Prompt tokens that such a step holds in any case, so that prompts get on. At least 1.
    pub prompt_tokens_min: usize,
}

impl Default for Pace {
    fn default() -> Self {
        Self { stretch_max: 1.8, prompt_tokens_min: 8 }
    }
}

/// What a step was made of, as far as its time depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepShape {
    /// Requests that computed one token behind a prefix.
    pub decodes: usize,
    /// Prompt tokens.
    pub prompt_tokens: usize,
    /// Sum of the positions of these tokens: what they attend to.
    pub attended: usize,
}

/// Powers of two of decodes that are told apart; more decodes count as the largest.
const BUCKETS: usize = 12;
/// After so many steps with both, one has no prompt: else the time of decodes alone would not be known any more.
const MIXED_STEPS_MAX: u32 = 64;
/// Part of a new measurement in the running mean of steps without prompts.
const DECODE_GAIN: f64 = 0.125;
/// What is left of earlier steps with prompts at each new one.
const PROMPT_FADE: f64 = 0.97;
/// A measurement counts as at most so many times what was expected: a hiccup of the machine is not the cost of a step.
const OUTLIER: f64 = 3.0;

/// Measured costs of steps, in microseconds.
#[derive(Clone, Debug, Default)]
pub struct StepCosts {
    decode: [Option<f64>; BUCKETS],
    prompt: PromptFit,
    mixed_steps: u32,
}

/// Room for prompts in one step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Room {
    /// Tokens left.
    pub tokens: usize,
    /// Microseconds left; infinite: no bound.
    pub micros: f64,
    /// Tokens that are granted whatever they cost.
    pub tokens_min: usize,
}

impl Room {
    /// Keeps half for others; what is granted in any case is shared too.
    pub(crate) fn split(&mut self) -> Self {
        let half = Self { tokens: self.tokens / 2, micros: self.micros / 2.0, tokens_min: self.tokens_min / 2 };
        self.tokens -= half.tokens;
        self.tokens_min -= half.tokens_min;
        self.micros /= 2.0;
        half
    }

    pub(crate) fn join(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.tokens_min += other.tokens_min;
        self.micros += other.micros;
    }
}

impl StepShape {
    /// What this plan is made of.
    #[must_use]
    pub fn of(plan: &StepPlan) -> Self {
        let mut shape = Self::default();
        for chunk in &plan.chunks {
            if chunk.tokens.start > 0 && chunk.tokens.len() == 1 && chunk.samples {
                shape.decodes += 1;
            } else {
                shape.prompt_tokens += chunk.tokens.len();
                shape.attended += attended_by(chunk.tokens.start, chunk.tokens.len());
            }
        }
        shape
    }
}

impl StepCosts {
    /// Takes in how long a step took.
    pub fn observe(&mut self, shape: StepShape, micros: f64) {
        if !(micros.is_finite() && micros > 0.0) {
            return;
        }
        match (shape.decodes, shape.prompt_tokens) {
            (0, 0) => {}
            (decodes, 0) => {
                let mean = &mut self.decode[bucket(decodes)];
                *mean = Some(mean.map_or(micros, |mean| mean + DECODE_GAIN * (micros.min(mean * OUTLIER) - mean)));
            }
            (decodes, tokens) => {
                let decode = if decodes == 0 { Some(0.0) } else { self.decode_micros(decodes) };
                let Some(decode) = decode else { return };
                self.prompt.observe(tokens as f64, shape.attended as f64, (micros - decode).max(0.0));
            }
        }
    }

    /// Time of a step in which so many decode and nobody else is: of the nearest number measured that is no larger.
    #[must_use]
    pub fn decode_micros(&self, decodes: usize) -> Option<f64> {
        self.decode[..=bucket(decodes)].iter().rev().find_map(|mean| *mean)
    }

    /// The same for a number that may be larger than any measured: a row more costs no more than a prompt token.
    fn decode_micros_at_most(&self, decodes: usize, prompt_token: f64) -> f64 {
        let measured = (0..=bucket(decodes)).rev().find_map(|bucket| Some((bucket, self.decode[bucket]?)));
        let Some((measured, mean)) = measured else { return 0.0 };
        let further = if measured == bucket(decodes) { 0 } else { decodes - (1 << measured) };
        mean + further as f64 * prompt_token
    }

    /// Time that a prompt token at this position adds to a step. None: not measured yet.
    #[must_use]
    pub fn prompt_token_micros(&self, position: usize) -> Option<f64> {
        self.prompt.fit().map(|(token, attended)| token + attended * position as f64)
    }

    /// Room for prompts beside so many decodes, at most `tokens`; `here` is how many will decode, these included.
    /// Unbounded in time if nobody decodes, or costs are not known yet. None at all once in a while, to measure.
    #[must_use]
    pub fn room(&self, decodes: usize, here: usize, tokens: usize, pace: &Pace) -> Room {
        let mut room = Room { tokens, micros: f64::INFINITY, tokens_min: pace.prompt_tokens_min.max(1) };
        if decodes == 0 || pace.stretch_max.is_infinite() {
            return room;
        }
        if self.mixed_steps >= MIXED_STEPS_MAX {
            room.tokens = 0;
        } else if let (Some(decode), Some(token)) = (self.decode_micros(decodes), self.prompt_token_micros(0)) {
            let all = self.decode_micros_at_most(here.max(decodes), token).max(decode);
            room.micros = all * pace.stretch_max.max(1.0) - decode;
        }
        room
    }

    /// A step of this shape was planned.
    pub(crate) fn note_planned(&mut self, shape: StepShape) {
        if shape.decodes > 0 && shape.prompt_tokens > 0 {
            self.mixed_steps += 1;
        } else if shape.decodes > 0 {
            self.mixed_steps = 0;
        }
    }

    /// How many of `wanted` prompt tokens from position `start` on fit the room.
    #[must_use]
    pub fn fit(&self, room: &Room, start: usize, wanted: usize) -> usize {
        let wanted = wanted.min(room.tokens);
        if room.micros.is_infinite() {
            return wanted;
        }
        let sure = wanted.min(room.tokens_min);
        let mut left = room.micros - self.prompt_micros(start, sure);
        let mut fits = sure;
        while fits < wanted {
            left -= self.prompt_micros(start + fits, 1);
            if left < 0.0 {
                break;
            }
            fits += 1;
        }
        fits
    }

    /// Takes these tokens from the room.
    pub(crate) fn spend(&self, room: &mut Room, start: usize, tokens: usize) {
        room.tokens -= tokens;
        room.tokens_min = room.tokens_min.saturating_sub(tokens);
        if room.micros.is_finite() {
            room.micros -= self.prompt_micros(start, tokens);
        }
    }

    fn prompt_micros(&self, start: usize, tokens: usize) -> f64 {
        let Some((token, attended)) = self.prompt.fit() else { return 0.0 };
        token * tokens as f64 + attended * attended_by(start, tokens) as f64
    }
}

/// Sum of the positions of `tokens` tokens from `start` on.
pub(crate) fn attended_by(start: usize, tokens: usize) -> usize {
    tokens * start + tokens * tokens.saturating_sub(1) / 2
}

fn bucket(decodes: usize) -> usize {
    (decodes.max(1).ilog2() as usize).min(BUCKETS - 1)
}

/// Least squares for `time = c * tokens + e * attended`, both at least 0.
#[derive(Clone, Debug, Default)]
struct PromptFit {
    tokens_tokens: f64,
    tokens_attended: f64,
    attended_attended: f64,
    tokens_time: f64,
    attended_time: f64,
}

impl PromptFit {
    fn observe(&mut self, tokens: f64, attended: f64, micros: f64) {
        let expected = self.fit().map(|(token, at)| token * tokens + at * attended);
        let micros = expected.filter(|expected| *expected > 0.0).map_or(micros, |mean| micros.min(mean * OUTLIER));
        // Relative to the size of the step: a long one has no louder voice.
        let voice = 1.0 / tokens;
        for (sum, new) in [
            (&mut self.tokens_tokens, tokens * tokens),
            (&mut self.tokens_attended, tokens * attended),
            (&mut self.attended_attended, attended * attended),
            (&mut self.tokens_time, tokens * micros),
            (&mut self.attended_time, attended * micros),
        ] {
            *sum = *sum * PROMPT_FADE + new * voice;
        }
    }

    /// `(c, e)`. With steps too alike to tell the two apart, all of it is `c`.
    fn fit(&self) -> Option<(f64, f64)> {
        if self.tokens_tokens <= 0.0 {
            return None;
        }
        let whole = self.tokens_tokens * self.attended_attended;
        let determinant = whole - self.tokens_attended * self.tokens_attended;
        let only_tokens = (self.tokens_time / self.tokens_tokens, 0.0);
        if determinant <= whole * 1e-3 {
            return Some(only_tokens);
        }
        let token =
            (self.tokens_time * self.attended_attended - self.attended_time * self.tokens_attended) / determinant;
        let attended =
            (self.attended_time * self.tokens_tokens - self.tokens_time * self.tokens_attended) / determinant;
        if attended < 0.0 {
            Some(only_tokens)
        } else if token < 0.0 {
            Some((0.0, self.attended_time / self.attended_attended))
        } else {
            Some((token, attended))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine: 9 ms for the weights, 0.2 ms a decode, 0.5 ms a prompt token and 0.1 µs for each position it sees.
    fn time(shape: StepShape) -> f64 {
        let decodes = if shape.decodes > 0 { 9000.0 + 200.0 * shape.decodes as f64 } else { 0.0 };
        decodes + 500.0 * shape.prompt_tokens as f64 + 0.1 * shape.attended as f64
    }

    fn shape(decodes: usize, start: usize, prompt_tokens: usize) -> StepShape {
        StepShape { decodes, prompt_tokens, attended: attended_by(start, prompt_tokens) }
    }

    fn measured(shapes: impl IntoIterator<Item = StepShape>) -> StepCosts {
        let mut costs = StepCosts::default();
        for shape in shapes {
            costs.observe(shape, time(shape));
        }
        costs
    }

    fn known() -> StepCosts {
        measured((0..64).flat_map(|at| [shape(4, 0, 0), shape(4, 64 * at, 16)]))
    }

    #[test]
    fn costs_are_found_from_steps() {
        let costs = known();
        assert!((costs.decode_micros(4).unwrap() - 9800.0).abs() < 1.0);
        for position in [0, 1000, 4000] {
            let real = 500.0 + 0.1 * position as f64;
            let found = costs.prompt_token_micros(position).unwrap();
            assert!((found / real - 1.0).abs() < 0.05, "{found} for {real}");
        }
    }

    #[test]
    fn a_step_with_decodes_stays_within_the_stretch_at_every_depth() {
        let costs = known();
        let pace = Pace { stretch_max: 1.8, prompt_tokens_min: 1 };
        for start in [0, 500, 2000, 4000] {
            let room = costs.room(4, 4, 256, &pace);
            let tokens = costs.fit(&room, start, 4096);
            let stretch = time(shape(4, start, tokens)) / time(shape(4, 0, 0));
            assert!((1.6..=1.82).contains(&stretch), "{tokens} tokens at {start}: {stretch}");
        }
    }

    #[test]
    fn a_burst_gets_what_its_own_decodes_will_take() {
        let costs = measured((0..64).flat_map(|at| [shape(1, 0, 0), shape(32, 0, 0), shape(4, 64 * at, 16)]));
        let pace = Pace { stretch_max: 1.5, prompt_tokens_min: 1 };
        assert_eq!(costs.room(1, 40, 256, &pace).micros, 1.5 * time(shape(32, 0, 0)) - time(shape(1, 0, 0)));
        assert_eq!(costs.room(32, 2, 256, &pace).micros, 0.5 * time(shape(32, 0, 0)));
        let few = measured((0..64).flat_map(|at| [shape(1, 0, 0), shape(1, 64 * at, 16)]));
        let room = few.room(1, 33, 256, &pace).micros;
        let expected = 1.5 * (time(shape(1, 0, 0)) + 32.0 * 500.0) - time(shape(1, 0, 0));
        assert!((room / expected - 1.0).abs() < 0.01, "{room} for {expected}");
    }

    #[test]
    fn with_nobody_to_wait_the_room_is_whole_and_unknown_costs_bound_nothing() {
        let pace = Pace::default();
        let costs = known();
        assert_eq!(costs.fit(&costs.room(0, 0, 256, &pace), 0, 4096), 256);
        let boundless = Pace { stretch_max: f64::INFINITY, ..pace };
        assert_eq!(costs.fit(&costs.room(4, 4, 252, &boundless), 0, 4096), 252);
        let unknown = StepCosts::default();
        assert_eq!(unknown.fit(&unknown.room(4, 4, 252, &pace), 0, 4096), 252);
    }

    #[test]
    fn prompts_get_on_however_dear_they_are() {
        let costs = measured([shape(1, 0, 0), shape(1, 0, 100_000), shape(1, 50_000, 100_000)]);
        let pace = Pace { stretch_max: 1.0, prompt_tokens_min: 3 };
        let mut room = costs.room(1, 1, 256, &pace);
        assert_eq!(costs.fit(&room, 9000, 40), 3);
        costs.spend(&mut room, 9000, 2);
        assert_eq!(costs.fit(&room, 0, 40), 1);
        costs.spend(&mut room, 0, 1);
        assert_eq!(costs.fit(&room, 0, 40), 0);
    }

    #[test]
    fn once_in_a_while_a_step_without_prompts_is_measured() {
        let mut costs = known();
        let pace = Pace::default();
        let mut without = 0;
        for _ in 0..10 * (MIXED_STEPS_MAX + 1) {
            let room = costs.room(4, 4, 256, &pace);
            let tokens = costs.fit(&room, 0, 64);
            without += u32::from(tokens == 0);
            costs.note_planned(shape(4, 0, tokens));
        }
        assert_eq!(without, 10);
    }

    #[test]
    fn a_hiccup_moves_the_estimate_little_and_a_slower_machine_moves_it_all_the_way() {
        let mut costs = known();
        let before = costs.decode_micros(4).unwrap();
        costs.observe(shape(4, 0, 0), before * 100.0);
        assert!(costs.decode_micros(4).unwrap() < before * 1.3);
        for _ in 0..60 {
            costs.observe(shape(4, 0, 0), before * 2.0);
        }
        assert!((costs.decode_micros(4).unwrap() / before - 2.0).abs() < 0.05);
        costs.observe(shape(4, 0, 0), f64::NAN);
        assert!(costs.decode_micros(4).unwrap().is_finite());
    }

    #[test]
    fn fewer_decodes_stand_in_for_a_number_not_measured() {
        let costs = measured([shape(2, 0, 0), shape(16, 0, 0)]);
        assert_eq!(costs.decode_micros(1), None);
        assert_eq!(costs.decode_micros(15), Some(time(shape(2, 0, 0))));
        assert_eq!(costs.decode_micros(5000), Some(time(shape(16, 0, 0))));
    }
}
