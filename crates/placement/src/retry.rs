//! How many retries there may be: a budget, so that retries cannot become the load that fails.
//!
//! Every request pays a part of a retry into a bucket of bounded size, a trickle flows in besides, and each retry takes
//! a whole one out (the retry budget of Finagle and Linkerd). In a time `t` there are at most
//! `capacity + ratio × requests + per_s × t` retries.

/// The bucket's measures.
#[derive(Clone, Copy, Debug)]
pub struct RetrySettings {
    /// Part of a retry that a request pays in. 0 to 1.
    pub ratio: f64,
    /// Retries that flow in each second whatever the traffic, so that the first failures of a quiet mesh are retried.
    pub per_s: f64,
    /// Most retries that are saved up.
    pub capacity: f64,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self { ratio: 0.2, per_s: 1.0, capacity: 20.0 }
    }
}

/// A budget.
#[derive(Clone, Copy, Debug)]
pub struct RetryBudget {
    retries: f64,
    at_ms: u64,
}

impl RetryBudget {
    /// A full one.
    #[must_use]
    pub fn new(now_ms: u64, settings: &RetrySettings) -> Self {
        Self { retries: settings.capacity, at_ms: now_ms }
    }

    /// A first attempt begins.
    pub fn request(&mut self, now_ms: u64, settings: &RetrySettings) {
        self.flow(now_ms, settings);
        self.retries = (self.retries + settings.ratio).min(settings.capacity);
    }

    /// Takes one retry out; false if there is none, then the failure is the answer.
    pub fn try_retry(&mut self, now_ms: u64, settings: &RetrySettings) -> bool {
        self.flow(now_ms, settings);
        let may = self.retries >= 1.0;
        self.retries -= if may { 1.0 } else { 0.0 };
        may
    }

    /// Retries that are left, for a gauge.
    #[must_use]
    pub fn left(&self) -> f64 {
        self.retries
    }

    fn flow(&mut self, now_ms: u64, settings: &RetrySettings) {
        // A clock that went back counts as standing still.
        let elapsed_s = now_ms.saturating_sub(self.at_ms) as f64 / 1000.0;
        self.at_ms = self.at_ms.max(now_ms);
        self.retries = (self.retries + elapsed_s * settings.per_s).min(settings.capacity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_everything_fails_retries_stay_within_the_bound() {
        let settings = RetrySettings::default();
        let mut budget = RetryBudget::new(0, &settings);
        let mut retries = 0;
        for at in 0..10_000u64 {
            budget.request(at * 10, &settings);
            retries += u32::from(budget.try_retry(at * 10, &settings));
        }
        let bound = 20.0 + 0.2 * 10_000.0 + 100.0;
        assert!(f64::from(retries) <= bound && f64::from(retries) > bound - 10.0, "{retries} of {bound}");
    }

    #[test]
    fn a_quiet_mesh_gets_its_trickle_and_no_more_than_the_capacity() {
        let settings = RetrySettings::default();
        let mut budget = RetryBudget::new(0, &settings);
        while budget.try_retry(0, &settings) {}
        assert!(!budget.try_retry(999, &settings));
        assert!(budget.try_retry(1000, &settings));
        budget.request(u64::MAX, &settings);
        assert!((budget.left() - 20.0).abs() < 1e-9);
        budget.request(0, &settings);
        assert!(budget.left() <= 20.0, "a clock that goes back gives nothing");
    }
}
