//! The ledger in Redis 7: one script, one round trip a call, all keys of a tenant in one hash slot, the server's clock.
//!
//! A call uses the connection that is there and never waits for one: a task of its own connects, with jittered back-off,
//! and lets a connection go as soon as a call on it fails or is not answered in time, so that a half-open one is not kept.

use crate::gcra::Level;
use crate::ledger::{Answer, Beat, Bucket, CHARGES_MAX, Error, Exchange, Ledger, Outcome};
use crate::memory::Clock;
use crate::redis_settings::{RedisSettingError, RedisSettings};
use async_trait::async_trait;
use rand::Rng;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Script};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// Before every key of ours.
const PREFIX: &str = "weft:limits:";
/// First pause between two tries to connect; the longest is 40 times as long.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const DOUBLINGS_MAX: u32 = 5;

/// A ledger in Redis.
pub struct RedisLedger {
    shared: Arc<Shared>,
    clock: Option<Clock>,
    connecting: JoinHandle<()>,
}

struct Shared {
    settings: RedisSettings,
    script: Script,
    timeout: Duration,
    link: Mutex<Link>,
    lost: Notify,
}

/// The connection, or why there is none.
enum Link {
    Up { connection: MultiplexedConnection, number: u64 },
    Down { why: String },
}

impl RedisLedger {
    /// A ledger in this Redis; connects in the background, so that it need not be there yet. Must be called within a Tokio
    /// runtime.
    ///
    /// # Errors
    /// A setting that cannot be used.
    pub fn new(settings: RedisSettings) -> Result<Self, RedisSettingError> {
        settings.client()?;
        let timeout = settings.timeout;
        let shared = Arc::new(Shared {
            settings,
            script: Script::new(include_str!("exchange.lua")),
            timeout,
            link: Mutex::new(Link::Down { why: "not connected yet".to_owned() }),
            lost: Notify::new(),
        });
        let connecting = tokio::spawn(Arc::clone(&shared).connect());
        Ok(Self { shared, clock: None, connecting })
    }

    /// The same on another clock than the server's, for tests that must decide what time it is.
    #[must_use]
    pub fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = Some(clock);
        self
    }

    async fn call(&self, operation: &str, keys: &[String; 2], args: &[&str]) -> Result<Vec<String>, Error> {
        let (mut connection, number) = self.shared.connection()?;
        let mut invocation = self.shared.script.prepare_invoke();
        for key in keys {
            invocation.key(key);
        }
        let now = self.clock.as_ref().map_or_else(String::new, |clock| clock().to_string());
        invocation.arg(operation).arg(now);
        for arg in args {
            invocation.arg(*arg);
        }
        let timeout = self.shared.timeout;
        // Runs EVALSHA, and loads the script first if the server does not know it.
        match tokio::time::timeout(timeout, invocation.invoke_async(&mut connection)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) if error.kind() == redis::ErrorKind::UnexpectedReturnType => {
                Err(Error::Wrong(error.to_string()))
            }
            Ok(Err(error)) => {
                self.shared.lose(number, &error.to_string());
                Err(Error::Away(error.to_string()))
            }
            Err(_) => {
                self.shared.lose(number, &format!("no answer within {timeout:?}"));
                Err(Error::Slow(timeout))
            }
        }
    }
}

impl Drop for RedisLedger {
    fn drop(&mut self) {
        self.connecting.abort();
    }
}

impl Shared {
    fn connection(&self) -> Result<(MultiplexedConnection, u64), Error> {
        match &*self.link.lock().unwrap_or_else(PoisonError::into_inner) {
            Link::Up { connection, number } => Ok((connection.clone(), *number)),
            Link::Down { why } => Err(Error::Away(why.clone())),
        }
    }

    /// Lets go of this connection, unless another one took its place already.
    fn lose(&self, lost: u64, why: &str) {
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(&*link, Link::Up { number, .. } if *number == lost) {
            *link = Link::Down { why: why.to_owned() };
            self.lost.notify_one();
        }
    }

