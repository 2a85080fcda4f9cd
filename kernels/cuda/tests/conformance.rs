//! The kernels' own suite, over the `.cu` files in the shim, in two orders of execution.

use half::bf16;
use weft_cuda_kernels::host::Order;
use weft_cuda_kernels::on_host::{Device, kernels, kernels_in};
use weft_kernels::conformance::BesideCodes;
use weft_kernels::{Kernels, KvFormat, WeightFormat, conformance};

/// A small one, so that columns are cut differently than on a large one.
const FORWARDS: Device = Device { order: Order::FORWARDS, multiprocessors: 4 };
const BACKWARDS: Device = Device { order: Order::BACKWARDS, multiprocessors: 132 };

fn lora(kernels: &dyn Kernels, format: WeightFormat, seed: u64) {
    conformance::lora_matches_the_reference(kernels, format, BesideCodes::Floats, seed);
    conformance::lora_leaves_everything_else_alone(kernels, format, seed);
    conformance::lora_with_overlapping_targets_adds_both(kernels, format, BesideCodes::Floats, seed);
}

#[test]
fn lora_in_f32_conforms() {
    lora(&*kernels(FORWARDS), WeightFormat::F32, 1);
    lora(&*kernels(BACKWARDS), WeightFormat::F32, 2);
}

#[test]
fn lora_in_bf16_conforms() {
    lora(&*kernels(FORWARDS), WeightFormat::Bf16, 3);
    lora(&*kernels(BACKWARDS), WeightFormat::Bf16, 4);
}

#[test]
fn lora_in_int8_conforms() {
    lora(&*kernels(BACKWARDS), WeightFormat::Int8, 5);
}

/// Activations in bf16: x is rounded once, and `out` when it is read, and for each target that changes a column. Each is half a unit
/// of 8 bits, 2^-8 of the magnitude, and the bound for adapters in bf16 has two of them: enough for x and one target on a base
/// of zero. With a base that is not, or overlapping targets, the roundings of `out` come on top, each of the result and not of the
/// magnitude, which is several times larger than the result where a few numbers are added.
#[test]
fn lora_on_tensor_cores_conforms() {
    lora(&*kernels_in::<bf16>(FORWARDS, false), WeightFormat::Bf16, 6);
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_a_batch() {
    let same = conformance::lora_row_alone_and_in_a_batch_is_bit_equal;
    same(&*kernels(FORWARDS), WeightFormat::Bf16, 5);
    same(&*kernels(BACKWARDS), WeightFormat::F32, 6);
    same(&*kernels_in::<bf16>(FORWARDS, true), WeightFormat::Int8, 7);
}

#[test]
fn norms_conform() {
    conformance::norms_match_the_reference(&*kernels(FORWARDS), 7);
}

#[test]
fn rotary_embedding_conforms() {
    conformance::rope_matches_the_reference(&*kernels(FORWARDS), 8);
    conformance::rope_matches_the_reference(&*kernels(BACKWARDS), 9);
}

#[test]
fn silu_conforms() {
    conformance::silu_matches_the_reference(&*kernels(FORWARDS), 10);
    conformance::the_exponential_is_accurate(&*kernels(BACKWARDS));
}

#[test]
fn attention_conforms() {
    conformance::attention_matches_the_reference(&*kernels(FORWARDS), KvFormat::F32, 11);
    conformance::attention_matches_the_reference(&*kernels(BACKWARDS), KvFormat::Bf16, 12);
}

/// Queries are rounded to bf16, and so are weights of values and results: what the suite allows for pages in bf16.
#[test]
fn attention_on_tensor_cores_conforms() {
    conformance::attention_matches_the_reference(&*kernels_in::<bf16>(FORWARDS, false), KvFormat::Bf16, 15);
    conformance::attention_matches_the_reference(&*kernels_in::<bf16>(BACKWARDS, false), KvFormat::Bf16, 16);
}

/// Prompts and decoding are two kernels, and give the same bits.
#[test]
fn attention_does_not_depend_on_the_cut_into_steps() {
    conformance::attention_does_not_depend_on_the_cut_into_steps(&*kernels(FORWARDS), KvFormat::F32, 13);
}

#[test]
fn attention_ignores_what_it_must_not_see() {
    conformance::attention_ignores_what_it_must_not_see(&*kernels(BACKWARDS), KvFormat::Bf16, 14);
}
