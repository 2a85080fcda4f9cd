//! Matrix products of a warp, asynchronous copies and e4m3 in the shim, against plain arithmetic: `shim/mma_probes.cu`.

use half::{bf16, f16};
use std::ffi::c_void;
use weft_cuda_kernels::arguments;
use weft_cuda_kernels::host::{Error, Launch, Order};
use weft_kernels::conformance::Random;

const ORDERS: [Order; 2] = [Order::FORWARDS, Order::BACKWARDS];

fn launch(kernel: &str, blocks: u32, threads: u32, order: Order, arguments: &mut [*mut c_void]) -> Result<(), Error> {
    let launch = Launch { kernel, grid: [blocks, 1, 1], threads, shared_bytes: 0, order };
    // SAFETY: the callers below give each probe the parameters that mma_probes.cu names, over vectors that are large enough.
    unsafe { launch.run(arguments) }
}

/// Vectors of 16 bytes load from it, whatever the allocator gives.
#[repr(C, align(16))]
#[derive(Clone, Copy, Default, PartialEq, Debug)]
struct Four([f32; 4]);

/// Elements side by side in a register.
fn width(depth: usize) -> usize {
    depth / 8
}

/// Row and column of element `i` of A in a lane, as the tables of the PTX ISA count it: all elements of its registers in a row.
fn place_in_a(depth: usize, lane: usize, i: usize) -> (usize, usize) {
    let each = width(depth);
    let (group, member) = (lane >> 2, lane % 4);
    let row = if (0..each).contains(&i) || (2 * each..3 * each).contains(&i) { group } else { group + 8 };
    let column = member * each + (i & (each - 1)) + if i < 2 * each { 0 } else { depth / 2 };
    (row, column)
}

fn place_in_b(depth: usize, lane: usize, i: usize) -> (usize, usize) {
    let each = width(depth);
    (lane % 4 * each + i % each + if i < each { 0 } else { depth / 2 }, lane >> 2)
}

fn place_in_d(lane: usize, i: usize) -> (usize, usize) {
    (if i < 2 { lane >> 2 } else { (lane >> 2) + 8 }, lane % 4 * 2 + (i & 1))
}

/// Registers of 32 lanes with `count` elements of `bytes` each, from a function of lane and element.
fn registers(count: usize, bytes: usize, element: impl Fn(usize, usize) -> u32) -> Vec<u32> {
    let each = 4 / bytes;
    let mut registers = vec![0u32; 32 * count / each];
    for lane in 0..32 {
        for i in 0..count {
            registers[(lane * count + i) / each] |= element(lane, i) << (8 * bytes * (i % each));
        }
    }
    registers
}

/// A [16, depth], B [depth, 8] and C [16, 8], with `bits` of a value, through a probe; the product in f64 beside it.
fn product<D: Copy + Default>(
    probe: &str,
    depth: usize,
    [a, b]: [&[f64]; 2],
    c: &[D],
    bits: impl Fn(f64) -> u32,
    order: Order,
) -> (Vec<D>, Vec<f64>) {
    let bytes = 16 / width(depth) / 4;
    let of_a = registers(4 * width(depth), bytes, |lane, i| {
        let (row, column) = place_in_a(depth, lane, i);
        bits(a[row * depth + column])
    });
    let of_b = registers(2 * width(depth), bytes, |lane, i| {
        let (row, column) = place_in_b(depth, lane, i);
        bits(b[row * 8 + column])
    });
    let at = |lane, i| {
        let (row, column) = place_in_d(lane, i);
        row * 8 + column
    };
    let mut of_d: Vec<D> = (0..128).map(|i| c[at(i / 4, i % 4)]).collect();
    let (a_at, b_at, d_at): (*const u32, *const u32, *mut D) = (of_a.as_ptr(), of_b.as_ptr(), of_d.as_mut_ptr());
    launch(probe, 1, 32, order, &mut arguments![a_at, b_at, d_at]).unwrap();
    let mut got = vec![D::default(); 128];
    for (i, d) in of_d.into_iter().enumerate() {
        got[at(i / 4, i % 4)] = d;
    }
    let want = (0..128).map(|i| (0..depth).map(|k| a[i / 8 * depth + k] * b[k * 8 + i % 8]).sum()).collect();
    (got, want)
}

