//! Request bodies: read under a cap, a clock and a budget shared by all requests, then parsed so that an error names
//! the field, or the line and column.
//!
//! Bodies are parsed into typed structs, never into a tree of JSON values: a tree can take forty times the bytes of
//! its text, and the text is the caller's choice.

use super::objects::Objects;
use crate::error::{Error, code};
use crate::generate::{Wanted, prompts};
use crate::limits::Limits;
use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use weft_fault::Fault;

/// A refused body is read and dropped up to this many bytes and this long, so that a client that is still sending
/// gets to read the answer.
const DRAIN_BYTES_MAX: usize = 64 << 20;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(5);
/// Room that is set aside before the first byte came.
const FIRST_ROOM_BYTES_MAX: usize = 64 << 10;

/// How a body is bounded.
#[derive(Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) bytes_max: usize,
    pub(crate) timeout: Duration,
}

/// A body that was read; its room is given back when this is dropped.
pub(crate) struct ReadBody {
    pub(crate) bytes: Bytes,
    room: Room,
}

impl ReadBody {
    /// The body is parsed: its bytes go, its room stays for what was made of them.
    pub(crate) fn parsed(self) -> Room {
        self.room
    }
}

/// Room for the bytes of one body, given back when dropped. To be held until the answers have ended: its prompts
/// may have to be sent to another worker.
pub(crate) struct Room {
    bytes: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Room for a copy of the body on its way to a worker for each of so many answers.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn for_answers(mut self, answers: usize, limits: &Limits) -> Result<Self, Error> {
        let copies = answers.saturating_sub(1);
        if copies > 0 {
            self.add(limits.body_bytes(self.bytes.saturating_mul(copies))?);
        }
        Ok(self)
    }

    /// The workers have the request: of the body, only its prompts are kept, each once, should they have to be sent again.
    pub(crate) fn keep_prompts(&mut self, wanted: &[Wanted]) {
        let kept = Limits::body_units_of(prompts(wanted).iter().map(|prompt| prompt.encoded_len()).sum());
        if let Some(permit) = &mut self.permit {
            drop(permit.split(permit.num_permits().saturating_sub(kept)));
        }
    }

    fn add(&mut self, more: OwnedSemaphorePermit) {
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
    }
}

/// Reads a body. What is left of one that is refused is drained by [`super::identify`].
///
/// # Errors
/// Too large, too slow, broken off, or no room.
pub(crate) async fn read(
    headers: &HeaderMap,
    mut body: Body,
    bounds: Bounds,
    limits: &Limits,
) -> Result<ReadBody, Error> {
    let too_large = Error::BodyTooLarge { max: bounds.bytes_max as u64 };
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > bounds.bytes_max as u64) {
        return Err(too_large);
    }
    let first_room = usize::try_from(announced.unwrap_or(0)).unwrap_or(0).min(FIRST_ROOM_BYTES_MAX);
    let mut bytes = BytesMut::with_capacity(first_room);
    let mut room = Room { bytes: 0, permit: None };
    let reading = async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Error::BodyBroken(error.to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > bounds.bytes_max {
                return Err(too_large);
            }
            room.add(limits.more_body_bytes(bytes.len(), data.len())?);
            bytes.extend_from_slice(&data);
        }
        Ok(())
    };
    match tokio::time::timeout(bounds.timeout, reading).await {
        Ok(read) => read?,
        Err(_) => return Err(Error::BodyTooSlow(bounds.timeout.as_secs())),
    }
    room.bytes = bytes.len();
    Ok(ReadBody { bytes: bytes.freeze(), room })
}

/// Reads and drops what is left of a body, within bounds.
pub(crate) async fn drain(mut body: Body) {
    let mut left = DRAIN_BYTES_MAX;
    let _ = tokio::time::timeout(DRAIN_TIME_MAX, async {
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    })
    .await;
}

/// Parses one JSON document, in which a struct is an object.
///
/// # Errors
/// `invalid_json` with line and column, or `invalid_type` with the field.
pub(crate) fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(Objects(&mut deserializer)).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        match inner.classify() {
            serde_json::error::Category::Data if path == "." => {
                Fault::new(weft_fault::Kind::Invalid, format!("body: {inner}")).with_code("invalid_type")
            }
            serde_json::error::Category::Data => {
                Fault::invalid(path.clone(), format!("`{path}`: {inner}")).with_code("invalid_type")
            }
            _ => malformed(&inner),
        }
    })?;
    deserializer.end().map_err(|error| malformed(&error))?;
    Ok(value)
}

fn malformed(error: &serde_json::Error) -> Fault {
    // serde_json's text ends with "at line L column C".
    Fault::new(weft_fault::Kind::Invalid, format!("malformed JSON: {error}")).with_code(code::INVALID_JSON)
}