    /// Connects whenever there is no connection. Never ends.
    async fn connect(self: Arc<Self>) {
        for number in 0.. {
            let mut failures = 0;
            let connection = loop {
                match self.connect_once().await {
                    Ok(connection) => break connection,
                    Err(why) => *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Link::Down { why },
                }
                let longer = rand::rng().random_range(0.5..1.25) * f64::from(1 << u32::min(failures, DOUBLINGS_MAX));
                tokio::time::sleep(PAUSE_MIN.mul_f64(longer)).await;
                failures += 1;
            };
            *self.link.lock().unwrap_or_else(PoisonError::into_inner) = Link::Up { connection, number };
            self.lost.notified().await;
        }
    }

    async fn connect_once(&self) -> Result<MultiplexedConnection, String> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.timeout))
            .set_response_timeout(Some(self.timeout));
        let client = self.settings.client().map_err(|error| error.to_string())?;
        let connecting = async {
            let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            // A server that loads its data takes connections and answers nothing else.
            redis::cmd("PING").query_async::<()>(&mut connection).await?;
            Ok::<_, redis::RedisError>(connection)
        };
        match tokio::time::timeout(self.timeout * 2, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {:?}", self.timeout * 2)),
        }
    }
}

#[async_trait]
impl Ledger for RedisLedger {
    async fn exchange(&self, tenant: &str, exchange: &Exchange) -> Result<Answer, Error> {
        let keys = [format!("{PREFIX}{{{tenant}}}:buckets"), format!("{PREFIX}{{{tenant}}}:charges")];
        let call = serde_json::to_string(exchange).map_err(|error| Error::Wrong(error.to_string()))?;
        read(&self.call("exchange", &keys, &[&call]).await?)
    }

    async fn beat(&self, gateway: &str, alive: Duration) -> Result<Beat, Error> {
        let keys = [format!("{PREFIX}{{gateways}}:alive"), format!("{PREFIX}{{gateways}}:epoch")];
        let new_epoch = uuid::Uuid::new_v4().to_string();
        let args = [gateway, &alive.as_micros().to_string(), &new_epoch];
        match self.call("beat", &keys, &args).await?.as_slice() {
            [gateways, epoch, server] => {
                let gateways = gateways.parse().map_err(|_| Error::Wrong(format!("{gateways:?} is no count")))?;
                let server = Some(server.clone()).filter(|server| !server.is_empty());
                Ok(Beat { gateways, epoch: epoch.clone(), server })
            }
            other => Err(Error::Wrong(format!("unreadable answer of {} parts", other.len()))),
        }
    }
}

/// Reads the script's answer: epoch, outcome, position and wait, then three numbers a bucket.
fn read(answer: &[String]) -> Result<Answer, Error> {
    let wrong = || Error::Wrong(format!("unreadable answer of {} parts", answer.len()));
    let number = |text: &String| text.parse::<f64>().map_err(|_| wrong());
    let [epoch, outcome, ask, wait, rest @ ..] = answer else { return Err(wrong()) };
    let outcome = match outcome.as_str() {
        "granted" => Outcome::Granted,
        "refused" => Outcome::Refused { ask: number(ask)? as usize, retry_after_us: number(wait)? as u64 },
        "unknown_epoch" => Outcome::UnknownEpoch,
        "full" => return Err(Error::Full(CHARGES_MAX)),
        _ => return Err(wrong()),
    };
    let mut buckets = Vec::with_capacity(rest.len() / 3);
    for three in rest.chunks_exact(3) {
        let level = Level { used: number(&three[1])?, at_us: number(&three[2])? as u64 };
        buckets.push(Bucket { granted: number(&three[0])? as u64, level });
    }
    Ok(Answer { epoch: epoch.clone(), outcome, buckets })
}
