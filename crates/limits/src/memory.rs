//! The ledger of a gateway that is alone, as in `weft up`: in this process, lost with it.

use crate::book::Book;
use crate::ledger::{Answer, Beat, Error, Exchange, Ledger};
use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Microseconds of whatever clock a ledger goes by.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// Tenants that are kept: as many as a registry has. Beyond it, a tenant that comes has no place until a restart.
const TENANTS_MAX: usize = 20_000;

/// A ledger in memory.
pub struct MemoryLedger {
    clock: Clock,
    books: Mutex<HashMap<String, Book>>,
    saved: Mutex<HashMap<String, Book>>,
    alive: Mutex<Alive>,
}

#[derive(Default)]
struct Alive {
    epoch: Option<String>,
    /// Times that it went back.
    restored: u64,
    until: HashMap<String, u64>,
}

impl Default for MemoryLedger {
    fn default() -> Self {
        let start = Instant::now();
        Self::with_clock(Arc::new(move || start.elapsed().as_micros() as u64))
    }
}

impl MemoryLedger {
    /// A ledger on this clock, for simulations.
    #[must_use]
    pub fn with_clock(clock: Clock) -> Self {
        Self { clock, books: Mutex::default(), saved: Mutex::default(), alive: Mutex::default() }
    }

    /// Forgets everything, as a Redis does that is started again without its data.
    pub fn forget(&self) {
        self.books.lock().unwrap_or_else(PoisonError::into_inner).clear();
        *self.alive.lock().unwrap_or_else(PoisonError::into_inner) = Alive::default();
    }

    /// Takes a snapshot of all tenants, in place of the last one.
    pub fn save(&self) {
        let books = self.books.lock().unwrap_or_else(PoisonError::into_inner).clone();
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = books;
    }

    /// Goes back to the snapshot, as a Redis does that is restarted from one, or a replica that lagged and took over. Without
    /// one: to nothing.
    pub fn restore(&self) {
        let saved = self.saved.lock().unwrap_or_else(PoisonError::into_inner).clone();
        *self.books.lock().unwrap_or_else(PoisonError::into_inner) = saved;
        self.alive.lock().unwrap_or_else(PoisonError::into_inner).restored += 1;
    }
}

#[async_trait]
impl Ledger for MemoryLedger {
    async fn exchange(&self, tenant: &str, exchange: &Exchange) -> Result<Answer, Error> {
        let mut books = self.books.lock().unwrap_or_else(PoisonError::into_inner);
        if books.len() >= TENANTS_MAX && !books.contains_key(tenant) {
            return Err(Error::Full(TENANTS_MAX));
        }
        books.entry(tenant.to_owned()).or_default().exchange((self.clock)(), exchange)
    }

    async fn beat(&self, gateway: &str, lifetime: Duration) -> Result<Beat, Error> {
        let now = (self.clock)();
        let mut alive = self.alive.lock().unwrap_or_else(PoisonError::into_inner);
        alive.until.retain(|_, until| *until > now);
        alive.until.insert(gateway.to_owned(), now + lifetime.as_micros() as u64);
        let epoch = alive.epoch.get_or_insert_with(|| uuid::Uuid::new_v4().to_string()).clone();
        let server = Some(alive.restored.to_string());
        Ok(Beat { gateways: alive.until.len() as u64, epoch, server })
    }
}
