//! What one server-sent event of a streamed answer says, in the dialects of OpenAI and LoRAX.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Which API an endpoint speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Api {
    /// OpenAI's `POST /v1/completions`.
    Completions,
    /// OpenAI's `POST /v1/chat/completions`.
    Chat,
    /// LoRAX's `POST /generate_stream`.
    Lorax,
}

/// Tokens as the endpoint counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: u64,
    /// Of the prompt, from a prefix cache.
    pub cached_tokens: u64,
    /// Of the answer.
    pub completion_tokens: u64,
}

/// The part of an event that counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// It brings a token, or several.
    pub token: bool,
    /// The answer's last token has come.
    pub finished: bool,
    /// Nothing comes after it.
    pub done: bool,
    /// In the last events.
    pub usage: Option<Usage>,
    /// The answer failed with this message.
    pub error: Option<String>,
}

impl Event {
    /// Reads the `data` of an event. Text that is no JSON is an error of the answer, never a panic.
    #[must_use]
    pub fn read(api: Api, data: &str) -> Self {
        if data == "[DONE]" {
            return Self { done: true, ..Self::default() };
        }
        let value: Value = match serde_json::from_str(data) {
            Ok(value) => value,
            Err(error) => return Self { error: Some(format!("an event is no JSON: {error}")), ..Self::default() },
        };
        if let Some(error) = value.get("error").filter(|error| !error.is_null()) {
            let message = error.get("message").unwrap_or(error);
            let text = message.as_str().map_or_else(|| message.to_string(), str::to_owned);
            return Self { error: Some(text), ..Self::default() };
        }
        match api {
            Api::Completions | Api::Chat => Self::openai(&value),
            Api::Lorax => Self::lorax(&value),
        }
    }

    fn openai(value: &Value) -> Self {
        let choice = &value["choices"][0];
        let finished = choice["finish_reason"].is_string();
        let text = choice["text"].as_str().or_else(|| choice["delta"]["content"].as_str());
        // A chat begins with a role and no text, and ends with a reason and no text: neither is a token.
        let opening = choice["delta"]["role"].is_string();
        let token = text.is_some_and(|text| !text.is_empty() || !(finished || opening));
        let usage = value["usage"].as_object().map(|_| {
            let usage = &value["usage"];
            let number = |value: &Value| value.as_u64().unwrap_or(0);
            Usage {
                prompt_tokens: number(&usage["prompt_tokens"]),
                cached_tokens: number(&usage["prompt_tokens_details"]["cached_tokens"]),
                completion_tokens: number(&usage["completion_tokens"]),
            }
        });
        Self { token, finished, usage, ..Self::default() }
    }

    fn lorax(value: &Value) -> Self {
        let finished = value["generated_text"].is_string();
        let token = &value["token"];
        // An end that follows its last token late has an empty special token of its own.
        let empty = token["special"].as_bool() == Some(true) && token["text"].as_str().is_none_or(str::is_empty);
        let usage = value["details"]["generated_tokens"].as_u64().map(|completion_tokens| Usage {
            prompt_tokens: value["details"]["prompt_tokens"].as_u64().unwrap_or(0),
            cached_tokens: 0,
            completion_tokens,
        });
        Self { token: token.is_object() && !(finished && empty), finished, done: finished, usage, error: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const APIS: [Api; 3] = [Api::Completions, Api::Chat, Api::Lorax];

    fn token() -> Event {
        Event { token: true, ..Event::default() }
    }

    #[test]
    fn completions_of_openai_are_understood() {
        let read = |data| Event::read(Api::Completions, data);
        assert_eq!(read(r#"{"choices":[{"index":0,"text":" the","finish_reason":null}],"usage":null}"#), token());
        // Half a character: a token without text.
        assert_eq!(read(r#"{"choices":[{"text":"","finish_reason":null}]}"#), token());
        let end = read(r#"{"choices":[{"text":"","finish_reason":"length"}]}"#);
        assert!(end.finished && !end.token && !end.done);
        let usage = r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":3}}}"#;
        assert_eq!(read(usage).usage, Some(Usage { prompt_tokens: 9, cached_tokens: 3, completion_tokens: 4 }));
        assert!(read("[DONE]").done);
    }

    #[test]
    fn chats_begin_with_a_role_that_is_no_token() {
        let read = |data| Event::read(Api::Chat, data);
        let role = r#"{"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
        assert_eq!(read(role), Event::default());
        assert_eq!(read(r#"{"choices":[{"delta":{"content":"Hi"},"finish_reason":null}]}"#), token());
        let last = read(r#"{"choices":[{"delta":{},"finish_reason":"stop"}]}"#);
        assert!(last.finished && !last.token);
    }

    #[test]
    fn lorax_ends_with_its_text_and_details() {
        let read = |data| Event::read(Api::Lorax, data);
        assert_eq!(read(r#"{"token":{"text":" a","special":false},"generated_text":null,"details":null}"#), token());
        let last = read(
            r#"{"token":{"text":"b","special":false},"generated_text":" ab","details":{"generated_tokens":2,"prompt_tokens":5}}"#,
        );
        assert!(last.token && last.finished && last.done);
        assert_eq!(last.usage, Some(Usage { prompt_tokens: 5, cached_tokens: 0, completion_tokens: 2 }));
        let late = read(r#"{"token":{"text":"","special":true},"generated_text":" ab"}"#);
        assert!(late.done && !late.token);
    }

    #[test]
    fn errors_in_a_stream_are_errors() {
        let openai = r#"{"error":{"message":"out of room","code":"overloaded"}}"#;
        assert_eq!(Event::read(Api::Chat, openai).error.as_deref(), Some("out of room"));
        let lorax = r#"{"error":"out of room","error_type":"overloaded"}"#;
        assert_eq!(Event::read(Api::Lorax, lorax).error.as_deref(), Some("out of room"));
        assert!(Event::read(Api::Chat, "<html>").error.unwrap().contains("no JSON"));
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from)
        ];
        let key = prop_oneof![
            Just("choices"),
            Just("delta"),
            Just("text"),
            Just("content"),
            Just("usage"),
            Just("token"),
            Just("details"),
            Just("error"),
            Just("finish_reason"),
            Just("generated_text"),
            Just("prompt_tokens")
        ];
        leaf.prop_recursive(4, 32, 6, move |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec((key.clone(), inner), 0..6)
                    .prop_map(|pairs| pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<Value>())
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_is_an_error(data in ".{0,64}", value in json()) {
            for api in APIS {
                let _ = Event::read(api, &data);
                let _ = Event::read(api, &value.to_string());
            }
        }
    }
}
