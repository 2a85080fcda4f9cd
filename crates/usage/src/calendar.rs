//! Days and hours of UTC, as numbers since 1970 and as the text that keys and exports carry. Pure.

use std::fmt;
use time::OffsetDateTime;

/// The last time there is: 9999-12-31T23:59:59.999Z, in Unix milliseconds. Keys have four digits for the year.
pub const TIME_MS_MAX: u64 = 253_402_300_799_999;
const HOUR_MS: u64 = 3_600_000;

/// A day of UTC, counted from 1970-01-01. Written `yyyy-mm-dd`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Day(u32);

/// An hour of UTC, counted from 1970-01-01T00. Written `yyyy-mm-dd/hh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hour(u32);

impl Day {
    /// The day of this time in Unix milliseconds; times after [`TIME_MS_MAX`] belong to the last day.
    #[must_use]
    pub fn of_ms(ms: u64) -> Self {
        Hour::of_ms(ms).day()
    }

    /// Days since 1970-01-01, as Parquet writes a date.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }

    /// Its first millisecond.
    #[must_use]
    pub fn start_ms(self) -> u64 {
        u64::from(self.0) * 24 * HOUR_MS
    }
}

impl Hour {
    /// The hour of this time in Unix milliseconds; times after [`TIME_MS_MAX`] belong to the last hour.
    #[must_use]
    pub fn of_ms(ms: u64) -> Self {
        let hours = ms.min(TIME_MS_MAX) / HOUR_MS;
        Self(u32::try_from(hours).expect("the year 9999 is fewer than 2^32 hours away"))
    }

    /// Its first millisecond.
    #[must_use]
    pub fn start_ms(self) -> u64 {
        u64::from(self.0) * HOUR_MS
    }

    /// The first millisecond after it.
    #[must_use]
    pub fn end_ms(self) -> u64 {
        self.start_ms() + HOUR_MS
    }

    /// The day that it belongs to.
    #[must_use]
    pub fn day(self) -> Day {
        Day(self.0 / 24)
    }

    /// The hour before, if there is one.
    #[must_use]
    pub fn before(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }

    /// The hour after; that of the last hour is itself.
    #[must_use]
    pub fn after(self) -> Self {
        Self::of_ms(self.end_ms())
    }

    /// 0 to 23.
    #[must_use]
    pub fn of_day(self) -> u32 {
        self.0 % 24
    }

    /// Whether the two are the same hour or neighbours.
    #[must_use]
    pub fn is_near(self, other: Self) -> bool {
        self.0.abs_diff(other.0) <= 1
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Beyond the year 9999 there are no days: both constructors clamp.
        let start = OffsetDateTime::from_unix_timestamp(i64::from(self.0) * 86_400).map_err(|_| fmt::Error)?;
        write!(f, "{:04}-{:02}-{:02}", start.year(), u8::from(start.month()), start.day())
    }
}

impl fmt::Display for Hour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:02}", self.day(), self.of_day())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_become_days_and_hours_of_utc() {
        let ms = 1_751_328_000_000; // 2025-07-01T00:00:00Z
        assert_eq!(Hour::of_ms(ms).to_string(), "2025-07-01/00");
        assert_eq!(Hour::of_ms(ms - 1).to_string(), "2025-06-30/23");
        assert_eq!(Day::of_ms(ms + 86_399_999).to_string(), "2025-07-01");
        assert_eq!(Day::of_ms(ms).start_ms(), ms);
        assert_eq!(Hour::of_ms(0).to_string(), "1970-01-01/00");
        assert_eq!(Hour::of_ms(0).before(), None);
        let last = Hour::of_ms(u64::MAX);
        assert_eq!((last.to_string().as_str(), last.after()), ("9999-12-31/23", last));
    }
}
