//! One request over HTTP, timed as its pieces come.

use crate::event::{Api, Event, Usage};
use crate::prompt::Prompt;
use eventsource_stream::Eventsource;
use futures::{Stream, StreamExt};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Most bytes of an error's body that are kept.
const ERROR_CHARS_MAX: usize = 200;
/// Most pieces of one answer whose times are kept; the context of every model is shorter.
const PIECES_MAX: usize = 1 << 20;

/// An endpoint and how to speak to it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    url: String,
    api: Api,
    timeout: Duration,
    http: reqwest::Client,
}

/// What to ask.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// Model name; LoRAX's adapter id. `base` stands for the base there.
    pub model: &'a str,
    /// Bearer token, if the endpoint wants one.
    pub key: Option<&'a str>,
    /// The prompt. LoRAX and chats take text alone.
    pub prompt: &'a Prompt,
    /// Tokens of the answer, exactly where the endpoint knows `ignore_eos`.
    pub output_tokens: u32,
}

/// What came.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// When each piece came.
    pub pieces: Vec<Instant>,
    /// What the endpoint counted.
    pub usage: Option<Usage>,
    /// `x-weft-adapter-wait-us`.
    pub adapter_wait_us: Option<u64>,
}

/// What came before it failed, and why it did.
pub type Failure = (Answer, String);

impl Client {
    /// An endpoint at `url`, e.g. `http://127.0.0.1:8080`; an answer that takes longer than `timeout` has failed.
    #[must_use]
    pub fn new(url: &str, api: Api, timeout: Duration) -> Self {
        Self { url: url.trim_end_matches('/').to_owned(), api, timeout, http: reqwest::Client::new() }
    }

    /// Whether prompts may be token ids.
    #[must_use]
    pub fn takes_ids(&self) -> bool {
        self.api == Api::Completions
    }

    /// Sends one request and reads its answer to the end.
    ///
    /// # Errors
    /// A refusal, a broken stream, an answer that takes too long.
    pub async fn ask(&self, ask: Ask<'_>) -> Result<Answer, Failure> {
        let mut answer = Answer::default();
        match tokio::time::timeout(self.timeout, self.stream(ask, &mut answer)).await {
            Ok(Ok(())) => Ok(answer),
            Ok(Err(reason)) => Err((answer, reason)),
            Err(_) => Err((answer, format!("no end after {} s", self.timeout.as_secs()))),
        }
    }

    async fn stream(&self, ask: Ask<'_>, answer: &mut Answer) -> Result<(), String> {
        let path = match self.api {
            Api::Completions => "/v1/completions",
            Api::Chat => "/v1/chat/completions",
            Api::Lorax => "/generate_stream",
        };
        let mut request = self.http.post(format!("{}{path}", self.url)).json(&body(self.api, &ask));
        if let Some(key) = ask.key {
            request = request.bearer_auth(key);
        }
        let response = request.send().await.map_err(|error| words(&error))?;
        let status = response.status();
        if !status.is_success() {
            let text = response.text().await.unwrap_or_default();
            return Err(format!("{}: {}", status.as_u16(), text.chars().take(ERROR_CHARS_MAX).collect::<String>()));
        }
        let wait = response.headers().get("x-weft-adapter-wait-us");
        answer.adapter_wait_us = wait.and_then(|wait| wait.to_str().ok()).and_then(|wait| wait.parse().ok());
        read(self.api, response.bytes_stream().map(|piece| piece.map_err(|error| words(&error))), answer).await
    }
}

/// Reads the events of a body to their end.
///
/// # Errors
/// A broken stream, an error in it, an end that comes too early. What came before stays in `answer`.
pub async fn read<S, B>(api: Api, body: S, answer: &mut Answer) -> Result<(), String>
where
    S: Stream<Item = Result<B, String>>,
    B: AsRef<[u8]>,
{
    let mut events = std::pin::pin!(body.eventsource());
    let mut finished = false;
    while let Some(event) = events.next().await {
        let event = Event::read(api, &event.map_err(|error| error.to_string())?.data);
        if let Some(error) = event.error {
            return Err(error);
        }
        if event.token && answer.pieces.len() < PIECES_MAX {
            answer.pieces.push(Instant::now());
        }
        answer.usage = event.usage.or(answer.usage);
        finished |= event.finished;
        if event.done {
            break;
        }
    }
    if finished { Ok(()) } else { Err("the stream was cut off".to_owned()) }
}

