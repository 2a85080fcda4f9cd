//! `x-ratelimit-*`: what is left of the limits, in OpenAI's form.

use http::{HeaderMap, HeaderName, HeaderValue};
use std::time::Duration;
use weft_limits::{Standing, Window};

/// Writes the headers of what is limited; what is not has none.
pub(super) fn put(headers: &mut HeaderMap, standing: &Standing) {
    let names = [
        (standing.requests, ["limit-requests", "remaining-requests", "reset-requests"]),
        (standing.tokens, ["limit-tokens", "remaining-tokens", "reset-tokens"]),
    ];
    for (window, [limit, remaining, reset]) in names {
        let Some(Window { limit: units, remaining: left, reset: until_full }) = window else { continue };
        for (name, value) in [(limit, units.to_string()), (remaining, left.to_string()), (reset, shown(until_full))] {
            let name = HeaderName::try_from(format!("x-ratelimit-{name}"));
            if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        }
    }
}

/// As Go writes durations, to the millisecond, rounded up: `1h2m3s`, `6m0s`, `8.64s`, `17ms`, `0s`.
fn shown(duration: Duration) -> String {
    let ms = duration.as_micros().div_ceil(1000);
    if ms == 0 {
        return "0s".to_owned();
    }
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let (hours, minutes, seconds, rest) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60, ms % 1000);
    let fraction = format!("{rest:03}");
    let fraction = fraction.trim_end_matches('0');
    let seconds = if fraction.is_empty() { format!("{seconds}s") } else { format!("{seconds}.{fraction}s") };
    match (hours, minutes) {
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_openai_writes_them() {
        for (ms, expected) in [
            (0, "0s"),
            (17, "17ms"),
            (1000, "1s"),
            (8640, "8.64s"),
            (360_000, "6m0s"),
            (59_904, "59.904s"),
            (3_723_000, "1h2m3s"),
            (86_400_000, "24h0m0s"),
        ] {
            assert_eq!(shown(Duration::from_millis(ms)), expected);
        }
        assert_eq!(shown(Duration::from_micros(1)), "1ms", "rounded up");
    }
}
