//! Independent jobs over a few threads, their results in the order of the jobs.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Runs each job once. Jobs are taken in order, results come back in order; with one thread none is started.
pub(crate) fn spread<J: Sync, R: Send>(threads: NonZeroUsize, jobs: &[J], run: impl Fn(&J) -> R + Sync) -> Vec<R> {
    let threads = threads.get().min(jobs.len());
    if threads <= 1 {
        return jobs.iter().map(run).collect();
    }
    let next = AtomicUsize::new(0);
    let mut results: Vec<(usize, R)> = Vec::with_capacity(jobs.len());
    std::thread::scope(|scope| {
        let worker = || {
            let mut own = Vec::new();
            loop {
                // Relaxed: the number is all that is handed over; results come back through `join`.
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(job) = jobs.get(index) else { return own };
                own.push((index, run(job)));
            }
        };
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        for handle in handles {
            match handle.join() {
                Ok(own) => results.extend(own),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_jobs_whatever_the_number_of_threads() {
        let jobs: Vec<usize> = (0..100).collect();
        for threads in [1, 2, 7, 1000] {
            let threads = NonZeroUsize::new(threads).expect("not zero");
            assert_eq!(spread(threads, &jobs, |job| job * 2), (0..100).map(|job| job * 2).collect::<Vec<_>>());
        }
        assert!(spread(NonZeroUsize::MIN, &[], |_: &()| ()).is_empty());
    }
}
