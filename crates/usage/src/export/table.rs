//! What a table is made of, whatever it is written as.

use crate::Day;

/// What a column holds. Every cell may be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Count,
    /// Unix milliseconds.
    Time,
    Date,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
}

impl Column {
    pub(super) const fn new(name: &'static str, kind: Kind) -> Self {
        Self { name, kind }
    }
}

/// One value, of its column's kind or empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    Empty,
    Text(String),
    Count(u128),
    Time(u64),
    Date(Day),
}

impl Cell {
    pub(super) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    pub(super) fn count(count: impl Into<Option<u64>>) -> Self {
        count.into().map_or(Self::Empty, |count| Self::Count(count.into()))
    }
}
