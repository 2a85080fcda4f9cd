//! Token masks beside the step loop.
//!
//! What may follow a token depends on the answer alone, so that its mask is computed on a helper thread while the next step
//! computes the logits. A mask that is late delays its own request: the loop keeps the row of logits and goes on.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use prometheus::Histogram;
use weft_batching::RequestId;
use weft_grammar::{Mask, Matcher};

use crate::Error;
use crate::step_loop::Command;

/// A matcher after a token, with what may come next.
pub(crate) struct Masked {
    pub(crate) id: RequestId,
    /// Given back to its request; lost with a panic.
    pub(crate) matcher: Option<Box<Matcher>>,
    pub(crate) mask: Result<Mask, Error>,
}

struct Work {
    id: RequestId,
    matcher: Box<Matcher>,
    token: u32,
}

/// The helper threads. Their queue holds at most one entry for each request in the loop. Dropping it ends them.
pub(crate) struct MaskThreads {
    work: Option<Sender<Work>>,
    done: Receiver<Masked>,
    threads: Vec<JoinHandle<()>>,
    seconds: Histogram,
}

impl MaskThreads {
    /// `threads` of 0: masks are computed where they are asked for.
    ///
    /// # Errors
    /// [`Error::Thread`].
    pub(crate) fn start(threads: usize, commands: &Sender<Command>, seconds: Histogram) -> Result<Self, Error> {
        let (work, inbox) = channel();
        let (results, done) = channel();
        let inbox = Arc::new(Mutex::new(inbox));
        let mut started = Vec::with_capacity(threads);
        for number in 0..threads {
            let helper = Helper {
                inbox: Arc::clone(&inbox),
                results: results.clone(),
                commands: commands.clone(),
                seconds: seconds.clone(),
            };
            let thread = std::thread::Builder::new().name(format!("weft-mask-{number}"));
            started.push(thread.spawn(move || helper.serve()).map_err(Error::Thread)?);
        }
        Ok(Self { work: (threads > 0).then_some(work), done, threads: started, seconds })
    }

    /// Lets the matcher take in `token`. Its mask is among [`done`](Self::done) later, or comes at once if there are no
    /// helpers.
    pub(crate) fn follow(&self, id: RequestId, matcher: Box<Matcher>, token: u32) -> Option<Masked> {
        let work = Work { id, matcher, token };
        let Some(queue) = &self.work else { return Some(compute(work, &self.seconds)) };
        // They end only with this.
        let Err(refused) = queue.send(work) else { return None };
        Some(compute(refused.0, &self.seconds))
    }
}

impl MaskThreads {
    /// What the helpers finished since the last call. Does not wait.
    pub(crate) fn done(&self) -> Vec<Masked> {
        self.done.try_iter().collect()
    }
}

impl Drop for MaskThreads {
    fn drop(&mut self) {
        self.work = None;
        for thread in self.threads.drain(..) {
            // A panic was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

struct Helper {
    inbox: Arc<Mutex<Receiver<Work>>>,
    results: Sender<Masked>,
    /// Wakes the loop.
    commands: Sender<Command>,
    seconds: Histogram,
}

impl Helper {
    fn serve(self) {
        loop {
            // One thread at a time waits at the queue, the others for the lock.
            let next = self.inbox.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(work) = next else { return };
            // Errors mean that the loop has ended.
            let _ = self.results.send(compute(work, &self.seconds));
            let _ = self.commands.send(Command::MaskDone);
        }
    }
}

fn compute(work: Work, seconds: &Histogram) -> Masked {
    let started = Instant::now();
    let Work { id, mut matcher, token } = work;
    let done = catch_unwind(AssertUnwindSafe(|| {
        let mask = matcher.consume(token).and_then(|()| matcher.mask());
        (matcher, mask)
    }));
    seconds.observe(started.elapsed().as_secs_f64());
    match done {
        Ok((matcher, mask)) => Masked { id, matcher: Some(matcher), mask: mask.map_err(Error::from) },
        Err(_) => Masked { id, matcher: None, mask: Err(Error::Panic("following the grammar")) },
    }
}
