//! What tenants and their keys may use, shared by gateways: requests and tokens in a minute, tokens in a day, answers at
//! once, answers that wait. `docs/limits.md` says what follows for tenants and operators.
//!
//! This room knows names of tenants and keys and counts of tokens. It knows nothing of HTTP, adapters or workers.
//!
//! 1. [`gcra`]: how full a bucket is. Pure.
//! 2. `need`: what one request needs of which buckets. Pure.
//! 3. [`ledger`]: the port: settle and reserve over many buckets of one tenant, all or nothing, idempotent by charge.
//!    [`MemoryLedger`] keeps them in this process (`book` decides, purely), [`RedisLedger`] in Redis, by one script.
//! 4. `account`: what this gateway holds in advance, and how it goes on alone while the ledger is away. Pure.
//! 5. [`Limiter`]: brings accounts and ledger together. [`Charge`]: what one request took; settles when it is dropped.

mod account;
mod book;
mod charge;
pub mod gcra;
pub mod ledger;
mod limiter;
mod memory;
mod need;
mod redis;
mod redis_settings;

pub use account::Window;
pub use charge::Charge;
pub use ledger::Ledger;
pub use limiter::{Health, Keeper, Limiter, Options, Refusal, Standing, State};
pub use memory::{Clock, MemoryLedger};
pub use need::{Whose, Wish};
pub use redis::RedisLedger;
pub use redis_settings::{RedisSettingError, RedisSettings};
