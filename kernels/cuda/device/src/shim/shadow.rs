//! Who touched which bytes last, and whether that happened before what touches them now.
//!
//! Of each byte the last write and the last read of each agent are known. Operations are given in an order that the streams and events allow,
//! so two that touch a byte without being ordered are found when the second of them comes, whichever that is. (The idea is that of race
//! detectors for threads: M. Bond et al. call it DJIT+; Flanagan and Freund, FastTrack, PLDI 2009.)

use super::clock::Clock;
use crate::error::Error;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// An operation, for messages.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Label {
    Host,
    Operation { number: u64, what: String, stream: Arc<str> },
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("the host"),
            Self::Operation { number, what, stream } => write!(f, "operation {number} ({what} on stream {stream})"),
        }
    }
}

/// An operation and its place in time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now<'a> {
    pub(crate) agent: usize,
    pub(crate) clock: &'a Clock,
    pub(crate) label: &'a Arc<Label>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    agent: usize,
    step: u64,
    label: Arc<Label>,
}

/// Bytes with one history.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cell {
    end: u64,
    write: Option<Mark>,
    /// One for each agent that has read since.
    reads: Vec<Mark>,
}

/// The history of all bytes that were touched.
#[derive(Debug, Default)]
pub(crate) struct Shadow {
    /// By first address; they do not overlap.
    cells: BTreeMap<u64, Cell>,
}

impl Shadow {
    /// Notes an access. Cost: a look at each piece of the range with a history of its own.
    ///
    /// # Errors
    ///
    /// [`Error::Race`].
    pub(crate) fn access(&mut self, range: Range<u64>, writes: bool, now: Now<'_>) -> Result<(), Error> {
        if range.is_empty() {
            return Ok(());
        }
        self.cut(range.start);
        self.cut(range.end);
        for (start, cell) in self.cells.range(range.clone()) {
            let written = cell.write.iter().map(|mark| (mark, true));
            let read = cell.reads.iter().filter(|_| writes).map(|mark| (mark, false));
            let unordered = written.chain(read).find(|(mark, _)| now.clock.get(mark.agent) < mark.step);
            if let Some((mark, wrote)) = unordered {
                return Err(Error::Race {
                    later: now.label.to_string(),
                    writes,
                    earlier: mark.label.to_string(),
                    wrote,
                    at: (*start, cell.end),
                });
            }
        }
        let mark = Mark { agent: now.agent, step: now.clock.get(now.agent), label: Arc::clone(now.label) };
        if writes {
            self.write(range, mark);
        } else {
            self.read(range, &mark);
        }
        Ok(())
    }

    fn write(&mut self, range: Range<u64>, mark: Mark) {
        let starts: Vec<u64> = self.cells.range(range.clone()).map(|(start, _)| *start).collect();
        for start in starts {
            self.cells.remove(&start);
        }
        self.cells.insert(range.start, Cell { end: range.end, write: Some(mark), reads: Vec::new() });
    }

    fn read(&mut self, range: Range<u64>, mark: &Mark) {
        let mut gaps = Vec::new();
        let mut at = range.start;
        for (start, cell) in self.cells.range_mut(range.clone()) {
            if at < *start {
                gaps.push(at..*start);
            }
            cell.reads.retain(|read| read.agent != mark.agent);
            cell.reads.push(mark.clone());
            at = cell.end;
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        for gap in gaps {
            self.cells.insert(gap.start, Cell { end: gap.end, write: None, reads: vec![mark.clone()] });
        }
        self.join(range);
    }

    /// Lets a cell begin at `at`, if one goes over it.
    fn cut(&mut self, at: u64) {
        let Some((_, cell)) = self.cells.range_mut(..at).next_back().filter(|(_, cell)| cell.end > at) else {
            return;
        };
        let rest = cell.clone();
        cell.end = at;
        self.cells.insert(at, rest);
    }

    /// Makes neighbours with one history one cell, so that reads piece by piece do not leave many.
    fn join(&mut self, range: Range<u64>) {
        let mut joined: Vec<(u64, Cell)> = Vec::new();
        let starts: Vec<u64> = self.cells.range(range).map(|(start, _)| *start).collect();
        for start in starts {
            let cell = self.cells.remove(&start).expect("it was just seen");
            match joined.last_mut() {
                Some((_, last)) if last.end == start && last.write == cell.write && last.reads == cell.reads => {
                    last.end = cell.end;
                }
                _ => joined.push((start, cell)),
            }
        }
        self.cells.extend(joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn label(number: u64) -> Arc<Label> {
        Arc::new(Label::Operation { number, what: "copy".to_owned(), stream: "s".into() })
    }

    #[test]
    fn a_write_after_another_agents_read_needs_an_order() {
        let (mut shadow, mut one, mut two) = (Shadow::default(), Clock::default(), Clock::default());
        one.tick(1);
        two.tick(2);
        let (first, second) = (label(1), label(2));
        shadow.access(0..100, false, Now { agent: 1, clock: &one, label: &first }).unwrap();
        shadow.access(50..60, false, Now { agent: 2, clock: &two, label: &second }).unwrap();
        let error = shadow.access(99..200, true, Now { agent: 2, clock: &two, label: &second }).unwrap_err();
        assert_eq!(
            error.to_string(),
            "operation 2 (copy on stream s) writes bytes 0x63..0x64, which operation 1 (copy on stream s) read: no event orders them"
        );
        two.join(&one);
        shadow.access(99..200, true, Now { agent: 2, clock: &two, label: &second }).unwrap();
        assert!(shadow.access(150..151, false, Now { agent: 1, clock: &one, label: &first }).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Cells of ranges find what a history of each byte alone finds.
        #[test]
        fn ranges_find_what_bytes_find(
            accesses in prop::collection::vec((0u64..40, 1u64..20, any::<bool>(), 0usize..3, prop::option::of(0usize..3)), 1..40),
        ) {
            let mut shadow = Shadow::default();
            let mut bytes: Vec<Shadow> = (0..60).map(|_| Shadow::default()).collect();
            let mut clocks = vec![Clock::default(); 3];
            for (number, (start, len, writes, agent, after)) in accesses.into_iter().enumerate() {
                if let Some(other) = after {
                    let other = clocks[other].clone();
                    clocks[agent].join(&other);
                }
                clocks[agent].tick(agent);
                let (clock, label) = (clocks[agent].clone(), label(number as u64));
                let now = Now { agent, clock: &clock, label: &label };
                let of_bytes: Vec<bool> =
                    (start..start + len).map(|at| bytes[at as usize].access(at..at + 1, writes, now).is_err()).collect();
                let is_race = shadow.access(start..start + len, writes, now).is_err();
                prop_assert_eq!(is_race, of_bytes.contains(&true));
                if is_race {
                    return Ok(());
                }
            }
        }
    }
}
