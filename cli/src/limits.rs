//! Limits on the command line: a number sets one, `none` takes it away, what is not given stays.

use clap::Args;
use serde_json::{Map, Value};

/// A limit as it is typed: a number, or null for none.
pub(crate) fn limit(text: &str) -> Result<Value, String> {
    if text == "none" {
        return Ok(Value::Null);
    }
    text.parse::<u64>().map(Value::from).map_err(|_| "must be a whole number or none".to_owned())
}

/// What a tenant or a key may use; each a number, or `none`
#[derive(Args, Clone, Debug)]
pub struct LimitFlags {
    /// Requests in a minute
    #[arg(long, value_name = "N", value_parser = limit)]
    requests_per_minute: Option<Value>,
    /// Tokens of prompts and answers in a minute
    #[arg(long, value_name = "N", value_parser = limit)]
    tokens_per_minute: Option<Value>,
    /// Tokens of prompts and answers in 24 hours
    #[arg(long, value_name = "N", value_parser = limit)]
    tokens_per_day: Option<Value>,
    /// Answers being made at once
    #[arg(long, value_name = "N", value_parser = limit)]
    concurrent_requests: Option<Value>,
    /// Answers that wait for their first token at once
    #[arg(long, value_name = "N", value_parser = limit)]
    queue_length: Option<Value>,
}

impl LimitFlags {
    /// What was given, as the admin API takes it.
    #[must_use]
    pub fn json(&self) -> Value {
        let flags = [
            ("requests_per_minute", &self.requests_per_minute),
            ("tokens_per_minute", &self.tokens_per_minute),
            ("tokens_per_day", &self.tokens_per_day),
            ("concurrent_requests", &self.concurrent_requests),
            ("queue_length", &self.queue_length),
        ];
        let given = flags.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?)));
        Value::Object(given.collect::<Map<_, _>>())
    }
}
