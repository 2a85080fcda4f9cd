//! Attention over pages of any type, with windows, soft caps, strides and starts that the suite does not draw, against sums in f64; and the
//! same bits however the work is cut.

use half::{bf16, f16};
use proptest::prelude::*;
use weft_cuda_kernels::attention::Layer;
use weft_cuda_kernels::host::Order;
use weft_cuda_kernels::on_host::{Call, Device, E4m3, Element, KvElement, Pages};
use weft_kernels::AttentionSeq;
use weft_kernels::conformance::Random;

const HALF_UNIT: f64 = 1.0 / 16_777_216.0;
const BF16_UNIT: f64 = 1.0 / 256.0;
const F16_UNIT: f64 = 1.0 / 2048.0;

/// A step to be filled with numbers from a seed.
#[derive(Clone, Debug)]
struct Case {
    seed: u64,
    layer: Layer,
    /// Of each sequence: rows without one before it, positions before the step, rows.
    seqs: Vec<(usize, usize, usize)>,
    /// Elements between the end of a row and the next, and before the first.
    gaps: [usize; 2],
    device: Device,
}

fn cases() -> impl Strategy<Value = Case> {
    let head_dim = prop_oneof![3 => prop::sample::select(vec![64usize, 80, 96, 128, 256]), 1 => 1usize..70];
    let heads = (1usize..3, prop_oneof![3 => 1usize..9, 1 => prop::sample::select(vec![12usize, 17, 40])]);
    let block_size = prop::sample::select(vec![1usize, 7, 16, 16, 32]);
    let window = prop::option::of(prop_oneof![1usize..40, 40usize..300]);
    let soft_cap = prop::option::of(0.5f32..30.0);
    // Other layers' pages between the blocks.
    let between = prop_oneof![Just(0usize), 1usize..200];
    let before = prop_oneof![4 => 0usize..70, 1 => 240usize..300, 1 => 500usize..560];
    let rows = prop_oneof![4 => Just(1usize), 1 => Just(0), 2 => 2usize..12, 1 => 12usize..40];
    let seqs = prop::collection::vec((0usize..2, before, rows), 1..4);
    let device = (0u32..8, 1usize..40).prop_map(|(order, multiprocessors)| device(order, multiprocessors));
    let shape = (head_dim, heads, (block_size, between), window, soft_cap);
    (any::<u64>(), shape, seqs, [0usize..9, 0usize..9], device).prop_map(
        |(seed, (head_dim, (kv_heads, group), (block_size, between), window, soft_cap), mut seqs, gaps, device)| {
            let heads = kv_heads * group;
            // What a case may cost.
            let mut left = 2_000_000usize;
            for (_, before, rows) in &mut seqs {
                let each = heads * head_dim * (*before + 40);
                *rows = (*rows).min((left / each).max(1));
                left = left.saturating_sub(*rows * each);
            }
            let scale = 1.0 / (head_dim as f32).sqrt();
            let block_rows = Some(kv_heads * block_size + between);
            let layer = Layer { heads, kv_heads, head_dim, block_size, block_rows, window, scale, soft_cap };
            Case { seed, layer, seqs, gaps, device }
        },
    )
}

fn device(order: u32, multiprocessors: usize) -> Device {
    let order =
        Order { warps_backwards: order & 1 != 0, lanes_backwards: order & 2 != 0, blocks_backwards: order & 4 != 0 };
    Device { order, multiprocessors }
}

/// Shuffled blocks for sequences of these lengths, and how many there are.
fn tables(random: &mut Random, block_size: usize, lens: &[usize]) -> (Vec<Vec<u32>>, usize) {
    let blocks = lens.iter().map(|len| len.div_ceil(block_size)).sum::<usize>() + random.below(4);
    let mut free: Vec<u32> = (0..blocks as u32).collect();
    for i in (1..blocks).rev() {
        free.swap(i, random.below(i + 1));
    }
    (lens.iter().map(|len| free.split_off(free.len() - len.div_ceil(block_size))).collect(), blocks)
}

fn numbers<T: Element>(random: &mut Random, len: usize) -> Vec<T> {
    (0..len).map(|_| T::from_f32(random.normal())).collect()
}

/// Values of one position that a row sees, in f64.
struct Position {
    k: Vec<f64>,
    v: Vec<f64>,
}

