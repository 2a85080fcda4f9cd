//! Ranks that sum and gather: a thread and a device each.

use crate::support::{OPTIONS, get, put};
use half::bf16;
use std::sync::Arc;
use std::time::Duration;
use weft_cuda_device::shim::{self, Shim, ranks};
use weft_cuda_device::{Device, Error, Group, Stream, Type};
use weft_kernels::conformance::Random;

struct Rank {
    device: Device,
    stream: Stream,
    group: Group,
}

/// Runs `body` on each rank, in a thread of its own; seeds differ, so that ranks run their streams in different orders.
fn on_ranks<T: Send>(count: usize, seed: u64, patience: Duration, body: impl Fn(&Rank) -> T + Sync) -> Vec<T> {
    let options = |rank: usize| shim::Options { seed: seed * 31 + rank as u64, ..shim::Options::default() };
    let shims: Vec<Arc<Shim>> = (0..count).map(|rank| Shim::new(&options(rank))).collect();
    let body = &body;
    std::thread::scope(|scope| {
        let threads: Vec<_> = ranks(&shims, patience)
            .into_iter()
            .zip(&shims)
            .map(|(rank, shim)| {
                scope.spawn(move || {
                    let device = Device::new(Arc::clone(shim) as _, &OPTIONS).unwrap();
                    let stream = device.stream("compute").unwrap();
                    let group = Group::new(&device, rank);
                    body(&Rank { device, stream, group })
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

const PATIENCE: Duration = Duration::from_secs(60);

fn given(seed: u64, rank: usize) -> Vec<f32> {
    let mut random = Random::new(seed * 100 + rank as u64);
    (0..33).map(|_| random.normal()).collect()
}

#[test]
fn a_sum_over_ranks_is_the_same_on_each() {
    for (count, seed) in [(1, 0), (2, 1), (2, 2), (4, 3), (4, 4)] {
        let sums = on_ranks(count, seed, PATIENCE, |rank| {
            let (device, stream) = (&rank.device, &rank.stream);
            let from = put(device, stream, &given(seed, rank.group.rank()));
            let to = device.allocate(from.bytes()).unwrap();
            rank.group.all_reduce(stream, from.all(), to.all(), Type::F32).unwrap();
            // In its own place, behind that, twice.
            rank.group.all_reduce(stream, from.all(), from.all(), Type::F32).unwrap();
            rank.group.all_reduce(stream, from.all(), from.all(), Type::F32).unwrap();
            [to, from].map(|buffer| get::<f32>(device, stream, &buffer).unwrap())
        });
        let sum = |values: &[Vec<f32>]| -> Vec<f32> {
            (0..33).map(|at| values[1..].iter().fold(values[0][at], |sum, rank| sum + rank[at])).collect()
        };
        let once = sum(&(0..count).map(|rank| given(seed, rank)).collect::<Vec<_>>());
        let twice = sum(&vec![once.clone(); count]);
        for rank in &sums {
            assert_eq!(rank, &[once.clone(), twice.clone()]);
        }
    }
}

#[test]
fn halves_are_added_in_f32_and_rounded_once() {
    let sums = on_ranks(4, 9, PATIENCE, |rank| {
        let of = [256.0, 1.0, 1.0, 1.0][rank.group.rank()];
        let bits = [bf16::from_f32(of).to_bits(); 3];
        let buffer = put(&rank.device, &rank.stream, &bits);
        rank.group.all_reduce(&rank.stream, buffer.all(), buffer.all(), Type::Bf16).unwrap();
        get::<u16>(&rank.device, &rank.stream, &buffer).unwrap()
    });
    // One after the other in bf16 would stay at 256: there is nothing between it and 258.
    assert_eq!(sums, vec![vec![bf16::from_f32(260.0).to_bits(); 3]; 4]);
}

#[test]
fn a_gather_brings_the_ranks_in_order() {
    for count in [2, 4] {
        let gathered = on_ranks(count, 5, PATIENCE, |rank| {
            let (device, stream, own) = (&rank.device, &rank.stream, rank.group.rank());
            let from = put(device, stream, &given(5, own));
            let to = device.allocate(count * from.bytes()).unwrap();
            rank.group.all_gather(stream, from.all(), to.all(), Type::F32).unwrap();
            let first: Vec<f32> = get(device, stream, &to).unwrap();
            // From its own row.
            stream.fill(to.part(0..own * from.bytes()).unwrap(), 0).unwrap();
            let row = to.part(own * from.bytes()..(own + 1) * from.bytes()).unwrap();
            rank.group.all_gather(stream, row, to.all(), Type::F32).unwrap();
            [first, get(device, stream, &to).unwrap()]
        });
        let want: Vec<f32> = (0..count).flat_map(|rank| given(5, rank)).collect();
        assert!(gathered.iter().all(|[first, second]| *first == want && *second == want));
    }
}

/// Two streams without an order between them, on ranks that run them in different orders: calls meet as they were enqueued.
#[test]
fn calls_on_several_streams_meet_in_the_order_of_the_calls() {
    for seed in 0..20 {
        let sums = on_ranks(2, seed, PATIENCE, |rank| {
            let other = rank.device.stream("other").unwrap();
            let buffers = [1.0f32, 10.0].map(|value| put(&rank.device, &rank.stream, &[value; 8]));
            for (stream, buffer) in [&rank.stream, &other].into_iter().zip(&buffers) {
                rank.group.all_reduce(stream, buffer.all(), buffer.all(), Type::F32).unwrap();
            }
            let values = [&rank.stream, &other].into_iter().zip(&buffers);
            values.map(|(stream, buffer)| get::<f32>(&rank.device, stream, buffer).unwrap()[0]).collect::<Vec<_>>()
        });
        assert_eq!(sums, [[2.0, 20.0], [2.0, 20.0]]);
    }
}

#[test]
fn graphs_hold_collectives() {
    let sums = on_ranks(2, 6, PATIENCE, |rank| {
        let (device, stream) = (&rank.device, &rank.stream);
        let buffer = put(device, stream, &[1.0f32 + rank.group.rank() as f32; 4]);
        let graph = stream.capture(|| rank.group.all_reduce(stream, buffer.all(), buffer.all(), Type::F32)).unwrap();
        for _ in 0..3 {
            graph.replay(stream).unwrap();
        }
        get::<f32>(device, stream, &buffer).unwrap()
    });
    assert_eq!(sums, [[12.0; 4], [12.0; 4]]);
}

#[test]
fn a_collective_waits_for_what_it_reads_like_everything_else() {
    let errors = on_ranks(2, 7, Duration::from_millis(500), |rank| {
        let other = rank.device.stream("other").unwrap();
        let buffer = put(&rank.device, &rank.stream, &[1.0f32; 4]);
        other.fill(buffer.all(), 0).unwrap();
        rank.group.all_reduce(&rank.stream, buffer.all(), buffer.all(), Type::F32).unwrap();
        rank.stream.synchronize().and(other.synchronize()).unwrap_err()
    });
    // A rank that has a race does not come, so the other may tell that instead.
    assert!(errors.iter().any(|error| matches!(error, Error::Race { .. })), "{errors:?}");
    assert!(errors.iter().all(|error| matches!(error, Error::Race { .. } | Error::Collective { .. })), "{errors:?}");
}

#[test]
fn ranks_that_call_something_else_or_do_not_come_are_told() {
    let errors = on_ranks(2, 8, PATIENCE, |rank| {
        let (from, to) = (rank.device.allocate(16).unwrap(), rank.device.allocate(32).unwrap());
        rank.stream.fill(from.all(), 0).unwrap();
        if rank.group.rank() == 0 {
            rank.group.all_reduce(&rank.stream, from.all(), from.all(), Type::F32).unwrap();
        } else {
            rank.group.all_gather(&rank.stream, from.all(), to.all(), Type::F32).unwrap();
        }
        rank.stream.synchronize().unwrap_err().to_string()
    });
    for error in errors {
        assert!(error.contains("AllReduce") && error.contains("AllGather"), "{error}");
    }
    let results = on_ranks(2, 8, Duration::from_millis(50), |rank| {
        let buffer = put(&rank.device, &rank.stream, &[0.0f32; 4]);
        if rank.group.rank() == 0 {
            rank.group.all_reduce(&rank.stream, buffer.all(), buffer.all(), Type::F32).unwrap();
        }
        rank.stream.synchronize()
    });
    let error = results[0].as_ref().unwrap_err().to_string();
    assert!(error.contains("all_reduce of 4 F32, rank 0") && error.contains("ranks [1] did not come"), "{error}");
    assert_eq!(results[1], Ok(()));
}

/// From the thread of another rank, while this one waits; and for all later calls.
#[test]
fn a_group_that_was_ended_lets_nobody_wait() {
    let begin = std::time::Instant::now();
    let results = on_ranks(2, 8, PATIENCE, |rank| {
        let buffer = put(&rank.device, &rank.stream, &[0.0f32; 4]);
        let reduce = || rank.group.all_reduce(&rank.stream, buffer.all(), buffer.all(), Type::F32);
        if rank.group.rank() == 1 {
            std::thread::sleep(Duration::from_millis(50));
            rank.group.end();
        }
        reduce().and_then(|()| rank.stream.synchronize())
    });
    assert!(begin.elapsed() < PATIENCE / 2, "after {:?}", begin.elapsed());
    for result in results {
        let error = result.unwrap_err();
        assert!(error.is_fatal() && error.to_string().contains("the group was ended"), "{error}");
    }
}

#[test]
fn sizes_that_do_not_fit_are_named() {
    on_ranks(2, 0, PATIENCE, |rank| {
        let (from, to) = (rank.device.allocate(16).unwrap(), rank.device.allocate(31).unwrap());
        let says = |result: Result<(), Error>| result.unwrap_err().to_string();
        let gather = rank.group.all_gather(&rank.stream, from.all(), to.all(), Type::F32);
        assert_eq!(says(gather), "all_gather: to is 31 bytes, must be 32");
        let part = from.part(0..15).unwrap();
        let reduce = rank.group.all_reduce(&rank.stream, part, part, Type::Bf16);
        assert_eq!(says(reduce), "all_reduce: from is 15 bytes, must be a multiple of 2");
        let (low, high) = (from.part(0..8).unwrap(), from.part(4..12).unwrap());
        let overlap = says(rank.group.all_reduce(&rank.stream, low, high, Type::F32));
        assert!(overlap.contains("apart from `from`, or with it in its place"), "{overlap}");
    });
}
