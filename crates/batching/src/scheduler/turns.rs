//! Whose turn it is: counters, keys, and what each tenant may have ahead.

use std::collections::HashSet;

use weft_types::Digest;

use super::{Phase, Request, RequestId, Scheduler};
use crate::counters::{Priority, Weight};
use crate::fair_queue::{Entry, Turn};
use crate::turns::Tenant;

impl Scheduler {
    /// The adapter that should be brought next, among those with requests beside the queue that `skip` does not know:
    /// of the tenant that is least charged, loads under way included, and may have another one ahead, for its first
    /// request. [`Scheduler::loaded`] has to say how the load ended. One that is on its way already may be asked for again,
    /// for its next stage. Cost: linear in all requests.
    pub fn next_wanted(&mut self, skip: impl Fn(&Digest) -> bool) -> Option<Digest> {
        let adapter_of = |id: RequestId| self.requests.get(&id).and_then(|request| request.adapter);
        let alone = self.is_one_tenant();
        let wanted = |tenant: &str, id: RequestId| {
            let may_start = alone || self.loads.ahead_of(tenant) < self.fairness.loads_ahead_max;
            adapter_of(id).is_some_and(|digest| (may_start || self.loads.is_on_its_way(&digest)) && !skip(&digest))
        };
        let turn = |tenant: &str, entry: &Entry| {
            let turn = self.turn(tenant, entry);
            Turn { key: turn.key.saturating_add(self.on_credit(tenant)), ..turn }
        };
        let (_, entry) = self.beside.first_wanted(turn, wanted)?;
        let request = self.requests.get(&entry.id)?;
        let digest = request.adapter?;
        if !self.loads.is_on_its_way(&digest) {
            self.loads.start(digest, &request.tenant);
        }
        Some(digest)
    }

    /// A load that [`Scheduler::next_wanted`] asked for ended: so many bytes were moved (0: it came back at no cost), or it
    /// failed or was given up. Such a one moved an unknown number of bytes and costs the usual. Only now it is charged: what
    /// others are lifted to is never more than was spent.
    pub fn loaded(&mut self, digest: &Digest, bytes: Option<u64>) {
        if !self.charge_load(digest, bytes) {
            return;
        }
        match bytes {
            None => self.loads.end(digest),
            Some(_) => self.forget_unwanted_load(Some(*digest)),
        }
    }

    /// Whether others' adapters may be closed for this one, and whether it may keep its slot until it has served. Not if its
    /// tenant, while others have requests, has more ahead than it may: it asked for them when it was alone. Cost: linear in
    /// all requests.
    #[must_use]
    pub fn is_within_share(&self, digest: &Digest) -> bool {
        let of_whom = self.loads.tenant_of(digest);
        of_whom.is_none_or(|tenant| self.loads.ahead_of(tenant) <= self.fairness.loads_ahead_max)
            || self.is_one_tenant()
    }

    fn is_one_tenant(&self) -> bool {
        let mut tenants = self.requests.values().map(|request| &request.tenant);
        tenants.next().is_none_or(|first| tenants.all(|tenant| tenant == first))
    }

    /// False: it was charged before, or not asked for.
    pub(super) fn charge_load(&mut self, digest: &Digest, bytes: Option<u64>) -> bool {
        let Some((tenant, bytes)) = self.loads.settle(digest, bytes) else { return false };
        self.counters.charge(&tenant, self.fairness.load_cost(bytes));
        true
    }

    /// What the tenant's loads under way will add to its counter, if they are like those before.
    fn on_credit(&self, tenant: &str) -> u64 {
        let loads = self.loads.on_their_way(tenant) as u64;
        let cost = self.fairness.load_cost(self.loads.expected_bytes()).saturating_mul(loads);
        self.counters.weight(tenant).virtual_cost(cost)
    }

    /// What a tenant was charged in all, divided by its weight, in prompt tokens. For tests and operators.
    #[must_use]
    pub fn charged(&self, tenant: &str) -> f64 {
        self.counters.get(tenant) as f64 / 1000.0
    }

    pub(super) fn turn(&self, tenant: &str, entry: &Entry) -> Turn {
        let key = self.key(tenant, entry.priority);
        Turn { key, due: self.counters.get(tenant) >= entry.stamp }
    }

    /// What the tenant was charged, and the head start that others have over this class.
    pub(super) fn key(&self, tenant: &str, priority: Priority) -> u64 {
        self.counters.get(tenant).saturating_add(self.fairness.head_start(priority))
    }

    pub(super) fn key_of(&self, id: RequestId) -> u64 {
        let request = &self.requests[&id];
        self.key(&request.tenant, request.priority)
    }

    /// A request of this tenant comes; returns the tenant's counter from which its place is reckoned.
    pub(super) fn arrive(&mut self, tenant: &Tenant, weight: Weight, phase: Phase) -> u64 {
        self.counters.open(tenant, weight);
        if self.counters.is_full() {
            let mut active: HashSet<Tenant> = self.requests.values().map(|request| request.tenant.clone()).collect();
            active.insert(tenant.clone());
            self.counters.forget_idle(&active);
        }
        self.lift(tenant, phase);
        self.counters.get(tenant)
    }

    /// A tenant that had nothing in this place starts at the least charged of those who have: among those who could run,
    /// or, beside the queue, among all who wait.
    pub(super) fn lift(&mut self, tenant: &Tenant, phase: Phase) {
        let beside = phase == Phase::Beside;
        if self.is_ready(tenant) || beside && self.beside.len_of(tenant) > 0 {
            return;
        }
        let ready = self.waiting.tenants().chain(self.preempted.values().map(|id| &self.requests[id].tenant));
        let loading = self.beside.tenants().filter(|_| beside);
        let least = ready.chain(loading).map(|tenant| self.counters.get(tenant)).min();
        self.counters.lift(tenant, least);
    }

    /// To be called when the tenant may have lost its last request that could run.
    pub(super) fn note_left(&mut self, tenant: &Tenant) {
        if !self.is_ready(tenant) {
            self.counters.left(tenant);
        }
    }

    fn is_ready(&self, tenant: &Tenant) -> bool {
        self.waiting.len_of(tenant) > 0 || self.preempted.values().any(|id| self.requests[id].tenant == *tenant)
    }

    /// Running requests: the first keep their blocks longest. By class, then what the tenant was charged, then age.
    pub(super) fn rank_running(&self) -> Vec<RequestId> {
        let mut ranked: Vec<RequestId> = self.running.values().copied().collect();
        ranked.sort_by_key(|id| {
            let request = &self.requests[id];
            (request.priority, self.counters.get(&request.tenant), request.admission)
        });
        ranked
    }

    /// An adapter that is here, has not served yet and that nobody waits for is nobody's any more; its charge stays.
    pub(super) fn forget_unwanted_load(&mut self, adapter: Option<Digest>) {
        let Some(digest) = adapter else { return };
        let waits = |request: &Request| {
            request.adapter == Some(digest) && matches!(request.phase, Phase::Waiting | Phase::Beside)
        };
        if self.loads.is_unserved(&digest) && !self.requests.values().any(waits) {
            self.loads.end(&digest);
        }
    }
}
