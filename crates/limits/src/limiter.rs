//! One gateway's side of the limits: who may go on now, from slices where they last, with the ledger where they do not, and
//! alone where the ledger is away.

use crate::account::{Account, Here, NewCall, SERIES_MAX, Said, Say, Slice, Window};
use crate::charge::Charge;
use crate::ledger::{Answer, Beat, Error, Exchange, Ledger, Outcome};
use crate::memory::Clock;
use crate::need::{Need, Whose, Wish, needs};
use rand::Rng;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use weft_types::LimitKind;

/// Between two signs of life.
const BEAT: Duration = Duration::from_millis(1000);
/// Between two tries while the ledger is away.
const BEAT_AWAY: Duration = Duration::from_millis(250);
/// How long a gateway counts after its last sign of life.
const ALIVE: Duration = Duration::from_secs(5);
/// A count of gateways is believed for so long, even if a later one is smaller: a ledger that was started again has
/// heard of few.
const GATEWAYS_US: u64 = 60_000_000;
/// Between two looks for what is held and not used.
const SWEEP: Duration = Duration::from_millis(500);
/// What is held goes back when no request came for so long.
const IDLE_US: u64 = 1_000_000;
/// What is remembered of a tenant is forgotten when no request came for so long.
const FORGET_US: u64 = 600_000_000;
/// How long the slots of a gateway that died are kept from others.
const OPEN_US: u64 = 30_000_000;
/// How long the ledger knows a call that was answered, so that the same call after an outage counts once. It keeps one for
/// each process of a gateway that served the tenant within this time, and reads them with each call: hence not for ever.
/// Longer than [`FORGET_US`]: while a tenant is remembered here and the ledger can be reached, a charge that it does not know
/// was lost.
const KNOWN_US: u64 = 900_000_000;
/// Slots in use are named to the ledger this often.
const RENEW_US: u64 = 10_000_000;

/// How a gateway shares.
#[derive(Clone)]
pub struct Options {
    /// Part of each limit that the gateway may hold in advance, in percent: 0 to 50. 0: nothing, each request asks.
    pub slice_percent: f64,
    /// Gateways that share the limits, if more than were heard of.
    pub gateways_min: u64,
    /// Microseconds that never go back, for simulations.
    pub clock: Clock,
}

impl Default for Options {
    fn default() -> Self {
        let start = Instant::now();
        Self { slice_percent: 0.0, gateways_min: 1, clock: Arc::new(move || start.elapsed().as_micros() as u64) }
    }
}

/// Why a request may not go on.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The limit that is in the way; of several, the one with the longest wait.
    pub kind: LimitKind,
    /// It is the key's, not the tenant's.
    pub of_key: bool,
    /// Its value.
    pub limit: u64,
    /// What the request needs of it.
    pub needs: u64,
    /// When it could go on; none if never, or not within an hour.
    pub retry_after: Option<Duration>,
    /// For headers.
    pub standing: Standing,
}

/// What headers say: the tightest bucket of requests and the tightest of tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// None: requests are not limited.
    pub requests: Option<Window>,
    /// None: tokens are not limited.
    pub tokens: Option<Window>,
}

/// Whether limits are shared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Why the ledger is away; none: it answers.
    pub away: Option<String>,
    /// Gateways that share the limits, at least 1.
    pub gateways: u64,
}

/// How the ledger is, and what is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Why it is away; none: it answers.
    pub away: Option<String>,
    /// Gateways that share the limits.
    pub gateways: u64,
    /// Units held in advance, of all buckets.
    pub units_held: u64,
    /// Slots held, in use or not.
    pub slots_held: u64,
    /// Tenants known here.
    pub tenants: u64,
    /// Calls of the ledger so far.
    pub calls: u64,
    /// Of these, without an answer.
    pub calls_failed: u64,
    /// Requests let in while the ledger was away.
    pub admitted_alone: u64,
}

