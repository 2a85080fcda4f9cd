//! A fixed pool of threads for regions of a few microseconds.
//!
//! A region is a function over `0..total`, cut into one contiguous share per thread, so that each streams through memory
//! of its own. A thread claims its share from the front, in pieces that shrink, and then takes from the back of what others
//! have left: a thread that was interrupted, or never came, holds up the others by little.
//!
//! The caller works too, and waits only for workers that *joined*: a worker that wakes late finds the region closed
//! and is not waited for. Workers spin for some tens of microseconds after a region, because the next one of the same
//! step follows soon, and then park, so that an idle process uses no processor.
//!
//! Where a region is running already (a second caller, or a call from inside a region) the caller does all of its
//! work alone: nothing waits for the pool, so nothing can deadlock on it.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::{self, JoinHandle, Thread};

/// Looks at the region word this often before parking: roughly 50 microseconds.
const SPINS_BEFORE_PARK: u32 = 2_000;
/// Spins of the caller between yields while workers finish: they may share its core.
const SPINS_BEFORE_YIELD: u32 = 200;

/// The region word: `epoch << 32 | OPEN | joined workers`.
const OPEN: u64 = 1 << 31;
const JOINED: u64 = OPEN - 1;
const EPOCH: u64 = 1 << 32;

pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<Worker>,
    /// Held by the caller whose region is running.
    region: Mutex<()>,
}

struct Worker {
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

struct Shared {
    word: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    stop: AtomicBool,
    /// One per worker: it parks, or is about to.
    parked: Vec<AtomicBool>,
    /// What is left of each thread's share of the region, the caller's first.
    shares: Vec<Share>,
}

// SAFETY: `job` is written only while the word is closed with no worker joined, and read only by workers that joined
// after it was opened; the word's release and acquire order the two.
unsafe impl Sync for Shared {}
// SAFETY: the pointers in `job` are dereferenced only while the caller that owns their targets waits in `run`.
unsafe impl Send for Shared {}

/// A region: pointers into the frame of the caller that waits for it.
#[derive(Clone, Copy)]
struct Job {
    region: *const Region<'static>,
}

struct Region<'a> {
    prefer: usize,
    body: &'a (dyn Fn(Range<usize>) + Sync),
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A range that its owner takes from at the front and others at the back: `start << 32 | end`, on a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct Share(AtomicU64);

impl Share {
    fn set(&self, range: Range<usize>) {
        self.0.store((range.start as u64) << 32 | range.end as u64, Ordering::Relaxed);
    }

    fn range(word: u64) -> Range<usize> {
        (word >> 32) as usize..(word & u64::from(u32::MAX)) as usize
    }

    fn len(&self) -> usize {
        Self::range(self.0.load(Ordering::Relaxed)).len()
    }

    /// Takes what `cut` makes of what is left: its two parts are the range taken and the range left.
    fn take(&self, cut: impl Fn(Range<usize>) -> [Range<usize>; 2]) -> Option<Range<usize>> {
        let mut word = self.0.load(Ordering::Relaxed);
        loop {
            let range = Self::range(word);
            if range.is_empty() {
                return None;
            }
            let [taken, left] = cut(range);
            let next = (left.start as u64) << 32 | left.end as u64;
            match self.0.compare_exchange_weak(word, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(taken),
                Err(now) => word = now,
            }
        }
    }

    /// Half of it, in whole pieces of `prefer`.
    fn front(&self, prefer: usize) -> Option<Range<usize>> {
        self.take(|Range { start, end }| {
            let half = (end - start) / 2;
            let middle = start + (half - half % prefer).max(prefer).min(end - start);
            [start..middle, middle..end]
        })
    }

