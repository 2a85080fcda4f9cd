//! What the device does at most: copies within it and to it, and a product of matrices.

use crate::budget::{Budget, in_turn};
use crate::memory::UPLOAD_BYTES;
use crate::plan::Plan;
use anyhow::Result;
use serde::Serialize;
use std::time::Instant;
use weft_cuda_device::{Device, Error, Matmul, Stream, Type};

/// Most rows of the product.
const ROWS_MAX: usize = 4096;

/// Floors are counted with these.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Rates {
    /// Copies within the device, read and write counted.
    pub(crate) bandwidth_bytes_per_s: f64,
    /// From pinned memory.
    pub(crate) upload_bytes_per_s: f64,
    /// Two for each multiplication, of the largest linear of the base with as many rows as the longest prompt, in bf16.
    pub(crate) product_operations_per_s: f64,
}

pub(crate) fn measure(device: &Device, plan: &Plan, budget: &Budget) -> Result<Rates> {
    let stream = device.stream("bandwidth")?;
    let mut rates = Rates::default();
    for (measured, budget) in in_turn(vec![within, upload, product], budget) {
        measured(device, plan, &stream, &budget, &mut rates)?;
        stream.synchronize()?;
    }
    Ok(rates)
}

/// Copies within the device.
fn within(device: &Device, _: &Plan, stream: &Stream, budget: &Budget, rates: &mut Rates) -> Result<()> {
    let bytes = (device.usage().largest / 8).min(1 << 30);
    let (from, to) = (device.allocate(bytes)?, device.allocate(bytes)?);
    stream.fill(from.all(), 1)?;
    let each = time(stream, budget, || stream.copy(from.all(), to.all()))?;
    rates.bandwidth_bytes_per_s = 2.0 * bytes as f64 / each;
    Ok(())
}

fn upload(device: &Device, _: &Plan, stream: &Stream, budget: &Budget, rates: &mut Rates) -> Result<()> {
    let bytes = (device.pinned_usage().largest / 2).min(UPLOAD_BYTES).min(device.usage().largest);
    let (pinned, to) = (device.allocate_pinned(bytes)?, device.allocate(bytes)?);
    let each = time(stream, budget, || stream.upload(&pinned, 0..bytes, to.all()))?;
    rates.upload_bytes_per_s = bytes as f64 / each;
    Ok(())
}

fn product(device: &Device, plan: &Plan, stream: &Stream, budget: &Budget, rates: &mut Rates) -> Result<()> {
    let rows = plan.prompts.iter().copied().max().unwrap_or(1).min(ROWS_MAX);
    let (inputs, outputs) = (plan.config.hidden_size, 2 * plan.config.intermediate_size);
    let room = |elements: usize| -> Result<_, Error> {
        let room = device.allocate(2 * elements)?;
        // A small number: devices take longer for bits that change more, and less for zeroes.
        stream.fill(room.all(), 0x3c)?;
        Ok(room)
    };
    let (x, w, out) = (room(rows * inputs)?, room(outputs * inputs)?, room(rows * outputs)?);
    let matmul = Matmul {
        rows,
        inputs,
        outputs,
        x: x.all(),
        x_stride: inputs,
        w: w.all(),
        of: Type::Bf16,
        out: out.all(),
        out_stride: outputs,
        out_of: Type::Bf16,
        adds: false,
    };
    let each = time(stream, budget, || stream.matmul(&matmul))?;
    rates.product_operations_per_s = 2.0 * (rows * inputs * outputs) as f64 / each;
    Ok(())
}

/// Times that are enqueued before the host waits.
const AT_ONCE: u32 = 8;

/// How long one takes, in seconds.
fn time(stream: &Stream, budget: &Budget, once: impl Fn() -> Result<(), Error>) -> Result<f64> {
    once()?;
    stream.synchronize()?;
    let (began, mut count) = (Instant::now(), 0);
    while count == 0 || !budget.is_over() {
        (0..AT_ONCE).try_for_each(|_| once())?;
        stream.synchronize()?;
        count += AT_ONCE;
    }
    Ok(began.elapsed().as_secs_f64() / f64::from(count))
}