/// One gateway's limiter.
pub struct Limiter {
    ledger: Arc<dyn Ledger>,
    options: Options,
    /// Names this process to the ledger, and begins its charges.
    id: String,
    next_charge: AtomicU64,
    accounts: Mutex<HashMap<String, Arc<Shared>>>,
    up: AtomicBool,
    contact: Mutex<Contact>,
    calls: AtomicU64,
    calls_failed: AtomicU64,
    admitted_alone: AtomicU64,
}

/// What a sign of life brought to light.
struct Heard {
    /// The ledger forgot something, or may have.
    forgot: bool,
    was_away: bool,
}

/// What was last heard of the ledger.
#[derive(Default)]
struct Contact {
    away: Option<String>,
    gateways: u64,
    gateways_us: u64,
    /// Of the ledger that was told everything which is remembered here.
    epoch: String,
    server: Option<String>,
}

impl Contact {
    /// The ledger that gave this sign has been told all that it may not know. Returns whether it was away before.
    fn told(&mut self, beat: Beat) -> bool {
        (self.epoch, self.server) = (beat.epoch, beat.server);
        self.away.take().is_some()
    }
}

/// A tenant's account, and whose turn it is to call the ledger for it.
pub(crate) struct Shared {
    tenant: String,
    account: Mutex<Account>,
    turn: tokio::sync::Mutex<()>,
}

