//! Virtual token counters: what each tenant has cost, divided by its weight.
//!
//! Sheng et al., "Fairness in Serving Large Language Models" (OSDI'24, arXiv 2401.00588), with two changes: a prompt is
//! charged chunk by chunk as it is computed instead of whole at admission, and bytes of adapters are charged too.
//! Computing tokens again after a preemption is charged to nobody.

use std::collections::{HashMap, HashSet};

pub use weft_types::Weight;

use crate::turns::Tenant;

/// A thousandth of the cost of one prompt token: what charges are counted in.
const TOKEN: u64 = 1000;
/// Price of a prompt token in tokens.
const INPUT_PRICE: u64 = 1;
/// Price of an output token in tokens, as in the paper: it takes a step of its own.
const OUTPUT_PRICE: u64 = 2;
/// Tenants whose counters are kept. Beyond it those without requests go first, the least charged before others: a tenant
/// that is forgotten starts again at the active minimum, which can only forgive it something.
const ACCOUNTS_MAX: usize = 4096;

/// A request's class, the first being served first. Classes order the requests of a tenant; among tenants a class is a
/// head start of [`Fairness::priority_tokens`], once, so that nobody gains a larger share by calling everything urgent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Priority {
    /// Before the others; the last to lose its KV blocks.
    High,
    /// What a request has that says nothing.
    #[default]
    Normal,
    /// After the others; the first to lose its KV blocks.
    Low,
}

/// What costs how much.
#[derive(Clone, Copy, Debug)]
pub struct Fairness {
    /// Price of 1 MiB of adapter that is loaded into a slot, in prompt tokens.
    pub load_tokens_per_mib: u64,
    /// Head start of a class over the next one: requests of one class above overtake a request only until its tenant was
    /// charged so many tokens (times its weight) since it came.
    pub priority_tokens: u64,
    /// Most adapters that are on their way or resident for a tenant without having served it yet, while other tenants
    /// have requests.
    pub loads_ahead_max: usize,
}

impl Default for Fairness {
    fn default() -> Self {
        Self { load_tokens_per_mib: 16, priority_tokens: 4096, loads_ahead_max: 8 }
    }
}

impl Fairness {
    pub(crate) fn tokens_cost(prompt: usize, output: usize) -> u64 {
        (prompt as u64 * INPUT_PRICE + output as u64 * OUTPUT_PRICE) * TOKEN
    }

    pub(crate) fn load_cost(&self, bytes: u64) -> u64 {
        let cost = (u128::from(bytes) * u128::from(self.load_tokens_per_mib) * u128::from(TOKEN)) >> 20;
        u64::try_from(cost).unwrap_or(u64::MAX)
    }

    /// Added to the counter of whoever asks with this priority.
    pub(crate) fn head_start(&self, priority: Priority) -> u64 {
        (priority as u64).saturating_mul(self.priority_tokens).saturating_mul(TOKEN)
    }
}

#[derive(Debug, Default)]
struct Account {
    /// Never falls, so that requests of a tenant stay in order.
    counter: u64,
    weight: Weight,
}

/// The counters of all tenants.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    accounts: HashMap<Tenant, Account>,
    /// Where a tenant starts if nobody is active.
    floor: u64,
    /// Who stopped waiting last: the floor follows its counter.
    last: Option<Tenant>,
}