fn body(api: Api, ask: &Ask<'_>) -> Value {
    let prompt = match ask.prompt {
        Prompt::Ids(ids) => Value::from(ids.as_slice()),
        Prompt::Text(text) => Value::from(text.as_str()),
    };
    let openai = json!({
        "model": ask.model, "max_tokens": ask.output_tokens, "temperature": 0, "ignore_eos": true, "stream": true,
        "stream_options": { "include_usage": true },
    });
    match api {
        Api::Completions => merged(openai, "prompt", prompt),
        Api::Chat => merged(openai, "messages", json!([{ "role": "user", "content": prompt }])),
        Api::Lorax => {
            let mut parameters =
                json!({ "max_new_tokens": ask.output_tokens, "details": true, "ignore_eos_token": true });
            if ask.model != "base" {
                parameters["adapter_id"] = ask.model.into();
            }
            json!({ "inputs": prompt, "parameters": parameters })
        }
    }
}

fn merged(mut body: Value, key: &str, value: Value) -> Value {
    body[key] = value;
    body
}

/// An error with its causes: reqwest's own message leaves them out.
fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use proptest::prelude::*;

    const WHOLE: &str = "data: {\"choices\":[{\"text\":\" é\",\"finish_reason\":null}]}\n\n: a comment\n\n\
        data: {\"choices\":[{\"text\":\"b\",\"finish_reason\":null}]}\r\n\r\n\
        data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}]}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";

    fn read_pieces(api: Api, pieces: Vec<Vec<u8>>) -> (Answer, Result<(), String>) {
        let mut answer = Answer::default();
        let body = stream::iter(pieces.into_iter().map(Ok::<_, String>));
        let result = futures::executor::block_on(read(api, body, &mut answer));
        (answer, result)
    }

    fn split(bytes: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| bytes[pair[0]..pair[1]].to_vec()).collect()
    }

    #[test]
    fn a_stream_that_ends_early_has_failed() {
        let early = WHOLE.split("data: {\"choices\":[{\"text\":\"\"").next().unwrap();
        let (answer, result) = read_pieces(Api::Completions, vec![early.as_bytes().to_vec()]);
        assert_eq!(answer.pieces.len(), 2);
        assert_eq!(result.unwrap_err(), "the stream was cut off");
    }

    #[test]
    fn requests_are_in_the_words_of_each_api() {
        let prompt = Prompt::Text("a b".to_owned());
        let ask = Ask { model: "m", key: None, prompt: &prompt, output_tokens: 3 };
        assert_eq!(body(Api::Chat, &ask)["messages"][0]["content"], "a b");
        assert_eq!(body(Api::Completions, &ask)["prompt"], "a b");
        assert_eq!(body(Api::Lorax, &ask)["parameters"]["adapter_id"], "m");
        let base = Ask { model: "base", ..ask };
        assert_eq!(body(Api::Lorax, &base)["parameters"].get("adapter_id"), None);
    }

    proptest! {
        #[test]
        fn where_the_network_cuts_a_stream_changes_nothing(cuts in proptest::collection::vec(any::<usize>(), 0..12)) {
            let (answer, result) = read_pieces(Api::Completions, split(WHOLE.as_bytes(), &cuts));
            prop_assert_eq!(result, Ok(()));
            prop_assert_eq!(answer.pieces.len(), 2);
            let usage = answer.usage.unwrap();
            prop_assert_eq!((usage.prompt_tokens, usage.completion_tokens), (7, 2));
        }

        #[test]
        fn garbage_fails_one_answer_and_nothing_else(
            garbage in proptest::collection::vec(any::<u8>(), 0..200), at: usize, cuts in proptest::collection::vec(any::<usize>(), 0..6),
        ) {
            let mut bytes = WHOLE.as_bytes().to_vec();
            let at = at % (bytes.len() + 1);
            bytes.splice(at..at, garbage);
            for api in [Api::Completions, Api::Chat, Api::Lorax] {
                let _ = read_pieces(api, split(&bytes, &cuts));
            }
        }
    }
}
