//! An answer's id. Where the answer is of an experiment, the id carries which one, which arm and phase, and whether it counts, so that any
//! gateway can count feedback without having seen the answer:
//!
//! ```text
//! <32 hex digits>                          an answer of no experiment
//! <32 hex digits>-<22 letters base64url>   16 bytes: 1, experiment (4), phase, arm, counts, MAC (8)
//! ```
//!
//! The MAC is made with the tenant's salt over all of it, so that nobody makes up an id, or one of another tenant's.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::{Digest as _, Sha256};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use subtle::ConstantTimeEq;
use weft_experiments::Experiment;

const TAG: &[u8] = b"weft.response-id.v1";
const FORM: u8 = 1;
const PLAIN_BYTES: usize = 32;
const FACTS_BYTES: usize = 8;
const MAC_BYTES: usize = 8;
/// What OpenAI's dialect puts before an id.
const PREFIXES: [&str; 2] = ["chatcmpl-", "cmpl-"];

/// Where an answer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The start of a hash of its id.
    experiment: [u8; 4],
    pub(super) phase: u8,
    pub(super) arm: u8,
    /// Whether what is observed of it counts.
    pub(super) counts: bool,
}

impl Origin {
    /// Phases and arms are few: `weft_experiments` bounds both far below 256.
    pub(super) fn new(experiment: &Experiment, phase: usize, arm: usize, counts: bool) -> Self {
        let (phase, arm) = (u8::try_from(phase).unwrap_or(u8::MAX), u8::try_from(arm).unwrap_or(u8::MAX));
        Self { experiment: short(&experiment.id), phase, arm, counts }
    }

    /// Whether it is an answer of this experiment.
    pub(crate) fn is_of(&self, experiment: &Experiment) -> bool {
        self.experiment == short(&experiment.id)
    }

    /// Of its experiment.
    pub(super) fn number(&self) -> u64 {
        u64::from(u32::from_le_bytes(self.experiment))
    }

    fn facts(&self) -> [u8; FACTS_BYTES] {
        let [a, b, c, d] = self.experiment;
        [FORM, a, b, c, d, self.phase, self.arm, u8::from(self.counts)]
    }
}

/// What [`Origin::number`] is for this experiment.
pub(super) fn short_number(id: &str) -> u64 {
    u64::from(u32::from_le_bytes(short(id)))
}

fn short(id: &str) -> [u8; 4] {
    let hash = Sha256::digest(id.as_bytes());
    [hash[0], hash[1], hash[2], hash[3]]
}

/// An id that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The id without what it carries.
    pub(crate) plain: String,
    /// None: an answer of no experiment.
    pub(crate) origin: Option<Origin>,
}

/// The id of an answer that is about to be given.
pub(crate) struct ResponseId {
    plain: String,
    key: Option<[u8; 32]>,
}

impl ResponseId {
    /// A new one. A tenant without a salt cannot have ids that carry an arm.
    pub(crate) fn new(salt: Option<&[u8; 32]>) -> Self {
        Self { plain: uuid::Uuid::now_v7().simple().to_string(), key: salt.copied() }
    }

    /// Without the arm.
    pub(crate) fn plain(&self) -> String {
        self.plain.clone()
    }

    /// With the arm.
    pub(super) fn with_origin(&self, origin: &Origin) -> String {
        let Some(key) = &self.key else { return self.plain() };
        let facts = origin.facts();
        let sealed = [facts, mac(key, &self.plain, &facts)].concat();
        format!("{}-{}", self.plain, URL_SAFE_NO_PAD.encode(sealed))
    }

    /// How long ago an answer's id was made, by its UUID of version 7; none: it says nothing of time, or of a time to come.
    pub(crate) fn age(plain: &str) -> Option<Duration> {
        let made_ms = u64::from_str_radix(plain.get(..12)?, 16).ok()?;
        let made = UNIX_EPOCH.checked_add(Duration::from_millis(made_ms))?;
        SystemTime::now().duration_since(made).ok()
    }

    /// Reads an id, with or without the prefix of OpenAI's dialect. `None`: it is none that this tenant got.
    pub(crate) fn read(text: &str, salt: Option<&[u8; 32]>) -> Option<Answer> {
        let id = PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text);
        let (plain, sealed) = match id.split_once('-') {
            Some((plain, sealed)) => (plain, Some(sealed)),
            None => (id, None),
        };
        let is_plain = plain.len() == PLAIN_BYTES && plain.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !is_plain {
            return None;
        }
        let answer = |origin| Some(Answer { plain: plain.to_owned(), origin });
        let Some(sealed) = sealed else { return answer(None) };
        let sealed = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let sealed: [u8; FACTS_BYTES + MAC_BYTES] = sealed.try_into().ok()?;
        let (facts, theirs) = sealed.split_at(FACTS_BYTES);
        let facts: [u8; FACTS_BYTES] = facts.try_into().ok()?;
        if !bool::from(mac(salt?, plain, &facts).ct_eq(theirs)) {
            return None;
        }
        let [FORM, a, b, c, d, phase, arm, counts @ (0 | 1)] = facts else { return None };
        answer(Some(Origin { experiment: [a, b, c, d], phase, arm, counts: counts == 1 }))
    }
}

fn mac(key: &[u8; 32], plain: &str, facts: &[u8; FACTS_BYTES]) -> [u8; MAC_BYTES] {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(TAG);
    // Of fixed length, both: no two pairs are the same bytes.
    mac.update(plain.as_bytes());
    mac.update(facts);
    let mut short = [0; MAC_BYTES];
    short.copy_from_slice(&mac.finalize().into_bytes()[..MAC_BYTES]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin { experiment: short("summaries-2"), phase: 3, arm: 1, counts: true }
    }

    #[test]
    fn an_id_tells_its_arm_to_its_tenant_alone() {
        let id = ResponseId::new(Some(&[7; 32]));
        let text = id.with_origin(&origin());
        for text in [text.clone(), format!("chatcmpl-{text}"), format!("cmpl-{text}")] {
            let answer = Answer { plain: id.plain(), origin: Some(origin()) };
            assert_eq!(ResponseId::read(&text, Some(&[7; 32])), Some(answer), "{text}");
            assert_eq!(ResponseId::read(&text, Some(&[8; 32])), None);
            assert_eq!(ResponseId::read(&text, None), None);
        }
        assert!(ResponseId::age(&id.plain()).unwrap() < Duration::from_secs(60));
        assert!(ResponseId::age("00000000000000000000000000000000").unwrap() > Duration::from_secs(60));
        assert_eq!((ResponseId::age("x"), ResponseId::age("ffffffffffffffff")), (None, None));
        assert_eq!(ResponseId::read(&id.plain(), None), Some(Answer { plain: id.plain(), origin: None }));
        assert_eq!(ResponseId::new(None).with_origin(&origin()).len(), PLAIN_BYTES);
    }

    #[test]
    fn an_id_that_was_changed_is_nobodys() {
        let text = ResponseId::new(Some(&[7; 32])).with_origin(&origin());
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'a' { b'b' } else { b'a' };
            let changed = String::from_utf8(bytes).unwrap();
            // The last letter has bits that stand for nothing; a decoder that is strict about them refuses too.
            assert_eq!(ResponseId::read(&changed, Some(&[7; 32])), None, "{changed}");
        }
        for text in ["", "-", "chatcmpl-", "x", &"0".repeat(33), &format!("{}-", "0".repeat(32)), "é"] {
            assert_eq!(ResponseId::read(text, Some(&[7; 32])), None, "{text}");
        }
    }
}