impl Counters {
    /// The tenant is known from now on, with this weight.
    pub(crate) fn open(&mut self, tenant: &Tenant, weight: Weight) {
        let start = self.floor();
        let account = self.accounts.entry(tenant.clone()).or_default();
        account.weight = weight;
        if account.counter == 0 {
            account.counter = start;
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.accounts.len() > ACCOUNTS_MAX
    }

    /// Forgets tenants that are not active until half of the room is free, the least charged first.
    pub(crate) fn forget_idle(&mut self, active: &HashSet<Tenant>) {
        let mut idle: Vec<(u64, Tenant)> = self
            .accounts
            .iter()
            .filter(|(tenant, _)| !active.contains(*tenant))
            .map(|(tenant, account)| (account.counter, tenant.clone()))
            .collect();
        idle.sort_unstable();
        idle.truncate(self.accounts.len().saturating_sub(ACCOUNTS_MAX / 2));
        self.floor = self.floor();
        for (_, tenant) in idle {
            self.accounts.remove(&tenant);
        }
    }

    pub(crate) fn get(&self, tenant: &str) -> u64 {
        self.accounts.get(tenant).map_or(self.floor, |account| account.counter)
    }

    pub(crate) fn weight(&self, tenant: &str) -> Weight {
        self.accounts.get(tenant).map_or_else(Weight::default, |account| account.weight)
    }

    /// The tenant comes (back): time in which it wanted nothing is no credit. `active`: the least counter of those who
    /// wait; none: nobody does.
    pub(crate) fn lift(&mut self, tenant: &Tenant, active: Option<u64>) {
        let least = active.unwrap_or_else(|| self.floor());
        if let Some(account) = self.accounts.get_mut(tenant) {
            account.counter = account.counter.max(least);
        }
    }

    /// The tenant waits for nothing any more.
    pub(crate) fn left(&mut self, tenant: &Tenant) {
        self.floor = self.floor();
        self.last = Some(tenant.clone());
    }

    pub(crate) fn charge(&mut self, tenant: &str, cost: u64) {
        if let Some(account) = self.accounts.get_mut(tenant) {
            account.counter = account.counter.saturating_add(account.weight.virtual_cost(cost));
        }
    }

    fn floor(&self) -> u64 {
        let last = self.last.as_ref().and_then(|tenant| self.accounts.get(tenant));
        last.map_or(self.floor, |account| self.floor.max(account.counter))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(tenants: &[(&str, f64)]) -> Counters {
        let mut counters = Counters::default();
        for (tenant, weight) in tenants {
            counters.open(&(*tenant).into(), Weight::new(*weight).unwrap());
        }
        counters
    }

    #[test]
    fn a_weight_divides_what_is_charged() {
        let mut counters = counters(&[("light", 0.5), ("heavy", 4.0)]);
        counters.charge("light", 1000);
        counters.charge("heavy", 1000);
        assert_eq!((counters.get("light"), counters.get("heavy")), (2000, 250));
    }

    #[test]
    fn whoever_comes_back_is_lifted_to_the_active_minimum_and_keeps_its_debt() {
        let mut counters = counters(&[("away", 1.0), ("busy", 1.0), ("debtor", 1.0)]);
        counters.charge("busy", 700);
        counters.charge("debtor", 900);
        counters.lift(&"away".into(), Some(700));
        counters.lift(&"debtor".into(), Some(700));
        assert_eq!((counters.get("away"), counters.get("debtor")), (700, 900));
    }

    #[test]
    fn with_nobody_active_the_last_who_left_gives_the_start() {
        let mut counters = counters(&[("first", 1.0), ("second", 1.0)]);
        counters.charge("first", 500);
        counters.left(&"first".into());
        counters.charge("first", 100);
        counters.lift(&"second".into(), None);
        assert_eq!(counters.get("second"), 600, "what the last one got with nobody waiting is no debt");
        counters.open(&"third".into(), Weight::default());
        assert_eq!(counters.get("third"), 600);
    }

    #[test]
    fn the_number_of_accounts_is_bounded_and_active_ones_stay() {
        let mut counters = Counters::default();
        let active: HashSet<Tenant> = [Tenant::from("t-0")].into();
        for number in 0..3 * ACCOUNTS_MAX {
            let tenant: Tenant = format!("t-{number}").into();
            counters.open(&tenant, Weight::default());
            if number > 0 {
                counters.charge(&tenant, 1000 + number as u64);
            }
            if counters.is_full() {
                counters.forget_idle(&active);
            }
            assert!(counters.accounts.len() <= ACCOUNTS_MAX);
        }
        assert!(counters.accounts.contains_key("t-0"), "the least charged, but active");
        assert!(counters.accounts.contains_key(&*format!("t-{}", 3 * ACCOUNTS_MAX - 1)), "the most charged stays");
    }

    #[test]
    fn bytes_cost_by_the_mebibyte() {
        let fairness = Fairness { load_tokens_per_mib: 16, ..Fairness::default() };
        assert_eq!(fairness.load_cost(1 << 20), Fairness::tokens_cost(16, 0));
        assert_eq!(fairness.load_cost(1 << 19), Fairness::tokens_cost(0, 4));
        assert_eq!(fairness.load_cost(u64::MAX), ((u128::from(u64::MAX) * 16_000) >> 20) as u64);
    }
}