    /// One piece.
    fn back(&self, prefer: usize) -> Option<Range<usize>> {
        self.take(|Range { start, end }| {
            // The last piece of a region may be shorter; all others end at multiples of it.
            let rest = (end - start) % prefer;
            let middle = end - if rest == 0 { prefer } else { rest };
            [middle..end, start..middle]
        })
    }
}

impl Pool {
    /// A pool in which `threads` compute: the caller and `threads - 1` workers.
    pub(crate) fn new(threads: usize) -> Self {
        let count = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            word: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            stop: AtomicBool::new(false),
            parked: (0..count).map(|_| AtomicBool::new(false)).collect(),
            shares: (0..=count).map(|_| Share::default()).collect(),
        });
        let workers = (0..count)
            .map(|index| {
                let shared = Arc::clone(&shared);
                let handle = thread::Builder::new()
                    .name(format!("weft-kernels-{index}"))
                    .spawn(move || shared.work(index))
                    .expect("invariant: the system can start the kernel threads at start-up");
                Worker { thread: handle.thread().clone(), handle: Some(handle) }
            })
            .collect();
        Self { shared, workers, region: Mutex::new(()) }
    }

    /// Threads that compute, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `body` over all of `0..total` and returns when it is done. Ranges are multiples of `prefer` long, but for what
    /// that leaves over at the end. A panic in `body` stops further claims and comes out of this call.
    pub(crate) fn run(&self, total: usize, prefer: usize, body: &(dyn Fn(Range<usize>) + Sync)) {
        if total == 0 {
            return;
        }
        if self.workers.is_empty() || total <= prefer || u32::try_from(total).is_err() {
            return body(0..total);
        }
        let guard = match self.region.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return body(0..total),
        };
        let region = Region { prefer, body, panic: Mutex::new(None) };
        self.shared.open(&region, total);
        self.wake(total.div_ceil(prefer));
        self.shared.take_part(&region, 0);
        self.shared.close();
        drop(guard);
        let panic = region.panic.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Unparks as many workers as `pieces` can use.
    fn wake(&self, pieces: usize) {
        // Pairs with the fence in `wait`: either we see the worker's flag, or it sees the open word.
        fence(Ordering::SeqCst);
        for (worker, parked) in self.workers.iter().zip(&self.shared.parked).take(pieces - 1) {
            if parked.load(Ordering::Relaxed) && parked.swap(false, Ordering::Relaxed) {
                worker.thread.unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for worker in &mut self.workers {
            worker.thread.unpark();
            if let Some(handle) = worker.handle.take() {
                // A worker never unwinds: panics of bodies are caught and given to the caller.
                let _ = handle.join();
            }
        }
    }
}

impl Shared {
    fn open(&self, region: &Region<'_>, total: usize) {
        let (pieces, threads) = (total.div_ceil(region.prefer), self.shares.len());
        let border = |thread: usize| (pieces * thread / threads * region.prefer).min(total);
        for (thread, share) in self.shares.iter().enumerate() {
            share.set(border(thread)..border(thread + 1));
        }
        let region: *const Region<'_> = region;
        // SAFETY: the caller holds the region lock, the word is closed and no worker is joined (`close` waited),
        // so nobody reads `job` now. The lifetime is erased; `close` waits for every reader before `run` returns.
        unsafe { *self.job.get() = Some(Job { region: region.cast() }) };
        let word = self.word.load(Ordering::Relaxed);
        self.word.store((word & !JOINED).wrapping_add(EPOCH) | OPEN, Ordering::Release);
    }

    /// Lets no more workers in and waits for those inside.
    fn close(&self) {
        let mut word = self.word.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while word & JOINED != 0 {
            spins += 1;
            if spins.is_multiple_of(SPINS_BEFORE_YIELD) {
                thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
            word = self.word.load(Ordering::Acquire);
        }
    }

    /// The life of a worker.
    fn work(&self, index: usize) {
        let mut seen = 0;
        while let Some(word) = self.wait(index, seen) {
            seen = word / EPOCH;
            if !self.join(word) {
                continue;
            }
            // SAFETY: joined, so `job` was published by the `open` whose word we saw, and the caller waits in
            // `close` until we leave.
            let region = unsafe { (*self.job.get()).map(|job| &*job.region) };
            if let Some(region) = region {
                self.take_part(region, index + 1);
            }
            self.word.fetch_sub(1, Ordering::Release);
        }
    }

    /// Claims ranges until none is left. Keeps the first panic and stops the region.
    fn take_part(&self, region: &Region<'_>, thread: usize) {
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            while let Some(range) = self.claim(thread, region.prefer) {
                (region.body)(range);
            }
        }));
        if let Err(panic) = outcome {
            self.shares.iter().for_each(|share| share.set(0..0));
            let mut first = region.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            first.get_or_insert(panic);
        }
    }

    /// From the thread's own share, then from whoever has most left.
    fn claim(&self, thread: usize, prefer: usize) -> Option<Range<usize>> {
        let own = self.shares[thread].front(prefer);
        own.or_else(|| {
            loop {
                let most = self.shares.iter().max_by_key(|share| share.len())?;
                if most.len() == 0 {
                    return None;
                }
                // Nothing: somebody else was faster.
                if let Some(range) = most.back(prefer) {
                    return Some(range);
                }
            }
        })
    }

    /// Waits for a region newer than `seen`; None at the end of the pool.
    fn wait(&self, index: usize, seen: u64) -> Option<u64> {
        loop {
            for _ in 0..SPINS_BEFORE_PARK {
                let word = self.word.load(Ordering::Acquire);
                if word & OPEN != 0 && word / EPOCH != seen {
                    return Some(word);
                }
                if self.stop.load(Ordering::Relaxed) {
                    return None;
                }
                std::hint::spin_loop();
            }
            self.parked[index].store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let word = self.word.load(Ordering::Acquire);
            let news = word & OPEN != 0 && word / EPOCH != seen;
            if !news && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            self.parked[index].store(false, Ordering::Relaxed);
        }
    }

    /// Joins the region of `word` unless it is closed meanwhile.
    fn join(&self, mut word: u64) -> bool {
        let epoch = word / EPOCH;
        while word & OPEN != 0 && word / EPOCH == epoch {
            match self.word.compare_exchange_weak(word, word + 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => word = now,
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn every_index_runs_once_whatever_the_total_and_the_threads() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for total in [0, 1, 2, 3, 17, 1000] {
                let hits: Vec<AtomicUsize> = (0..total).map(|_| AtomicUsize::new(0)).collect();
                pool.run(total, 4, &|range| {
                    for i in range {
                        hits[i].fetch_add(1, Ordering::Relaxed);
                    }
                });
                assert!(hits.iter().all(|hit| hit.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn thousands_of_regions_in_a_row_lose_no_work() {
        let pool = Pool::new(3);
        let sum = AtomicUsize::new(0);
        for _ in 0..20_000 {
            pool.run(7, 1, &|range| {
                sum.fetch_add(range.len(), Ordering::Relaxed);
            });
        }
        assert_eq!(sum.into_inner(), 7 * 20_000);
    }

    #[test]
    fn parked_workers_come_back() {
        let pool = Pool::new(2);
        while !pool.shared.parked[0].load(Ordering::Relaxed) {
            thread::yield_now();
        }
        // The caller's body waits for the worker's, so this ends only if the worker woke up.
        let barrier = std::sync::Barrier::new(2);
        pool.run(2, 1, &|range| {
            for _ in range {
                barrier.wait();
            }
        });
    }

    #[test]
    fn a_panic_in_any_thread_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(3);
        for bad in 0..9 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(9, 1, &|range| assert!(!range.contains(&bad), "bad index {bad}"));
            }));
            let message = *outcome.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(message, format!("bad index {bad}"));
            let done = AtomicUsize::new(0);
            pool.run(9, 1, &|range| {
                done.fetch_add(range.len(), Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 9);
        }
    }

    #[test]
    fn callers_at_once_and_nested_calls_finish() {
        let pool = Pool::new(2);
        let sum = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        pool.run(5, 1, &|range| {
                            for _ in range {
                                pool.run(3, 1, &|inner| {
                                    sum.fetch_add(inner.len(), Ordering::Relaxed);
                                });
                            }
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 500 * 5 * 3);
    }
}
