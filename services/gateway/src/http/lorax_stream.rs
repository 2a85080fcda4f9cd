//! LoRAX's stream: one event a token, of which the last carries the whole text and the details.
//!
//! That the last token is the last is known one message later. So one token is held back for the short time in which
//! the end would follow it, and goes out plain if nothing comes. Then, if it was the last after all, one more event
//! with an empty special token carries the end.

use super::errors::lorax_body;
use super::lorax::{Token, finish_reason};
use super::lorax_request::Checked;
use super::sse::json_event;
use crate::generate::{Generation, Piece};
use axum::response::sse::Event;
use futures::stream::{self, Stream};
use serde::Serialize;
use std::collections::VecDeque;
use std::time::Duration;
use utoipa::ToSchema;
use weft_proto::worker::v1 as pb;

/// A worker sends the end right behind the last token; a step takes longer than this.
const HOLD: Duration = Duration::from_millis(5);

/// One event.
#[derive(Serialize, ToSchema)]
pub(crate) struct LoraxEvent {
    token: Token,
    /// In the last event.
    generated_text: Option<String>,
    /// In the last event, if asked for.
    details: Option<StreamDetails>,
}

#[derive(Serialize, ToSchema)]
struct StreamDetails {
    finish_reason: &'static str,
    prompt_tokens: u32,
    generated_tokens: u32,
    /// Null unless the answer was drawn.
    seed: Option<u64>,
}

struct Running<G> {
    generation: Option<Generation>,
    checked: Checked,
    text: String,
    held: Option<pb::TokenOut>,
    out: VecDeque<Event>,
    _guard: G,
}

/// The events of one generation. `guard` is dropped with the stream.
pub(crate) fn events<G: Send + 'static>(
    generation: Generation,
    checked: Checked,
    guard: G,
) -> impl Stream<Item = Event> + Send + 'static {
    let text = if checked.full_text { checked.inputs().to_owned() } else { String::new() };
    let running =
        Running { generation: Some(generation), checked, text, held: None, out: VecDeque::new(), _guard: guard };
    stream::unfold(running, |mut running| async move {
        loop {
            if let Some(event) = running.out.pop_front() {
                return Some((event, running));
            }
            let generation = running.generation.as_mut()?;
            let next = if running.held.is_some() {
                match tokio::time::timeout(HOLD, generation.next()).await {
                    Ok(next) => next,
                    Err(_) => {
                        running.release();
                        continue;
                    }
                }
            } else {
                generation.next().await
            };
            match next {
                Ok(Some(Piece::Tokens(tokens))) => running.tokens(tokens),
                Ok(Some(Piece::Finished(finished))) => running.finish(&finished),
                Ok(None) => running.generation = None,
                Err(fault) => {
                    running.release();
                    running.out.push_back(json_event(&lorax_body(&fault)));
                    running.generation = None;
                }
            }
        }
    })
}

impl<G> Running<G> {
    fn tokens(&mut self, tokens: Vec<pb::TokenOut>) {
        for token in tokens {
            self.release();
            self.text.push_str(&token.text);
            self.held = Some(token);
        }
    }

    /// The held token goes out as one that is not the last.
    fn release(&mut self) {
        if let Some(token) = self.held.take() {
            let token = Token::of(token, self.checked.alternatives);
            self.out.push_back(json_event(&LoraxEvent { token, generated_text: None, details: None }));
        }
    }

    fn finish(&mut self, finished: &pb::Finished) {
        let prompt_tokens = self.generation.as_ref().map_or(0, |generation| generation.facts.prompt_tokens);
        let last = self.held.take().unwrap_or(pb::TokenOut { special: true, ..pb::TokenOut::default() });
        let details = self.checked.details.then(|| StreamDetails {
            finish_reason: finish_reason(finished),
            prompt_tokens,
            generated_tokens: finished.completion_tokens,
            seed: self.checked.sampled.then_some(finished.seed),
        });
        let event = LoraxEvent {
            token: Token::of(last, self.checked.alternatives),
            generated_text: Some(std::mem::take(&mut self.text)),
            details,
        };
        self.out.push_back(json_event(&event));
        self.generation = None;
    }
}