/// Small integers whose products add up exactly, in an order that makes all elements differ from their neighbours: a lane that holds
/// another element than it should changes the result.
fn whole(random: &mut Random, len: usize, most: usize) -> Vec<f64> {
    (0..len).map(|_| random.below(2 * most + 1) as f64 - most as f64).collect()
}

#[test]
fn products_of_whole_numbers_are_exact() {
    let random = &mut Random::new(1);
    let as_f16 = |value: f64| u32::from(f16::from_f64(value).to_bits());
    let as_bf16 = |value: f64| u32::from(bf16::from_f64(value).to_bits());
    let as_e4m3 = |value: f64| u32::from(nearest_e4m3(value));
    for order in ORDERS {
        for (probe, depth, most) in [
            ("probe_mma_f16", 16, 250),
            ("probe_mma_bf16", 16, 250),
            ("probe_mma_e4m3", 32, 15),
            ("probe_mma_e4m3_widened", 32, 15),
        ] {
            let (a, b) = (whole(random, 16 * depth, most), whole(random, depth * 8, most));
            let c: Vec<f32> = whole(random, 128, 5000).iter().map(|c| *c as f32).collect();
            let (got, want) = match probe {
                "probe_mma_f16" => product(probe, depth, [&a, &b], &c, as_f16, order),
                "probe_mma_bf16" => product(probe, depth, [&a, &b], &c, as_bf16, order),
                _ => product(probe, depth, [&a, &b], &c, as_e4m3, order),
            };
            for (i, ((got, want), c)) in got.iter().zip(&want).zip(&c).enumerate() {
                assert_eq!(f64::from(*got), want + f64::from(*c), "{probe}: element {i}");
            }
        }
        let (a, b) = (whole(random, 512, 128), whole(random, 256, 127));
        let c: Vec<i32> = whole(random, 128, 1 << 20).iter().map(|c| *c as i32).collect();
        let as_byte = |value: f64| u32::from((value.min(127.0) as i8).cast_unsigned());
        let a: Vec<f64> = a.iter().map(|a| a.min(127.0)).collect();
        let (got, want) = product("probe_mma_s8", 32, [&a, &b], &c, as_byte, order);
        for (i, ((got, want), c)) in got.iter().zip(&want).zip(&c).enumerate() {
            assert_eq!(i64::from(*got), *want as i64 + i64::from(*c), "probe_mma_s8: element {i}");
        }
    }
}

/// A product of one element of A and one of B lands in one element of D, for each pair of them.
#[test]
fn each_pair_of_elements_meets_in_one_place() {
    let as_f16 = |value: f64| u32::from(f16::from_f64(value).to_bits());
    for k in 0..16 {
        let mut a = vec![0.0; 256];
        let mut b = vec![0.0; 128];
        for row in 0..16 {
            a[row * 16 + k] = 1.0 + row as f64;
        }
        for column in 0..8 {
            b[k * 8 + column] = 20.0 + column as f64;
        }
        let (got, want) = product("probe_mma_f16", 16, [&a, &b], &[0.0f32; 128], as_f16, Order::FORWARDS);
        assert_eq!(got.iter().map(|got| f64::from(*got)).collect::<Vec<_>>(), want, "k {k}");
    }
}

