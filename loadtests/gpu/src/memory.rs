//! What is taken of the device and of the host.

use crate::parts::slots::COPIES;
use crate::plan::Plan;
use anyhow::{Context, Result};
use std::sync::Arc;
use weft_base_model::ModelConfig;
use weft_cuda_device::driver::Driver;
use weft_cuda_device::{Device, Options};
use weft_engine::device::StepRoom;

/// Pinned memory from which bandwidth is measured.
pub(crate) const UPLOAD_BYTES: usize = 256 << 20;

/// Positions of a block of keys.
pub(crate) const BLOCK_SIZE: usize = 16;

/// Takes nine tenths of the device's memory.
pub(crate) fn device(driver: Arc<dyn Driver>, plan: &Plan) -> Result<Device> {
    let memory = driver.properties().memory_bytes;
    let pinned_bytes = plan.configs().map(|config| pinned_bytes(config, plan)).max().unwrap_or(0) + UPLOAD_BYTES;
    let options =
        Options { pool_bytes: memory / 10 * 9, pinned_bytes, block_bytes: 64 << 10, pinned_block_bytes: 4 << 10 };
    Device::new(driver, &options).context("take the device's memory")
}

/// Adapters of each rank, the copies of one, and what an engine takes.
fn pinned_bytes(config: &ModelConfig, plan: &Plan) -> usize {
    let room = StepRoom {
        rows_max: plan.rows_max(),
        logits_rows_max: plan.rows,
        sequences_max: plan.rows,
        block_size: BLOCK_SIZE,
    };
    let adapters: usize = crate::parts::decode::MIXED.iter().map(|rank| adapter_bytes(config, *rank, 2)).sum();
    adapters + COPIES * adapter_bytes(config, 16, 2) + room.pinned_bytes(config) + (16 << 20)
}

/// Of an adapter on all linears, in values of `each` bytes.
pub(crate) fn adapter_bytes(config: &ModelConfig, rank: usize, each: usize) -> usize {
    // Whatever alignment and scales take is less than a hundredth, but for small layers.
    let small = config.layers * (8 << 10);
    config.layers * rank * widths(config) * each / 100 * 101 + small + (64 << 10)
}

/// Inputs and outputs of a layer's linears.
pub(crate) fn widths(config: &ModelConfig) -> usize {
    config.linears().iter().map(|linear| linear.in_features + linear.out_features).sum()
}
