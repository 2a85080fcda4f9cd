//! What a tenant or one of its keys may use.

use serde::{Deserialize, Serialize};
use std::fmt;

/// One kind of limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LimitKind {
    /// Requests in a minute.
    RequestsPerMinute,
    /// Tokens of prompts and answers in a minute.
    TokensPerMinute,
    /// Tokens of prompts and answers in 24 hours.
    TokensPerDay,
    /// Answers being made at once.
    ConcurrentRequests,
    /// Answers that wait for their first token at once.
    QueueLength,
}

impl LimitKind {
    /// All kinds, in the order of [`Limits`].
    pub const ALL: [Self; 5] = [
        Self::RequestsPerMinute,
        Self::TokensPerMinute,
        Self::TokensPerDay,
        Self::ConcurrentRequests,
        Self::QueueLength,
    ];

    /// The word used on the wire, in settings and in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RequestsPerMinute => "requests_per_minute",
            Self::TokensPerMinute => "tokens_per_minute",
            Self::TokensPerDay => "tokens_per_day",
            Self::ConcurrentRequests => "concurrent_requests",
            Self::QueueLength => "queue_length",
        }
    }
}

impl fmt::Display for LimitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a tenant or a key may use; what is `None` has no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Requests in a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u64>,
    /// Tokens of prompts and answers in a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// Tokens of prompts and answers in 24 hours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_day: Option<u64>,
    /// Answers being made at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrent_requests: Option<u64>,
    /// Answers that wait for their first token at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_length: Option<u64>,
}

/// A limit that is to be changed, and to what: 0 takes it away.
pub type LimitChange = (LimitKind, u64);

/// The value is no limit; the message names the limit, the value and the largest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} is {value}, allowed are 1 to {max}", max = Limits::MAX)]
pub struct LimitError {
    /// Which limit.
    pub kind: LimitKind,
    /// What was asked for.
    pub value: u64,
}

impl Limits {
    /// The largest limit: exact as a double with room for fractions, and more than any mesh serves.
    pub const MAX: u64 = 1_000_000_000_000;

    /// The limit of this kind.
    #[must_use]
    pub fn get(&self, kind: LimitKind) -> Option<u64> {
        match kind {
            LimitKind::RequestsPerMinute => self.requests_per_minute,
            LimitKind::TokensPerMinute => self.tokens_per_minute,
            LimitKind::TokensPerDay => self.tokens_per_day,
            LimitKind::ConcurrentRequests => self.concurrent_requests,
            LimitKind::QueueLength => self.queue_length,
        }
    }

    fn set(&mut self, kind: LimitKind, value: Option<u64>) {
        *match kind {
            LimitKind::RequestsPerMinute => &mut self.requests_per_minute,
            LimitKind::TokensPerMinute => &mut self.tokens_per_minute,
            LimitKind::TokensPerDay => &mut self.tokens_per_day,
            LimitKind::ConcurrentRequests => &mut self.concurrent_requests,
            LimitKind::QueueLength => &mut self.queue_length,
        } = value;
    }

    /// Whether nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// These limits with some changed.
    ///
    /// # Errors
    /// A value is over [`Limits::MAX`].
    pub fn changed(mut self, changes: &[LimitChange]) -> Result<Self, LimitError> {
        for (kind, value) in changes {
            if *value > Self::MAX {
                return Err(LimitError { kind: *kind, value: *value });
            }
            self.set(*kind, Some(*value).filter(|value| *value > 0));
        }
        Ok(self)
    }

    /// These limits, and where there is none, those of `others`.
    #[must_use]
    pub fn or(self, others: &Self) -> Self {
        Self {
            requests_per_minute: self.requests_per_minute.or(others.requests_per_minute),
            tokens_per_minute: self.tokens_per_minute.or(others.tokens_per_minute),
            tokens_per_day: self.tokens_per_day.or(others.tokens_per_day),
            concurrent_requests: self.concurrent_requests.or(others.concurrent_requests),
            queue_length: self.queue_length.or(others.queue_length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_sets_takes_away_and_leaves() {
        let limits = Limits { requests_per_minute: Some(5), tokens_per_day: Some(9), ..Limits::default() };
        let changed = limits.changed(&[(LimitKind::RequestsPerMinute, 0), (LimitKind::QueueLength, 3)]).unwrap();
        let expected = Limits { tokens_per_day: Some(9), queue_length: Some(3), ..Limits::default() };
        assert_eq!(changed, expected);
        let error = limits.changed(&[(LimitKind::TokensPerDay, Limits::MAX + 1)]).unwrap_err().to_string();
        assert_eq!(error, "tokens_per_day is 1000000000001, allowed are 1 to 1000000000000");
        for kind in LimitKind::ALL {
            assert_eq!(Limits::default().changed(&[(kind, 7)]).unwrap().get(kind), Some(7), "{kind}");
        }
    }

    #[test]
    fn own_limits_go_before_others() {
        let own = Limits { requests_per_minute: Some(5), ..Limits::default() };
        let others = Limits { requests_per_minute: Some(1), queue_length: Some(2), ..Limits::default() };
        let both = own.or(&others);
        assert_eq!((both.requests_per_minute, both.queue_length, both.tokens_per_day), (Some(5), Some(2), None));
    }
}
