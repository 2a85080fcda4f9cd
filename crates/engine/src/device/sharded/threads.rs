//! A thread for each rank: NCCL's ranks, and the shim's, wait for each other, so each needs one.

use crate::Error;
use crate::device::DeviceEngine;
use crate::device::agreement::Agreement;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use weft_cuda_device::{Error as DeviceError, Group};

/// How long others may take once one rank has said something, or once all were told to end. They come from the same sum over all ranks, or refused
/// without one, so usually it is as good as nothing.
const GRACE: Duration = Duration::from_secs(30);

type Job = Box<dyn FnOnce(&mut DeviceEngine) + Send>;

/// The ranks of an engine at work.
pub(super) struct Threads {
    ranks: Vec<Thread>,
    ending: Ending,
    /// Why nothing is done any more.
    failed: Option<DeviceError>,
}

struct Thread {
    jobs: mpsc::Sender<Job>,
    handle: JoinHandle<()>,
}

/// What sets ranks free that wait for each other.
pub(super) struct Ending {
    pub(super) groups: Vec<Group>,
    pub(super) agreement: Arc<Agreement>,
}

impl Ending {
    fn end(&self) {
        self.agreement.end();
        self.groups.iter().for_each(Group::end);
    }
}

/// What a rank tells, also when its thread dies.
struct Answer<T> {
    rank: usize,
    to: mpsc::Sender<(usize, Option<T>)>,
}

impl<T> Answer<T> {
    fn tell(self, what: T) {
        // Nobody listens any more: the engine has failed meanwhile.
        let _ = self.to.send((self.rank, Some(what)));
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        // Behind what was told, nobody reads it.
        let _ = self.to.send((self.rank, None));
    }
}

impl Threads {
    pub(super) fn start(engines: Vec<DeviceEngine>, ending: Ending) -> Self {
        let start = |(rank, mut engine): (usize, DeviceEngine)| {
            let (jobs, todo) = mpsc::channel::<Job>();
            let work = move || todo.into_iter().for_each(|job| job(&mut engine));
            let thread = thread::Builder::new().name(format!("rank {rank}")).spawn(work);
            Thread { jobs, handle: thread.expect("the system has room for a thread") }
        };
        Self { ranks: engines.into_iter().enumerate().map(start).collect(), ending, failed: None }
    }

    /// Has every rank do its job, and returns what they say, in order.
    ///
    /// # Errors
    /// The error that all ranks give alike, if it is not of a device: they are as before. Anything else is the end of the engine, and fatal: ranks that
    /// do different things do not meet again.
    pub(super) fn on_all<T, J>(&mut self, mut job_of: impl FnMut(usize) -> J) -> Result<Vec<T>, Error>
    where
        T: Send + 'static,
        J: FnOnce(&mut DeviceEngine) -> Result<T, Error> + Send + 'static,
    {
        if let Some(error) = &self.failed {
            return Err(DeviceError::Failed(Box::new(error.clone())).into());
        }
        let (to, told) = mpsc::channel();
        for (rank, thread) in self.ranks.iter().enumerate() {
            let (answer, job) = (Answer { rank, to: to.clone() }, job_of(rank));
            // A thread that is gone drops the answer, which says so.
            let _ = thread.jobs.send(Box::new(move |engine| answer.tell(job(engine))));
        }
        drop(to);
        let results = self.gather(&told);
        judge(results).map_err(|verdict| match verdict {
            Verdict::Refused(error) => error,
            Verdict::Failed(error) => {
                self.ending.end();
                self.failed = Some(error.clone());
                if error.is_fatal() { error.into() } else { DeviceError::Failed(Box::new(error)).into() }
            }
        })
    }

    /// The answer of the first rank; none once its thread is gone, or hangs.
    pub(super) fn ask_first<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut DeviceEngine) -> T + Send + 'static,
    ) -> Option<T> {
        let (to, told) = mpsc::channel();
        let answer = Answer { rank: 0, to };
        self.ranks[0].jobs.send(Box::new(move |engine| answer.tell(question(engine)))).ok()?;
        told.recv_timeout(GRACE).ok()?.1
    }

    /// What each rank says; none of one that says nothing. Once one has said something, others are waited for no longer than [`GRACE`], and then set
    /// free; at once if it was because of a device.
    fn gather<T>(&self, told: &mpsc::Receiver<(usize, Option<Result<T, Error>>)>) -> Vec<Option<Result<T, Error>>> {
        let mut results: Vec<Option<Result<T, Error>>> = self.ranks.iter().map(|_| None).collect();
        let mut deadline: Option<Instant> = None;
        let mut is_ended = false;
        loop {
            let next = match deadline {
                None => told.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(deadline) => told.recv_timeout(deadline.saturating_duration_since(Instant::now())),
            };
            let must_end = match next {
                Err(RecvTimeoutError::Disconnected) => return results,
                Err(RecvTimeoutError::Timeout) if is_ended => return results,
                Err(RecvTimeoutError::Timeout) => true,
                // Its thread has died, unless it told something before.
                Ok((rank, None)) => results[rank].is_none(),
                Ok((rank, Some(result))) => {
                    deadline.get_or_insert_with(|| Instant::now() + GRACE);
                    let is_of_device = matches!(result, Err(Error::Device(_)));
                    results[rank] = Some(result);
                    is_of_device
                }
            };
            if must_end && !is_ended {
                self.ending.end();
                is_ended = true;
                deadline = Some(Instant::now() + GRACE);
            }
        }
    }
}

