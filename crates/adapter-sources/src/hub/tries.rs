//! What is worth another try, and when.

use crate::patience::Patience;
use crate::{Access, Error};
use std::time::Duration;

const DELAY_MS: u64 = 200;
const DELAY_MS_MAX: u64 = 5_000;
/// A hub that wants us to wait longer is not waited for.
const RETRY_AFTER_MS_MAX: u64 = 10_000;

/// The tries that one answer or file has left.
#[derive(Debug)]
pub(super) struct Tries {
    left: u32,
    delay_ms: u64,
}

impl Tries {
    pub(super) fn new(access: &Access) -> Self {
        Self { left: access.attempts.saturating_sub(1), delay_ms: DELAY_MS }
    }

    /// Waits until the next try; or gives the error back if there is none or if it would end like this one.
    pub(super) async fn wait_after(&mut self, error: Error, what: &str, patience: &Patience) -> Result<(), Error> {
        let asked_ms = match &error {
            Error::Unavailable { .. } | Error::Timeout { setting: "idle_timeout_ms", .. } => None,
            Error::RateLimited { retry_after_ms, .. } => *retry_after_ms,
            _ => return Err(error),
        };
        if self.left == 0 || asked_ms.is_some_and(|ms| ms > RETRY_AFTER_MS_MAX) {
            return Err(error);
        }
        self.left -= 1;
        // Half of it is random, so that those who met do not meet again.
        let delay_ms = rand::random_range(self.delay_ms / 2..=self.delay_ms).max(asked_ms.unwrap_or(0));
        self.delay_ms = (self.delay_ms * 2).min(DELAY_MS_MAX);
        tracing::debug!(what, %error, delay_ms, "asks the hub again");
        patience.sleep(what, Duration::from_millis(delay_ms)).await
    }
}
