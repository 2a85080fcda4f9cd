//! The kernels' own suite over the device layer, and, for what it has no formats for, the same operations as the shim alone does them. Each of these
//! is a test over the shim, and one for a device.

use crate::port::{Draw, Pages, Port, kernels, kernels_in};
use half::{bf16, f16};
use std::sync::Arc;
use weft_cuda_device::driver::Driver;
use weft_cuda_kernels::attention::{Layer, Path as AttentionPath};
use weft_cuda_kernels::gemm::pack as weights;
use weft_cuda_kernels::gemm::{Inputs, codes, on_host as products};
use weft_cuda_kernels::host::Order;
use weft_cuda_kernels::on_host::{self, Adapter, Call, E4m3, Element, KvElement, LoraKind, LoraRows};
use weft_cuda_kernels::pack::{self, Format, Half};
use weft_cuda_kernels::sampling::{CANDIDATES, Request, Sampled, Sequence, Settings};
use weft_cuda_kernels::table::{self, Path};
use weft_kernels::conformance::{self, BesideCodes, Random};
use weft_kernels::{AttentionSeq, Kernels, KvFormat, WeightFormat};

/// The shim without the device layer: what results are compared with where the suite has no reference.
const ALONE: on_host::Device = on_host::Device { order: Order::FORWARDS, multiprocessors: 8 };

type Open<'a> = &'a dyn Fn() -> Arc<dyn Driver>;

/// Both kinds of tests, and those that take long in the shim, where `kernels/cuda/tests/conformance.rs` has them without the device layer.
macro_rules! conforms {
    ($($name:ident,)* | $($long:ident),*) => {
        mod on_the_shim {
            $(#[test]
            fn $name() {
                super::$name(&|| weft_cuda_device::shim::Shim::new(&weft_cuda_device::shim::Options::default()));
            })*
        }

        /// `WEFT_KERNELS=target/cuda/weft.fatbin cargo test --release -p weft-cuda-device --features cuda conformance -- --ignored`
        #[cfg(feature = "cuda")]
        mod on_a_device {
            conforms!(@ $($name),*, $($long),*);
        }
    };
    (@ $($name:ident),*) => {
        $(#[test]
        #[ignore = "needs a device, and WEFT_KERNELS to name a fatbin"]
        fn $name() {
            super::$name(&|| crate::cuda::device());
        })*
    };
}

conforms!(
    lora_in_f32,
    lora_in_bf16,
    lora_in_int8,
    lora_on_tensor_cores,
    lora_of_every_format_is_that_of_the_shim,
    attention_in_f32,
    attention_in_bf16,
    attention_cut_into_steps,
    attention_beside_what_it_must_not_see,
    attention_of_every_format_is_that_of_the_shim,
    products_in_int8,
    products_in_q4,
    products_alone_and_in_a_batch,
    products_of_every_format_are_those_of_the_shim,
    norms,
    rotary_embedding,
    silu,
    rows_of_every_format_are_those_of_the_shim,
    tokens_are_those_of_the_shim,
    | lora_alone_and_in_a_batch
);

fn lora(kernels: &dyn Kernels, format: WeightFormat, seed: u64) {
    conformance::lora_matches_the_reference(kernels, format, BesideCodes::Floats, seed);
    conformance::lora_leaves_everything_else_alone(kernels, format, seed);
    conformance::lora_with_overlapping_targets_adds_both(kernels, format, BesideCodes::Floats, seed);
}

fn lora_in_f32(open: Open<'_>) {
    lora(&*kernels(open()), WeightFormat::F32, 1);
}

fn lora_in_bf16(open: Open<'_>) {
    lora(&*kernels(open()), WeightFormat::Bf16, 2);
}

fn lora_in_int8(open: Open<'_>) {
    lora(&*kernels(open()), WeightFormat::Int8, 3);
}

/// The seed is one whose roundings are within the bound; `kernels/cuda/tests/conformance.rs` says why others may not be.
fn lora_on_tensor_cores(open: Open<'_>) {
    lora(&*kernels_in::<bf16>(open(), false), WeightFormat::Bf16, 6);
}

#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
fn lora_alone_and_in_a_batch(open: Open<'_>) {
    let same = conformance::lora_row_alone_and_in_a_batch_is_bit_equal;
    same(&*kernels(open()), WeightFormat::Bf16, 5);
    same(&*kernels_in::<bf16>(open(), true), WeightFormat::Int8, 7);
}