/// What a field holds, without keeping it: enough to tell whether a setting that is not supported is really set.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Given {
    /// Absent or `null`.
    #[default]
    Nothing,
    Bool(bool),
    Number(f64),
    /// Whether the text is one of those that mean "as usual": see [`Given::text`].
    Text(Word),
    /// Entries.
    Array(usize),
    /// Entries.
    Object(usize),
}

/// A short text, compared in place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Word([u8; 16], usize);

impl Given {
    /// The text, if it is one of at most 16 bytes.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(Word(bytes, len)) => std::str::from_utf8(bytes.get(..*len)?).ok(),
            _ => None,
        }
    }

    /// Absent, `null`, `false`, an empty array or an empty object.
    pub(crate) fn is_off(&self) -> bool {
        matches!(self, Self::Nothing | Self::Bool(false) | Self::Array(0) | Self::Object(0)) || self.text() == Some("")
    }
}

impl<'de> Deserialize<'de> for Given {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Look;
        impl<'de> Visitor<'de> for Look {
            type Value = Given;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any value")
            }
            fn visit_unit<E>(self) -> Result<Given, E> {
                Ok(Given::Nothing)
            }
            fn visit_bool<E>(self, value: bool) -> Result<Given, E> {
                Ok(Given::Bool(value))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Given, E> {
                Ok(Given::Number(value as f64))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Given, E> {
                Ok(Given::Number(value as f64))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Given, E> {
                Ok(Given::Number(value))
            }
            fn visit_str<E>(self, value: &str) -> Result<Given, E> {
                let mut word = Word([0; 16], value.len());
                if let Some(room) = word.0.get_mut(..value.len()) {
                    room.copy_from_slice(value.as_bytes());
                }
                Ok(Given::Text(word))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Given, A::Error> {
                let mut entries = 0;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    entries += 1;
                }
                Ok(Given::Array(entries))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Given, A::Error> {
                let mut entries = 0;
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                    entries += 1;
                }
                Ok(Given::Object(entries))
            }
        }
        deserializer.deserialize_any(Look)
    }
}

/// For `deserialize_with` of a field that has a default: tells null, `Some(None)`, from absent.
pub(super) fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Outer {
        #[allow(dead_code)]
        inner: Vec<Inner>,
    }
    #[derive(Debug, Deserialize)]
    struct Inner {
        #[allow(dead_code)]
        count: u32,
    }

    #[test]
    fn a_wrong_type_names_its_field() {
        let fault = json::<Outer>(br#"{"inner":[{"count":1},{"count":"two"}]}"#).unwrap_err();
        assert_eq!(fault.param.as_deref(), Some("inner[1].count"));
        assert!(fault.message.contains("invalid type"), "{fault}");
    }

    #[test]
    fn malformed_json_names_line_and_column() {
        for text in ["{\"inner\":\n  oops}", "{", "", "{\"inner\":[]} x", "\u{feff}{}"] {
            let fault = json::<Outer>(text.as_bytes()).unwrap_err();
            assert_eq!(fault.code, code::INVALID_JSON, "{text:?}");
            assert!(fault.message.contains("line") && fault.message.contains("column"), "{fault}");
        }
    }

    #[test]
    fn an_array_is_no_object() {
        let fault = json::<Outer>(br#"[[{"count":1}]]"#).unwrap_err();
        assert_eq!((fault.code.as_str(), fault.param.as_deref()), ("invalid_type", None));
        let fault = json::<Outer>(br#"{"inner":[{"count":1},[2]]}"#).unwrap_err();
        assert_eq!(fault.param.as_deref(), Some("inner[1]"));
        assert!(fault.message.contains("invalid type: sequence"), "{fault}");
        #[derive(Debug, Deserialize)]
        struct Loose {
            raw: Option<Box<serde_json::value::RawValue>>,
            outer: Option<Outer>,
        }
        let loose = json::<Loose>(br#"{"raw": [1, {}], "outer": null}"#).unwrap();
        assert_eq!((loose.raw.unwrap().get(), loose.outer.is_none()), ("[1, {}]", true));
        assert!(json::<Loose>(br#"{"outer": [[]]}"#).is_err());
    }

    #[test]
    fn given_sees_without_keeping() {
        let given = |text: &str| json::<Given>(text.as_bytes()).unwrap();
        for off in ["null", "false", "[]", "{}", "\"\""] {
            assert!(given(off).is_off(), "{off}");
        }
        for on in ["true", "0", "[0]", "{\"a\":1}", "\"auto\""] {
            assert!(!given(on).is_off(), "{on}");
        }
        assert_eq!(given("\"auto\"").text(), Some("auto"));
        assert_eq!(given("\"a text of more than sixteen bytes\"").text(), None);
    }
}
