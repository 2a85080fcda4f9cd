//! The time of day, for what is written down or told.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix milliseconds; 0 on a machine that believes to be before 1970.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
