//! Captures and replays.

use crate::lora::{ROWS, Slot, Step, TABLE_BYTES, expected, table};
use crate::support::{device, get, put, shim};
use weft_cuda_device::record::Kind;
use weft_cuda_device::{Counts, Error, Graph, Stream};
use weft_kernels::conformance::Random;

/// Pointers, ranks and the number of items lie in device memory: one graph serves all of them.
#[test]
fn a_replay_sees_the_tables_of_its_time() {
    for seed in 0..10 {
        let device = device(seed);
        let compute = device.stream("compute").unwrap();
        let random = &mut Random::new(seed);
        let slots: Vec<Slot> = [8, 16, 3, 40].map(|rank| Slot::new(&device, &compute, random, rank)).into();
        let (step, x) = Step::new(&device, &compute, random);
        let staging = device.allocate_pinned(TABLE_BYTES).unwrap();
        let all: Vec<_> = slots.iter().map(|slot| slot.memory.all()).collect();
        let graph = compute
            .capture(|| {
                compute.upload(&staging, 0..TABLE_BYTES, step.table.all())?;
                step.launch(&compute, &all, Counts::default())
            })
            .unwrap();
        let mut want = vec![0.0f32; step.out.bytes() / 4];
        for used in [vec![0, 1], vec![3, 2, 1, 0], vec![], vec![2, 2, 2], vec![1]] {
            let used: Vec<&Slot> = used.into_iter().map(|slot: usize| &slots[slot]).collect();
            assert!(used.len() <= ROWS);
            staging.write(0, &table(&used)).unwrap();
            graph.replay(&compute).unwrap();
            let got: Vec<f32> = get(&device, &compute, &step.out).unwrap();
            if !used.is_empty() {
                expected(&x, &used, &mut want);
            }
            assert_eq!(got, want);
        }
    }
}

#[test]
fn a_load_beside_a_replay_needs_an_event_only_for_slots_in_use() {
    let load = |seed: u64, slot: usize, orders: bool| {
        let device = device(seed);
        let (compute, copies) = (device.stream("compute").unwrap(), device.stream("copies").unwrap());
        let random = &mut Random::new(seed);
        let slots: Vec<Slot> = [8, 16].map(|rank| Slot::new(&device, &compute, random, rank)).into();
        let (mut step, _) = Step::new(&device, &compute, random);
        step.table = put(&device, &compute, &table(&[&slots[0]]));
        let all: Vec<_> = slots.iter().map(|slot| slot.memory.all()).collect();
        let graph = compute.capture(|| step.launch(&compute, &all, Counts::default())).unwrap();
        let (pinned, loaded) = (device.allocate_pinned(Slot::bytes(16)).unwrap(), device.event().unwrap());
        pinned.write(0, &vec![0u8; Slot::bytes(16)]).unwrap();
        let memory = slots[slot].memory.all();
        copies.upload(&pinned, 0..memory.bytes(), memory).unwrap();
        copies.record(&loaded).unwrap();
        if orders {
            compute.wait(&loaded).unwrap();
        }
        graph.replay(&compute).unwrap();
        compute.synchronize().and(copies.synchronize())
    };
    for seed in 0..20 {
        load(seed, 0, true).unwrap();
        load(seed, 1, false).unwrap();
        assert!(matches!(load(seed, 0, false), Err(Error::Race { .. })));
    }
}

#[test]
fn a_graph_keeps_what_it_names() {
    let device = device(0);
    let stream = device.stream("s").unwrap();
    let graph = {
        let (from, to) = (put(&device, &stream, &[5u8; 256]), device.allocate(256).unwrap());
        stream.capture(|| stream.copy(from.all(), to.all())).unwrap()
    };
    assert_eq!(device.usage().free, device.usage().total - 512);
    graph.replay(&stream).unwrap();
    stream.synchronize().unwrap();
    drop(graph);
    assert_eq!(device.usage().free, device.usage().total);
}

#[test]
fn two_products_with_one_workspace_need_an_order() {
    use weft_cuda_device::{Matmul, Type};
    let product = |seed: u64, orders: bool| {
        let device = device(seed);
        let (one, two) = (device.stream("one").unwrap(), device.stream("two").unwrap());
        let outs = [0, 1].map(|_| device.allocate(64).unwrap());
        let (x, w) = (put(&device, &one, &[1.0f32; 16]), put(&device, &one, &[1.0f32; 16]));
        let matmul = |out: usize| Matmul {
            rows: 4,
            inputs: 4,
            outputs: 4,
            x: x.all(),
            x_stride: 4,
            w: w.all(),
            of: Type::F32,
            out: outs[out].all(),
            out_stride: 4,
            out_of: Type::F32,
            adds: false,
        };
        let graph = one.capture(|| one.matmul(&matmul(0))).unwrap();
        let event = device.event().unwrap();
        one.matmul(&matmul(1)).unwrap();
        one.record(&event).unwrap();
        if orders {
            two.wait(&event).unwrap();
        }
        graph.replay(&two).unwrap();
        two.synchronize().and(one.synchronize())?;
        get::<f32>(&device, &one, &outs[0])
    };
    for seed in 0..20 {
        assert_eq!(product(seed, true).unwrap(), [4.0; 16]);
        assert!(matches!(product(seed, false), Err(Error::Race { .. })));
    }
}

