//! The rules. Each names the invariant of the design that it holds the mesh to; the numbers are those of the list "Invariants" in
//! `ARCHITECTURE.md`.

use crate::services::DIRECTORY_AGE_MAX_S;
use serde_json::Value;
use std::time::Duration;

/// A rule that the mesh must keep at all times, whatever fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rule {
    /// Invariant 1: an answer is of the digest that its model name stood for, and says so.
    RightAdapter,
    /// Invariant 6: no token of an answer is altered, repeated or left out, whichever workers it had.
    TokensExact,
    /// Invariant 3: what was acknowledged is in S3 at that moment, and every gateway shows it in the end.
    NothingLost,
    /// A version is written once: its number keeps its bytes, and no bytes have two numbers.
    VersionsImmutable,
    /// Staleness: a revoked key is refused everywhere within [`REVOKED_WITHIN`].
    RevokedInTime,
    /// Staleness: a gateway that reaches the registry, and through it S3, knows a key or a version within [`SEEN_WITHIN`].
    SeenInTime,
    /// An answer that began has one end: its last token, or an error that says so. It is never cut off in silence.
    OneEnd,
    /// Invariant 4: every refusal has a status and a code of the list, and one that says "later" says when.
    KnownErrors,
    /// Invariant 4: nobody waits for an answer beyond the limits that were set.
    NoHang,
    /// Invariant 5: nothing from outside makes a service panic, or end.
    NoPanic,
    /// Invariant 7: when the faults are over, everything works again within [`RECOVERED_WITHIN`].
    Recovers,
}

/// A gateway hears of a write within 15 s, by listing alone.
pub const SEEN_WITHIN: Duration = Duration::from_secs(15);

/// By then a gateway has a directory of after the revocation, or has stopped to serve from the one of before: it serves for
/// `directory_age_max_s` from one that says how long ago it was read from S3, and that may have been 12 s on its way (a stream that is
/// silent for longer is given up). One second for the request itself.
pub const REVOKED_WITHIN: Duration = Duration::from_secs(DIRECTORY_AGE_MAX_S + 12 + 1);

/// A connection that died in silence is noticed within 30 s (keep-alive) and made anew within a few more.
pub const NOTICED_WITHIN: Duration = Duration::from_secs(40);

/// The registry's longest wait for S3, and [`NOTICED_WITHIN`] after it.
pub const RECOVERED_WITHIN: Duration = Duration::from_secs(90);

/// What a client does about an answer that is not the one it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Asks again a little later.
    Later,
    /// The key is not known here.
    Key,
    /// The model is not known here.
    Model,
    /// Other bytes were used: the mesh noticed, and delivered nothing.
    WrongBytes,
}

/// Reads a refusal of a gateway: `status` of HTTP (200: an error event in a stream), OpenAI's body.
///
/// # Errors
/// It is none that the documentation has.
pub fn refusal(status: u16, body: &Value, has_retry_after: bool) -> Result<Refusal, String> {
    let error = &body["error"];
    let (code, kind) = (error["code"].as_str().unwrap_or_default(), error["type"].as_str().unwrap_or_default());
    let unknown = || Err(format!("status {status}, {body}"));
    if error["message"].as_str().unwrap_or_default().is_empty() || code.is_empty() {
        return unknown();
    }
    match (status, code) {
        (200 | 500, "adapter_mismatch") => Ok(Refusal::WrongBytes),
        (429 | 503, _) if !has_retry_after => Err(format!("status {status} without retry-after, {body}")),
        (429 | 503 | 504, _) => Ok(Refusal::Later),
        // In a stream the status is long out: the type tells.
        (200, _) if matches!(kind, "server_error" | "rate_limit_error") && !code.contains("internal") => {
            Ok(Refusal::Later)
        }
        (401, "invalid_api_key") => Ok(Refusal::Key),
        (404, "model_not_found") => Ok(Refusal::Model),
        _ => unknown(),
    }
}

/// What came of a stream: the text, and how it ended.
#[derive(Debug, PartialEq)]
pub enum End {
    /// With its last token.
    Whole,
    /// With an error event.
    Failed(Value),
}

/// Reads the events of a completion's stream, as far as they came. `is_closed`: the body came to its proper end.
///
/// # Errors
/// It has no end, two of them, or something behind it.
pub fn stream_end(data: &[String], is_closed: bool) -> Result<(String, Option<End>), String> {
    let mut text = String::new();
    let (mut finished, mut end) = (false, None);
    for event in data {
        if end.is_some() {
            return Err(format!("{event} came behind the end"));
        }
        if event == "[DONE]" {
            if !finished {
                return Err("[DONE] came before a finish_reason".to_owned());
            }
            end = Some(End::Whole);
            continue;
        }
        let event: Value = serde_json::from_str(event).map_err(|error| format!("{error}: {event}"))?;
        if event.get("error").is_some() {
            end = Some(End::Failed(event));
            continue;
        }
        let choice = &event["choices"][0];
        if finished {
            return Err(format!("{event} came behind a finish_reason"));
        }
        text.push_str(choice["text"].as_str().unwrap_or_default());
        finished = !choice["finish_reason"].is_null();
    }
    if is_closed && end.is_none() {
        return Err(format!("the stream ended in silence after {text:?}"));
    }
    Ok((text, end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error(code: &str) -> Value {
        json!({"error": {"message": "m", "type": "server_error", "param": null, "code": code}})
    }

    #[test]
    fn refusals_of_the_list_are_read_and_others_are_not() {
        assert_eq!(refusal(503, &error("no_worker"), true), Ok(Refusal::Later));
        assert_eq!(refusal(504, &error("timeout"), false), Ok(Refusal::Later));
        assert_eq!(refusal(200, &error("worker_lost"), false), Ok(Refusal::Later));
        assert_eq!(refusal(401, &error("invalid_api_key"), false), Ok(Refusal::Key));
        assert_eq!(refusal(404, &error("model_not_found"), false), Ok(Refusal::Model));
        assert_eq!(refusal(500, &error("adapter_mismatch"), false), Ok(Refusal::WrongBytes));
        assert!(refusal(503, &error("no_worker"), false).is_err(), "it must say when");
        assert!(refusal(500, &error("internal"), false).is_err());
        assert!(refusal(200, &error("internal"), false).is_err());
        assert!(refusal(503, &json!({}), true).is_err());
    }

    #[test]
    fn a_stream_has_exactly_one_end() {
        let piece = |text: &str| json!({"choices": [{"text": text, "finish_reason": null}]}).to_string();
        let last = json!({"choices": [{"text": "", "finish_reason": "length"}]}).to_string();
        let done = "[DONE]".to_owned();
        let whole = [piece("a"), piece("b"), last.clone(), done.clone()];
        assert_eq!(stream_end(&whole, true), Ok(("ab".to_owned(), Some(End::Whole))));
        let failed = [piece("a"), error("worker_lost").to_string()];
        assert_eq!(stream_end(&failed, true), Ok(("a".to_owned(), Some(End::Failed(error("worker_lost"))))));
        assert_eq!(stream_end(&[piece("a")], false), Ok(("a".to_owned(), None)), "the connection broke");
        for wrong in [
            vec![piece("a")],
            vec![piece("a"), last.clone()],
            vec![piece("a"), done.clone()],
            vec![last.clone(), piece("a"), done.clone()],
            vec![last.clone(), done.clone(), done.clone()],
            vec![last, done, error("worker_lost").to_string()],
            vec!["{".to_owned()],
        ] {
            assert!(stream_end(&wrong, true).is_err(), "{wrong:?}");
        }
    }
}
