//! One tenant's buckets and open charges, and what a call does to them. Pure: the definition that the script in Redis
//! repeats (`src/exchange.lua`); a test plays the same calls to both.

use crate::gcra::{Level, Rate};
use crate::ledger::{Answer, Ask, Bucket, CHARGES_MAX, Error, Exchange, Outcome};
use std::collections::BTreeMap;

/// Buckets of one tenant that are kept; beyond it those that are empty are forgotten.
pub(crate) const BUCKETS_MAX: usize = 4096;

/// Everything kept of one tenant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    epoch: Option<String>,
    buckets: BTreeMap<String, Kept>,
    charges: BTreeMap<String, Charge>,
}

#[derive(Clone, Copy, Debug)]
struct Kept {
    rate: Rate,
    level: Level,
    /// Units of the level that gateways used alone, which drain last: no other gateway remembers them, so what others remember
    /// of a book that was lost comes beside them.
    alone: f64,
}

#[derive(Clone, Debug)]
struct Charge {
    /// Until then its slots are held.
    until_us: u64,
    /// Until then it is known: a call that comes again is answered the same.
    known_until_us: u64,
    holds: BTreeMap<String, u64>,
    answer: Answer,
}

impl Book {
    /// Plays one call at this time.
    pub(crate) fn exchange(&mut self, now_us: u64, exchange: &Exchange) -> Result<Answer, Error> {
        self.charges.retain(|_, charge| charge.known_until_us > now_us);
        for charge in self.charges.values_mut().filter(|charge| charge.until_us <= now_us) {
            charge.holds.clear();
        }
        if let Some(known) = self.charges.get(&exchange.charge) {
            return Ok(known.answer.clone());
        }
        // What the gateway was last answered is not here: this is another book than the one that it knew, or an older state
        // of it. Where it is here, everything that the gateway saw is.
        let knows_another = self.epoch.as_ref() != Some(&exchange.epoch)
            || exchange.closes.as_ref().is_some_and(|id| !self.charges.contains_key(id));
        let is_older = !exchange.epoch.is_empty() && knows_another;
        match &exchange.floors {
            None if is_older => {
                let epoch = self.epoch.clone().unwrap_or_default();
                return Ok(Answer { epoch, outcome: Outcome::UnknownEpoch, buckets: Vec::new() });
            }
            Some(floors) if is_older => {
                for floor in floors {
                    let remembered = floor.rate.used_at(Level { used: floor.used, at_us: floor.at_us }, now_us);
                    let (used, alone) = self.used(&floor.bucket, floor.rate, now_us);
                    let level = Level { used: (used - alone).max(remembered) + alone, at_us: now_us };
                    self.buckets.insert(floor.bucket.clone(), Kept { rate: floor.rate, level, alone });
                }
            }
            _ => {}
        }
        let closed = exchange.closes.as_ref().and_then(|id| self.charges.remove(id));
        if self.charges.len() >= CHARGES_MAX {
            self.charges.retain(|_, charge| charge.until_us > now_us);
        }
        if self.charges.len() >= CHARGES_MAX {
            return Err(Error::Full(CHARGES_MAX));
        }
        let epoch = self.epoch.get_or_insert_with(|| exchange.new_epoch.clone()).clone();

        let mut buckets = Vec::with_capacity(exchange.asks.len());
        let mut refused: Option<(usize, u64)> = None;
        for (index, ask) in exchange.asks.iter().enumerate() {
            let (bucket, wait_us) = self.weigh(now_us, ask, closed.is_some());
            if let Some(wait_us) = wait_us
                && refused.is_none_or(|(_, longest)| wait_us > longest)
            {
                refused = Some((index, wait_us));
            }
            buckets.push(bucket);
        }
        let mut holds = closed.map(|closed| closed.holds).unwrap_or_default();
        for (ask, bucket) in exchange.asks.iter().zip(&mut buckets) {
            self.keep(now_us, ask, bucket, refused.is_some(), &mut holds);
        }
        let outcome = match refused {
            Some((ask, retry_after_us)) => Outcome::Refused { ask, retry_after_us },
            None => Outcome::Granted,
        };
        let answer = Answer { epoch, outcome, buckets };
        let until_us = now_us.saturating_add(exchange.open_us);
        let known_until_us = now_us.saturating_add(exchange.known_us);
        let charge = Charge { until_us, known_until_us, holds, answer: answer.clone() };
        self.charges.insert(exchange.charge.clone(), charge);
        if self.buckets.len() > BUCKETS_MAX {
            self.buckets.retain(|_, kept| kept.rate.used_at(kept.level, now_us) > 0.0);
        }
        Ok(answer)
    }

    /// Units in the bucket now, and how many of them were used alone.
    fn used(&self, bucket: &str, rate: Rate, now_us: u64) -> (f64, f64) {
        let Some(Kept { level, alone, .. }) = self.buckets.get(bucket) else { return (0.0, 0.0) };
        let used = rate.used_at(*level, now_us);
        (used, alone.min(used))
    }

    /// The bucket with what is given back and what could be granted, and the wait if that is too little.
    fn weigh(&self, now_us: u64, ask: &Ask, closes: bool) -> (Bucket, Option<u64>) {
        match ask {
            Ask::Units { bucket, rate, back, alone, at_least, at_most } => {
                let (mut used, _) = self.used(bucket, *rate, now_us);
                if closes || *back < 0.0 {
                    used = (used - back).max(0.0);
                }
                used = used.max((used + alone).min(rate.limit as f64));
                let room = (rate.limit as f64 - used).max(0.0).floor();
                let granted = (*at_most as f64).min(room) as u64;
                let wait_us = (granted < *at_least).then(|| rate.wait_us(used, *at_least as f64));
                (Bucket { granted, level: Level { used, at_us: now_us } }, wait_us)
            }
            Ask::Slots { bucket, limit, used, at_least, at_most } => {
                let others: u64 = self.charges.values().filter_map(|charge| charge.holds.get(bucket)).sum();
                let granted = limit.saturating_sub(others).min(*at_most).max(*used);
                let level = Level { used: (others + granted) as f64, at_us: now_us };
                (Bucket { granted, level }, (granted < *at_least).then_some(0))
            }
        }
    }

    /// Writes down what the weighing came to.
    fn keep(&mut self, now_us: u64, ask: &Ask, bucket: &mut Bucket, refused: bool, holds: &mut BTreeMap<String, u64>) {
        match ask {
            Ask::Units { bucket: name, rate, alone, .. } => {
                if refused {
                    bucket.granted = 0;
                }
                bucket.level.used += bucket.granted as f64;
                let (_, before) = self.used(name, *rate, now_us);
                let alone = (before + alone).min(bucket.level.used);
                self.buckets.insert(name.clone(), Kept { rate: *rate, level: bucket.level, alone });
            }
            Ask::Slots { bucket: name, used, .. } => {
                if refused {
                    bucket.level.used -= bucket.granted as f64 - *used as f64;
                    bucket.granted = *used;
                }
                if bucket.granted == 0 {
                    holds.remove(name);
                } else {
                    holds.insert(name.clone(), bucket.granted);
                }
            }
        }
    }
}