fn attention_in_f32(open: Open<'_>) {
    conformance::attention_matches_the_reference(&*kernels(open()), KvFormat::F32, 11);
}

fn attention_in_bf16(open: Open<'_>) {
    conformance::attention_matches_the_reference(&*kernels(open()), KvFormat::Bf16, 12);
}

/// Prompts and decoding are two kernels, and give the same bits.
fn attention_cut_into_steps(open: Open<'_>) {
    conformance::attention_does_not_depend_on_the_cut_into_steps(&*kernels(open()), KvFormat::F32, 13);
}

fn attention_beside_what_it_must_not_see(open: Open<'_>) {
    conformance::attention_ignores_what_it_must_not_see(&*kernels(open()), KvFormat::Bf16, 14);
}

fn products_in_int8(open: Open<'_>) {
    conformance::linear_matches_the_reference(&*kernels(open()), WeightFormat::Int8, 15);
}

fn products_in_q4(open: Open<'_>) {
    conformance::linear_matches_the_reference(&*kernels(open()), WeightFormat::Q4, 16);
}

fn products_alone_and_in_a_batch(open: Open<'_>) {
    conformance::linear_row_alone_and_in_a_batch_is_bit_equal(&*kernels(open()), WeightFormat::Int8, 17);
}

fn norms(open: Open<'_>) {
    conformance::norms_match_the_reference(&*kernels(open()), 18);
}

fn rotary_embedding(open: Open<'_>) {
    conformance::rope_matches_the_reference(&*kernels(open()), 19);
}

fn silu(open: Open<'_>) {
    conformance::silu_matches_the_reference(&*kernels(open()), 20);
    conformance::the_exponential_is_accurate(&*kernels(open()));
}

/// Numbers of one operation by two drivers. Sums of f32 in another order (tensor cores) differ by a small share of what they add up, which is at most
/// some tens of the largest result; a rounding to `X` differs by one unit in the last place then.
fn assert_near<X: Element>(what: &str, got: &[X], want: &[X]) {
    let (of_result, of_sums) = match X::SUFFIX {
        "f32" => (0.0, 2f32.powi(-16)),
        "f16" => (2f32.powi(-10), 2f32.powi(-12)),
        _ => (2f32.powi(-7), 2f32.powi(-10)),
    };
    let largest = want.iter().fold(0.0f32, |largest, want| largest.max(want.to_f32().abs()));
    assert_eq!(got.len(), want.len(), "{what}");
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        let (got, want) = (got.to_f32(), want.to_f32());
        let bound = of_result * want.abs() + of_sums * largest;
        assert!((got - want).abs() <= bound, "{what}: element {at} is {got}, should be {want}, within {bound}");
    }
}

fn values<X: Element>(random: &mut Random, len: usize) -> Vec<X> {
    (0..len).map(|_| X::from_f32(random.normal())).collect()
}

const IN: usize = 72;
const OUT: usize = 88;
const ROWS: usize = 30;
/// Of an adapter.
const COLUMNS: usize = 40;

/// Rows with the ranks of their adapters.
type Ranks<'a> = [(std::ops::Range<usize>, &'a [usize])];

struct Packed {
    rank: usize,
    a: Vec<u8>,
    b: Vec<u8>,
}

/// Its adapters side by side.
fn rows_of<'a>(rows: &std::ops::Range<usize>, packed: &'a [Packed]) -> LoraRows<'a> {
    let adapter = |(number, Packed { rank, a, b }): (usize, &'a Packed)| Adapter {
        a,
        b,
        rank: *rank,
        scale: 0.5,
        out_offset: (COLUMNS + 1) * number,
        out_features: COLUMNS,
    };
    (rows.clone(), packed.iter().enumerate().map(adapter).collect())
}