fn captures(body: impl FnOnce(&Stream, &Stream) -> Result<(), Error>) -> Result<Graph, Error> {
    let device = device(0);
    let (one, two) = (device.stream("one").unwrap(), device.stream("two").unwrap());
    let graph = one.capture(|| body(&one, &two));
    // Whatever came of it, both streams work as before, and another capture can begin.
    let buffer = device.allocate(4)?;
    one.fill(buffer.all(), 1)?;
    one.synchronize()?;
    two.fill(buffer.all(), 2)?;
    two.synchronize()?;
    two.capture(|| two.fill(buffer.all(), 3)).unwrap();
    graph
}

#[test]
fn what_no_graph_can_hold_is_refused() {
    let says = |result: Result<Graph, Error>| result.map_or_else(|error| error.to_string(), |_| "fits".to_owned());
    let device_of = device(0);
    assert_eq!(says(captures(|one, _| one.synchronize())), "capture: stream one is not running: nothing to wait for");
    assert_eq!(says(captures(|_, two| two.synchronize())), "fits");
    assert_eq!(
        says(captures(|_, two| two.capture(|| Ok(())).map(drop))),
        "capture: another one is under way on this device"
    );
    let foreign = device_of.event().unwrap();
    assert!(says(captures(|one, _| one.record(&foreign))).contains("of another device"));
}

#[test]
fn events_do_not_cross_the_border_of_a_capture() {
    let device = device(0);
    let (one, two) = (device.stream("one").unwrap(), device.stream("two").unwrap());
    let (outside, inside) = (device.event().unwrap(), device.event().unwrap());
    two.record(&outside).unwrap();
    let error = one.capture(|| one.wait(&outside)).unwrap_err().to_string();
    assert_eq!(error, "capture: stream one waits for an event that was recorded outside of it");
    let graph = one.capture(|| one.record(&inside).and_then(|()| inside.synchronize())).unwrap_err().to_string();
    assert!(graph.contains("an event of a capture never happens"), "{graph}");
    let error = two.wait(&inside).unwrap_err().to_string();
    assert_eq!(error, "capture: stream two waits for an event of a capture that is over");
    // Recorded anew it is an event like others.
    one.record(&inside).unwrap();
    two.wait(&inside).unwrap();
    inside.synchronize().unwrap();
}

#[test]
fn work_of_another_stream_must_come_back() {
    let device = device(0);
    let [one, two] = ["one", "two"].map(|name| device.stream(name).unwrap());
    let (buffer, fork, join) = (device.allocate(4).unwrap(), device.event().unwrap(), device.event().unwrap());
    let body = |joins: bool| {
        one.record(&fork)?;
        two.wait(&fork)?;
        two.fill(buffer.all(), 9)?;
        two.record(&join)?;
        if joins { one.wait(&join) } else { Ok(()) }
    };
    let error = one.capture(|| body(false)).unwrap_err().to_string();
    assert_eq!(error, "capture: work of stream two does not come back by an event");
    let graph = one.capture(|| body(true)).unwrap();
    graph.replay(&one).unwrap();
    assert_eq!(get::<u8>(&device, &one, &buffer).unwrap(), [9; 4]);
}

#[test]
fn a_capture_ends_when_its_body_panics() {
    let device = device(0);
    let stream = device.stream("s").unwrap();
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| stream.capture(|| panic!("on purpose"))));
    assert!(caught.is_err());
    let buffer = device.allocate(4).unwrap();
    stream.fill(buffer.all(), 1).unwrap();
    assert_eq!(get::<u8>(&device, &stream, &buffer).unwrap(), [1; 4]);
    stream.capture(|| Ok(())).unwrap();
}

#[test]
fn replays_are_counted_as_what_they_do() {
    let (_, device) = shim(0);
    let stream = device.stream("s").unwrap();
    let (from, to) = (device.allocate(8).unwrap(), device.allocate(8).unwrap());
    device.start_records();
    let graph = stream.capture(|| stream.fill(from.all(), 1).and_then(|()| stream.copy(from.all(), to.all()))).unwrap();
    graph.replay(&stream).unwrap();
    let other = Counts { read_bytes: 3, ..Counts::default() };
    graph.replay_counting(&stream, &[Counts::default(), other]).unwrap();
    let error = graph.replay_counting(&stream, &[other]).unwrap_err().to_string();
    assert_eq!(error, "graph: counts is 1, must be 2, one for each operation");
    stream.fill(to.all(), 2).unwrap();
    let records = device.stop_records();
    let kinds: Vec<_> = records.iter().map(|record| (&record.kind, record.in_graph)).collect();
    let copy = Kind::Copy(weft_cuda_device::driver::Direction::Within);
    let graph = [(&Kind::Replay, false), (&Kind::Fill, true), (&copy, true)];
    assert_eq!(kinds, [&graph[..], &graph[..], &[(&Kind::Fill, false)]].concat());
    assert_eq!((records[2].counts.read_bytes, records[5].counts), (8, other));
    stream.fill(to.all(), 2).unwrap();
    assert_eq!(device.stop_records(), []);
}