impl Shared {
    pub(crate) fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a limiter in touch with its ledger while it lives.
pub struct Keeper(Vec<JoinHandle<()>>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

impl Limiter {
    /// A limiter on this ledger. [`Limiter::keep`] keeps it in touch.
    #[must_use]
    pub fn new(ledger: Arc<dyn Ledger>, options: Options) -> Arc<Self> {
        let away = Some("not asked yet".to_owned());
        Arc::new(Self {
            ledger,
            options,
            id: uuid::Uuid::new_v4().simple().to_string(),
            next_charge: AtomicU64::new(0),
            accounts: Mutex::default(),
            // The first call tells.
            up: AtomicBool::new(true),
            contact: Mutex::new(Contact { away, ..Contact::default() }),
            calls: AtomicU64::new(0),
            calls_failed: AtomicU64::new(0),
            admitted_alone: AtomicU64::new(0),
        })
    }

    /// Starts what keeps the limiter in touch: signs of life, and the return of what is not used.
    #[must_use]
    pub fn keep(self: &Arc<Self>) -> Keeper {
        let (beating, sweeping) = (Arc::clone(self), Arc::clone(self));
        let beats = tokio::spawn(async move {
            loop {
                let pause = if beating.beat().await { BEAT } else { BEAT_AWAY };
                tokio::time::sleep(jittered(pause)).await;
            }
        });
        let sweeps = tokio::spawn(async move {
            loop {
                tokio::time::sleep(jittered(SWEEP)).await;
                sweeping.sweep(false).await;
            }
        });
        Keeper(vec![beats, sweeps])
    }

    /// Whether the request may go on; takes what it needs if so.
    ///
    /// Cost: a few map look-ups while slices last, else one call of the ledger; while it is away, none.
    ///
    /// # Errors
    /// A limit is reached.
    ///
    /// # Cancel safety
    /// Nothing is taken by a call that is dropped, though the ledger may have been asked.
    pub async fn reserve(&self, whose: &Whose<'_>, wish: &Wish) -> Result<Charge, Refusal> {
        let needs = needs(whose, wish).map_err(|need| refusal(&need, None, Standing::default()))?;
        if needs.is_empty() {
            return Ok(Charge::unlimited());
        }
        let shared = self.shared(whose.tenant);
        let took = {
            let mut account = shared.account();
            account.fit(&needs, Slice { percent: self.options.slice_percent }, self.now());
            account.take(&needs)
        };
        if !took {
            self.take_from_ledger(&shared, &needs).await?;
        }
        let standing = self.standing(&shared.account(), &needs);
        Ok(Charge::new(Arc::clone(&shared), needs, wish.answers, standing))
    }

    async fn take_from_ledger(&self, shared: &Shared, needs: &[Need]) -> Result<(), Refusal> {
        let turn = shared.turn.lock().await;
        if shared.account().take(needs) {
            return Ok(());
        }
        let refused = shared.account().refuses(needs, self.here());
        if let Some((index, wait_us)) = refused {
            return Err(refusal(&needs[index], Some(wait_us), self.standing(&shared.account(), needs)));
        }
        let answer = if self.up.load(Ordering::Relaxed) { self.ask(shared, needs).await } else { None };
        drop(turn);
        match answer {
            Some(Outcome::Granted) => Ok(()),
            Some(Outcome::Refused { ask, retry_after_us }) => {
                let need = &needs[ask.min(needs.len() - 1)];
                Err(refusal(need, Some(retry_after_us), self.standing(&shared.account(), needs)))
            }
            Some(Outcome::UnknownEpoch) | None => self.take_alone(shared, needs),
        }
    }

    /// One turn at the ledger. None: it does not answer.
    async fn ask(&self, shared: &Shared, needs: &[Need]) -> Option<Outcome> {
        let pending = self.pending(shared);
        if let Some(pending) = pending {
            // Slots that its answer tells of may have come free meanwhile: nothing is taken before the next one.
            self.call(shared, pending, &[]).await?;
        }
        let exchange = shared.account().ask(needs, self.new_call());
        Some(self.call(shared, exchange, needs).await?.outcome)
    }

    fn take_alone(&self, shared: &Shared, needs: &[Need]) -> Result<(), Refusal> {
        let mut account = shared.account();
        match account.take_alone(needs, self.here()) {
            Ok(()) => {
                self.admitted_alone.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err((index, wait_us)) => Err(refusal(&needs[index], Some(wait_us), self.standing(&account, needs))),
        }
    }

    /// Calls the ledger and takes in its answer, with these needs if they are granted. Whoever calls has the turn.
    async fn call(&self, shared: &Shared, exchange: Exchange, needs: &[Need]) -> Option<Answer> {
        // If this is dropped or fails, nobody knows whether the call had its effect: it is made again, the same.
        let mut under_way = UnderWay::begin(shared, exchange);
        let answer = self.called(&shared.tenant, under_way.exchange()).await;
        let answer = match answer {
            Ok(Answer { outcome: Outcome::UnknownEpoch, .. }) => {
                let floors = shared.account().floors();
                under_way.exchange().floors = Some(floors);
                self.called(&shared.tenant, under_way.exchange()).await
            }
            other => other,
        };
        match answer {
            Ok(answer) if answer.outcome != Outcome::UnknownEpoch => {
                let exchange = under_way.end();
                shared.account().answered(&exchange, &answer, needs, self.now());
                Some(answer)
            }
            Ok(_) => None,
            Err(error) => {
                if !matches!(error, Error::Full(_)) {
                    self.away(error.to_string());
                }
                None
            }
        }
    }

    async fn called(&self, tenant: &str, exchange: &Exchange) -> Result<Answer, Error> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let answer = self.ledger.exchange(tenant, exchange).await;
        if answer.is_err() {
            self.calls_failed.fetch_add(1, Ordering::Relaxed);
        }
        answer
    }

    /// One sign of life. Returns whether the ledger answered.
    pub async fn beat(&self) -> bool {
        match self.ledger.beat(&self.id, ALIVE).await {
            Ok(beat) => {
                let heard = self.heard(&beat);
                self.up.store(true, Ordering::Relaxed);
                if heard.forgot {
                    tracing::warn!("the ledger of limits was restarted or replaced: telling it what is known here");
                }
                if heard.forgot || heard.was_away {
                    self.tell(heard.forgot).await;
                }
                // If a call failed meanwhile, it is all told again.
                let is_up = self.up.load(Ordering::Relaxed);
                if is_up && self.contact().told(beat) {
                    tracing::info!(gateways = self.gateways(), "limits are shared");
                }
                is_up
            }
            Err(error) => {
                self.away(error.to_string());
                false
            }
        }
    }

    fn heard(&self, beat: &Beat) -> Heard {
        let now = self.now();
        let mut contact = self.contact();
        if beat.gateways >= contact.gateways || now.saturating_sub(contact.gateways_us) > GATEWAYS_US {
            (contact.gateways, contact.gateways_us) = (beat.gateways, now);
        }
        let is_known = !contact.epoch.is_empty();
        let was_away = contact.away.is_some();
        let is_same_server = match (&contact.server, &beat.server) {
            (Some(before), Some(now)) => before == now,
            // One that does not say which it is was perhaps restarted while it was away.
            _ => !was_away,
        };
        let forgot = is_known && (contact.epoch != beat.epoch || !is_same_server);
        Heard { forgot, was_away }
    }

    fn away(&self, why: String) {
        self.up.store(false, Ordering::Relaxed);
        let mut contact = self.contact();
        if contact.away.is_none() {
            tracing::warn!(reason = why, "limits are not shared now: this gateway goes on with its part of them");
        }
        contact.away = Some(why);
    }

    /// Gives back what is held and was not used of late, and names what is in use. With `all`, whatever is held: at the end.
    pub async fn sweep(&self, all: bool) {
        for shared in self.each() {
            let now = self.now();
            let say = {
                let account = shared.account();
                let idle = all || now.saturating_sub(account.asked_us) >= IDLE_US;
                if account.must_renew(is_open(&shared), now, RENEW_US) {
                    Some(Say::StillThere)
                } else {
                    (idle && account.holds_unused()).then_some(Say::Unused)
                }
            };
            if let Some(say) = say
                && self.up.load(Ordering::Relaxed)
            {
                let _turn = shared.turn.lock().await;
                self.give_back(&shared, say).await;
            }
            self.forget(&shared);
        }
    }

    /// Tells a ledger that is back what was used alone and which slots are in use, and one that forgot something what is
    /// remembered here, at once: the more is known of what others used, the less is given twice.
    async fn tell(&self, forgot: bool) {
        for shared in self.each() {
            let _turn = shared.turn.lock().await;
            let say = {
                let account = shared.account();
                if forgot {
                    Some(Say::Everything)
                } else if account.must_renew(is_open(&shared), self.now(), RENEW_US) {
                    Some(Say::StillThere)
                } else {
                    account.was_alone().then_some(Say::Unused)
                }
            };
            if let Some(say) = say {
                self.give_back(&shared, say).await;
            }
        }
    }

    /// Makes the call again whose outcome is not known, and gives back what is not used, in as many calls as it takes. Whoever
    /// calls has the turn.
    async fn give_back(&self, shared: &Shared, say: Say) {
        let pending = self.pending(shared);
        if let Some(pending) = pending
            && self.call(shared, pending, &[]).await.is_none()
        {
            return;
        }
        let mut said = Said::default();
        for _ in 0..SERIES_MAX {
            let exchange = shared.account().say(say, &mut said, self.new_call());
            let Some(exchange) = exchange else { break };
            if self.call(shared, exchange, &[]).await.is_none() {
                return;
            }
        }
        if say != Say::Unused {
            shared.account().named_all();
        }
    }

    /// Forgets a tenant of whom nothing is held and no request came for long, and what else nobody needs.
    fn forget(&self, shared: &Arc<Shared>) {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody else has it, and nobody gets it meanwhile.
        if is_open(shared) {
            return;
        }
        let mut account = shared.account();
        account.prune();
        let old = self.now().saturating_sub(account.asked_us) >= FORGET_US;
        if old && !account.holds_unused() && !account.uses_slots() {
            accounts.remove(&shared.tenant);
        }
    }

    /// Whether limits are shared. Cost: one lock, which no request holds for longer than a few reads; the same however many
    /// tenants there are.
    pub fn health(&self) -> Health {
        let away = self.contact().away.clone();
        Health { away, gateways: self.gateways() }
    }

    /// How the ledger is, and what is held. Cost: one step a tenant and bucket, in part under a lock that requests need: for
    /// who may ask seldom. [`Limiter::health`] is for others.
    pub fn state(&self) -> State {
        let (mut units_held, mut slots_held, mut tenants) = (0, 0, 0);
        for shared in self.each() {
            let (units, slots) = shared.account().held();
            units_held += units;
            slots_held += slots;
            tenants += 1;
        }
        let Health { away, gateways } = self.health();
        State {
            away,
            gateways,
            units_held,
            slots_held,
            tenants,
            calls: self.calls.load(Ordering::Relaxed),
            calls_failed: self.calls_failed.load(Ordering::Relaxed),
            admitted_alone: self.admitted_alone.load(Ordering::Relaxed),
        }
    }

    fn each(&self) -> Vec<Arc<Shared>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner).values().map(Arc::clone).collect()
    }

