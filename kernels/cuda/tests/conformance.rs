//! The kernels' own suite, over the `.cu` files in the shim, in two orders of execution.

use weft_cuda_kernels::host::Order;
use weft_cuda_kernels::on_host::{Device, kernels};
use weft_kernels::{WeightFormat, conformance};

/// A small one, so that columns are cut differently than on a large one.
const FORWARDS: Device = Device { order: Order::FORWARDS, multiprocessors: 4 };
const BACKWARDS: Device = Device { order: Order::BACKWARDS, multiprocessors: 132 };

fn lora(device: Device, format: WeightFormat, seed: u64) {
    let kernels = kernels(device);
    conformance::lora_matches_the_reference(&*kernels, format, seed);
    conformance::lora_leaves_everything_else_alone(&*kernels, format, seed);
    conformance::lora_with_overlapping_targets_adds_both(&*kernels, format, seed);
}

#[test]
fn lora_in_f32_conforms() {
    lora(FORWARDS, WeightFormat::F32, 1);
}

#[test]
fn lora_in_f32_conforms_backwards() {
    lora(BACKWARDS, WeightFormat::F32, 2);
}

#[test]
fn lora_in_bf16_conforms() {
    lora(FORWARDS, WeightFormat::Bf16, 3);
}

#[test]
fn lora_in_bf16_conforms_backwards() {
    lora(BACKWARDS, WeightFormat::Bf16, 4);
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_a_batch() {
    conformance::lora_row_alone_and_in_a_batch_is_bit_equal(&*kernels(FORWARDS), WeightFormat::Bf16, 5);
    conformance::lora_row_alone_and_in_a_batch_is_bit_equal(&*kernels(BACKWARDS), WeightFormat::F32, 6);
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