#[test]
fn sums_that_round_are_within_their_bound() {
    let random = &mut Random::new(2);
    let mut normals = |len: usize, round: &dyn Fn(f32) -> f32| -> Vec<f64> {
        random.normals(len).into_iter().map(|value| f64::from(round(value))).collect()
    };
    let as_f16 = |value: f64| u32::from(f16::from_f64(value).to_bits());
    let as_e4m3 = |value: f64| u32::from(nearest_e4m3(value));
    let to_f16 = |value: f32| f16::from_f32(value).to_f32();
    let to_e4m3 = |value: f32| e4m3(nearest_e4m3(f64::from(value))) as f32;
    let (a, b) = (normals(256, &to_f16), normals(128, &to_f16));
    check_sums(product("probe_mma_f16", 16, [&a, &b], &[0.0f32; 128], as_f16, ORDERS[0]), 16, [&a, &b]);
    let (a, b) = (normals(512, &to_e4m3), normals(256, &to_e4m3));
    for probe in ["probe_mma_e4m3", "probe_mma_e4m3_widened"] {
        check_sums(product(probe, 32, [&a, &b], &[0.0f32; 128], as_e4m3, ORDERS[0]), 32, [&a, &b]);
    }
}

/// Products are exact, so what errs is one rounding of each of `depth` additions: half a unit of a sum that is no larger than the
/// magnitudes.
fn check_sums((got, want): (Vec<f32>, Vec<f64>), depth: usize, [a, b]: [&[f64]; 2]) {
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let magnitude: f64 = (0..depth).map(|k| (a[i / 8 * depth + k] * b[k * 8 + i % 8]).abs()).sum();
        let bound = depth as f64 / 16_777_216.0 * magnitude;
        assert!((f64::from(*got) - want).abs() <= bound, "element {i} is {got}, should be {want}");
    }
}

#[test]
fn matrices_come_row_by_row_or_turned() {
    let from: Vec<u16> = (0..256).map(|i| 257 * i).collect();
    for order in ORDERS {
        let mut to = vec![0u32; 256];
        let (from_at, to_at): (*const u16, *mut u32) = (from.as_ptr(), to.as_mut_ptr());
        launch("probe_loads_matrices", 1, 32, order, &mut arguments![from_at, to_at]).unwrap();
        let pair = |low: usize, high: usize| u32::from(from[low]) | u32::from(from[high]) << 16;
        for lane in 0..32 {
            let (group, member) = (lane / 4, lane % 4);
            for matrix in 0..4 {
                let first = matrix * 64;
                let plain = first + group * 8 + 2 * member;
                assert_eq!(to[lane * 4 + matrix], pair(plain, plain + 1), "lane {lane} matrix {matrix}");
                let turned = first + 2 * member * 8 + group;
                assert_eq!(to[128 + lane * 4 + matrix], pair(turned, turned + 8), "lane {lane} matrix {matrix} turned");
            }
        }
    }
}

#[test]
fn copies_are_there_when_they_were_waited_for() {
    let from: Vec<Four> = (0..64).map(|i| Four([0.0, 0.25, 0.5, 0.75].map(|part| 1.0 + i as f32 + part))).collect();
    for order in ORDERS {
        let mut to = vec![Four::default(); 128];
        let (from_at, to_at): (*const Four, *mut Four) = (from.as_ptr(), to.as_mut_ptr());
        launch("probe_copies", 1, 64, order, &mut arguments![from_at, to_at]).unwrap();
        for thread in 0..64 {
            let other = 63 - thread;
            assert_eq!(to[thread], from[other], "thread {thread}");
            let want = if other % 2 == 0 { from[other] } else { Four::default() };
            assert_eq!(to[64 + thread], want, "thread {thread}, second group");
        }
        launch("probe_copies_without_waiting", 1, 64, order, &mut arguments![from_at, to_at]).unwrap();
        assert!(to[..64].iter().all(|got| got.0.iter().all(|value| value.is_nan())), "nothing came before the wait");
    }
}

// The address sanitizer takes the place of the race check (scripts/asan.sh).
#[cfg(not(race_check_is_off))]
#[test]
fn a_copy_over_what_another_thread_reads_is_told() {
    let (from, mut to) = (vec![Four::default(); 64], vec![Four::default(); 64]);
    for order in ORDERS {
        let (from_at, to_at): (*const Four, *mut Four) = (from.as_ptr(), to.as_mut_ptr());
        let error =
            launch("probe_copies_over_what_is_read", 1, 64, order, &mut arguments![from_at, to_at]).unwrap_err();
        assert!(error.to_string().contains("race in shared memory"), "{error}");
    }
}