fn lora_is_that_of_the_shim<X: Element + bytemuck::Pod>(
    port: &Port,
    format: Format,
    (ranks, batch_invariant): (&Ranks<'_>, bool),
) -> Path {
    let random = &mut Random::new(31);
    let mut half =
        |half: Half, width: usize, rank: usize| pack::half(&random.normals(rank * width), half, rank, format).unwrap();
    let mut packed = |&rank: &usize| Packed {
        rank,
        a: half(Half::Shrink(IN), IN, rank),
        b: half(Half::Grow(COLUMNS), COLUMNS, rank),
    };
    let packed: Vec<Vec<Packed>> = ranks.iter().map(|(_, ranks)| ranks.iter().map(&mut packed).collect()).collect();
    let segments: Vec<LoraRows<'_>> =
        ranks.iter().zip(&packed).map(|((rows, _), packed)| rows_of(rows, packed)).collect();
    let (x, mut want): (Vec<X>, Vec<X>) = (values(random, ROWS * IN), values(random, ROWS * OUT));
    let (mut got, kind) = (want.clone(), LoraKind { format, batch_invariant });
    ALONE.lora(&x, IN, &segments, &mut want, OUT, kind).unwrap();
    let path = port.lora(&x, IN, &segments, &mut got, OUT, kind).unwrap();
    assert_near(&format!("{} with {} by {path:?}", X::SUFFIX, format.suffix()), &got, &want);
    path
}

fn lora_of_every_format_is_that_of_the_shim(open: Open<'_>) {
    fn of<X: Element + bytemuck::Pod>(port: &Port, activations: Format) -> usize {
        let single: &Ranks<'_> = &[(0..1, &[8, 3]), (2..3, &[16]), (3..4, &[64, 1])];
        let several: &Ranks<'_> = &[(0..1, &[8]), (1..21, &[16, 24]), (22..25, &[5]), (25..30, &[64, 0])];
        let mut launches = 0;
        for format in Format::ALL {
            for (path, case) in
                [(Path::Decode, (single, false)), (Path::Mixed, (several, true)), (Path::Prefill, (several, false))]
            {
                if table::kernel(path, activations, format).is_ok() {
                    assert_eq!(lora_is_that_of_the_shim::<X>(port, format, case), path);
                    launches += 1;
                }
            }
        }
        launches
    }
    let port = Port::new(open());
    let launches = [of::<f32>(&port, Format::F32), of::<bf16>(&port, Format::Bf16), of::<f16>(&port, Format::F16)];
    assert_eq!(launches, [8, 9, 9]);
}

/// A prompt and a row that decodes over two splits of a context, with the window and the soft cap that the suite has not.
fn attention_is_that_of_the_shim<X: Element + bytemuck::Pod, Kv: KvElement>(port: &Port) {
    let plain = Layer {
        heads: 6,
        kv_heads: 2,
        head_dim: 64,
        block_size: 16,
        block_rows: None,
        window: None,
        scale: 0.125,
        soft_cap: None,
    };
    let random = &mut Random::new(32);
    let tables: [Vec<u32>; 2] = [(0..20).rev().collect(), (20..28).collect()];
    let written = [(0..305, 0), (305..410, 0)];
    let read = [(0..1, 304), (1..35, 71)];
    let seqs = |of: &[(std::ops::Range<usize>, usize)]| -> Vec<AttentionSeq<'_>> {
        let seq = |((rows, start), blocks): (&(std::ops::Range<usize>, usize), _)| AttentionSeq {
            rows: rows.clone(),
            start: *start,
            blocks,
        };
        of.iter().zip(tables.iter().map(Vec::as_slice)).map(seq).collect()
    };
    let (k_width, width) = (plain.kv_heads * plain.head_dim, plain.heads * plain.head_dim);
    let [k, v]: [Vec<X>; 2] = [(); 2].map(|()| values(random, 410 * k_width));
    let q: Vec<X> = values(random, 35 * width);
    let scales = [&[0.03125f32, 0.0625][..], &[0.0625, 0.03125]];
    for layer in [plain, Layer { window: Some(50), soft_cap: Some(3.0), ..plain }] {
        let mut there = on_host::Pages::<Kv>::new(&layer, 28, scales).unwrap();
        let here = Pages::<Kv>::new(port, &layer, 28, scales);
        let (written, read) = (seqs(&written), seqs(&read));
        let call = |rows, stride, seqs| Call { layer: &layer, rows, strides: [stride; 2], seqs };
        ALONE.kv_write(&call(410, k_width, &written), &k, &v, &mut there).unwrap();
        port.kv_write(&layer, [&k, &v], &written, &here);
        let has_tensor_cores = X::SUFFIX != "f32";
        for path in [AttentionPath::Prefill, AttentionPath::Tensor] {
            if path == AttentionPath::Tensor && !has_tensor_cores {
                continue;
            }
            let (mut want, mut got) = (vec![X::from_f32(0.0); q.len()], vec![X::from_f32(0.0); q.len()]);
            ALONE.attention(&call(35, width, &read), path, &q, &there, &mut want).unwrap();
            port.attend(&layer, path, &q, &read, &here, &mut got);
            let what = format!("{} over {} by {path:?}, window {:?}", X::SUFFIX, Kv::SUFFIX, layer.window);
            assert_near(&what, &got, &want);
        }
    }
}

