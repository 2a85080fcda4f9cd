//! Which workers hold the granted copies.
//!
//! 1. Copies stay where the previous placement has them, within budgets.
//! 2. A first copy whose bytes a worker has goes there or nowhere: elsewhere, the next request for it would wait for the bytes just
//!    as if it had no place, and longer, since they would come from farther away.
//!    Other copies that are missing go, in the order of the items, to the least loaded of the first few workers in the
//!    adapter's rendezvous order that have room: near its home, so that what spills there is at home already.
//! 3. While a worker's load is above the band, the copy that best closes the gap moves from the most to the least loaded.
//!
//! Steps 2 and 3 share one allowance of moves. A copy on a worker that has the bytes already is no move.

use crate::document::{Host, Placed};
use crate::hash;
use crate::plan::{Item, Plan, PlanSettings, Site};
use crate::table::Table;
use std::collections::HashSet;
use weft_types::Digest;

/// Workers of the rendezvous order that are compared for a copy, beyond those that have one.
const NEAR: usize = 2;
/// Steps of balancing in one plan at most.
const BALANCE_STEPS_MAX: usize = 256;

struct State<'a> {
    site: &'a Site<'a>,
    settings: &'a PlanSettings,
    table: Table,
    resident: Vec<HashSet<Digest>>,
    slots_left: Vec<i64>,
    bytes_left: Vec<i128>,
    /// Milliseconds a second over the worker's share of the speed.
    load: Vec<f64>,
    moves: usize,
    move_bytes: u64,
}

