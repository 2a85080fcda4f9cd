//! What orders work, and what happens when nothing does.

use crate::lora::{Slot, Step, expected, table};
use crate::support::{device, get, put, shim};
use weft_cuda_device::{Argument, Buffer, Counts, Device, Error, Launch, Stream};
use weft_kernels::conformance::Random;

const SEEDS: std::ops::Range<u64> = 0..40;

/// `out [1, 8] = silu(gate) * up`, `gate_up [1, 16]`.
fn silu(stream: &Stream, gate_up: &Buffer, out: &Buffer) -> Result<(), Error> {
    let arguments = [gate_up.all().reads().into(), out.all().writes().into(), Argument::I32(8)];
    let launch = Launch {
        kernel: "weft_silu_mul_f32",
        grid: [1, 1, 1],
        threads: 256,
        shared_bytes: 0,
        arguments: &arguments,
        through_tables: &[],
        counts: Counts::default(),
    };
    // SAFETY: the parameters of silu_mul.cu, over 16 and 8 numbers.
    unsafe { stream.launch(&launch) }
}

fn is_silu(out: &[f32], of: f32) {
    let want = of / (1.0 + (-of).exp()) * of;
    assert!(out.iter().all(|out| (out - want).abs() < 1e-6), "{out:?}, should be {want}");
}

/// Uploads on one stream, computes on another. `orders`: with the event between the two.
fn upload_then_compute(device: &Device, orders: bool) -> Result<Vec<f32>, Error> {
    let (copies, compute) = (device.stream("copies")?, device.stream("compute")?);
    let (input, out) = (device.allocate(64)?, device.allocate(32)?);
    let pinned = device.allocate_pinned(64)?;
    pinned.write(0, &[2.0f32; 16])?;
    copies.upload(&pinned, 0..64, input.all())?;
    if orders {
        let uploaded = device.event()?;
        copies.record(&uploaded)?;
        compute.wait(&uploaded)?;
    }
    silu(&compute, &input, &out)?;
    let got = get(device, &compute, &out)?;
    copies.synchronize()?;
    Ok(got)
}

#[test]
fn an_event_orders_two_streams() {
    for seed in SEEDS {
        is_silu(&upload_then_compute(&device(seed), true).unwrap(), 2.0);
    }
}

#[test]
fn a_missing_event_is_found_in_every_order() {
    let mut kernel_was_first = [false; 2];
    for seed in SEEDS {
        let error = upload_then_compute(&device(seed), false).unwrap_err();
        let Error::Race { later, earlier, .. } = &error else { panic!("{error}") };
        let (copy, kernel) = ("upload of 64 bytes on stream copies", "weft_silu_mul_f32 on stream compute");
        let is_kernel = usize::from(earlier.contains(kernel));
        let pair = if is_kernel == 1 { (earlier, later) } else { (later, earlier) };
        assert!(pair.0.contains(kernel) && pair.1.contains(copy), "{error}");
        kernel_was_first[is_kernel] = true;
    }
    assert_eq!(kernel_was_first, [true; 2], "the seeds draw both orders");
}

#[test]
fn an_event_orders_only_what_came_before_it() {
    for seed in SEEDS {
        let device = device(seed);
        let (copies, compute) = (device.stream("copies").unwrap(), device.stream("compute").unwrap());
        let (input, out) = (put(&device, &copies, &[1.0f32; 16]), device.allocate(32).unwrap());
        let event = device.event().unwrap();
        copies.record(&event).unwrap();
        copies.fill(input.all(), 0).unwrap();
        compute.wait(&event).unwrap();
        silu(&compute, &input, &out).unwrap();
        compute.synchronize().and(copies.synchronize()).unwrap_err();
    }
}