impl Drop for Threads {
    /// Waits until the devices are given back; not longer than [`GRACE`] for those of an engine that has failed, whose threads may stay behind.
    fn drop(&mut self) {
        let deadline = self.failed.is_some().then(|| Instant::now() + GRACE);
        let (jobs, handles): (Vec<_>, Vec<_>) = self.ranks.drain(..).map(|thread| (thread.jobs, thread.handle)).unzip();
        drop(jobs);
        for handle in handles {
            let may_wait = || deadline.is_some_and(|deadline| Instant::now() < deadline);
            while !handle.is_finished() && may_wait() {
                thread::sleep(Duration::from_millis(1));
            }
            if deadline.is_none() || handle.is_finished() {
                // A panic was told by the call that it happened in.
                let _ = handle.join();
            }
        }
    }
}

/// Why a job is not done.
enum Verdict {
    /// By all, for the same reason.
    Refused(Error),
    /// By some, or by a device.
    Failed(DeviceError),
}

fn judge<T>(results: Vec<Option<Result<T, Error>>>) -> Result<Vec<T>, Verdict> {
    let (mut done, mut errors, mut silent) = (Vec::new(), Vec::new(), Vec::new());
    for (rank, result) in results.into_iter().enumerate() {
        match result {
            Some(Ok(value)) => done.push(value),
            Some(Err(error)) => errors.push((rank, error)),
            None => silent.push(rank),
        }
    }
    if errors.is_empty() && silent.is_empty() {
        return Ok(done);
    }
    let is_of_device = |error: &Error| matches!(error, Error::Device(_));
    let is_alike = |(_, error): &(usize, Error)| !is_of_device(error) && error.to_string() == errors[0].1.to_string();
    if done.is_empty() && silent.is_empty() && errors.iter().all(is_alike) {
        return Err(Verdict::Refused(errors.swap_remove(0).1));
    }
    // What a device says comes first, and last what ranks say that were set free.
    errors.sort_by_key(|(_, error)| (is_echo(error), !is_of_device(error)));
    let alone = |reason: String| DeviceError::Collective { operation: "ranks".to_owned(), reason };
    Err(Verdict::Failed(match errors.into_iter().next() {
        Some((_, error)) if !silent.is_empty() && is_echo(&error) => alone(format!("ranks {silent:?} do not answer")),
        Some((_, Error::Device(error))) => error,
        Some((rank, error)) => alone(format!("rank {rank}, unlike others: {error}")),
        None => alone(format!("ranks {silent:?} do not answer")),
    }))
}

/// Whether it may be the error of a rank that another one's failure set free.
pub(super) fn is_echo(error: &Error) -> bool {
    matches!(error, Error::Device(DeviceError::Collective { .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collective() -> DeviceError {
        DeviceError::Collective { operation: "all_reduce".to_owned(), reason: "the group was ended".to_owned() }
    }

    fn full() -> Error {
        Error::AdapterBlocks { reason: "they are 2, not 3".to_owned() }
    }

    fn says(results: Vec<Option<Result<u8, Error>>>) -> String {
        match judge(results) {
            Ok(values) => format!("{values:?}"),
            Err(Verdict::Refused(error)) => format!("refused: {error}"),
            Err(Verdict::Failed(error)) => format!("failed: {error}"),
        }
    }

    #[test]
    fn only_what_all_say_alike_is_survived() {
        assert_eq!(says(vec![Some(Ok(1)), Some(Ok(2))]), "[1, 2]");
        assert!(says(vec![Some(Err(full())), Some(Err(full()))]).starts_with("refused: the adapter cannot lie"));
        assert!(
            says(vec![Some(Err(full())), Some(Ok(1))]).starts_with("failed: ranks: rank 0, unlike others: the adapter")
        );
        let other = Error::Batch { what: "rows", value: 2, limit: 1 };
        assert!(says(vec![Some(Err(full())), Some(Err(other))]).starts_with("failed: ranks: rank 0, unlike others"));
    }

    #[test]
    fn the_cause_is_told_and_not_what_it_made_of_others() {
        let echo = || Some(Err(collective().into()));
        let cause = || DeviceError::NoKernel("k".to_owned());
        assert_eq!(says(vec![echo(), Some(Err(cause().into())), echo()]), "failed: no kernel k is loaded");
        assert_eq!(says(vec![Some(Ok(1)), Some(Err(cause().into()))]), "failed: no kernel k is loaded");
        assert_eq!(says(vec![echo(), echo()]), "failed: all_reduce: the group was ended");
        assert_eq!(says(vec![echo(), None]), "failed: ranks: ranks [1] do not answer");
        assert_eq!(says(vec![None, Some(Ok(3))]), "failed: ranks: ranks [0] do not answer");
        assert_eq!(says(vec![None, Some(Err(cause().into()))]), "failed: no kernel k is loaded");
    }
}
