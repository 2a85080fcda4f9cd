//! The parts of the measurement.

pub(crate) mod bandwidths;
pub(crate) mod cold;
pub(crate) mod decode;
pub(crate) mod prefill;
pub(crate) mod slots;
pub(crate) mod streamed;

use crate::bench::Shared;
use crate::budget::Budget;
use anyhow::Result;
use bandwidths::Rates;
use serde::Serialize;

/// Decoding and prompts of a real model.
#[derive(Serialize)]
pub(crate) struct Model {
    name: String,
    decode: Vec<decode::Case>,
    prefill: Vec<prefill::Case>,
}

pub(crate) fn model(shared: &Shared<'_>, name: &str, rates: &Rates, budget: &Budget) -> Result<Model> {
    let decode = decode::measure(shared, &decode::KINDS[..1], rates, &budget.first_of(2, 3))?;
    Ok(Model { name: name.to_owned(), decode, prefill: prefill::measure(shared, rates, &budget.first_of(1, 1))? })
}