#[test]
fn an_order_goes_through_a_third_stream() {
    for seed in SEEDS {
        let device = device(seed);
        let [first, second, third] = ["first", "second", "third"].map(|name| device.stream(name).unwrap());
        let (input, out) = (device.allocate(64).unwrap(), device.allocate(32).unwrap());
        let (one, two) = (device.event().unwrap(), device.event().unwrap());
        first.fill(input.all(), 0).unwrap();
        first.record(&one).unwrap();
        // Nothing is enqueued between: the wait alone must carry over.
        second.wait(&one).unwrap();
        second.record(&two).unwrap();
        third.wait(&two).unwrap();
        silu(&third, &input, &out).unwrap();
        is_silu(&get(&device, &third, &out).unwrap(), 0.0);
    }
}

#[test]
fn a_write_after_a_read_needs_an_order_too() {
    for seed in SEEDS {
        let device = device(seed);
        let (copies, compute) = (device.stream("copies").unwrap(), device.stream("compute").unwrap());
        let (input, out) = (put(&device, &compute, &[1.0f32; 16]), device.allocate(32).unwrap());
        silu(&compute, &input, &out).unwrap();
        copies.fill(input.all(), 0).unwrap();
        let error = copies.synchronize().and(compute.synchronize()).unwrap_err().to_string();
        assert!(error.contains("weft_silu_mul_f32 on stream compute"), "{error}");
        assert!(error.contains("fill of 64 bytes on stream copies"), "{error}");
    }
}

#[test]
fn the_host_must_wait_before_it_touches_pinned_memory() {
    for seed in SEEDS {
        let device = device(seed);
        let stream = device.stream("copies").unwrap();
        let (buffer, pinned) = (device.allocate(64).unwrap(), device.allocate_pinned(64).unwrap());
        pinned.write(0, &[1.0f32; 16]).unwrap();
        stream.upload(&pinned, 0..64, buffer.all()).unwrap();
        // Another part is free.
        stream.synchronize().unwrap();
        stream.download(buffer.part(0..32).unwrap(), &pinned, 0..32).unwrap();
        pinned.write(32, &[2.0f32; 8]).unwrap();
        stream.synchronize().unwrap();
        stream.download(buffer.part(0..32).unwrap(), &pinned, 0..32).unwrap();
        let early = pinned.read(0, &mut [0.0f32; 4]);
        let error = early.and_then(|()| stream.synchronize()).unwrap_err().to_string();
        assert!(error.contains("the host") && error.contains("download of 32 bytes"), "{error}");
    }
}

#[test]
fn memory_that_was_given_back_is_anothers_only_after_its_last_use() {
    let reuse = |seed: u64, on_same_stream: bool| {
        let device = device(seed);
        let (one, two) = (device.stream("one").unwrap(), device.stream("two").unwrap());
        let (first, out) = (put(&device, &one, &[3.0f32; 16]), device.allocate(32).unwrap());
        silu(&one, &first, &out).unwrap();
        let address = first.address();
        drop(first);
        let second = device.allocate(64).unwrap();
        assert_eq!(second.address(), address, "the pool gives the same memory");
        let on = if on_same_stream { &one } else { &two };
        on.fill(second.all(), 0).unwrap();
        let result = one.synchronize().and(two.synchronize());
        result.and_then(|()| get::<f32>(&device, &one, &out))
    };
    for seed in SEEDS {
        is_silu(&reuse(seed, true).unwrap(), 3.0);
        assert!(matches!(reuse(seed, false), Err(Error::Race { .. })));
    }
}

#[test]
fn fresh_memory_holds_nothing_that_looks_like_numbers() {
    let device = device(0);
    let stream = device.stream("s").unwrap();
    drop(put(&device, &stream, &[1.0f32; 8]));
    let fresh = device.allocate(32).unwrap();
    assert!(get::<f32>(&device, &stream, &fresh).unwrap().iter().all(|value| value.is_nan()));
}

