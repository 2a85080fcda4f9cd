//! How long to wait before the next try.

use std::time::Duration;

/// Waits with jitter, longer after each failure: 50 ms to 2 s.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait before the next try.
    pub fn next_delay(&mut self) -> Duration {
        let ceiling_ms = 50u64 << self.failures.min(6);
        self.failures = self.failures.saturating_add(1);
        // Jitter without a generator: the sub-microsecond part of the clock differs from process to process.
        let nanos = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| u64::from(since.subsec_nanos()));
        let ceiling_ms = ceiling_ms.min(2000);
        Duration::from_millis(ceiling_ms / 2 + (nanos / 97) % (ceiling_ms / 2).max(1))
    }

    /// Sleeps for [`Backoff::next_delay`]. Cancel safe.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_delay()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_and_stays_bounded() {
        let mut backoff = Backoff::default();
        let delays: Vec<_> = (0..20).map(|_| backoff.next_delay()).collect();
        assert!(delays[0] < Duration::from_millis(51));
        assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(2)));
        assert!(delays[19] >= Duration::from_secs(1));
    }
}
