//! The name of a segment: who wrote it, which one it is, and from when it is.

use crate::Hour;

const WRITER_DIGITS: usize = 32;
const SEQUENCE_DIGITS: usize = 8;
const TIME_DIGITS: usize = 15;

/// A closed segment of a log.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    writer: String,
    sequence: u32,
    time_ms: u64,
}

impl Segment {
    pub(super) fn new(writer: &str, sequence: u32, time_ms: u64) -> Self {
        Self { writer: writer.to_owned(), sequence, time_ms }
    }

    /// Reads [`Segment::name`]; `None`: it is no such name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.split('-');
        let (writer, sequence, time) = (parts.next()?, parts.next()?, parts.next()?);
        let is_hex = writer.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let has_digits = |text: &str, digits| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_digit());
        let is_whole = parts.next().is_none() && writer.len() == WRITER_DIGITS && is_hex;
        if !is_whole || !has_digits(sequence, SEQUENCE_DIGITS) || !has_digits(time, TIME_DIGITS) {
            return None;
        }
        Some(Self::new(writer, sequence.parse().ok()?, time.parse().ok()?))
    }

    /// `<writer>-<sequence>-<time>`: its file's name without the ending.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}-{:08}-{:015}", self.writer, self.sequence, self.time_ms)
    }

    /// Names one opening of a log: 32 hex digits.
    #[must_use]
    pub fn writer(&self) -> &str {
        &self.writer
    }

    /// Counts the segments of a writer from 0.
    #[must_use]
    pub fn sequence(&self) -> u32 {
        self.sequence
    }

    /// When its first record ended, in Unix milliseconds.
    #[must_use]
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The hour of its time; its records are of this hour or a neighbour of it.
    #[must_use]
    pub fn hour(&self) -> Hour {
        Hour::of_ms(self.time_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_name_comes_back() {
        let segment = Segment::new(&"0a".repeat(16), 7, 1_751_328_000_000);
        assert_eq!(segment.name(), format!("{}-00000007-001751328000000", "0a".repeat(16)));
        assert_eq!(Segment::parse(&segment.name()), Some(segment));
    }

    proptest! {
        #[test]
        fn no_name_panics(name in ".{0,80}") {
            let _ = Segment::parse(&name);
        }
    }
}
