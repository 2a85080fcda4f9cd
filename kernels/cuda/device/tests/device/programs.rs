//! Programs drawn at random over streams, events and buffers, against what their order says: a race is told exactly when two operations
//! touch a buffer, one writes, and no path of streams and events leads from one to the other; without a race the result is that of doing one
//! thing after the other.

use crate::support::{device, get};
use proptest::prelude::*;
use std::collections::HashMap;
use weft_cuda_device::{Buffer, Device, Error, Event, Stream};

const STREAMS: usize = 3;
const BUFFERS: usize = 3;
const EVENTS: usize = 4;

#[derive(Clone, Copy, Debug)]
enum Step {
    Fill { stream: usize, to: usize },
    Copy { stream: usize, from: usize, to: usize },
    Record { stream: usize, event: usize },
    Wait { stream: usize, event: usize },
    Synchronize { stream: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (stream, event) = (|| 0..STREAMS, || 0..EVENTS);
    let step = prop_oneof![
        2 => (stream(), 0..BUFFERS).prop_map(|(stream, to)| Step::Fill { stream, to }),
        2 => (stream(), 0..BUFFERS, 1..BUFFERS)
            .prop_map(|(stream, from, apart)| Step::Copy { stream, from, to: (from + apart) % BUFFERS }),
        4 => (stream(), event()).prop_map(|(stream, event)| Step::Record { stream, event }),
        5 => (stream(), event()).prop_map(|(stream, event)| Step::Wait { stream, event }),
        1 => stream().prop_map(|stream| Step::Synchronize { stream }),
    ];
    prop::collection::vec(step, 1..24)
}

/// What an operation reads and writes, and the set of operations before it (bit i: the i-th).
#[derive(Clone, Copy)]
struct Done {
    read: Option<usize>,
    written: usize,
    before: u64,
}

/// What happens when one thing is done after the other, and whether the order leaves anything open.
struct Model {
    contents: [u8; BUFFERS],
    operations: Vec<Done>,
    /// For each stream and event: operations that are known to be over.
    streams: [u64; STREAMS],
    events: HashMap<usize, u64>,
    host: u64,
}

impl Model {
    fn new() -> Self {
        let (operations, events) = (Vec::new(), HashMap::new());
        Self { contents: [0; BUFFERS], operations, streams: [0; STREAMS], events, host: 0 }
    }

    fn operation(&mut self, stream: usize, read: Option<usize>, written: usize) {
        let before = self.streams[stream] | self.host;
        let number = self.operations.len();
        self.contents[written] = read.map_or(number as u8 + 1, |from| self.contents[from]);
        self.operations.push(Done { read, written, before });
        self.streams[stream] = before | 1 << number;
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Fill { stream, to } => self.operation(stream, None, to),
            Step::Copy { stream, from, to } => self.operation(stream, Some(from), to),
            Step::Record { stream, event } => {
                self.events.insert(event, self.streams[stream]);
            }
            Step::Wait { stream, event } => {
                self.streams[stream] |= self.events.get(&event).copied().unwrap_or(0);
            }
            Step::Synchronize { stream } => self.host |= self.streams[stream],
        }
    }

    fn has_race(&self) -> bool {
        let touches = |done: &Done, buffer: usize| done.written == buffer || done.read == Some(buffer);
        let meet = |one: &Done, two: &Done| touches(one, two.written) || touches(two, one.written);
        (0..self.operations.len()).any(|two| {
            let later = &self.operations[two];
            (0..two).any(|one| later.before >> one & 1 == 0 && meet(&self.operations[one], later))
        })
    }
}

struct Run {
    device: Device,
    streams: Vec<Stream>,
    buffers: Vec<Buffer>,
    events: Vec<Event>,
}

impl Run {
    fn new(seed: u64) -> Self {
        let device = device(seed);
        let streams: Vec<_> = (0..STREAMS).map(|i| device.stream(&format!("{i}")).unwrap()).collect();
        let buffers: Vec<_> = (0..BUFFERS).map(|_| device.allocate(64).unwrap()).collect();
        let events = (0..EVENTS).map(|_| device.event().unwrap()).collect();
        for buffer in &buffers {
            streams[0].fill(buffer.all(), 0).unwrap();
        }
        streams[0].synchronize().unwrap();
        Self { device, streams, buffers, events }
    }

