//! What a GPU makes of the engine: sizes without a meaning, or a model, random adapters, and what steps of them take.
//!
//! 1. [`Plan`] says what is measured and for how long; [`run`] does it, part after part, each with an engine of its own, and makes a [`Report`].
//! 2. `parts` has a module for each part; they share `bench`, an engine with adapters, and `budget`, which gives each case its time.
//! 3. `goals` holds the report against what is wanted of a device.

mod adapters;
mod bench;
mod budget;
mod goals;
mod memory;
mod parts;
mod plan;
mod report;
pub mod shape;

pub use plan::{Part, Plan};
pub use report::Report;

use anyhow::{Context, Result};
use bench::{Base, Shared};
use budget::Budget;
use report::Failure;
use std::sync::Arc;
use weft_cuda_device::driver::Driver;
use weft_engine::device::Format;

/// Measures the parts of the plan, one after the other. One that fails is told in the report, and the others are measured.
///
/// # Errors
/// The plan is out of range, or the device cannot be used at all.
pub fn run(driver: Arc<dyn Driver>, plan: &Plan) -> Result<Report> {
    plan.check()?;
    let budget = Budget::new(plan.time);
    let properties = driver.properties().clone();
    let device = memory::device(driver, plan)?;
    let mut report = Report::new(&properties, plan);
    let shares: Vec<u32> = [BANDWIDTHS].into_iter().chain(plan.parts.iter().map(|part| share(*part))).collect();
    let of_part = |number: usize| budget.first_of(shares[number], shares[number..].iter().sum());
    report.device = parts::bandwidths::measure(&device, plan, &of_part(0)).context("measure bandwidths")?;
    let shared = Shared::new(&device, plan, Base::Shape(&plan.config));
    for (number, &part) in plan.parts.iter().enumerate() {
        let budget = of_part(number + 1);
        let rates = &report.device;
        let measured = match part {
            Part::Decode => parts::decode::measure(&shared, &parts::decode::KINDS, rates, &budget)
                .map(|cases| report.decode = cases),
            Part::Cold => parts::cold::measure(&shared, rates, &budget).map(|cases| report.cold = cases),
            Part::Prefill => parts::prefill::measure(&shared, rates, &budget).map(|cases| report.prefill = cases),
            Part::Slots => parts::slots::measure(&shared, &budget).map(|cases| report.slots = cases),
            Part::Streamed => parts::streamed::measure(&shared, rates, &budget).map(|cases| report.streamed = cases),
            Part::Model => {
                let Some(model) = &plan.model else { continue };
                let shared = Shared::new(&device, plan, Base::Model(model));
                parts::model(&shared, &model.served_name, rates, &budget).map(|cases| report.model = Some(cases))
            }
        };
        if let Err(error) = measured {
            report.failed.push(Failure::new(part, &error));
        }
    }
    report.goals = goals::all(&report);
    report.seconds = budget.spent().as_secs_f64();
    Ok(report)
}

/// Of the time, what bandwidths get; as [`share`].
const BANDWIDTHS: u32 = 1;

/// How much of the time a part gets, against the others.
fn share(part: Part) -> u32 {
    match part {
        Part::Decode => 10,
        Part::Cold => 5,
        Part::Prefill => 3,
        Part::Slots => 10,
        Part::Streamed => 3,
        Part::Model => 3,
    }
}

/// Formats of adapters, as they come in reports.
const FORMATS: [Format; 3] = [Format::Bf16, Format::Int8, Format::Fp8];