/// What a row should be, and how far from it it may be, but for the last rounding.
///
/// With u = 2^-24 and errors of a chain of n additions taken as (8 + 4 sqrt n) u of the sum of absolute values: a score is off by d, its chain
/// over the head and four roundings besides, the cap among them; a weight relatively by 2 d (its own score's and the largest one's) and
/// a few units of the exponential; sums of weights and of weighted values by their chains.
fn oracle(layer: &Layer, q: &[f64], seen: &[&Position]) -> (Vec<f64>, Vec<f64>) {
    let chain = |n: usize| (8.0 + 4.0 * (n as f64).sqrt()) * HALF_UNIT;
    let (scale, cap) = (f64::from(layer.scale), layer.soft_cap.map(f64::from));
    let mut off = 0.0f64;
    let scores: Vec<f64> = seen
        .iter()
        .map(|position| {
            let products = q.iter().zip(&position.k).map(|(q, k)| q * k * scale);
            let (sum, all) = products.fold((0.0, 0.0), |(sum, all), x| (sum + x, all + x.abs()));
            off = off.max(chain(layer.head_dim) * all + 8.0 * HALF_UNIT * (all + cap.unwrap_or(0.0)));
            cap.map_or(sum, |cap| cap * (sum / cap).tanh())
        })
        .collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let total: f64 = weights.iter().sum();
    let share = 2.0 * off + 2.0 * chain(seen.len());
    (0..layer.head_dim)
        .map(|d| {
            let products = weights.iter().zip(seen).map(|(weight, position)| weight * position.v[d] / total);
            let (sum, all) = products.fold((0.0, 0.0), |(sum, all), x| (sum + x, all + x.abs()));
            (sum, share * (all + sum.abs()))
        })
        .unzip()
}

