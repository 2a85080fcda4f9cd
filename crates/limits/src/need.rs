//! What one request needs of which buckets.

use crate::gcra::Rate;
use weft_types::{LimitKind, Limits};

const MINUTE_US: u64 = 60_000_000;
const DAY_US: u64 = 86_400_000_000;

/// Whose limits hold for a request.
#[derive(Clone, Copy, Debug)]
pub struct Whose<'a> {
    /// The tenant's name.
    pub tenant: &'a str,
    /// What the tenant may use.
    pub limits: &'a Limits,
    /// The key's id.
    pub key: &'a str,
    /// What may be used with the key.
    pub key_limits: &'a Limits,
}

/// What a request would use.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish {
    /// Answers: each takes a slot of those that run and of those that wait.
    pub answers: u64,
    /// Tokens that it asks for by itself: the prompt, and what it says its answers may have.
    pub tokens: u64,
    /// Tokens to expect of answers for which it says nothing.
    pub tokens_more: u64,
}

/// What a request needs of one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Need {
    pub(crate) bucket: String,
    pub(crate) kind: LimitKind,
    pub(crate) of_key: bool,
    pub(crate) limit: u64,
    pub(crate) amount: u64,
}

impl Need {
    /// None for slots.
    pub(crate) fn rate(&self) -> Option<Rate> {
        let period_us = match self.kind {
            LimitKind::RequestsPerMinute | LimitKind::TokensPerMinute => MINUTE_US,
            LimitKind::TokensPerDay => DAY_US,
            LimitKind::ConcurrentRequests | LimitKind::QueueLength => return None,
        };
        Some(Rate { limit: self.limit, period_us })
    }

    pub(crate) fn is_tokens(&self) -> bool {
        matches!(self.kind, LimitKind::TokensPerMinute | LimitKind::TokensPerDay)
    }
}

/// One for each limit there is. An error is a need that its limit can never meet.
pub(crate) fn needs(whose: &Whose<'_>, wish: &Wish) -> Result<Vec<Need>, Need> {
    let mut needs = Vec::new();
    for (of_key, limits) in [(false, whose.limits), (true, whose.key_limits)] {
        for kind in LimitKind::ALL {
            let Some(limit) = limits.get(kind) else { continue };
            let (asked, amount) = match kind {
                LimitKind::RequestsPerMinute => (1, 1),
                LimitKind::ConcurrentRequests | LimitKind::QueueLength => (wish.answers, wish.answers),
                LimitKind::TokensPerMinute | LimitKind::TokensPerDay => {
                    (wish.tokens, wish.tokens.saturating_add(wish.tokens_more).min(limit))
                }
            };
            let bucket = if of_key { format!("key:{}:{kind}", whose.key) } else { kind.to_string() };
            let need = Need { bucket, kind, of_key, limit, amount };
            if asked > limit {
                return Err(Need { amount: asked, ..need });
            }
            needs.push(need);
        }
    }
    Ok(needs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_needs_something_of_each_limit_there_is() {
        let limits = Limits { requests_per_minute: Some(5), tokens_per_day: Some(100), ..Limits::default() };
        let key_limits = Limits { tokens_per_minute: Some(60), queue_length: Some(4), ..Limits::default() };
        let whose = Whose { tenant: "t", limits: &limits, key: "k", key_limits: &key_limits };
        let wish = Wish { answers: 2, tokens: 50, tokens_more: 30 };
        let needs = needs(&whose, &wish).unwrap();
        let told: Vec<_> = needs.iter().map(|need| (need.bucket.as_str(), need.amount)).collect();
        let expected = [
            ("requests_per_minute", 1),
            ("tokens_per_day", 80),
            // What is only expected never makes a request too large.
            ("key:k:tokens_per_minute", 60),
            ("key:k:queue_length", 2),
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_can_never_fit_is_told_apart() {
        let limits = Limits { tokens_per_minute: Some(60), ..Limits::default() };
        let none = Limits::default();
        let whose = Whose { tenant: "t", limits: &limits, key: "k", key_limits: &none };
        let too_large = needs(&whose, &Wish { answers: 1, tokens: 61, tokens_more: 0 }).unwrap_err();
        assert_eq!((too_large.kind, too_large.limit, too_large.amount), (LimitKind::TokensPerMinute, 60, 61));
    }
}
