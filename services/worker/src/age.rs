//! How old this process is.

use std::time::Duration;

/// Unit of start times in `/proc/<pid>/stat`: `USER_HZ`, which is 100 on every architecture we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// Time since the process was started, to a hundredth of a second; none where the system does not tell.
pub(crate) fn of_process() -> Option<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Field 22; the second field is a name in parentheses that may hold anything.
    let started: f64 = stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()?;
    let uptime: f64 = std::fs::read_to_string("/proc/uptime").ok()?.split(' ').next()?.parse().ok()?;
    Duration::try_from_secs_f64(uptime - started / TICKS_PER_SECOND).ok()
}

#[cfg(test)]
mod tests {
    #[test]
    #[cfg(target_os = "linux")]
    fn a_process_has_an_age_and_only_gets_older() {
        let first = super::of_process().unwrap();
        assert!(first < std::time::Duration::from_secs(3600), "{first:?}");
        assert!(super::of_process().unwrap() >= first);
    }
}