#[test]
fn events_are_over_when_their_work_is() {
    for seed in SEEDS {
        let device = device(seed);
        let (one, two) = (device.stream("one").unwrap(), device.stream("two").unwrap());
        let (buffer, event) = (device.allocate(64).unwrap(), device.event().unwrap());
        assert!(event.is_done().unwrap_err().to_string().contains("recorded nowhere"));
        assert!(two.wait(&event).is_err());
        one.fill(buffer.all(), 7).unwrap();
        one.record(&event).unwrap();
        let looks = (0..1000).take_while(|_| !event.is_done().unwrap()).count();
        assert!(looks < 1000);
        // The host knows, and so does what it enqueues from now on.
        two.fill(buffer.all(), 8).unwrap();
        two.record(&event).unwrap();
        event.synchronize().unwrap();
        assert_eq!(get::<u8>(&device, &one, &buffer).unwrap(), [8; 64]);
    }
}

#[test]
fn streams_run_beside_each_other_in_orders_that_differ() {
    let first_runs_first = |seed: u64| {
        let (shim, device) = shim(seed);
        let [one, two] = ["one", "two"].map(|name| device.stream(name).unwrap());
        let input = put(&device, &one, &[1.0f32; 16]);
        let outs = [0, 1].map(|_| device.allocate(32).unwrap());
        shim.start_measuring();
        silu(&one, &input, &outs[0]).unwrap();
        silu(&two, &input, &outs[1]).unwrap();
        one.synchronize().and(two.synchronize()).unwrap();
        let ran = shim.stop_measuring();
        assert_eq!(ran.len(), 2);
        ran[0].touched.iter().any(|line| line.at as u64 == outs[0].address() && line.written != 0)
    };
    let count = SEEDS.filter(|seed| first_runs_first(*seed)).count();
    assert!((5..35).contains(&count), "the first stream was first {count} times of 40");
}

#[test]
fn after_a_failure_nothing_works() {
    let device = device(0);
    let error = upload_then_compute(&device, false).unwrap_err();
    let stream = device.stream("later").unwrap();
    let buffer = device.allocate(4).unwrap();
    let later = stream.fill(buffer.all(), 0).unwrap_err();
    assert_eq!(later, Error::Failed(Box::new(error)));
    assert!(later.to_string().starts_with("the device has failed: operation"), "{later}");
}

/// What a table points to is known when the kernel has read it: a slot in use must be there, others may be on their way.
#[test]
fn slots_are_loaded_beside_steps_that_do_not_use_them() {
    let step_with = |seed: u64, loads_one_in_use: bool| {
        let device = device(seed);
        let (compute, copies) = (device.stream("compute").unwrap(), device.stream("copies").unwrap());
        let random = &mut Random::new(seed);
        let slots: Vec<Slot> = [8, 16, 3].map(|rank| Slot::new(&device, &compute, random, rank)).into();
        let used = [&slots[0], &slots[2]];
        let (mut step, x) = Step::new(&device, &compute, random);
        step.table = put(&device, &compute, &table(&used));
        let loaded = &slots[if loads_one_in_use { 2 } else { 1 }];
        let pinned = device.allocate_pinned(loaded.memory.bytes()).unwrap();
        pinned.write(0, &vec![0u8; loaded.memory.bytes()]).unwrap();
        copies.upload(&pinned, 0..pinned.bytes(), loaded.memory.all()).unwrap();
        let all: Vec<_> = slots.iter().map(|slot| slot.memory.all()).collect();
        step.launch(&compute, &all, Counts::default()).unwrap();
        let got = copies.synchronize().and_then(|()| get::<f32>(&device, &compute, &step.out));
        let mut want = vec![0.0; got.as_ref().map_or(0, Vec::len)];
        if got.is_ok() {
            expected(&x, &used, &mut want);
        }
        got.map(|got| (got, want))
    };
    for seed in SEEDS {
        let (got, want) = step_with(seed, false).unwrap();
        assert_eq!(got, want);
        let error = step_with(seed, true).unwrap_err().to_string();
        assert!(
            error.contains("weft_lora_decode_f32_bf16 on stream compute") && error.contains("upload of"),
            "{error}"
        );
    }
}
