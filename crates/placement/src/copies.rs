//! How many workers should hold each adapter.
//!
//! A copy is worth the load it spares: requests a second times bytes to load, for each byte of room it takes (the order of
//! GreedyDual-Size-Frequency, as in `crates/residency`, without its clock: the rates are decayed already). Room is given in
//! this order until it is used up: pins; each tenant's floor; then by worth, where first copies stand beside second and
//! further copies of adapters whose load calls for them. What has a place is worth `keep_factor` times as much as what has
//! none, and a copy is taken back only when the load times `keep_factor` no longer earns it: an adapter whose demand
//! moves by less than that factor moves no bytes. A first copy whose bytes a worker has, place or not, counts as one that has a place:
//! it is given its place where they are (`assign`), so that the better known of two is preferred at no cost.

use crate::document::COPIES_MAX;
use crate::plan::{Item, PlanSettings, Site, Tenant};
use std::collections::{BTreeMap, HashMap};
use weft_types::TenantName;

/// A copy that somebody wants.
struct Claim {
    item: usize,
    /// 1 for the first copy.
    nth: u32,
    /// 0 pin, 1 floor, 2 the rest.
    class: u8,
    worth: f64,
}

/// Room that is left to be given.
struct Room {
    copies: f64,
    bytes: f64,
    further: f64,
    further_bytes: f64,
}

/// Copies granted to each item.
pub(crate) fn grant(
    items: &[Item<'_>],
    site: &Site<'_>,
    tenants: &BTreeMap<TenantName, Tenant>,
    settings: &PlanSettings,
) -> Vec<u32> {
    let slots: f64 = site.workers.iter().map(|worker| f64::from(worker.slots)).sum();
    let bytes: f64 = site.workers.iter().map(|worker| worker.slot_bytes as f64).sum();
    let copies = (slots * settings.fill).min(COPIES_MAX as f64);
    let bytes = bytes * settings.fill;
    let share = settings.further_copies_share;
    let mut room = Room { copies, bytes, further: copies * share, further_bytes: bytes * share };
    let mut granted = vec![0; items.len()];
    let mut by_tenant: HashMap<&TenantName, u32> = HashMap::new();
    for claim in claims(items, site, tenants, settings) {
        let adapter = items[claim.item].adapter;
        let is_pin = claim.class == 0;
        if granted[claim.item] + 1 != claim.nth || room.copies < 1.0 || room.bytes < adapter.bytes as f64 {
            continue;
        }
        let is_further = !is_pin && claim.nth > 1;
        if is_further && (room.further < 1.0 || room.further_bytes < adapter.bytes as f64) {
            continue;
        }
        let held = by_tenant.entry(&adapter.tenant).or_insert(0);
        let ceiling = tenants.get(&adapter.tenant).and_then(|tenant| tenant.ceiling);
        if !is_pin && ceiling.is_some_and(|ceiling| *held >= ceiling) {
            continue;
        }
        *held += 1;
        granted[claim.item] = claim.nth;
        room.copies -= 1.0;
        room.bytes -= adapter.bytes as f64;
        if is_further {
            room.further -= 1.0;
            room.further_bytes -= adapter.bytes as f64;
        }
    }
    granted
}

fn claims(
    items: &[Item<'_>],
    site: &Site<'_>,
    tenants: &BTreeMap<TenantName, Tenant>,
    settings: &PlanSettings,
) -> Vec<Claim> {
    let workers = site.workers.len() as u32;
    let mean_load = items.iter().map(|item| item.load).sum::<f64>() / f64::from(workers);
    let mut floors: HashMap<&TenantName, u32> = HashMap::new();
    let mut claims = Vec::with_capacity(items.len() * 2);
    // Items are sorted by value, so that a floor goes to a tenant's most valuable adapters.
    for (index, item) in items.iter().enumerate() {
        let adapter = item.adapter;
        let held = item.kept.len() as u32;
        let pinned = adapter.pinned_copies.min(workers);
        let wanted = wanted(item.load, mean_load, held, settings).min(workers);
        let floor = tenants.get(&adapter.tenant).map_or(0, |tenant| tenant.floor);
        for nth in 1..=pinned.max(wanted) {
            let class = if nth <= pinned {
                0
            } else if nth == 1 && item.value > 0.0 && take_floor(floors.entry(&adapter.tenant).or_insert(0), floor) {
                1
            } else {
                2
            };
            let is_ahead = nth == 1 && class == 2 && !item.is_held && held == 0;
            if is_ahead && adapter.requests_per_s < settings.ahead_per_s {
                continue;
            }
            let stays = if nth <= held || nth == 1 && item.is_held { settings.keep_factor } else { 1.0 };
            claims.push(Claim { item: index, nth, class, worth: item.value / f64::from(nth) * stays });
        }
    }
    claims.sort_by(|a, b| {
        let by_worth = b.worth.total_cmp(&a.worth);
        a.class.cmp(&b.class).then(by_worth).then(a.item.cmp(&b.item)).then(a.nth.cmp(&b.nth))
    });
    claims
}

fn take_floor(taken: &mut u32, floor: u32) -> bool {
    let is_within = *taken < floor;
    *taken += u32::from(is_within);
    is_within
}

/// Copies that a load calls for: as many as bring the load of each below the share, none without load. Between what
/// the load calls for and what `keep_factor` times the load calls for, what is there stays.
fn wanted(load: f64, mean_load: f64, held: u32, settings: &PlanSettings) -> u32 {
    if load <= 0.0 || mean_load <= 0.0 {
        return 0;
    }
    let copies = |load: f64| (load / (mean_load * settings.copy_load_max)).ceil().clamp(1.0, 65_535.0) as u32;
    held.clamp(copies(load), copies(load * settings.keep_factor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_follow_the_load_up_at_once_and_down_late() {
        let settings = PlanSettings { copy_load_max: 0.25, keep_factor: 1.5, ..Default::default() };
        assert_eq!(wanted(0.0, 1.0, 3, &settings), 0);
        assert_eq!(wanted(0.1, 1.0, 0, &settings), 1);
        assert_eq!(wanted(1.0, 1.0, 1, &settings), 4);
        assert_eq!(wanted(0.7, 1.0, 4, &settings), 4, "0.7 calls for 3, 1.05 for 5");
        assert_eq!(wanted(0.4, 1.0, 4, &settings), 3, "0.4 calls for 2, 0.6 for 3");
    }
}
