//! DoRA on a device: factors of outputs, computed when an adapter is prepared, applied by one more launch for each site.
//!
//! The norm of an adapted row takes the base's weights as the device has them. They are read from the model's files again, which stay
//! mapped, and rounded as they were at load: no copy of the base lies in main memory for it.

use super::linear::{self, WeightFormat};
use super::precision::Precision;
use super::step::Step;
use crate::Error;
use crate::adapter;
use crate::dora::{BaseRows, OutputFactors};
use crate::shape::Shape;
use crate::weights::Values;
use weft_adapter_format::ModuleDelta;
use weft_base_model::Weights;
use weft_cuda_device::{Argument, Counts, Launch, View};
use weft_cuda_kernels::columns;

/// The base that adapters are prepared for.
#[derive(Clone)]
pub(crate) struct Base {
    /// Mapped files.
    pub(crate) weights: Weights,
    pub(crate) precision: Precision,
    pub(crate) format: WeightFormat,
}

/// The weights of one linear, as the device has them.
struct Rounded {
    /// `[out_features, inputs]`.
    values: Vec<f32>,
    inputs: usize,
    /// Of the fused site's rows.
    first: usize,
}

impl BaseRows for Rounded {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn read_row(&self, row: usize, first: usize, to: &mut [f32]) -> bool {
        let at = (row - self.first) * self.inputs + first;
        to.copy_from_slice(&self.values[at..at + to.len()]);
        true
    }
}

impl Base {
    /// `magnitude / ‖W + scale * B A‖` per output of a module that was checked. Cost: as [`OutputFactors::compute`], and one linear of the base
    /// read from the model's files and held in f32 meanwhile.
    pub(super) fn factors(
        &self,
        shape: &Shape,
        delta: &ModuleDelta<'_>,
        of_module: [&[f32]; 3],
    ) -> Result<OutputFactors, Error> {
        let place = shape.place(delta.module);
        let (inputs, outputs) = (place.in_features, place.out_features);
        let name = format!("{}.weight", delta.module.full_name(delta.layer));
        let values = Values { weights: &self.weights }.read(&name, outputs * inputs)?;
        let values = linear::rounded(values, inputs, self.format, self.precision);
        adapter::factors(&Rounded { values, inputs, first: place.out_offset }, shape, delta, of_module)
    }
}

impl Step<'_> {
    /// Multiplies the outputs of a site, base and adapters added up, by what DoRA makes of them.
    pub(super) fn scale_columns(&self, site: usize, out: View<'_>, outputs: usize) -> Result<(), Error> {
        let items = self.lora.get(site).copied().flatten().map_or(0, |launch| launch.scaled);
        if items == 0 {
            return Ok(());
        }
        let [table, count] = self.layout.scaled(site);
        self.launch(&Launch {
            kernel: &self.named("scale_columns"),
            grid: columns::grid(items, outputs),
            threads: columns::THREADS,
            shared_bytes: 0,
            arguments: &[
                out.writes().in_parts().into(),
                Argument::I32(outputs as i32),
                self.tables.part(table)?.reads().into(),
                self.tables.part(count)?.reads().into(),
            ],
            through_tables: &self.adapter_memory,
            counts: Counts::default(),
        })
    }
}