fn attention_of_every_format_is_that_of_the_shim(open: Open<'_>) {
    let port = &Port::new(open());
    attention_is_that_of_the_shim::<f32, f32>(port);
    attention_is_that_of_the_shim::<f32, bf16>(port);
    attention_is_that_of_the_shim::<bf16, bf16>(port);
    attention_is_that_of_the_shim::<bf16, E4m3>(port);
    attention_is_that_of_the_shim::<f16, f16>(port);
    attention_is_that_of_the_shim::<f16, E4m3>(port);
}

fn product_is_that_of_the_shim<X: Element + bytemuck::Pod>(
    port: &Port,
    (weights, x): (&weights::Packed, &[X]),
    inputs: Inputs,
    mut there: products::X,
) {
    let mut want = vec![0.0f32; there.rows * weights.columns];
    ALONE.gemm(weights, &mut there, &mut want, weights.columns).unwrap();
    let got = port.product(weights, &port.inputs(x, weights.depth, inputs));
    assert_near(&format!("{} rows, {:?} with {inputs:?}", there.rows, weights.weights), &got, &want);
}

fn products_of_every_format_are_those_of_the_shim(open: Open<'_>) {
    let port = &Port::new(open());
    let (columns, depth) = (72, 640);
    let random = &mut Random::new(33);
    let of = random.normals(columns * depth);
    let four = codes::four(&of);
    let four = weights::four([columns, depth], 32, &four.codes, &four.scales, &four.mins).unwrap();
    let (int8, int8_scales) = codes::int8(&of, depth);
    let channels = weights::int8_channels([columns, depth], &int8, &int8_scales).unwrap();
    let (fp8, fp8_scales) = codes::e4m3(&of, depth);
    let fp8 = weights::e4m3([columns, depth], &fp8, &fp8_scales).unwrap();
    for rows in [1, 9, 70] {
        let x: Vec<bf16> = values(random, rows * depth);
        let halves: Vec<f16> = x.iter().map(|x| f16::from_f32(x.to_f32())).collect();
        for weights in [&four, &fp8] {
            product_is_that_of_the_shim(port, (weights, &x), Inputs::Bf16, products::X::bf16(&x, depth));
            product_is_that_of_the_shim(port, (weights, &halves), Inputs::F16, products::X::f16(&halves, depth));
        }
        for (weights, inputs) in [(&four, Inputs::Int8Groups), (&channels, Inputs::Int8Rows), (&fp8, Inputs::E4m3Rows)]
        {
            product_is_that_of_the_shim(port, (weights, &x), inputs, ALONE.quantise(&x, depth, inputs).unwrap());
        }
    }
}

/// Norms, rotary embedding and SiLU.
fn rows_are_those_of_the_shim<X: Element + bytemuck::Pod>(port: &Port) {
    let (random, rows, width) = (&mut Random::new(35), 9, 576);
    let [x, before]: [Vec<X>; 2] = [(); 2].map(|()| values(random, rows * width));
    let weight: Vec<X> = values(random, width);
    let of = |what: &str| format!("{what} in {}", X::SUFFIX);
    let [mut want, mut got] = [(); 2].map(|()| vec![X::from_f32(0.0); x.len()]);
    ALONE.rms_norm(None, &x, &weight, 1e-5, &mut want).unwrap();
    port.rms_norm(None, &x, &weight, 1e-5, &mut got);
    assert_near(&of("norm"), &got, &want);
    let [mut want_sum, mut sum] = [(); 2].map(|()| before.clone());
    ALONE.rms_norm(Some(&mut want_sum), &x, &weight, 1e-5, &mut want).unwrap();
    port.rms_norm(Some(&mut sum), &x, &weight, 1e-5, &mut got);
    assert_near(&of("sum"), &sum, &want_sum);
    assert_near(&of("norm of a sum"), &got, &want);

    let positions: Vec<u32> = (0..rows).map(|_| random.below(8192) as u32).collect();
    let inv_freq: Vec<f32> = (0..32).map(|at| 10_000f32.powf(-(at as f32) / 32.0)).collect();
    let [mut want, mut got] = [(); 2].map(|()| x.clone());
    ALONE.rope(&mut want, [9, 64, width], &positions, &inv_freq, 1.25).unwrap();
    port.rope(&mut got, [9, 64], &positions, &inv_freq, 1.25);
    assert_near(&of("rope"), &got, &want);

    let [mut want, mut got] = [(); 2].map(|()| vec![X::from_f32(0.0); x.len() / 2]);
    ALONE.silu_mul(&x, width / 2, &mut want).unwrap();
    port.silu_mul(&x, width / 2, &mut got);
    assert_near(&of("silu"), &got, &want);
}