    fn step(&self, step: Step, operations: usize, recorded: &mut [bool; EVENTS]) -> Result<(), Error> {
        match step {
            Step::Fill { stream, to } => self.streams[stream].fill(self.buffers[to].all(), operations as u8 + 1),
            Step::Copy { stream, from, to } => {
                self.streams[stream].copy(self.buffers[from].all(), self.buffers[to].all())
            }
            Step::Record { stream, event } => {
                recorded[event] = true;
                self.streams[stream].record(&self.events[event])
            }
            // What was not recorded is an error, and so no step of a program.
            Step::Wait { event, .. } if !recorded[event] => Ok(()),
            Step::Wait { stream, event } => self.streams[stream].wait(&self.events[event]),
            Step::Synchronize { stream } => self.streams[stream].synchronize(),
        }
    }

    fn contents(&self) -> Result<Vec<u8>, Error> {
        for stream in &self.streams {
            stream.synchronize()?;
        }
        let bytes = self.buffers.iter().map(|buffer| {
            let bytes = get::<u8>(&self.device, &self.streams[0], buffer)?;
            assert!(bytes.iter().all(|byte| *byte == bytes[0]));
            Ok(bytes[0])
        });
        bytes.collect()
    }
}

fn run(seed: u64, steps: &[Step]) -> (Model, Result<Vec<u8>, Error>) {
    let (mut model, run, mut recorded) = (Model::new(), Run::new(seed), [false; EVENTS]);
    for step in steps {
        let result = run.step(*step, model.operations.len(), &mut recorded);
        model.step(*step);
        if let Err(error) = result {
            return (model, Err(error));
        }
    }
    let contents = run.contents();
    (model, contents)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn races_are_told_exactly_where_there_are_some(seed: u64, steps in steps()) {
        let (model, result) = run(seed, &steps);
        match result {
            Ok(contents) => {
                prop_assert!(!model.has_race(), "no race was told");
                prop_assert_eq!(contents, model.contents);
            }
            Err(error) => {
                prop_assert!(matches!(error, Error::Race { .. }), "{}", error);
                prop_assert!(model.has_race(), "{}", error);
            }
        }
    }

    /// The same programs as a graph, which two replays run one after the other.
    #[test]
    fn graphs_keep_the_order_of_what_they_captured(seed: u64, steps in steps()) {
        let (mut model, run, mut recorded) = (Model::new(), Run::new(seed), [false; EVENTS]);
        // Every stream comes from the first one and goes back to it.
        let mut program: Vec<Step> = vec![Step::Record { stream: 0, event: 0 }];
        program.extend((1..STREAMS).map(|stream| Step::Wait { stream, event: 0 }));
        program.extend(steps.iter().copied().filter(|step| !matches!(step, Step::Synchronize { .. })));
        for stream in 1..STREAMS {
            program.extend([Step::Record { stream, event: stream }, Step::Wait { stream: 0, event: stream }]);
        }
        let graph = run.streams[0]
            .capture(|| {
                for step in &program {
                    run.step(*step, model.operations.len(), &mut recorded)?;
                    model.step(*step);
                }
                Ok(())
            })
            .unwrap();
        prop_assert_eq!(graph.records().len(), model.operations.len());
        let untouched = run.contents().unwrap();
        prop_assert_eq!(untouched, [0; BUFFERS], "nothing ran while it was captured");
        // On another stream than the one that was captured; the second replay by itself waits for the first.
        let replayed = graph.replay(&run.streams[1]).and_then(|()| graph.replay(&run.streams[2])).and_then(|()| run.contents());
        match replayed {
            Ok(contents) => {
                prop_assert!(!model.has_race(), "no race was told");
                // Fills put the same again, so the second time copies may bring other bytes to where nothing else is put.
                let mut twice = model.contents;
                replay(&program, &mut twice);
                prop_assert_eq!(contents, twice);
            }
            Err(error) => prop_assert!(model.has_race() && matches!(error, Error::Race { .. }), "{}", error),
        }
    }
}

fn replay(program: &[Step], contents: &mut [u8; BUFFERS]) {
    let mut number = 0;
    for step in program {
        match *step {
            Step::Fill { to, .. } => contents[to] = number + 1,
            Step::Copy { from, to, .. } => contents[to] = contents[from],
            _ => continue,
        }
        number += 1;
    }
}
