//! What one gateway holds of one tenant's limits: slices of units paid in advance, and slots. Pure: time is a parameter.
//!
//! While the ledger answers, requests are served from the slices, and a slice that runs out is exchanged for the next. While
//! it does not, each bucket goes on *alone*: with what is left of its slice, then at this gateway's part of the rate. What is
//! used then, the ledger hears with the first exchange afterwards.

use crate::book::BUCKETS_MAX;
use crate::gcra::{Level, Rate};
use crate::ledger::{Answer, Ask, Exchange, Floor, Outcome};
use crate::need::Need;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

/// Buckets of units, and buckets of slots, in one exchange that no request asked for.
const RETURNED_AT_ONCE: usize = 64;
/// Exchanges in which all of them are told, at most.
pub(crate) const SERIES_MAX: usize = BUCKETS_MAX / RETURNED_AT_ONCE;
/// A refusal is believed for so long, so that a tenant over its limit does not cost a call a request.
const REFUSED_US: u64 = 100_000;

/// One tenant's limits at this gateway.
#[derive(Debug, Default)]
pub(crate) struct Account {
    epoch: String,
    charge: Option<String>,
    /// A call of which it is not known whether it had its effect.
    pub(crate) pending: Option<Exchange>,
    /// A call is under way: nothing is taken until it is answered.
    pub(crate) asking: bool,
    units: BTreeMap<String, Units>,
    slots: BTreeMap<String, Slots>,
    /// When a request last came.
    pub(crate) asked_us: u64,
    /// When the ledger last answered.
    pub(crate) answered_us: u64,
    /// The ledger may not know of slots in use: it forgot them, or their charge ended.
    slots_unknown: bool,
}

#[derive(Debug)]
struct Units {
    rate: Rate,
    slice: u64,
    /// Paid in advance and not used; if negative, used and not paid.
    left: f64,
    /// The bucket as the ledger last had it, and when that was here.
    seen: Option<(Level, u64)>,
    alone: Option<Alone>,
    refused_until_us: u64,
}

/// A bucket while the ledger is away.
#[derive(Debug)]
struct Alone {
    /// Paces: a bucket as large as a slice that drains at this gateway's part of the rate.
    pace: Level,
    /// Units used that were not paid in advance.
    used: f64,
}

/// Where and when an account is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Here {
    /// Gateways that share the limits.
    pub(crate) gateways: u64,
    /// On this gateway's clock.
    pub(crate) now_us: u64,
}

#[derive(Debug, Default)]
struct Slots {
    limit: u64,
    slack: u64,
    /// With other gateways.
    shares: bool,
    held: u64,
    used: u64,
    refused_until_us: u64,
}

/// What headers say about one bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Units at most.
    pub limit: u64,
    /// Units that could be used now.
    pub remaining: u64,
    /// Until all of them could.
    pub reset: Duration,
}

/// The part of a limit that a gateway may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slice {
    /// 0 to 50.
    pub(crate) percent: f64,
}

impl Slice {
    /// Units; at least one unless nothing is to be held.
    pub(crate) fn of(self, limit: u64) -> u64 {
        if self.percent <= 0.0 { 0 } else { ((limit as f64 * self.percent / 100.0) as u64).max(1) }
    }
}

impl Account {
    /// Knows the buckets of these needs from now on, with their limits as they are now.
    pub(crate) fn fit(&mut self, needs: &[Need], slice: Slice, now_us: u64) {
        self.asked_us = now_us;
        for need in needs {
            match need.rate() {
                Some(rate) => {
                    let fresh = Units { rate, slice: 0, left: 0.0, seen: None, alone: None, refused_until_us: 0 };
                    let units = self.units.entry(need.bucket.clone()).or_insert(fresh);
                    (units.rate, units.slice) = (rate, slice.of(need.limit));
                }
                None => {
                    let slots = self.slots.entry(need.bucket.clone()).or_default();
                    (slots.limit, slots.slack) = (need.limit, slice.of(need.limit) / 2);
                    slots.shares = slice.percent > 0.0;
                }
            }
        }
    }

