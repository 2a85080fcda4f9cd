//! Attention over pages of any type, with windows, soft caps, strides and starts that the suite does not draw, against sums in f64; and the
//! same bits however the work is cut.

use half::{bf16, f16};
use proptest::prelude::*;
use weft_cuda_kernels::attention::{Layer, Path};
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
    /// Of the rows of prompts.
    path: Path,
}

/// What goes by decoding and the kernel of prompts that gives the same bits.
fn cases() -> impl Strategy<Value = Case> {
    let rows = prop_oneof![4 => Just(1usize), 1 => Just(0), 2 => 2usize..12, 1 => 12usize..40];
    cases_of(Path::Prefill, rows.boxed())
}

/// What goes by tensor cores, and single rows beside it.
fn tensor_cases() -> impl Strategy<Value = Case> {
    let rows = prop_oneof![1 => Just(1usize), 1 => Just(0), 4 => 2usize..12, 4 => 12usize..100];
    cases_of(Path::Tensor, rows.boxed())
}

fn cases_of(path: Path, rows: BoxedStrategy<usize>) -> impl Strategy<Value = Case> {
    let head_dim = prop_oneof![3 => prop::sample::select(vec![64usize, 80, 96, 128, 256]), 1 => 1usize..70];
    let heads = (1usize..3, prop_oneof![3 => 1usize..9, 1 => prop::sample::select(vec![12usize, 17, 40, 70])]);
    let block_size = prop::sample::select(vec![1usize, 7, 16, 16, 32]);
    let window = prop::option::of(prop_oneof![1usize..40, 40usize..300]);
    let soft_cap = prop::option::of(0.5f32..30.0);
    // Other layers' pages between the blocks.
    let between = prop_oneof![Just(0usize), 1usize..200];
    let before = prop_oneof![4 => 0usize..70, 1 => 240usize..300, 1 => 500usize..560];
    let seqs = prop::collection::vec((0usize..2, before, rows), 1..4);
    let device = (0u32..8, 1usize..40).prop_map(|(order, multiprocessors)| device(order, multiprocessors));
    let shape = (head_dim, heads, (block_size, between), window, soft_cap);
    (any::<u64>(), shape, seqs, [0usize..9, 0usize..9], device).prop_map(
        move |(
            seed,
            (head_dim, (kv_heads, group), (block_size, between), window, soft_cap),
            mut seqs,
            gaps,
            device,
        )| {
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
            Case { seed, layer, seqs, gaps, device, path }
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
/// a few units of the exponential; sums of weights and of weighted values by their chains. `weight_unit`: by how much of itself a weight is off
/// because it is rounded before values are multiplied; the sum of weights is over what they were rounded to.
fn oracle(layer: &Layer, q: &[f64], seen: &[&Position], weight_unit: f64) -> (Vec<f64>, Vec<f64>) {
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
    let share = 2.0 * off + 2.0 * chain(seen.len()) + weight_unit;
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
    let Case { layer, gaps, device, path, .. } = case;
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
    device.attention(&call, *path, &q[gaps[0]..], &pages, &mut out[gaps[1]..]).unwrap();

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
                let is_by_tensors = *path == Path::Tensor && seq.rows.len() > 1;
                let (want, bound) = oracle(layer, &q, &seen, if is_by_tensors { unit } else { 0.0 });
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

    // Some rows of each sequence again: without the others, on a device of another size, in another order. By decoding or the kernel that
    // gives its bits one row is enough; tensor cores are taken for two or more.
    for seq in seqs.iter().filter(|seq| !seq.rows.is_empty()) {
        let least = if *path == Path::Tensor { seq.rows.len().min(2) } else { 1 };
        let most = if *path == Path::Tensor { seq.rows.len() } else { 1 };
        let rows = least + random.below(most - least + 1);
        let i = random.below(seq.rows.len() - rows + 1);
        let row = seq.rows.start + i;
        let alone = [AttentionSeq { rows: 0..rows, start: seq.start + i, blocks: seq.blocks }];
        let call = Call { layer, rows, strides: [q_stride, q_width], seqs: &alone };
        let mut got = vec![X::from_f32(0.0); rows * q_width];
        let other = self::device(random.below(8) as u32, 1 + random.below(200));
        other.attention(&call, *path, &q[gaps[0] + row * q_stride..], &pages, &mut got).unwrap();
        for (at, got) in got.iter().enumerate() {
            let want = out[gaps[1] + (row + at / q_width) * out_stride + at % q_width];
            let row = row + at / q_width;
            assert_eq!(got.to_f32().to_bits(), want.to_f32().to_bits(), "row {row} apart, element {at}: {case:?}");
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

    #[test]
    fn tensor_cores_in_bf16(case in tensor_cases()) {
        attention_is_right::<bf16, bf16>(&case, BF16_UNIT);
    }

    #[test]
    fn tensor_cores_in_bf16_over_e4m3_pages(case in tensor_cases()) {
        attention_is_right::<bf16, E4m3>(&case, BF16_UNIT);
    }

    #[test]
    fn tensor_cores_in_f16(case in tensor_cases()) {
        attention_is_right::<f16, f16>(&case, F16_UNIT);
    }

    #[test]
    fn tensor_cores_in_f16_over_e4m3_pages(case in tensor_cases()) {
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
    Case { seed: 5, layer, seqs: vec![(1, before, rows)], gaps: [3, 0], device: device(5, 3), path: Path::Prefill }
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
        FORWARDS
            .attention(&Call { layer, rows: 32, strides: [64; 2], seqs: &seqs }, Path::Prefill, &q, &pages, out)
            .unwrap();
        v[..64].fill(f32::INFINITY);
        v[94 * 64..].fill(f32::NAN);
    }
    let [clean, dirty] = outs;
    assert!(clean.iter().all(|x| x.is_finite()));
    assert!(dirty[..64].iter().chain(&dirty[31 * 64..]).all(|x| !x.is_finite()));
    assert_eq!(clean[64..31 * 64], dirty[64..31 * 64]);
}

/// A prompt of one sequence and head: queries, keys and values, and the pages that hold them. What is not written is NaN.
struct Prompt<X, Kv> {
    layer: Layer,
    blocks: Vec<u32>,
    q: Vec<X>,
    pages: Pages<Kv>,
}

impl<X: Element, Kv: KvElement> Prompt<X, Kv> {
    /// `change`: of keys and values, `[positions, kv_heads * head_dim]` each, before they are written.
    fn new(layer: Layer, len: usize, seed: u64, change: impl FnOnce(&mut [X], &mut [X])) -> Self {
        let random = &mut Random::new(seed);
        let (q_width, kv_width) = (layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim);
        let (tables, blocks) = tables(random, layer.block_size, &[len]);
        let (mut k, mut v) = (numbers::<X>(random, len * kv_width), numbers::<X>(random, len * kv_width));
        change(&mut k, &mut v);
        let scales = vec![0.01; layer.kv_heads];
        let mut pages = Pages::<Kv>::new(&layer, blocks, [&scales, &scales]).unwrap();
        let nan = vec![X::from_f32(f32::NAN); blocks * layer.block_size * kv_width];
        let every: Vec<u32> = (0..blocks as u32).collect();
        let mut write = |k: &[X], v: &[X], blocks: &[u32]| {
            let rows = k.len() / kv_width;
            let seqs = [AttentionSeq { rows: 0..rows, start: 0, blocks }];
            FORWARDS
                .kv_write(&Call { layer: &layer, rows, strides: [kv_width; 2], seqs: &seqs }, k, v, &mut pages)
                .unwrap();
        };
        write(&nan, &nan, &every);
        write(&k, &v, &tables[0]);
        Self { layer, blocks: tables[0].clone(), q: numbers(random, len * q_width), pages }
    }

    /// Results of these positions, as one step.
    fn rows(&self, path: Path, rows: std::ops::Range<usize>) -> Vec<f32> {
        let width = self.layer.heads * self.layer.head_dim;
        let seqs = [AttentionSeq { rows: 0..rows.len(), start: rows.start, blocks: &self.blocks }];
        let call = Call { layer: &self.layer, rows: rows.len(), strides: [width; 2], seqs: &seqs };
        let mut out = vec![X::from_f32(0.0); rows.len() * width];
        device(6, 8)
            .attention(&call, path, &self.q[rows.start * width..rows.end * width], &self.pages, &mut out)
            .unwrap();
        out.into_iter().map(Element::to_f32).collect()
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

const GROUPED: Layer = Layer { heads: 6, kv_heads: 2, head_dim: 72, block_size: 16, scale: 0.12, ..SMALL };

/// A prompt in pieces of two tokens or more, which begin and end anywhere, has the bits of the prompt in one.
#[test]
fn on_tensor_cores_a_prompt_has_the_same_bits_however_it_is_cut() {
    fn same<X: Element, Kv: KvElement>(layer: Layer, seed: u64) {
        let (len, random) = (200, &mut Random::new(seed));
        let prompt = Prompt::<X, Kv>::new(layer, len, seed, |_, _| {});
        let whole = prompt.rows(Path::Tensor, 0..len);
        assert!(whole.iter().all(|value| value.is_finite()));
        let (mut parts, mut at) = (Vec::new(), 0);
        while at < len {
            let end = at + random.pick(&[2, 3, 17, 40, 64]);
            // Not one token alone at the end.
            let end = if end + 2 > len { len } else { end };
            parts.extend(prompt.rows(Path::Tensor, at..end));
            at = end;
        }
        assert_eq!(bits(&parts), bits(&whole), "{layer:?}, seed {seed}");
    }
    for (seed, window) in [(1, None), (2, Some(50)), (3, Some(100))] {
        let layer = Layer { window, soft_cap: window.map(|_| 20.0), ..GROUPED };
        same::<bf16, bf16>(layer, seed);
        same::<f16, E4m3>(layer, seed);
    }
    same::<bf16, E4m3>(Layer { head_dim: 200, heads: 2, ..GROUPED }, 4);
    same::<f16, f16>(Layer { head_dim: 40, block_size: 7, ..GROUPED }, 5);
}

/// A token whose key and value are not finite spoils the rows that see it, and no bit of the others: neither earlier rows of its own
/// block, nor those whose window it has left; nor the features in which it is finite.
#[test]
fn on_tensor_cores_what_a_row_does_not_see_leaves_no_trace() {
    fn no_trace<X: Element, Kv: KvElement>(layer: Layer, bad: &[(usize, f32)], keys_too: bool) {
        let (len, start) = (150, 40);
        let (width, kv_width) = (layer.heads * layer.head_dim, layer.kv_heads * layer.head_dim);
        let feature = layer.head_dim - 2;
        let clean = Prompt::<X, Kv>::new(layer, len, 11, |_, _| {}).rows(Path::Tensor, start..len);
        let dirty = Prompt::<X, Kv>::new(layer, len, 11, |k, v| {
            for &(position, value) in bad {
                v[position * kv_width + feature] = X::from_f32(value);
                if keys_too {
                    k[position * kv_width..position * kv_width + layer.head_dim].fill(X::from_f32(value));
                }
            }
        });
        let dirty = dirty.rows(Path::Tensor, start..len);
        assert!(clean.iter().all(|value| value.is_finite()));
        for (at, (dirty, clean)) in dirty.iter().zip(&clean).enumerate() {
            let (position, head, d) = (start + at / width, at % width / layer.head_dim, at % layer.head_dim);
            let low = layer.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let sees = head < layer.heads / layer.kv_heads && bad.iter().any(|(at, _)| (low..=position).contains(at));
            if sees && (keys_too || d == feature) {
                assert!(!dirty.is_finite(), "position {position}, head {head}, {d}: {dirty}");
            } else {
                assert_eq!(dirty.to_bits(), clean.to_bits(), "position {position}, head {head}, {d}");
            }
        }
    }
    let windowed = Layer { window: Some(30), ..GROUPED };
    for layer in [GROUPED, windowed] {
        no_trace::<bf16, bf16>(layer, &[(100, f32::INFINITY)], false);
        no_trace::<f16, f16>(layer, &[(70, f32::NAN), (149, f32::NEG_INFINITY)], true);
        no_trace::<bf16, E4m3>(layer, &[(64, f32::NAN), (127, f32::NAN)], false);
        no_trace::<f16, E4m3>(Layer { head_dim: 130, ..layer }, &[(99, f32::NAN)], true);
    }
}

/// Root of the mean square of errors, of two paths over the same prompt and of the last rounding alone, relative to that of the results.
fn errors<X: Element, Kv: KvElement>(layer: Layer, len: usize, spread: f32) -> [f64; 3] {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    let prompt = Prompt::<X, Kv>::new(layer, len, 21, |k, v| {
        k.iter_mut().for_each(|k| *k = X::from_f32(k.to_f32() * spread));
        let wide =
            |x: &[X]| x.chunks(layer.head_dim).map(|x| x.iter().map(|x| f64::from(x.to_f32())).collect()).collect();
        (keys, values) = (wide(k), wide(v));
    });
    let first = len - 64;
    let found = [Path::Tensor, Path::Prefill].map(|path| prompt.rows(path, first..len));
    let positions: Vec<Position> = keys.into_iter().zip(values).map(|(k, v)| Position { k, v }).collect();
    let (mut off, mut all) = ([0.0f64; 3], 0.0f64);
    for row in 0..64 {
        let q: Vec<f64> = prompt.q[(first + row) * layer.head_dim..][..layer.head_dim]
            .iter()
            .map(|x| f64::from(x.to_f32()))
            .collect();
        let seen: Vec<&Position> = positions[..=first + row].iter().collect();
        for (d, want) in oracle(&layer, &q, &seen, 0.0).0.into_iter().enumerate() {
            let at = row * layer.head_dim + d;
            let rounded = X::from_f32(want as f32).to_f32();
            for (off, found) in off.iter_mut().zip([found[0][at], found[1][at], rounded]) {
                *off += (f64::from(found) - want).powi(2);
            }
            all += want * want;
        }
    }
    off.map(|off| (off / all).sqrt())
}

/// What one number for a weight costs: together with the last rounding of a result one and a half times as much as that alone. The other kernel's
/// weights are f32, so two numbers of X could do no better than it does.
#[test]
fn weights_of_one_number_cost_about_what_the_last_rounding_does() {
    let layer = Layer { heads: 1, head_dim: 128, block_size: 16, scale: 1.0 / 128.0f32.sqrt(), ..SMALL };
    for (len, spread) in [(64, 1.0), (500, 1.0), (500, 4.0), (2000, 0.1)] {
        for (name, [by_tensors, by_vectors, rounding]) in
            [("bf16", errors::<bf16, bf16>(layer, len, spread)), ("f16", errors::<f16, f16>(layer, len, spread))]
        {
            println!(
                "{name}, {len} positions, keys times {spread}: {by_tensors:.2e}, in f32 {by_vectors:.2e}, rounding {rounding:.2e}"
            );
            assert!(by_vectors < 1.02 * rounding, "{name}, {len}, {spread}: {by_vectors}, rounding alone {rounding}");
            assert!(by_tensors < 1.5 * rounding, "{name}, {len}, {spread}: {by_tensors}, rounding alone {rounding}");
        }
    }
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
    FORWARDS
        .attention(&Call { layer, rows: 2, strides: [8; 2], seqs: &seqs }, Path::Prefill, &q, &pages, &mut both)
        .unwrap();
    for row in 0..2 {
        let mut alone = vec![0.0; 8];
        let seqs = [AttentionSeq { rows: 0..1, start: len - 2 + row, blocks: &tables[0] }];
        let call = Call { layer, rows: 1, strides: [8; 2], seqs: &seqs };
        FORWARDS.attention(&call, Path::Prefill, &q[8 * row..8 * row + 8], &pages, &mut alone).unwrap();
        assert_eq!(alone, both[8 * row..8 * row + 8], "row {row}");
    }
    let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
    let positions: Vec<Position> =
        k.chunks(4).zip(v.chunks(4)).map(|(k, v)| Position { k: wide(k), v: wide(v) }).collect();
    for (i, q) in q.chunks(4).enumerate() {
        let seen: Vec<&Position> = positions[..len - 1 + i / 2].iter().collect();
        let (want, bound) = oracle(layer, &wide(q), &seen, 0.0);
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
    let error = FORWARDS.attention::<f32, f32>(&call, Path::Prefill, &[0.0; 16], &pages, &mut [0.0; 16]).unwrap_err();
    assert_eq!(error.to_string(), "attention: rows of q are 4 apart, not within 8 to 2147483647");
    let other = Layer { head_dim: 8, ..SMALL };
    let call = Call { layer: &other, rows: 2, strides: [16; 2], seqs: &seqs };
    let error = FORWARDS.attention::<f32, f32>(&call, Path::Prefill, &[0.0; 32], &pages, &mut [0.0; 32]).unwrap_err();
    assert_eq!(error.to_string(), "attention: head_dim of the pages has 4 values, not 8");
    let error = Pages::<E4m3>::new(layer, 1, [&[1.0], &[]]).err().unwrap();
    assert_eq!(error.to_string(), "attention: v_scale has 0 values, not 1");
    let error = Pages::<E4m3>::new(layer, 1, [&[1.0], &[0.0]]).err().unwrap();
    assert_eq!(error.to_string(), "attention: v_scale is 0");
}
