//! What a tenant and its key may use: from a request to what it would cost, and from an answer to what it did.

use crate::directory::{Key, Tenant};
use crate::error::{BuildError, Error};
use crate::generate::{Wanted, prompts};
use crate::settings::Settings;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use weft_limits::{
    Charge, Keeper, Ledger, Limiter, MemoryLedger, Options, RedisLedger, RedisSettings, Standing, Whose, Wish,
};
use weft_proto::worker::v1::generate_request::Prompt;
use weft_types::Limits;

/// Bytes of a token of text, roughly: what OpenAI tells its users. What it is off by is settled.
const BYTES_PER_TOKEN: usize = 4;
const SLICE_PERCENT_MAX: f64 = 50.0;

/// All tenants' limits, at this gateway.
pub(crate) struct Quota {
    pub(crate) limiter: Arc<Limiter>,
    pub(crate) in_redis: bool,
    defaults: Limits,
    output_tokens: u64,
}

impl Quota {
    /// Connects to Redis in the background, if there is to be one.
    pub(crate) fn new(settings: &Settings) -> Result<Self, BuildError> {
        let wrong = |name, problem| BuildError::Setting { name, problem };
        let percent = settings.limits_slice_percent;
        if !(0.0..=SLICE_PERCENT_MAX).contains(&percent) {
            return Err(wrong("limits_slice_percent", format!("{percent} is not from 0 to {SLICE_PERCENT_MAX}")));
        }
        if settings.redis_timeout_ms == 0 {
            return Err(wrong("redis_timeout_ms", "0 leaves no time for an answer".to_owned()));
        }
        let mut defaults = Limits::default();
        for (name, kind, value) in settings.default_limits() {
            if value == Some(0) {
                return Err(wrong(name, format!("is 0, allowed are 1 to {}", Limits::MAX)));
            }
            let change = value.map(|value| (kind, value));
            defaults = defaults.changed(change.as_slice()).map_err(|error| wrong(name, error.to_string()))?;
        }
        let url = settings.redis_url.as_deref().filter(|url| !url.is_empty());
        let timeout = Duration::from_millis(settings.redis_timeout_ms);
        let (ledger, slice_percent): (Arc<dyn Ledger>, f64) = match url {
            Some(url) => {
                let settings = RedisSettings {
                    url: url.to_owned(),
                    ca_file: settings.redis_ca_file.clone(),
                    cert_file: settings.redis_cert_file.clone(),
                    key_file: settings.redis_key_file.clone(),
                    timeout,
                };
                let ledger = RedisLedger::new(settings).map_err(|error| wrong(error.name, error.problem))?;
                (Arc::new(ledger), percent)
            }
            // Who is alone need not ask in advance.
            None => (Arc::new(MemoryLedger::default()), 0.0),
        };
        let options = Options { slice_percent, gateways_min: settings.limits_gateways, ..Options::default() };
        Ok(Self {
            limiter: Limiter::new(ledger, options),
            in_redis: url.is_some(),
            defaults,
            output_tokens: settings.limits_output_tokens,
        })
    }

    /// Keeps in touch with the ledger while the result lives.
    pub(crate) fn keep(&self) -> Keeper {
        self.limiter.keep()
    }

    /// Takes what a request for these answers may cost; what it did cost is settled when the last clone of the meter goes.
    ///
    /// # Errors
    /// A limit is reached.
    pub(crate) async fn reserve(
        &self,
        tenant: &Tenant,
        key: &Key,
        wanted: &[Wanted],
        context_tokens: u64,
    ) -> Result<Meter, (Error, Standing)> {
        let wish = self.wish(wanted, context_tokens);
        let limits = tenant.limits.or(&self.defaults);
        let whose = Whose { tenant: &tenant.name, limits: &limits, key: &key.id, key_limits: &key.limits };
        match self.limiter.reserve(&whose, &wish).await {
            Ok(charge) => {
                let metered = Metered { charge, prompts: Mutex::default(), answer_tokens: AtomicU64::new(0) };
                Ok(Meter(Some(Arc::new(metered))))
            }
            Err(refusal) => {
                let standing = refusal.standing;
                Err((Error::LimitReached { tenant: tenant.name.clone(), refusal: Box::new(refusal) }, standing))
            }
        }
    }

    /// What these answers may cost. A prompt counts once, however many answers it has.
    fn wish(&self, wanted: &[Wanted], context_tokens: u64) -> Wish {
        let estimates = prompts(wanted).into_iter().map(|prompt| estimate(prompt));
        let tokens = estimates.fold(0, u64::saturating_add);
        let mut wish = Wish { answers: wanted.len() as u64, tokens, ..Wish::default() };
        let context_tokens = if context_tokens == 0 { u64::MAX } else { context_tokens };
        for answer in wanted {
            match u64::from(answer.stopping.max_tokens) {
                0 => wish.tokens_more = wish.tokens_more.saturating_add(self.output_tokens.min(context_tokens)),
                tokens => wish.tokens = wish.tokens.saturating_add(tokens.min(context_tokens)),
            }
        }
        wish
    }
}