    /// Takes everything from what is held here, or nothing.
    pub(crate) fn take(&mut self, needs: &[Need]) -> bool {
        let holds = |need: &Need| match need.rate() {
            Some(_) => self.units.get(&need.bucket).is_some_and(|units| units.left >= need.amount as f64),
            None => self
                .slots
                .get(&need.bucket)
                .is_some_and(|slots| slots.used + need.amount <= slots.held.min(slots.limit.max(slots.used))),
        };
        let takes = !self.asking && self.pending.is_none() && needs.iter().all(holds);
        if takes {
            self.use_up(needs);
        }
        takes
    }

    /// Whether the ledger refused one of these needs so lately that it is not asked again: the need's position, and the wait
    /// in microseconds. Only where something is held in advance: who asks for each request gets the ledger's own answer.
    pub(crate) fn refuses(&self, needs: &[Need], here: Here) -> Option<(usize, u64)> {
        let wait = |need: &Need| match (self.units.get(&need.bucket), self.slots.get(&need.bucket)) {
            (Some(units), _) if units.slice > 0 && here.now_us < units.refused_until_us => {
                let used = units.seen_now(here) - units.left;
                Some(units.rate.wait_us(used, need.amount as f64)).filter(|wait| *wait > 0)
            }
            (None, Some(slots)) if slots.shares && here.now_us < slots.refused_until_us => {
                (slots.used + need.amount > slots.held).then_some(0)
            }
            _ => None,
        };
        needs.iter().enumerate().find_map(|(index, need)| Some((index, wait(need)?)))
    }

    fn use_up(&mut self, needs: &[Need]) {
        for need in needs {
            if let Some(units) = self.units.get_mut(&need.bucket) {
                units.left -= need.amount as f64;
            } else if let Some(slots) = self.slots.get_mut(&need.bucket) {
                slots.used += need.amount;
            }
        }
    }

    /// The call that gets these needs and the next slices. What is left is in the call from now on.
    pub(crate) fn ask(&mut self, needs: &[Need], call: NewCall) -> Exchange {
        let mut asks = Vec::with_capacity(needs.len());
        for need in needs {
            if let Some(units) = self.units.get_mut(&need.bucket) {
                asks.push(units.ask(&need.bucket, need.amount));
            } else if let Some(slots) = self.slots.get(&need.bucket) {
                asks.push(slots.ask(&need.bucket, need.amount, slots.slack));
            }
        }
        self.exchange(asks, call)
    }

    /// The next of a series of calls that tell the ledger unasked: what is held and not used goes back, and slots are named
    /// as `say` has it, some of them with each call. None: there is nothing more to say.
    pub(crate) fn say(&mut self, say: Say, said: &mut Said, call: NewCall) -> Option<Exchange> {
        let is_first = !std::mem::replace(&mut said.begun, true);
        let mut asks = self.units_to_return(said);
        asks.extend(self.slots_to_name(say, said));
        // A charge that the ledger hears nothing of ends; floors are told even if nothing is held.
        let is_said_anyway = match say {
            Say::Unused => false,
            Say::StillThere => is_first && self.charge.is_some(),
            Say::Everything => is_first && !self.epoch.is_empty(),
        };
        if asks.is_empty() && !is_said_anyway {
            return None;
        }
        // Who never heard of the ledger remembers nothing of it, but may have gone on alone.
        let floors = (say == Say::Everything && is_said_anyway).then(|| self.floors());
        Some(Exchange { floors, ..self.exchange(asks, call) })
    }

    /// What is left of some slices, or was used alone: it is in the call from now on.
    fn units_to_return(&mut self, said: &mut Said) -> Vec<Ask> {
        let after = (Bound::Excluded(said.units.as_str()), Bound::Unbounded);
        let further = self.units.range_mut::<str, _>(after);
        let unused = further.filter(|(_, units)| units.left != 0.0 || units.alone.is_some());
        let returned = unused.take(RETURNED_AT_ONCE).map(|(bucket, units)| {
            let alone = units.alone.take().map_or(0.0, |alone| alone.used);
            let back = std::mem::take(&mut units.left);
            Ask::Units { bucket: bucket.clone(), rate: units.rate, back, alone, at_least: 0, at_most: 0 }
        });
        let asks: Vec<Ask> = returned.collect();
        if let Some(Ask::Units { bucket, .. }) = asks.last() {
            said.units.clone_from(bucket);
        }
        asks
    }

