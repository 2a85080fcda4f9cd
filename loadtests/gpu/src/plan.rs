//! What is measured, and for how long.

use anyhow::{Result, ensure};
use clap::ValueEnum;
use std::time::Duration;
use weft_base_model::{BaseModel, ModelConfig};

/// A part of the measurement, which can be had alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Steps of one token for each sequence, with 0 to 64 adapters.
    Decode,
    /// The first token of a request whose adapter is in main memory.
    Cold,
    /// Prompts.
    Prefill,
    /// More adapters than the device has room for.
    Slots,
    /// Adapters that are copied layer by layer in each step.
    Streamed,
    /// Decoding and prompts of a real model.
    Model,
}

/// What to measure.
pub struct Plan {
    /// Sizes of the base.
    pub config: ModelConfig,
    /// For [`Part::Model`], which is left out without one.
    pub model: Option<BaseModel>,
    /// Sequences that decode at once, and adapters that there is room for, 1 or more.
    pub rows: usize,
    /// Positions that each decoding sequence has behind it, less than the base's context.
    pub context: usize,
    /// Tokens of prompts that come alone, each within the base's context.
    pub prompts: Vec<usize>,
    /// Tokens of the prompts of requests that come among others, and of those answers: both are within the base's context together.
    pub request: [usize; 2],
    /// How many adapters requests are for, beside 0.5 to 16 times those that there is room for.
    pub registered: Vec<usize>,
    /// How long it all may take. Parts share it, and cases share what a part has left once its engine is built.
    pub time: Duration,
    /// Bring logits to the host, rather than choose tokens (greedily, with their log-probabilities) on the device.
    pub logits: bool,
    /// In this order.
    pub parts: Vec<Part>,
}

impl Plan {
    pub(crate) fn check(&self) -> Result<()> {
        ensure!(self.rows > 0, "--rows is 0, allowed are 1 and more");
        ensure!(self.registered.iter().all(|count| *count > 0), "--registered has 0, allowed are 1 and more");
        for config in self.configs() {
            let most = config.context_length - 1;
            ensure!(self.context <= most, "--context is {}, allowed are up to {most}", self.context);
            for &prompt in &self.prompts {
                ensure!((1..=most).contains(&prompt), "--prompts has {prompt}, allowed are 1 to {most}");
            }
            let [prompt, answer] = self.request;
            let is_within = prompt > 0 && answer > 1 && prompt + 2 * answer <= most;
            ensure!(
                is_within,
                "--request is {prompt},{answer}: allowed are 1 and 2 at least, and up to {most} with twice the second"
            );
        }
        Ok(())
    }

    /// Of all bases that are measured.
    pub(crate) fn configs(&self) -> impl Iterator<Item = &ModelConfig> {
        [&self.config].into_iter().chain(self.model.iter().map(|model| &model.config))
    }

    /// Rows of the largest step.
    pub(crate) fn rows_max(&self) -> usize {
        let [prompt, _] = self.request;
        let prompts = self.prompts.iter().copied().max().unwrap_or(0);
        (self.rows + prompt).max(prompts).max(self.rows * prompt)
    }
}