pub(crate) fn assign(items: &mut [Item<'_>], granted: &[u32], site: &Site<'_>, settings: &PlanSettings) -> Plan {
    let named: Vec<(&str, f64)> = site
        .workers
        .iter()
        .zip(&site.weights)
        .map(|(worker, weight)| (worker.name.as_str(), f64::from(*weight)))
        .collect();
    let mut state = State {
        site,
        settings,
        table: Table::new(&named),
        resident: site.workers.iter().map(|worker| worker.resident.iter().copied().collect()).collect(),
        slots_left: site.workers.iter().map(|worker| (f64::from(worker.slots) * settings.fill).ceil() as i64).collect(),
        bytes_left: site.workers.iter().map(|worker| i128::from(settings.planned_bytes(worker.slot_bytes))).collect(),
        load: vec![0.0; site.workers.len()],
        moves: 0,
        move_bytes: 0,
    };
    for (item, granted) in items.iter_mut().zip(granted) {
        state.keep(item, *granted as usize);
    }
    // A floor of load under every worker, so that the unplanned rest is seen when copies are placed.
    for (item, _) in items.iter().zip(granted).filter(|(_, granted)| **granted == 0) {
        state.add_unplanned(item);
    }
    for (item, granted) in items.iter_mut().zip(granted) {
        // What a copy will carry once all are placed.
        let share = item.load / f64::from((*granted).max(1));
        state.share(item, share);
    }
    let mut deferred = 0;
    for (item, granted) in items.iter_mut().zip(granted) {
        let share = item.load / f64::from((*granted).max(1));
        while item.kept.len() < *granted as usize {
            if !state.add(item, share) {
                deferred += *granted as usize - item.kept.len();
                break;
            }
        }
    }
    state.balance(items);
    let mut adapters: Vec<Placed> = items
        .iter_mut()
        .filter(|item| !item.kept.is_empty())
        .map(|item| Placed(item.adapter.digest, std::mem::take(&mut item.kept)))
        .collect();
    adapters.sort_by_key(|placed| placed.0);
    Plan {
        workers: site
            .workers
            .iter()
            .zip(&site.weights)
            .map(|(worker, weight)| Host(worker.name.clone(), *weight))
            .collect(),
        adapters,
        moves: state.moves,
        move_bytes: state.move_bytes,
        deferred,
        balance: state.balance_now(),
    }
}

impl State<'_> {
    fn fits(&self, worker: u16, bytes: u64) -> bool {
        let at = usize::from(worker);
        self.slots_left[at] > 0 && self.bytes_left[at] >= i128::from(bytes)
    }

    fn take(&mut self, worker: u16, bytes: u64) {
        self.slots_left[usize::from(worker)] -= 1;
        self.bytes_left[usize::from(worker)] -= i128::from(bytes);
    }

    fn give_back(&mut self, worker: u16, bytes: u64) {
        self.slots_left[usize::from(worker)] += 1;
        self.bytes_left[usize::from(worker)] += i128::from(bytes);
    }

    fn add_load(&mut self, worker: u16, load: f64) {
        let at = usize::from(worker);
        self.load[at] += load / self.site.speed[at];
    }

    /// Keeps the copies that are granted and fit; the home first, since the order is that of the previous placement.
    fn keep(&mut self, item: &mut Item<'_>, granted: usize) {
        let bytes = item.adapter.bytes;
        let mut kept: Vec<u16> = Vec::with_capacity(item.kept.len().min(granted));
        for worker in std::mem::take(&mut item.kept) {
            if kept.len() < granted && !kept.contains(&worker) && self.fits(worker, bytes) {
                self.take(worker, bytes);
                kept.push(worker);
            }
        }
        item.kept = kept;
    }

    fn share(&mut self, item: &Item<'_>, share: f64) {
        for worker in &item.kept {
            self.add_load(*worker, share);
        }
    }

    fn add_unplanned(&mut self, item: &Item<'_>) {
        let home = near(&self.table, &item.adapter.digest, 2);
        for worker in &home {
            self.add_load(*worker, item.load / home.len() as f64);
        }
    }

    fn is_move(&self, worker: u16, adapter: &Digest) -> bool {
        !self.resident[usize::from(worker)].contains(adapter)
    }

    /// Whether the allowance covers this copy there.
    fn may(&self, worker: u16, item: &Item<'_>) -> bool {
        let within_bytes =
            self.moves == 0 || self.move_bytes.saturating_add(item.adapter.bytes) <= self.settings.move_bytes_max;
        !self.is_move(worker, &item.adapter.digest) || (self.moves < self.settings.moves_max && within_bytes)
    }

    fn count_move(&mut self, worker: u16, item: &Item<'_>) {
        if self.is_move(worker, &item.adapter.digest) {
            self.moves += 1;
            self.move_bytes = self.move_bytes.saturating_add(item.adapter.bytes);
        }
    }

    /// Places one more copy; false if nothing is allowed or has room.
    fn add(&mut self, item: &mut Item<'_>, share: f64) -> bool {
        let digest = &item.adapter.digest;
        let usable = |state: &Self, worker: u16| {
            !item.kept.contains(&worker) && state.fits(worker, item.adapter.bytes) && state.may(worker, item)
        };
        let workers = self.site.workers.len() as u16;
        // Where the bytes are already, then near home, then anywhere.
        let has: Vec<u16> = (0..workers).filter(|worker| !self.is_move(*worker, digest)).collect();
        let home = near(&self.table, digest, NEAR + item.kept.len());
        let is_bound = item.kept.is_empty() && item.is_held && !item.is_promised;
        let steps = if is_bound { vec![has] } else { vec![has, home, (0..workers).collect()] };
        let best = steps.into_iter().find_map(|candidates| {
            let usable = candidates.into_iter().filter(|worker| usable(self, *worker));
            usable.min_by(|a, b| self.load[usize::from(*a)].total_cmp(&self.load[usize::from(*b)]).then(a.cmp(b)))
        });
        let Some(worker) = best else { return false };
        self.count_move(worker, item);
        self.take(worker, item.adapter.bytes);
        self.add_load(worker, share);
        item.kept.push(worker);
        true
    }

    fn mean(&self) -> f64 {
        self.load.iter().zip(&self.site.speed).map(|(load, speed)| load * speed).sum()
    }

    fn balance_now(&self) -> f64 {
        let most = self.load.iter().copied().fold(0.0, f64::max);
        let mean = self.mean();
        if mean > 0.0 { most / mean } else { 1.0 }
    }

    fn extremes(&self) -> Option<(u16, u16)> {
        let by_load = |a: &usize, b: &usize| self.load[*a].total_cmp(&self.load[*b]).then(a.cmp(b));
        let most = (0..self.load.len()).max_by(by_load)?;
        let least = (0..self.load.len()).min_by(by_load)?;
        (most != least).then_some((most as u16, least as u16))
    }

    fn balance(&mut self, items: &mut [Item<'_>]) {
        let mut on: Vec<Vec<usize>> = vec![Vec::new(); self.site.workers.len()];
        for (index, item) in items.iter().enumerate() {
            for worker in &item.kept {
                on[usize::from(*worker)].push(index);
            }
        }
        for _ in 0..BALANCE_STEPS_MAX {
            let Some((most, least)) = self.extremes() else { return };
            if self.balance_now() <= self.settings.balance_max {
                return;
            }
            let Some(index) = self.best_move(items, &on[usize::from(most)], most, least) else { return };
            let item = &mut items[index];
            let share = item.load / item.kept.len() as f64;
            self.count_move(least, item);
            self.give_back(most, item.adapter.bytes);
            self.take(least, item.adapter.bytes);
            self.add_load(most, -share);
            self.add_load(least, share);
            for worker in item.kept.iter_mut().filter(|worker| **worker == most) {
                *worker = least;
            }
            on[usize::from(most)].retain(|at| *at != index);
            on[usize::from(least)].push(index);
        }
    }

    /// The copy on `most` that leaves the smaller of both loads largest when it moves to `least`: the one whose load is
    /// nearest to half the gap. `None` if none makes both better or is allowed.
    fn best_move(&self, items: &[Item<'_>], on: &[usize], most: u16, least: u16) -> Option<usize> {
        let gap = self.load[usize::from(most)] - self.load[usize::from(least)];
        let speed = self.site.speed[usize::from(least)].min(self.site.speed[usize::from(most)]);
        let distance = |index: &usize| {
            let item = &items[*index];
            (item.load / item.kept.len() as f64 / speed - gap / 2.0).abs()
        };
        on.iter()
            .copied()
            .filter(|index| {
                let item = &items[*index];
                let share = item.load / item.kept.len() as f64 / speed;
                // Moving what changes less than a tenth of the gap is a load for nothing.
                let helps = share > gap * 0.1 && share < gap * 0.9;
                helps && !item.kept.contains(&least) && self.fits(least, item.adapter.bytes) && self.may(least, item)
            })
            .min_by(|a, b| distance(a).total_cmp(&distance(b)).then(a.cmp(b)))
    }
}

/// The first distinct workers of an adapter's order, at most `count`.
pub(crate) fn near(table: &Table, adapter: &Digest, count: usize) -> Vec<u16> {
    let key = hash::of_digest(adapter);
    let mut found = Vec::with_capacity(count);
    for nth in 0..(count as u32 * 4) {
        match table.nth(key, nth) {
            Some(worker) if !found.contains(&worker) => found.push(worker),
            Some(_) => {}
            None => break,
        }
        if found.len() == count {
            break;
        }
    }
    found
}