    /// Some slots that are held, or only those of which the ledger has another count than is in use.
    fn slots_to_name(&self, say: Say, said: &mut Said) -> Vec<Ask> {
        let after = (Bound::Excluded(said.slots.as_str()), Bound::Unbounded);
        let further = self.slots.range::<str, _>(after);
        let named = further.filter(|(_, slots)| match say {
            Say::Unused => slots.held != slots.used,
            Say::StillThere | Say::Everything => slots.held > 0 || slots.used > 0,
        });
        let asks: Vec<Ask> = named.take(RETURNED_AT_ONCE).map(|(bucket, slots)| slots.ask(bucket, 0, 0)).collect();
        if let Some(Ask::Slots { bucket, .. }) = asks.last() {
            said.slots.clone_from(bucket);
        }
        asks
    }

    /// A series of calls told the ledger all slots that are in use.
    pub(crate) fn named_all(&mut self) {
        self.slots_unknown = false;
    }

    fn exchange(&self, asks: Vec<Ask>, call: NewCall) -> Exchange {
        Exchange {
            epoch: self.epoch.clone(),
            new_epoch: call.new_epoch,
            closes: self.charge.clone(),
            charge: call.charge,
            open_us: call.open_us,
            known_us: call.known_us,
            asks,
            floors: None,
        }
    }

    /// What is remembered of the tenant's buckets.
    pub(crate) fn floors(&self) -> Vec<Floor> {
        let seen = self.units.iter().filter_map(|(bucket, units)| Some((bucket, units, units.seen?.0)));
        let floor = |(bucket, units, level): (&String, &Units, Level)| Floor {
            bucket: bucket.clone(),
            rate: units.rate,
            used: level.used,
            at_us: level.at_us,
        };
        seen.map(floor).collect()
    }

    /// Takes in the answer to a call, and then these needs if they were granted.
    pub(crate) fn answered(&mut self, exchange: &Exchange, answer: &Answer, needs: &[Need], now_us: u64) {
        self.epoch.clone_from(&answer.epoch);
        self.charge = Some(exchange.charge.clone());
        let charge_ended = exchange.closes.is_some() && now_us.saturating_sub(self.answered_us) >= exchange.open_us;
        self.slots_unknown |= charge_ended || exchange.floors.is_some();
        if self.pending.take().is_none() {
            // Made again, it was perhaps answered long ago, and its charge has been open since.
            self.answered_us = now_us;
        }
        for (ask, bucket) in exchange.asks.iter().zip(&answer.buckets) {
            match ask {
                Ask::Units { bucket: name, .. } => {
                    if let Some(units) = self.units.get_mut(name) {
                        units.left += bucket.granted as f64;
                        units.seen = Some((bucket.level, now_us));
                    }
                }
                Ask::Slots { bucket: name, .. } => {
                    if let Some(slots) = self.slots.get_mut(name) {
                        slots.held = bucket.granted;
                    }
                }
            }
        }
        match answer.outcome {
            Outcome::Granted => self.use_up(needs),
            Outcome::Refused { ask, .. } => self.remember_refusal(exchange.asks.get(ask), now_us),
            Outcome::UnknownEpoch => {}
        }
    }

    fn remember_refusal(&mut self, ask: Option<&Ask>, now_us: u64) {
        let until_us = now_us + REFUSED_US;
        match ask {
            Some(Ask::Units { bucket, .. }) => {
                self.units.entry(bucket.clone()).and_modify(|units| units.refused_until_us = until_us);
            }
            Some(Ask::Slots { bucket, .. }) => {
                self.slots.entry(bucket.clone()).and_modify(|slots| slots.refused_until_us = until_us);
            }
            None => {}
        }
    }