/// A step of `case` in types X and Kv: writes what comes before, then the step, and attends.
fn attention_is_right<X: Element, Kv: KvElement>(case: &Case, unit: f64) {
    let Case { layer, gaps, device, .. } = case;
    let random = &mut Random::new(case.seed);
    let lens: Vec<usize> = case.seqs.iter().map(|(_, before, rows)| before + rows).collect();
    let (tables, blocks) = tables(random, layer.block_size, &lens);
    let (q_width, kv_width) = (layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim);
    let scales: Vec<f32> = (0..2 * layer.kv_heads).map(|_| 0.001 + random.normal().abs() * 0.02).collect();
    let (k_scale, v_scale) = scales.split_at(layer.kv_heads);
    let mut pages = Pages::<Kv>::new(layer, blocks, [k_scale, v_scale]).unwrap();

    // All positions of each sequence, in two calls: what comes before, then the rows of the step.
    let mut given: Vec<[Vec<X>; 2]> = Vec::new();
    let rows: usize = case.seqs.iter().map(|(skipped, _, rows)| skipped + rows).sum::<usize>() + 1;
    let (k_stride, v_stride) = (kv_width + gaps[0], kv_width + gaps[1]);
    let mut step_k = numbers::<X>(random, gaps[1] + rows * k_stride);
    let mut step_v = numbers::<X>(random, gaps[0] + rows * v_stride);
    let (mut seqs, mut row) = (Vec::new(), 0);
    for ((skipped, before, rows), blocks) in case.seqs.iter().zip(&tables) {
        let (k, v) =
            (numbers::<X>(random, (before + rows) * kv_width), numbers::<X>(random, (before + rows) * kv_width));
        row += skipped;
        let earlier = [AttentionSeq { rows: 0..*before, start: 0, blocks }];
        let call = Call { layer, rows: *before, strides: [kv_width; 2], seqs: &earlier };
        device.kv_write(&call, &k[..before * kv_width], &v[..before * kv_width], &mut pages).unwrap();
        for i in 0..*rows {
            let from = (before + i) * kv_width..(before + i + 1) * kv_width;
            step_k[gaps[1] + (row + i) * k_stride..][..kv_width].copy_from_slice(&k[from.clone()]);
            step_v[gaps[0] + (row + i) * v_stride..][..kv_width].copy_from_slice(&v[from]);
        }
        seqs.push(AttentionSeq { rows: row..row + rows, start: *before, blocks });
        row += rows;
        given.push([k, v]);
    }
    let call = Call { layer, rows, strides: [k_stride, v_stride], seqs: &seqs };
    device.kv_write(&call, &step_k[gaps[1]..], &step_v[gaps[0]..], &mut pages).unwrap();

    // What lies in the pages is the nearest that they hold.
    let mut stored: Vec<Vec<Vec<Position>>> = Vec::new();
    for ((blocks, &len), given) in tables.iter().zip(&lens).zip(&given) {
        let mut heads = Vec::new();
        for head in 0..layer.kv_heads {
            let at = |position: usize| {
                let [k, v] = pages.at(blocks[position / layer.block_size] as usize, head, position % layer.block_size);
                for (got, (given, scale)) in [&k, &v].into_iter().zip(given.iter().zip([k_scale, v_scale])) {
                    let given = &given[position * kv_width + head * layer.head_dim..];
                    for (got, given) in got.iter().zip(given) {
                        let scale = if Kv::IS_SCALED { scale[head] } else { 1.0 };
                        let want = Kv::from_f32(given.to_f32() / scale).to_f32() * scale;
                        assert_eq!(got.to_bits(), want.to_bits(), "position {position} of head {head}: {case:?}");
                    }
                }
                let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect();
                Position { k: wide(k), v: wide(v) }
            };
            heads.push((0..len).map(at).collect());
        }
        stored.push(heads);
    }

    let (q_stride, out_stride) = (q_width + gaps[1], q_width + gaps[0]);
    let q = numbers::<X>(random, gaps[0] + rows * q_stride);
    let before = numbers::<X>(random, gaps[1] + rows * out_stride);
    let mut out = before.clone();
    let call = Call { layer, rows, strides: [q_stride, out_stride], seqs: &seqs };
    device.attention(&call, &q[gaps[0]..], &pages, &mut out[gaps[1]..]).unwrap();

    let group = layer.heads / layer.kv_heads;
    let mut written = vec![false; out.len()];
    for (seq, stored) in seqs.iter().zip(&stored) {
        for (position, row) in (seq.start..).zip(seq.rows.clone()) {
            for head in 0..layer.heads {
                let q: Vec<f64> = q[gaps[0] + row * q_stride + head * layer.head_dim..][..layer.head_dim]
                    .iter()
                    .map(|x| f64::from(x.to_f32()))
                    .collect();
                let low = layer.window.map_or(0, |window| (position + 1).saturating_sub(window));
                let seen: Vec<&Position> = stored[head / group][low..=position].iter().collect();
                let (want, bound) = oracle(layer, &q, &seen);
                let start = gaps[1] + row * out_stride + head * layer.head_dim;
                for d in 0..layer.head_dim {
                    written[start + d] = true;
                    let got = f64::from(out[start + d].to_f32());
                    // Half a step of f16's smallest numbers besides.
                    let bound = bound[d] + unit * (want[d].abs() + bound[d]) + 3e-8;
                    assert!(
                        (got - want[d]).abs() <= bound,
                        "row {row}, head {head}, {d}: {got}, should be {}, bound {bound}: {case:?}",
                        want[d]
                    );
                }
            }
        }
    }
    for at in (0..out.len()).filter(|at| !written[*at]) {
        assert_eq!(out[at].to_f32(), before[at].to_f32(), "element {at} belongs to no row: {case:?}");
    }

    // One row of each sequence again: alone, on a device of another size, in another order.
    for seq in seqs.iter().filter(|seq| !seq.rows.is_empty()) {
        let i = random.below(seq.rows.len());
        let row = seq.rows.start + i;
        let alone = [AttentionSeq { rows: 0..1, start: seq.start + i, blocks: seq.blocks }];
        let call = Call { layer, rows: 1, strides: [q_width; 2], seqs: &alone };
        let mut got = vec![X::from_f32(0.0); q_width];
        let other = self::device(random.below(8) as u32, 1 + random.below(200));
        other.attention(&call, &q[gaps[0] + row * q_stride..][..q_width], &pages, &mut got).unwrap();
        for (at, got) in got.iter().enumerate() {
            let want = out[gaps[1] + row * out_stride + at];
            assert_eq!(got.to_f32().to_bits(), want.to_f32().to_bits(), "row {row} alone, element {at}: {case:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn attention_in_f32(case in cases()) {
        attention_is_right::<f32, f32>(&case, HALF_UNIT);
    }

    #[test]
    fn attention_in_f32_over_bf16_pages(case in cases()) {
        attention_is_right::<f32, bf16>(&case, HALF_UNIT);
    }

    #[test]
    fn attention_in_bf16(case in cases()) {
        attention_is_right::<bf16, bf16>(&case, BF16_UNIT);
    }

    #[test]
    fn attention_in_bf16_over_e4m3_pages(case in cases()) {
        attention_is_right::<bf16, E4m3>(&case, BF16_UNIT);
    }

    #[test]
    fn attention_in_f16(case in cases()) {
        attention_is_right::<f16, f16>(&case, F16_UNIT);
    }

    #[test]
    fn attention_in_f16_over_e4m3_pages(case in cases()) {
        attention_is_right::<f16, E4m3>(&case, F16_UNIT);
    }
}

const FORWARDS: Device = Device { order: Order::FORWARDS, multiprocessors: 8 };
const SMALL: Layer = Layer {
    heads: 2,
    kv_heads: 1,
    head_dim: 4,
    block_size: 64,
    block_rows: None,
    window: None,
    scale: 0.5,
    soft_cap: None,
};

fn fixed(layer: Layer, before: usize, rows: usize) -> Case {
    Case { seed: 5, layer, seqs: vec![(1, before, rows)], gaps: [3, 0], device: device(5, 3) }
}

/// Several splits of codes, whose scales differ between heads.
#[test]
fn splits_of_e4m3_pages_are_scaled_by_head() {
    let layer = Layer { heads: 4, kv_heads: 2, head_dim: 16, ..SMALL };
    attention_is_right::<bf16, E4m3>(&fixed(layer, 600, 1), BF16_UNIT);
}

/// Keys of more than 512 bytes: half tiles.
#[test]
fn wide_heads_in_f32_over_several_splits() {
    let layer = Layer { head_dim: 256, scale: 0.06, window: Some(270), ..SMALL };
    attention_is_right::<f32, f32>(&fixed(layer, 520, 3), HALF_UNIT);
}

/// The last token's own values, and the first one's once it has left the window, are not even multiplied by zero.
#[test]
fn values_that_a_row_does_not_see_leave_no_trace_within_a_block() {
    let layer = &Layer { heads: 1, head_dim: 64, window: Some(64), ..SMALL };
    let (random, len) = (&mut Random::new(9), 95);
    let (k, mut v) = (random.normals(len * 64), random.normals(len * 64));
    let q = random.normals(32 * 64);
    let blocks = [1, 0];
    let mut outs = [vec![0.0f32; 32 * 64], vec![0.0f32; 32 * 64]];
    for out in &mut outs {
        let mut pages = Pages::<f32>::new(layer, 2, [&[], &[]]).unwrap();
        let seqs = [AttentionSeq { rows: 0..len, start: 0, blocks: &blocks }];
        FORWARDS.kv_write(&Call { layer, rows: len, strides: [64; 2], seqs: &seqs }, &k, &v, &mut pages).unwrap();
        let seqs = [AttentionSeq { rows: 0..32, start: 63, blocks: &blocks }];
        FORWARDS.attention(&Call { layer, rows: 32, strides: [64; 2], seqs: &seqs }, &q, &pages, out).unwrap();
        v[..64].fill(f32::INFINITY);
        v[94 * 64..].fill(f32::NAN);
    }
    let [clean, dirty] = outs;
    assert!(clean.iter().all(|x| x.is_finite()));
    assert!(dirty[..64].iter().chain(&dirty[31 * 64..]).all(|x| !x.is_finite()));
    assert_eq!(clean[64..31 * 64], dirty[64..31 * 64]);
}

/// Splits grow at 32,768 positions: of these two rows one has 128 of 256, the other 65 of 512.
#[test]
fn rows_on_both_sides_of_growing_splits_are_right_and_the_same_alone() {
    let (layer, random) = (&SMALL, &mut Random::new(3));
    let len = 32_769;
    let (tables, blocks) = tables(random, layer.block_size, &[len]);
    let mut pages = Pages::<f32>::new(layer, blocks, [&[], &[]]).unwrap();
    let (k, v) = (random.normals(len * 4), random.normals(len * 4));
    let all = [AttentionSeq { rows: 0..len, start: 0, blocks: &tables[0] }];
    let call = Call { layer, rows: len, strides: [4; 2], seqs: &all };
    FORWARDS.kv_write(&call, &k, &v, &mut pages).unwrap();

    let q = random.normals(16);
    let mut both = vec![0.0; 16];
    let seqs = [AttentionSeq { rows: 0..2, start: len - 2, blocks: &tables[0] }];
    FORWARDS.attention(&Call { layer, rows: 2, strides: [8; 2], seqs: &seqs }, &q, &pages, &mut both).unwrap();
    for row in 0..2 {
        let mut alone = vec![0.0; 8];
        let seqs = [AttentionSeq { rows: 0..1, start: len - 2 + row, blocks: &tables[0] }];
        let call = Call { layer, rows: 1, strides: [8; 2], seqs: &seqs };
        FORWARDS.attention(&call, &q[8 * row..8 * row + 8], &pages, &mut alone).unwrap();
        assert_eq!(alone, both[8 * row..8 * row + 8], "row {row}");
    }
    let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    let positions: Vec<Position> =
        k.chunks(4).zip(v.chunks(4)).map(|(k, v)| Position { k: wide(k), v: wide(v) }).collect();
    for (i, q) in q.chunks(4).enumerate() {
        let seen: Vec<&Position> = positions[..len - 1 + i / 2].iter().collect();
        let (want, bound) = oracle(layer, &wide(q), &seen);
        for d in 0..4 {
            let error = (f64::from(both[4 * i + d]) - want[d]).abs();
            assert!(error <= bound[d] + HALF_UNIT * want[d].abs(), "{i}, {d}: off by {error}, bound {}", bound[d]);
        }
    }
}

/// Every code and every middle between two, through the pages; what is too large, and NaN.
#[test]
fn codes_of_e4m3_are_the_nearest() {
    let codes: Vec<f32> = (0..0x7f).map(|code| E4m3(code).to_f32()).collect();
    let middles = codes.windows(2).map(|pair| f32::midpoint(pair[0], pair[1]));
    let mut values: Vec<f32> = codes.iter().copied().chain(middles).flat_map(|value| [value, -value]).collect();
    values.extend([449.0, -1e30, f32::INFINITY, 1e-9]);
    values.resize(values.len().next_multiple_of(4), 0.0);
    let layer = &Layer { heads: 1, ..SMALL };
    let blocks: Vec<u32> = (0..(values.len() / 4).div_ceil(64) as u32).collect();
    let mut pages = Pages::<E4m3>::new(layer, blocks.len(), [&[1.0], &[1.0]]).unwrap();
    let nan = vec![bf16::NAN; values.len()];
    let given: Vec<bf16> = values.iter().map(|value| bf16::from_f32(*value)).collect();
    let seqs = [AttentionSeq { rows: 0..values.len() / 4, start: 0, blocks: &blocks }];
    let call = Call { layer, rows: values.len() / 4, strides: [4; 2], seqs: &seqs };
    FORWARDS.kv_write(&call, &given, &nan, &mut pages).unwrap();
    for (row, given) in given.chunks(4).enumerate() {
        let [k, v] = pages.at(row / 64, 0, row % 64);
        assert!(v.iter().all(|v| v.is_nan()));
        for (got, given) in k.iter().zip(given) {
            let want = E4m3::from_f32(given.to_f32());
            assert_eq!(got.to_bits(), want.to_f32().to_bits(), "{given}");
        }
    }
}

#[test]
fn what_does_not_fit_is_told_before_a_launch() {
    let layer = &SMALL;
    let mut pages = Pages::<f32>::new(layer, 1, [&[], &[]]).unwrap();
    let seqs = [AttentionSeq { rows: 0..2, start: 0, blocks: &[0] }];
    let call = Call { layer, rows: 2, strides: [4; 2], seqs: &seqs };
    let error = FORWARDS.kv_write::<f32, f32>(&call, &[0.0; 7], &[0.0; 8], &mut pages).unwrap_err();
    assert_eq!(error.to_string(), "attention: k has 7 values, not 8");
    let error = FORWARDS.attention::<f32, f32>(&call, &[0.0; 16], &pages, &mut [0.0; 16]).unwrap_err();
    assert_eq!(error.to_string(), "attention: rows of q are 4 apart, not within 8 to 2147483647");
    let other = Layer { head_dim: 8, ..SMALL };
    let call = Call { layer: &other, rows: 2, strides: [16; 2], seqs: &seqs };
    let error = FORWARDS.attention::<f32, f32>(&call, &[0.0; 32], &pages, &mut [0.0; 32]).unwrap_err();
    assert_eq!(error.to_string(), "attention: head_dim of the pages has 4 values, not 8");
    let error = Pages::<E4m3>::new(layer, 1, [&[1.0], &[]]).err().unwrap();
    assert_eq!(error.to_string(), "attention: v_scale has 0 values, not 1");
    let error = Pages::<E4m3>::new(layer, 1, [&[1.0], &[0.0]]).err().unwrap();
    assert_eq!(error.to_string(), "attention: v_scale is 0");
}