fn rows_of_every_format_are_those_of_the_shim(open: Open<'_>) {
    let port = &Port::new(open());
    rows_are_those_of_the_shim::<f32>(port);
    rows_are_those_of_the_shim::<bf16>(port);
    rows_are_those_of_the_shim::<f16>(port);
}

fn settings() -> [Settings; 8] {
    let drawn = Settings { temperature: 0.9, seed: 5, ..Settings::default() };
    [
        Settings::default(),
        drawn,
        Settings { top_k: 40, ..drawn },
        Settings { top_p: 0.9, temperature: 1.5, ..drawn },
        Settings { min_p: 0.05, ..drawn },
        Settings { top_k: 3000, temperature: 3.0, ..drawn },
        Settings { repetition_penalty: 1.3, frequency_penalty: 0.2, presence_penalty: 0.4, ..drawn },
        Settings { typical_p: 0.8, ..drawn },
    ]
}

fn request<'a>(draw: &Draw<'a>, sequence: &'a mut Sequence) -> Request<'a> {
    let Draw { settings, position, mask, alternatives, .. } = *draw;
    let sequence = settings.penalises().then_some(sequence);
    Request { settings, position, mask, sequence, alternatives, wants_logprob: true }
}

/// The tokens, and their log-probabilities but for the last place.
fn tokens_are_those_of_the_shim(open: Open<'_>) {
    let port = &Port::new(open());
    let random = &mut Random::new(34);
    for vocabulary in [100, 1300, 2 * CANDIDATES + 5] {
        let logits: Vec<bf16> = (0..8 * vocabulary).map(|_| bf16::from_f32(2.0 * random.normal())).collect();
        let mask: Vec<u32> = (0..vocabulary.div_ceil(32)).map(|_| random.bits() as u32 | 1).collect();
        let tokens: [Vec<u32>; 2] = [30, 7].map(|count| (0..count).map(|_| random.below(vocabulary) as u32).collect());
        let draw = |(at, settings): (usize, Settings)| Draw {
            settings,
            position: 40 + at as u64,
            mask: (at % 3 == 1).then_some(&mask),
            tokens: tokens.each_ref().map(Vec::as_slice),
            alternatives: at % 4,
        };
        let draws: Vec<Draw<'_>> = settings().into_iter().enumerate().map(draw).collect();
        let mut sequences: Vec<_> = draws
            .iter()
            .map(|draw| ALONE.begin_sequence(&draw.settings, vocabulary, &tokens[0], &tokens[1], &[]).unwrap())
            .collect();
        let mut requests: Vec<Request<'_>> =
            draws.iter().zip(&mut sequences).map(|(draw, sequence)| request(draw, sequence)).collect();
        let want = ALONE.sample(&logits, vocabulary, vocabulary, &mut requests).unwrap();
        let got = port.sample(&logits, vocabulary, &draws);
        for (at, (got, want)) in got.iter().zip(&want).enumerate() {
            let (got, want) = (got.as_ref().unwrap(), want.as_ref().unwrap());
            let tokens = |of: &Sampled| -> Vec<u32> { of.top.iter().map(|top| top.0).chain([of.token]).collect() };
            assert_eq!(tokens(got), tokens(want), "row {at} of {vocabulary}");
            let logprobs = |of: &Sampled| -> Vec<f32> { of.top.iter().map(|top| top.1).chain([of.logprob]).collect() };
            for (got, want) in logprobs(got).into_iter().zip(logprobs(want)) {
                assert!((got - want).abs() <= 2f32.powi(-22) * want.abs(), "row {at} of {vocabulary}: {got}, {want}");
            }
        }
    }
}