    /// Takes everything at this gateway's part of the limits, or nothing: then the position of the need with the longest
    /// wait, and how long, in microseconds.
    pub(crate) fn take_alone(&mut self, needs: &[Need], here: Here) -> Result<(), (usize, u64)> {
        let mut refused: Option<(usize, u64)> = None;
        for (index, need) in needs.iter().enumerate() {
            let prepaid = self.prepaid(&need.bucket);
            let wait = if let Some(units) = self.units.get_mut(&need.bucket) {
                let wait = units.wait_alone(need.amount, prepaid, here);
                (wait > 0).then_some(wait)
            } else {
                let slots = self.slots.get(&need.bucket);
                slots.is_some_and(|slots| !slots.has_room_alone(need.amount, here.gateways)).then_some(0)
            };
            if let Some(wait) = wait
                && refused.is_none_or(|(_, longest)| wait > longest)
            {
                refused = Some((index, wait));
            }
        }
        if let Some(refused) = refused {
            return Err(refused);
        }
        for need in needs {
            if let Some(units) = self.units.get_mut(&need.bucket) {
                units.use_alone(need.amount as f64);
            } else if let Some(slots) = self.slots.get_mut(&need.bucket) {
                slots.used += need.amount;
            }
        }
        Ok(())
    }

    /// Units of the bucket that are paid in advance, here or in a call that may have failed.
    fn prepaid(&self, bucket: &str) -> f64 {
        let left = self.units.get(bucket).map_or(0.0, |units| units.left);
        let asks = self.pending.iter().flat_map(|pending| &pending.asks);
        let called: f64 = asks
            .map(|ask| {
                if let Ask::Units { bucket: name, back, .. } = ask
                    && name == bucket
                {
                    *back
                } else {
                    0.0
                }
            })
            .sum();
        (left + called).max(0.0)
    }

    /// What was reserved and not used comes back; what was used beyond it is owed.
    pub(crate) fn settle(&mut self, bucket: &str, reserved: u64, used: u64) {
        if let Some(units) = self.units.get_mut(bucket) {
            let back = reserved as f64 - used as f64;
            match &mut units.alone {
                Some(alone) => {
                    alone.pace.used = (alone.pace.used - back).max(0.0);
                    alone.used -= back;
                    // More comes back than was used alone: it was paid before.
                    units.left -= alone.used.min(0.0);
                    alone.used = alone.used.max(0.0);
                }
                None => units.left += back,
            }
        }
    }

    /// Slots come free.
    pub(crate) fn release(&mut self, bucket: &str, count: u64) {
        if let Some(slots) = self.slots.get_mut(bucket) {
            slots.used = slots.used.saturating_sub(count);
        }
    }

    /// What headers say about a bucket of units.
    pub(crate) fn window(&self, bucket: &str, here: Here) -> Option<Window> {
        let units = self.units.get(bucket)?;
        let (rate, used) = match (&units.alone, &units.seen) {
            (Some(alone), _) => {
                let rate = units.rate_alone(here.gateways);
                (rate, rate.used_at(alone.pace, here.now_us))
            }
            (None, Some(_)) => (units.rate, units.seen_now(here) - units.left),
            (None, None) => (units.rate, 0.0),
        };
        let remaining = (rate.limit as f64 - used).clamp(0.0, rate.limit as f64) as u64;
        Some(Window { limit: units.rate.limit, remaining, reset: rate.reset(used) })
    }

    /// Forgets buckets of which nothing is held, if there are many: keys come and go.
    pub(crate) fn prune(&mut self) {
        if self.units.len() + self.slots.len() > BUCKETS_MAX {
            self.units.retain(|_, units| units.left != 0.0 || units.alone.is_some());
            self.slots.retain(|_, slots| slots.held > 0 || slots.used > 0);
        }
    }

    /// Slots and units held in advance.
    pub(crate) fn held(&self) -> (u64, u64) {
        let units = self.units.values().map(|units| units.left.max(0.0) as u64).sum();
        let slots = self.slots.values().map(|slots| slots.held).sum();
        (units, slots)
    }

    /// Whether anything is held or owed that the ledger should hear of once no request comes.
    pub(crate) fn holds_unused(&self) -> bool {
        self.pending.is_some()
            || self.units.values().any(|units| units.left != 0.0 || units.alone.is_some())
            || self.slots.values().any(|slots| slots.held > slots.used)
    }

    /// Whether anything was used alone that the ledger has not heard of.
    pub(crate) fn was_alone(&self) -> bool {
        self.pending.is_some()
            || self.units.values().any(|units| units.alone.is_some())
            || self.slots.values().any(|slots| slots.used > slots.held)
    }

    /// Whether slots are in use.
    pub(crate) fn uses_slots(&self) -> bool {
        self.slots.values().any(|slots| slots.used > 0)
    }