/// Tokens of a prompt, before anybody has counted them.
pub(crate) fn estimate(prompt: &Prompt) -> u64 {
    let of_bytes = |bytes: usize| bytes.div_ceil(BYTES_PER_TOKEN) as u64;
    match prompt {
        Prompt::Text(text) if text.truncate > 0 => of_bytes(text.text.len()).min(u64::from(text.truncate)),
        Prompt::Text(text) => of_bytes(text.text.len()),
        Prompt::Chat(chat) => of_bytes(chat.messages_json.len() + chat.tools_json.len()),
        Prompt::Tokens(tokens) => tokens.ids.len() as u64,
    }
}

/// Counts what a request really uses. Clones are the same; when the last goes, however the request ended, it is settled.
#[derive(Clone)]
pub(crate) struct Meter(Option<Arc<Metered>>);

struct Metered {
    charge: Charge,
    /// Tokens of each prompt that was read, by where it lies while the request lives.
    prompts: Mutex<HashMap<usize, u64>>,
    answer_tokens: AtomicU64,
}

impl Meter {
    /// Of work that is nobody's to pay: the mirrored requests of an experiment.
    pub(crate) fn free() -> Self {
        Self(None)
    }

    /// For the headers of the answer.
    pub(crate) fn standing(&self) -> Standing {
        self.0.as_ref().map_or_else(Standing::default, |metered| metered.charge.standing())
    }

    /// One answer to this prompt, which has so many tokens, has begun. However many answers it has, a prompt counts once.
    pub(crate) fn began(&self, prompt: &Arc<Prompt>, tokens: u32) {
        let Some(metered) = &self.0 else { return };
        metered.charge.began();
        let mut prompts = metered.prompts.lock().unwrap_or_else(PoisonError::into_inner);
        prompts.insert(Arc::as_ptr(prompt) as usize, u64::from(tokens));
    }

    /// One answer has so many tokens more.
    pub(crate) fn answered(&self, tokens: usize) {
        if let Some(metered) = &self.0 {
            metered.answer_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        }
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        let prompts = self.prompts.get_mut().unwrap_or_else(PoisonError::into_inner).values().sum::<u64>();
        self.charge.used(prompts.saturating_add(self.answer_tokens.load(Ordering::Relaxed)));
        self.charge.settle();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_proto::worker::v1 as pb;

    fn wanted(prompt: &Arc<Prompt>, max_tokens: u32) -> Wanted {
        Wanted {
            prompt: Arc::clone(prompt),
            sampling: pb::Sampling::default(),
            stopping: pb::Stopping { max_tokens, ..Default::default() },
            logprobs: None,
            priority: 0,
            grammar: None,
        }
    }

    fn text(bytes: usize, truncate: u32) -> Arc<Prompt> {
        Arc::new(Prompt::Text(pb::TextPrompt { text: "x".repeat(bytes), truncate, ..Default::default() }))
    }

    #[tokio::test]
    async fn a_prompt_is_estimated_once_and_each_answer_for_itself() {
        let quota = Quota::new(&Settings { limits_output_tokens: 100, ..Settings::default() }).unwrap();
        let (one, other) = (text(9, 0), text(1000, 7));
        let ids = Arc::new(Prompt::Tokens(pb::TokenPrompt { ids: vec![1; 5] }));
        let all = [wanted(&one, 10), wanted(&one, 10), wanted(&other, 0), wanted(&ids, 5000)];
        let wish = quota.wish(&all, 2048);
        assert_eq!(wish.answers, 4);
        assert_eq!(wish.tokens, 3 + 10 + 10 + 7 + 5 + 2048);
        assert_eq!(wish.tokens_more, 100);
    }

    #[tokio::test]
    async fn settings_out_of_range_are_named() {
        for (settings, name) in [
            (Settings { limits_slice_percent: 51.0, ..Settings::default() }, "limits_slice_percent"),
            (Settings { limits_slice_percent: f64::NAN, ..Settings::default() }, "limits_slice_percent"),
            (Settings { redis_timeout_ms: 0, ..Settings::default() }, "redis_timeout_ms"),
            (Settings { redis_url: Some("http://x".into()), ..Settings::default() }, "redis_url"),
            (
                Settings {
                    redis_url: Some("rediss://x".into()),
                    redis_ca_file: Some("/nowhere/ca.pem".into()),
                    ..Settings::default()
                },
                "redis_ca_file",
            ),
            (Settings { default_tokens_per_day: Some(0), ..Settings::default() }, "default_tokens_per_day"),
            (Settings { default_queue_length: Some(u64::MAX), ..Settings::default() }, "default_queue_length"),
        ] {
            let Err(BuildError::Setting { name: told, .. }) = Quota::new(&settings) else { panic!("{name}") };
            assert_eq!(told, name);
        }
    }
}