    fn shared(&self, tenant: &str) -> Arc<Shared> {
        let mut accounts = self.accounts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = accounts.get(tenant) {
            return Arc::clone(known);
        }
        let shared = Arc::new(Shared {
            tenant: tenant.to_owned(),
            account: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        });
        accounts.insert(tenant.to_owned(), Arc::clone(&shared));
        shared
    }

    /// The call to make again, if there is one. Should the ledger have forgotten everything meanwhile, it begins another epoch: under
    /// the one that it would have begun then, the others would take it for the ledger that they know.
    fn pending(&self, shared: &Shared) -> Option<Exchange> {
        let pending = shared.account().pending.clone()?;
        Some(Exchange { new_epoch: self.new_call().new_epoch, ..pending })
    }

    fn new_call(&self) -> NewCall {
        let number = self.next_charge.fetch_add(1, Ordering::Relaxed);
        let new_epoch = uuid::Uuid::new_v4().simple().to_string();
        NewCall { charge: format!("{}.{number}", self.id), new_epoch, open_us: OPEN_US, known_us: KNOWN_US }
    }

    fn standing(&self, account: &Account, needs: &[Need]) -> Standing {
        let here = self.here();
        let tightest = |kinds: &dyn Fn(&Need) -> bool| {
            let windows = needs.iter().filter(|need| kinds(need));
            windows.filter_map(|need| account.window(&need.bucket, here)).min_by_key(|window| window.remaining)
        };
        Standing {
            requests: tightest(&|need| need.kind == LimitKind::RequestsPerMinute),
            tokens: tightest(&Need::is_tokens),
        }
    }