    /// Whether the ledger must hear of it lest it forget the charge, or because it may have forgotten slots: something is held, or
    /// in use as `is_open` says.
    pub(crate) fn must_renew(&self, is_open: bool, now_us: u64, after_us: u64) -> bool {
        let is_held = is_open || self.holds_unused() || self.uses_slots();
        let is_due = now_us.saturating_sub(self.answered_us) >= after_us || (self.slots_unknown && self.uses_slots());
        is_held && self.charge.is_some() && is_due
    }
}

/// What a call is made with besides its asks.
pub(crate) struct NewCall {
    pub(crate) charge: String,
    pub(crate) new_epoch: String,
    pub(crate) open_us: u64,
    pub(crate) known_us: u64,
}

/// What a ledger is told unasked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Say {
    /// What is held and not used.
    Unused,
    /// That, and that the rest is in use.
    StillThere,
    /// That, and all that is remembered: it may have forgotten something.
    Everything,
}

/// How far a series of calls has come: buckets are told in their order, each once.
#[derive(Default)]
pub(crate) struct Said {
    begun: bool,
    /// The last ones that were told.
    units: String,
    slots: String,
}

impl Units {
    fn ask(&mut self, bucket: &str, amount: u64) -> Ask {
        Ask::Units {
            bucket: bucket.to_owned(),
            rate: self.rate,
            back: std::mem::take(&mut self.left),
            alone: self.alone.take().map_or(0.0, |alone| alone.used),
            at_least: amount,
            at_most: amount.max(self.slice),
        }
    }

    /// The whole bucket as the ledger would have it now, had nobody used anything since it was last heard.
    fn seen_now(&self, here: Here) -> f64 {
        self.seen.map_or(0.0, |(level, at_us)| self.rate.used_at(Level { used: level.used, at_us }, here.now_us))
    }

    /// A bucket as large as a slice, which drains at this gateway's part of the rate.
    fn rate_alone(&self, gateways: u64) -> Rate {
        let size = self.slice.max(1);
        let part = self.rate.shared_by(gateways);
        // The same units in the same time, in a smaller bucket.
        let period_us = (part.period_us as f64 * size as f64 / part.limit as f64).max(1.0) as u64;
        Rate { limit: size, period_us }
    }

    /// Microseconds until so much fits; what is larger than the bucket fits when it is empty, and is drained before
    /// anything else fits.
    fn wait_alone(&mut self, amount: u64, prepaid: f64, here: Here) -> u64 {
        let rate = self.rate_alone(here.gateways);
        let (size, at_us) = (rate.limit as f64, here.now_us);
        // Who never heard of the bucket begins with a whole slice; who did, with what was left of the last one.
        let begins = if self.seen.is_some() { (size - prepaid).max(0.0) } else { 0.0 };
        let alone = self.alone.get_or_insert(Alone { pace: Level { used: begins, at_us }, used: 0.0 });
        // Not cut off at twice the size: a large request is drained in full before the next.
        let drained = at_us.saturating_sub(alone.pace.at_us) as f64 * size / rate.period_us as f64;
        alone.pace = Level { used: (alone.pace.used - drained).max(0.0), at_us };
        rate.wait_us(alone.pace.used, (amount as f64).min(size))
    }

    /// Uses what is paid in advance first: the ledger counts it as used already.
    fn use_alone(&mut self, amount: f64) {
        let paid = amount.min(self.left.max(0.0));
        self.left -= paid;
        if let Some(alone) = &mut self.alone {
            alone.pace.used += amount;
            alone.used += amount - paid;
        }
    }
}

impl Slots {
    fn ask(&self, bucket: &str, more: u64, slack: u64) -> Ask {
        Ask::Slots {
            bucket: bucket.to_owned(),
            limit: self.limit,
            used: self.used,
            at_least: self.used + more,
            at_most: self.used + more + slack,
        }
    }

    /// As many as are held, or this gateway's part of all; the first always.
    fn has_room_alone(&self, more: u64, gateways: u64) -> bool {
        let part = self.limit.div_ceil(gateways.max(1));
        self.used + more <= self.held.max(part).min(self.limit) || (self.used == 0 && more == 1)
    }
}