#[test]
fn a_product_that_a_lane_misses_is_told() {
    let mut to = vec![0.0f32; 32];
    let to_at: *mut f32 = to.as_mut_ptr();
    let error = launch("probe_mma_without_a_lane", 1, 32, Order::FORWARDS, &mut arguments![to_at]).unwrap_err();
    assert!(error.to_string().contains("31 for their warp, and 1 have ended"), "{error}");
    let error = launch("probe_mma_f16", 1, 16, Order::FORWARDS, &mut arguments![to_at, to_at, to_at]).unwrap_err();
    assert!(error.to_string().contains("a matrix operation in a warp of 16 lanes"), "{error}");
}

/// The value of a code, from its definition.
fn e4m3(code: u8) -> f64 {
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let magnitude = match code & 0x7f {
        0x7f => f64::NAN,
        _ if exponent == 0 => fraction / 8.0 * 2f64.powi(-6),
        _ => (1.0 + fraction / 8.0) * 2f64.powi(exponent - 7),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

/// The nearest code by search through all of them; of two the even one; beyond the largest the largest.
fn nearest_e4m3(value: f64) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    if value.is_nan() {
        return 0x7f;
    }
    let distance = |code: &u8| (e4m3(*code) - value.abs().min(448.0)).abs();
    let best = (0..0x7f).map(|code| distance(&code)).fold(f64::INFINITY, f64::min);
    let mut nearest = (0..0x7fu8).filter(|code| distance(code) == best);
    let first = nearest.next().expect("there is a nearest one");
    sign | nearest.next().filter(|second| second % 2 == 0).unwrap_or(first)
}

#[test]
fn every_code_of_e4m3_has_its_value() {
    let mut to = vec![0.0f32; 768];
    let to_at: *mut f32 = to.as_mut_ptr();
    launch("probe_widens_e4m3", 1, 64, Order::FORWARDS, &mut arguments![to_at]).unwrap();
    for (way, got) in ["header", "f16", "bf16"].into_iter().zip(to.chunks(256)) {
        for (code, got) in (0..=255u8).zip(got) {
            let want = e4m3(code);
            let is_same = if want.is_nan() { got.is_nan() } else { f64::from(*got).to_bits() == want.to_bits() };
            assert!(is_same, "{code:#x} by {way} is {got}, should be {want}");
        }
    }
}

#[test]
fn e4m3_is_the_nearest_code_and_the_even_one_of_two() {
    let random = &mut Random::new(3);
    let mut values = vec![0.0f32, -0.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1e-40];
    // Each code, the middle between it and the next, and what lies beside both.
    for code in 0..0x7fu8 {
        let value = e4m3(code) as f32;
        let middle = ((e4m3(code) + if code == 0x7e { 480.0 } else { e4m3(code + 1) }) / 2.0) as f32;
        for near in [value, middle] {
            values.extend([near, -near, near.next_down(), near.next_up(), -near.next_up()]);
        }
    }
    // All magnitudes, and those between the smallest and the largest code.
    values.extend((0..4000).map(|_| f32::from_bits(random.bits() as u32)));
    values.extend((0..8000).map(|_| random.normal() * 2f32.powi(random.below(20) as i32 - 11)));
    values.resize(values.len().next_multiple_of(128), 1.0);
    let mut to = vec![0u32; values.len()];
    let (from_at, to_at): (*const f32, *mut u32) = (values.as_ptr(), to.as_mut_ptr());
    let blocks = (values.len() / 128) as u32;
    launch("probe_to_e4m3", blocks, 128, Order::FORWARDS, &mut arguments![from_at, to_at]).unwrap();
    for (value, got) in values.iter().zip(&to) {
        assert_eq!(*got, u32::from(nearest_e4m3(f64::from(*value))), "{value:e}");
    }
}
