//! What a decode step costs at least: the bytes that it must read, over the bandwidth of memory.
//!
//! Operations do not matter at decode (rank 16 adds half a percent of them); KV reads are left out, because base and adapters share
//! them and they only bring the two closer together.

use crate::table::{self, Path, Segment};
use std::collections::BTreeSet;

/// Linears that one launch serves: they read the same input.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    /// For tables.
    pub name: &'static str,
    /// Inputs.
    pub inputs: usize,
    /// Outputs of each linear.
    pub outputs: &'static [usize],
}

/// A dense model's shape.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// Layers with these sites.
    pub layers: usize,
    /// The sites of a layer.
    pub sites: &'static [Site],
    /// Weights of the output head, which a step reads as well; embeddings are rows.
    pub head: usize,
    /// 2 for bf16.
    pub bytes_per_weight: usize,
}

/// Llama 3.1 8B in bf16.
pub const LLAMA_8B: Model = Model {
    layers: 32,
    sites: &[
        Site { name: "qkv", inputs: 4096, outputs: &[4096, 1024, 1024] },
        Site { name: "o", inputs: 4096, outputs: &[4096] },
        Site { name: "gate_up", inputs: 4096, outputs: &[14_336, 14_336] },
        Site { name: "down", inputs: 14_336, outputs: &[4096] },
    ],
    head: 128_256 * 4096,
    bytes_per_weight: 2,
};

/// Bytes per second that an H100 SXM reads from its memory, as its data sheet says.
pub const H100_BYTES_PER_SECOND: f64 = 3.35e12;
/// Multiprocessors of an H100 SXM.
pub const H100_MULTIPROCESSORS: usize = 132;

/// What the adapters of a step add.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// Kernel launches.
    pub launches: usize,
    /// Adapter bytes read from device memory: each distinct adapter once.
    pub adapter_bytes: usize,
    /// Bytes of A that further column splits and items read again, from L2 where they fit.
    pub again_bytes: usize,
}

impl Model {
    /// Weight bytes that every step reads.
    #[must_use]
    pub fn base_bytes(&self) -> usize {
        let layer: usize = self.sites.iter().map(|site| site.inputs * site.outputs.iter().sum::<usize>()).sum();
        (self.layers * layer + self.head) * self.bytes_per_weight
    }

    /// A decode step of one row for each entry of `ranks`, each with an adapter of its own on every linear.
    #[must_use]
    pub fn decode(&self, ranks: &[usize], bytes_per_value: usize, multiprocessors: usize) -> Step {
        let mut step = Step::default();
        for site in self.sites {
            let targets = site.outputs.len();
            let segments: Vec<Segment> =
                (0..ranks.len()).map(|row| (row..row + 1, row * targets..(row + 1) * targets)).collect();
            let (path, items) = table::items(&segments);
            let Some(rank_max) = ranks.iter().copied().max().filter(|_| !items.is_empty()) else { continue };
            assert_eq!(path, Path::Decode);
            let out_stride = site.outputs.iter().sum();
            let shape = table::shape(path, items.len(), rank_max, out_stride, multiprocessors);
            step.launches += self.layers;
            let mut read = BTreeSet::new();
            for item in &items {
                let rank = ranks[item.first_target as usize / targets];
                let mut offset = 0;
                for (index, outputs) in (item.first_target..).zip(site.outputs) {
                    let (a, b) = (rank * site.inputs * bytes_per_value, outputs * rank * bytes_per_value);
                    if read.insert(index) {
                        step.adapter_bytes += self.layers * (a + b);
                    }
                    // Splits that touch the columns of this target shrink for it.
                    let columns = shape.columns_per_block as usize;
                    let splits = (offset + outputs - 1) / columns - offset / columns + 1;
                    step.again_bytes += self.layers * (splits - 1) * a;
                    offset += outputs;
                }
            }
        }
        step
    }

    /// Most that a step with these adapters can reach of the bare base's throughput: a share of 1.
    #[must_use]
    pub fn ceiling(&self, step: Step) -> f64 {
        self.base_bytes() as f64 / (self.base_bytes() + step.adapter_bytes) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_of_an_8b_model_is_what_its_bytes_say() {
        assert_eq!(LLAMA_8B.base_bytes(), 15_009_316_864);
        let ceiling = |adapters| {
            let step = LLAMA_8B.decode(&vec![16; adapters], 2, H100_MULTIPROCESSORS);
            assert_eq!(step.launches, 4 * 32);
            // 2.62 M values for each rank.
            assert_eq!(step.adapter_bytes, adapters * 2_621_440 * 16 * 2);
            (LLAMA_8B.ceiling(step) * 100.0).round() as u32
        };
        assert_eq!([32, 64].map(ceiling), [85, 74]);
        assert_eq!(LLAMA_8B.decode(&[], 2, 132), Step::default());
    }

    #[test]
    fn bytes_follow_the_sum_of_actual_ranks() {
        let bytes = |ranks: &[usize]| LLAMA_8B.decode(ranks, 2, 132).adapter_bytes;
        assert_eq!(bytes(&[8, 16, 32, 64]), bytes(&[30; 4]));
    }
}
