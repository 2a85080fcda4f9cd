//! Limits of tenants and keys, as operators write and read them.

use super::body::given;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use weft_fault::Fault;
use weft_proto::registry::v1 as pb;
use weft_types::{LimitError, LimitKind, Limits};

/// What may be used; what is null has no limit.
#[derive(Serialize, ToSchema)]
pub(crate) struct LimitsBody {
    requests_per_minute: Option<u64>,
    /// Of prompts and answers.
    tokens_per_minute: Option<u64>,
    /// Of prompts and answers, in 24 hours.
    tokens_per_day: Option<u64>,
    /// Answers being made at once.
    concurrent_requests: Option<u64>,
    /// Answers that wait for their first token at once.
    queue_length: Option<u64>,
}

impl From<Option<pb::Limits>> for LimitsBody {
    fn from(limits: Option<pb::Limits>) -> Self {
        let limits = crate::directory::limits(limits);
        Self {
            requests_per_minute: limits.requests_per_minute,
            tokens_per_minute: limits.tokens_per_minute,
            tokens_per_day: limits.tokens_per_day,
            concurrent_requests: limits.concurrent_requests,
            queue_length: limits.queue_length,
        }
    }
}

/// Limits to set: 1 to 1,000,000,000,000. What is absent stays as it is, null takes a limit away.
#[derive(Clone, Copy, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LimitsAsked {
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 1_000_000_000_000_i64)]
    requests_per_minute: Option<Option<u64>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 1_000_000_000_000_i64)]
    tokens_per_minute: Option<Option<u64>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 1_000_000_000_000_i64)]
    tokens_per_day: Option<Option<u64>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 1_000_000_000_000_i64)]
    concurrent_requests: Option<Option<u64>>,
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u64>, minimum = 1, maximum = 1_000_000_000_000_i64)]
    queue_length: Option<Option<u64>>,
}

impl LimitsAsked {
    fn get(&self, kind: LimitKind) -> Option<Option<u64>> {
        match kind {
            LimitKind::RequestsPerMinute => self.requests_per_minute,
            LimitKind::TokensPerMinute => self.tokens_per_minute,
            LimitKind::TokensPerDay => self.tokens_per_day,
            LimitKind::ConcurrentRequests => self.concurrent_requests,
            LimitKind::QueueLength => self.queue_length,
        }
    }

    /// For the registry, which checks it too; here the answer names the field without a call.
    pub(super) fn change(&self) -> Result<pb::LimitsChange, Fault> {
        let checked = |kind| match self.get(kind) {
            None => Ok(None),
            Some(None) => Ok(Some(0)),
            Some(Some(value)) if (1..=Limits::MAX).contains(&value) => Ok(Some(value)),
            Some(Some(value)) => Err(Fault::invalid(format!("limits.{kind}"), LimitError { kind, value }.to_string())),
        };
        Ok(pb::LimitsChange {
            requests_per_minute: checked(LimitKind::RequestsPerMinute)?,
            tokens_per_minute: checked(LimitKind::TokensPerMinute)?,
            tokens_per_day: checked(LimitKind::TokensPerDay)?,
            concurrent_requests: checked(LimitKind::ConcurrentRequests)?,
            queue_length: checked(LimitKind::QueueLength)?,
        })
    }

    /// The limits of something new.
    pub(super) fn first(&self) -> Result<pb::Limits, Fault> {
        let change = self.change()?;
        Ok(pb::Limits {
            requests_per_minute: change.requests_per_minute.unwrap_or(0),
            tokens_per_minute: change.tokens_per_minute.unwrap_or(0),
            tokens_per_day: change.tokens_per_day.unwrap_or(0),
            concurrent_requests: change.concurrent_requests.unwrap_or(0),
            queue_length: change.queue_length.unwrap_or(0),
        })
    }
}
