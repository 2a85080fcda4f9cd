use super::*;

const RATE: u64 = 10 << 20;
const PIECE: u64 = 64 << 10;

/// Readers of one bucket in simulated time; one that is `wanted` reads as fast as it may.
struct Run {
    bucket: Bucket,
    shares: Vec<Arc<Share>>,
    open: Vec<Option<oneshot::Receiver<()>>>,
    had: Vec<u64>,
}

impl Run {
    fn new(wanted: &[bool]) -> Self {
        let shares = wanted.iter().map(|wanted| Bandwidth::share(Arc::new(AtomicBool::new(*wanted))));
        let shares: Vec<_> = shares.collect();
        let (open, had) = (shares.iter().map(|_| None).collect(), vec![0; shares.len()]);
        Self { bucket: Bucket::new(RATE), shares, open, had }
    }

    /// Reads from one time to another, in steps of a millisecond; `reads` tells who asks for a piece now.
    fn read(&mut self, ms: std::ops::Range<u64>, reads: impl Fn(usize, u64) -> bool) {
        for ms in ms {
            for reader in 0..self.shares.len() {
                if self.open[reader].is_none() && reads(reader, ms) {
                    self.open[reader] = Some(self.bucket.wait(Arc::clone(&self.shares[reader]), PIECE));
                }
            }
            self.bucket.pass(Duration::from_millis(ms));
            for (open, had) in self.open.iter_mut().zip(&mut self.had) {
                if open.as_mut().is_some_and(|open| open.try_recv().is_ok()) {
                    (*open, *had) = (None, *had + PIECE);
                }
            }
        }
    }
}

#[test]
fn no_more_passes_than_the_rate_and_one_bucket() {
    let mut run = Run::new(&[true]);
    run.read(0..2_000, |_, _| true);
    let most = 2 * RATE + RATE / 10 + PIECE;
    assert!(run.had[0] <= most && run.had[0] > most * 9 / 10, "{} of {most}", run.had[0]);
}

#[test]
fn fetches_get_the_same_however_late_one_came() {
    let mut run = Run::new(&[true, true]);
    run.read(0..1_000, |reader, _| reader == 0);
    let before = run.had[0];
    run.read(1_000..3_000, |_, _| true);
    let (first, second) = (run.had[0] - before, run.had[1]);
    assert!(first.abs_diff(second) <= 2 * PIECE, "{first} and {second}");
}

#[test]
fn what_nobody_waits_for_gets_nothing_beside_a_fetch_that_takes_all() {
    let mut run = Run::new(&[true, false]);
    // One bucket full to begin with, so that there is nothing left over.
    run.read(0..500, |reader, _| reader == 0);
    run.read(500..1_500, |_, _| true);
    assert_eq!(run.had[1], 0);
    run.read(1_500..2_500, |reader, _| reader == 1);
    assert!(run.had[1] >= RATE * 8 / 10, "{}", run.had[1]);
}

#[test]
fn what_nobody_waits_for_gets_what_a_slow_fetch_leaves() {
    let mut run = Run::new(&[true, false]);
    // A piece every 25 ms is a quarter of the rate.
    run.read(0..4_000, |reader, ms| reader == 1 || ms % 25 == 0);
    let all = 4 * RATE;
    assert!(run.had[0] >= all * 24 / 100, "the fetch got {} of {all}", run.had[0]);
    assert!(run.had[1] >= all * 70 / 100, "the prefetch got {} of {all}", run.had[1]);
}

#[test]
fn a_prefetch_that_somebody_waits_for_now_is_one_no_longer() {
    let mut run = Run::new(&[true, false]);
    run.read(0..1_000, |_, _| true);
    let before = run.had[1];
    run.shares[1].wanted.store(true, Ordering::Relaxed);
    run.read(1_000..2_000, |_, _| true);
    assert!(run.had[1] - before >= RATE * 4 / 10, "{}", run.had[1] - before);
}

#[test]
fn who_gave_up_takes_nothing() {
    let mut run = Run::new(&[true, true]);
    run.read(0..500, |reader, _| reader == 0);
    drop(run.bucket.wait(Arc::clone(&run.shares[1]), 100 * RATE));
    run.read(500..1_500, |reader, _| reader == 0);
    assert!(run.had[0] >= RATE * 14 / 10, "{}", run.had[0]);
}

#[tokio::test]
async fn without_a_limit_nobody_waits() {
    let share = Bandwidth::share(Arc::default());
    Bandwidth::new(0).pay(&share, u64::MAX).await;
}
