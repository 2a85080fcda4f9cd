//! Takes pieces off the front of a byte slice, never past its end.

use super::{Problem, broken};

pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Everything not taken yet.
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    /// The next `count` bytes; `what` names them in the error.
    pub(super) fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], Problem> {
        if count > self.left() {
            return Err(broken(format!(
                "{what} at byte {} needs {count} bytes but the file has {} left: it was cut short",
                self.at,
                self.left()
            )));
        }
        let piece = &self.bytes[self.at..self.at + count];
        self.at += count;
        Ok(piece)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Problem> {
        let mut raw = [0; N];
        raw.copy_from_slice(self.take(N, what)?);
        Ok(raw)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, Problem> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, Problem> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A length-prefixed byte string.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a [u8], Problem> {
        let length = self.u64(what)?;
        // A length beyond the address space is beyond the file too.
        self.take(usize::try_from(length).unwrap_or(usize::MAX), what)
    }

    /// A length-prefixed string that must be UTF-8 of at most `bytes_max` bytes.
    pub(super) fn text(&mut self, bytes_max: usize, what: &str) -> Result<&'a str, Problem> {
        let at = self.at;
        let raw = self.string(what)?;
        if raw.len() > bytes_max {
            return Err(broken(format!("{what} at byte {at} has {} bytes, more than {bytes_max}", raw.len())));
        }
        std::str::from_utf8(raw).map_err(|_| broken(format!("{what} at byte {at} is not utf-8")))
    }
}
