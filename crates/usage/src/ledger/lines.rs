//! Objects as lines: cutting pieces of bytes into lines of bounded length, and what a line is. Pure.

use crate::{Error, Record};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// A line is at most this long; only the first line of a joined object, which names its inputs, comes near it.
pub(super) const LINE_BYTES_MAX: usize = 1 << 20;
const HEADER_VERSION: u32 = 1;

/// The first line of a joined object: the keys of the objects that are in it. They may be deleted.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    v: u32,
    kind: String,
    pub(super) inputs: Vec<String>,
}

impl Header {
    pub(super) fn new(inputs: Vec<String>) -> Self {
        Self { v: HEADER_VERSION, kind: "joined".to_owned(), inputs }
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("text and integers are written into memory")
    }

    /// None: the line is no header that this program can read; nothing is deleted on its word.
    pub(super) fn from_json(line: &[u8]) -> Option<Self> {
        let header: Self = serde_json::from_slice(line).ok()?;
        (header.v == HEADER_VERSION && header.kind == "joined").then_some(header)
    }
}

/// Reads a line of an object. None: the header of a joined object, or an empty line.
pub(super) fn record(line: &[u8]) -> Option<Result<Record, Error>> {
    if line.is_empty() || Header::from_json_start(line) {
        return None;
    }
    Some(Record::from_json(line))
}

impl Header {
    /// Cheaper than reading it: records begin otherwise.
    fn from_json_start(line: &[u8]) -> bool {
        line.starts_with(b"{\"v\":1,\"kind\":\"joined\"")
    }
}

/// Cuts pieces into lines. Holds one line at most.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The beginning of a line that is not complete.
    rest: Vec<u8>,
    /// The line is longer than may be: the rest of it is skipped.
    is_skipping: bool,
}

/// A line without its end, or why there is none.
pub(super) type Line = Result<Bytes, &'static str>;

impl Lines {
    /// Takes in the next piece; returns the lines that end in it.
    pub(super) fn push(&mut self, piece: &Bytes) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut at = 0;
        while let Some(length) = piece[at..].iter().position(|byte| *byte == b'\n') {
            lines.push(self.complete(piece.slice(at..at + length)));
            at += length + 1;
        }
        self.keep(&piece[at..]);
        lines
    }

    /// The last line, if the object does not end with a line's end.
    pub(super) fn finish(&mut self) -> Option<Line> {
        if self.rest.is_empty() && !self.is_skipping {
            return None;
        }
        Some(self.complete(Bytes::new()))
    }

    fn complete(&mut self, end: Bytes) -> Line {
        let mut rest = std::mem::take(&mut self.rest);
        if std::mem::take(&mut self.is_skipping) || rest.len() + end.len() > LINE_BYTES_MAX {
            return Err("is longer than 1 MiB");
        }
        if rest.is_empty() {
            return Ok(end);
        }
        rest.extend_from_slice(&end);
        Ok(rest.into())
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.is_skipping |= self.rest.len() + bytes.len() > LINE_BYTES_MAX;
        if self.is_skipping {
            self.rest = Vec::new();
        } else {
            self.rest.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cut(pieces: &[&[u8]]) -> Vec<Line> {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        for piece in pieces {
            found.extend(lines.push(&Bytes::copy_from_slice(piece)));
        }
        found.extend(lines.finish());
        found
    }

    #[test]
    fn a_header_is_told_from_a_record() {
        let header = Header::new(vec!["a".to_owned()]);
        assert!(record(&header.to_json()).is_none());
        assert_eq!(Header::from_json(&header.to_json()), Some(header));
        assert_eq!(Header::from_json(b"{\"v\":2,\"kind\":\"joined\",\"inputs\":[\"a\"]}"), None);
        assert!(record(b"{\"v\":1}").is_some());
    }

    #[test]
    fn a_line_that_is_too_long_is_told_and_the_next_one_read() {
        let long = vec![b'x'; LINE_BYTES_MAX / 2 + 1];
        let lines = cut(&[&long, &long, b"y\nshort\n"]);
        assert_eq!(lines, [Err("is longer than 1 MiB"), Ok(Bytes::from_static(b"short"))]);
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(text in "[a\n]{0,60}", cuts in proptest::collection::vec(0usize..60, 0..6)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &text.as_bytes()[pair[0]..pair[1]]).collect();
            let expected: Vec<Line> =
                text.split_terminator('\n').map(|line| Ok(Bytes::copy_from_slice(line.as_bytes()))).collect();
            prop_assert_eq!(cut(&pieces), expected);
        }

        #[test]
        fn no_bytes_panic(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..6)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            for line in cut(&pieces).into_iter().flatten() {
                let _ = record(&line);
                let _ = Header::from_json(&line);
            }
        }
    }
}
