//! Why a package is refused, and what can be wrong with a blob.

use crate::canonical::{FORMAT_DORA, FORMAT_LORA};
use weft_fault::{Fault, Kind};

/// A refusal lists at most this many reasons; one more says how many were left out.
pub const REASONS_MAX: usize = 64;
/// A reason is cut to this many bytes: it may quote names from the file.
const REASON_BYTES_MAX: usize = 600;

/// A name quoted in a reason is cut to this many characters; PEFT's own have about 70.
const SHOWN_CHARS_MAX: usize = 100;

/// Why a package is not accepted: every reason at once, each naming the key or tensor, the value and the limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the package is refused: {}", .reasons.join("; "))]
pub struct Refusal {
    /// Never empty.
    pub reasons: Vec<String>,
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Fault::new(Kind::Refused, "the package is refused").with_code("package_refused").with_reasons(refusal.reasons)
    }
}

/// Collects reasons, or warnings, under a bound: they quote what somebody sent.
#[derive(Debug, Default)]
pub(crate) struct Reasons {
    kept: Vec<String>,
    left_out: usize,
}

impl Reasons {
    pub(crate) fn push(&mut self, reason: impl Into<String>) {
        let mut reason = reason.into();
        if self.kept.len() == REASONS_MAX {
            self.left_out += 1;
            return;
        }
        if reason.len() > REASON_BYTES_MAX {
            let mut end = REASON_BYTES_MAX;
            while !reason.is_char_boundary(end) {
                end -= 1;
            }
            reason.truncate(end);
            reason.push('…');
        }
        self.kept.push(reason);
    }

    /// Takes over the reasons of another stage, in their order.
    pub(crate) fn append(&mut self, other: Self) {
        for reason in other.kept {
            self.push(reason);
        }
        self.left_out += other.left_out;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// All of them; a last one says how many were left out.
    pub(crate) fn into_list(mut self) -> Vec<String> {
        if self.left_out > 0 {
            self.kept.push(format!("and {} more", self.left_out));
        }
        self.kept
    }

    /// The refusal these amount to, if there is at least one.
    pub(crate) fn into_refusal(self) -> Option<Refusal> {
        if self.kept.is_empty() { None } else { Some(Refusal { reasons: self.into_list() }) }
    }

    #[cfg(test)]
    pub(crate) fn list(&self) -> &[String] {
        &self.kept
    }
}

/// A name or value from outside for a message: cut, so that what is said about it still fits.
pub(crate) fn shown(text: &str) -> String {
    let mut cut: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    if cut.len() < text.len() {
        cut.push('…');
    }
    cut
}

/// A few names for a message: the first three and how many more there are.
pub(crate) fn some_names<T: AsRef<str>>(names: &[T]) -> String {
    let shown: Vec<String> = names.iter().take(3).map(|name| shown(name.as_ref())).collect();
    let more = names.len() - shown.len();
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

/// A blob that is not what the canonical writer writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The file is no well-formed safetensors file.
    #[error("the blob is not a safetensors file: {0}")]
    NotSafetensors(String),
    /// A format number that this build does not read.
    #[error(
        "the blob has format {}, this build reads {FORMAT_LORA} and {FORMAT_DORA}",
        .found.as_deref().unwrap_or("none")
    )]
    Format {
        /// The number found, if any.
        found: Option<String>,
    },
    /// Well-formed, but not what the canonical writer writes for any package.
    #[error("the blob is not canonical: {0}")]
    NotCanonical(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let code = match error {
            Error::Format { .. } => "adapter_format_unknown",
            Error::NotSafetensors(_) | Error::NotCanonical(_) => "adapter_blob_corrupt",
        };
        Fault::new(Kind::Corrupt, error.to_string()).with_code(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_bounded_in_number_and_length() {
        let mut reasons = Reasons::default();
        for _ in 0..REASONS_MAX + 5 {
            reasons.push("ü".repeat(1000));
        }
        let refusal = reasons.into_refusal().expect("there are reasons");
        assert_eq!(refusal.reasons.len(), REASONS_MAX + 1);
        assert!(refusal.reasons[0].len() < REASON_BYTES_MAX + 8);
        assert_eq!(refusal.reasons[REASONS_MAX], "and 5 more");
        assert!(Reasons::default().into_refusal().is_none());
    }

    #[test]
    fn faults_tell_a_refusal_from_a_corrupt_blob() {
        let refused = Fault::from(Refusal { reasons: vec!["r is 0".to_owned()] });
        assert_eq!((refused.kind, refused.reasons.len()), (Kind::Refused, 1));
        assert_eq!(Fault::from(Error::Format { found: None }).kind, Kind::Corrupt);
    }
}