    fn here(&self) -> Here {
        Here { gateways: self.gateways(), now_us: self.now() }
    }

    fn gateways(&self) -> u64 {
        self.contact().gateways.max(self.options.gateways_min).max(1)
    }

    fn contact(&self) -> MutexGuard<'_, Contact> {
        self.contact.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        (self.options.clock)()
    }
}

/// Whether a request is under way: one is in the map, one is the caller's; each charge that has not ended has one.
fn is_open(shared: &Arc<Shared>) -> bool {
    Arc::strong_count(shared) > 2
}

/// A call that is under way. Unless it ends, it is pending.
struct UnderWay<'a> {
    shared: &'a Shared,
    exchange: Option<Exchange>,
}

impl<'a> UnderWay<'a> {
    fn begin(shared: &'a Shared, exchange: Exchange) -> Self {
        shared.account().asking = true;
        Self { shared, exchange: Some(exchange) }
    }

    fn exchange(&mut self) -> &mut Exchange {
        self.exchange.as_mut().expect("there until the end")
    }

    fn end(mut self) -> Exchange {
        self.exchange.take().expect("there until the end")
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut account = self.shared.account();
        account.asking = false;
        if let Some(exchange) = self.exchange.take() {
            account.pending = Some(exchange);
        }
    }
}

fn refusal(need: &Need, wait_us: Option<u64>, standing: Standing) -> Refusal {
    Refusal {
        kind: need.kind,
        of_key: need.of_key,
        limit: need.limit,
        needs: need.amount,
        retry_after: wait_us.map(Duration::from_micros),
        standing,
    }
}

/// Between three quarters of it and five.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.75..1.25))
}
