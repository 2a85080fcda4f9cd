//! Time and randomness of a simulated machine.
//!
//! Services ask the machine for both in many places: deadlines, jitter, ids, keys, the order of hash maps, the choices of `select!`.
//! All of it ends in two functions of the C library, so these are what is simulated: on a thread that [`begin`] was called on, time is
//! what [`set_elapsed`] said and random bytes are drawn from the seed. On every other thread both are the machine's own.
//!
//! The definitions here take the place of the C library's in every program that this library is linked into (Linux, dynamic C library).
//! What counts in statics of the process (tokio's counter of runtimes, ids of tasks and threads) is not reset: a seed is reproduced by a
//! process of its own.

use std::cell::Cell;
use std::time::Duration;

/// The beginning of every simulation: 2026-01-01 00:00:00 UTC.
pub const EPOCH: Duration = Duration::from_secs(1_767_225_600);
/// How long a simulated machine has been up when a simulation begins, so that nothing underflows that looks back.
const UPTIME: Duration = Duration::from_secs(100_000);

thread_local! {
    /// Since the simulation began. None: this thread is not simulated.
    static ELAPSED: Cell<Option<Duration>> = const { Cell::new(None) };
    static RANDOM: Cell<u64> = const { Cell::new(0) };
}

/// From now on this thread's time is simulated and its random bytes follow from the seed.
pub fn begin(seed: u64) {
    RANDOM.set(seed);
    ELAPSED.set(Some(Duration::ZERO));
    // Its own seed is made of the thread's id, which differs from process to process.
    fastrand::seed(seed);
}

/// So much time has passed since the simulation began. Without [`begin`] it does nothing.
pub fn set_elapsed(elapsed: Duration) {
    if ELAPSED.get().is_some() {
        ELAPSED.set(Some(elapsed));
    }
}

/// Time since the simulation of this thread began; zero without one.
#[must_use]
pub fn elapsed() -> Duration {
    ELAPSED.get().unwrap_or_default()
}

/// SplitMix64.
fn next_random() -> u64 {
    let state = RANDOM.get().wrapping_add(0x9E37_79B9_7F4A_7C15);
    RANDOM.set(state);
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// The C library's.
///
/// # Safety
/// `time` points to a `timespec` that may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    let since = match (ELAPSED.get(), clock) {
        (Some(elapsed), libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE) => EPOCH + elapsed,
        (
            Some(elapsed),
            libc::CLOCK_MONOTONIC | libc::CLOCK_MONOTONIC_COARSE | libc::CLOCK_MONOTONIC_RAW | libc::CLOCK_BOOTTIME,
        ) => UPTIME + elapsed,
        // SAFETY: the system call has the contract of this function.
        _ => return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as libc::c_int,
    };
    let simulated = libc::timespec { tv_sec: since.as_secs() as libc::time_t, tv_nsec: since.subsec_nanos().into() };
    // SAFETY: the caller promises that it may be written.
    unsafe { time.write(simulated) };
    0
}

/// The C library's.
///
/// # Safety
/// `bytes` points to `length` bytes that may be written.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(bytes: *mut libc::c_void, length: libc::size_t, flags: libc::c_uint) -> libc::ssize_t {
    if ELAPSED.get().is_none() {
        // SAFETY: the system call has the contract of this function.
        return unsafe { libc::syscall(libc::SYS_getrandom, bytes, length, flags) } as libc::ssize_t;
    }
    let bytes = bytes.cast::<u8>();
    let mut random = 0;
    for at in 0..length {
        if at % 8 == 0 {
            random = next_random();
        }
        // SAFETY: `at` is less than `length`, and the caller promises that so many bytes may be written.
        unsafe { bytes.add(at).write((random >> (at % 8 * 8)) as u8) };
    }
    length as libc::ssize_t
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Instant, SystemTime};

    fn on_a_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(work).join().unwrap()
    }

    #[test]
    fn time_is_what_was_said_and_nothing_else() {
        on_a_thread(|| {
            begin(1);
            let (instant, wall) = (Instant::now(), SystemTime::now());
            assert_eq!(wall.duration_since(SystemTime::UNIX_EPOCH).unwrap(), EPOCH);
            std::thread::sleep(Duration::from_millis(2));
            assert_eq!(Instant::now(), instant);
            set_elapsed(Duration::from_millis(1500));
            assert_eq!(instant.elapsed(), Duration::from_millis(1500));
            assert_eq!(wall.elapsed().unwrap(), Duration::from_millis(1500));
        });
    }

    #[test]
    fn whatever_draws_at_random_draws_from_the_seed() {
        let drawn = |seed| {
            on_a_thread(move || {
                begin(seed);
                let order: Vec<u32> = (0..50).collect::<std::collections::HashSet<u32>>().into_iter().collect();
                (rand::random::<u64>(), uuid::Uuid::new_v4(), fastrand::u64(..), order)
            })
        };
        assert_eq!(drawn(7), drawn(7));
        assert_ne!(drawn(7), drawn(8));
    }

    #[test]
    fn other_threads_have_the_machines_own() {
        let (time, random) = on_a_thread(|| (SystemTime::now(), rand::random::<u64>()));
        assert!(time.duration_since(SystemTime::UNIX_EPOCH).unwrap() > EPOCH);
        assert_ne!(random, on_a_thread(rand::random::<u64>));
    }
}
