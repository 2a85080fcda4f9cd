//! What a decode step costs at least: the bytes that it must read, over the bandwidth of memory.
//!
//! Operations do not matter at decode (rank 16 adds half a percent of them); KV reads are left out, because base and adapters share
//! them and they only bring the two closer together.
//!
//! Of several devices that share a model each reads its part, and what they add up goes over their links.
//!
//! And what attention over a prompt costs at least: its operations, over the rate of what does them.

use crate::attention::{self, Layer, Work};
use crate::pack::Format;
use crate::table::{self, Choice, Path, Segment};
use std::collections::BTreeSet;
use weft_kernels::AttentionSeq;

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

/// Its attention, in one layer, over blocks of 16 positions.
pub const LLAMA_8B_ATTENTION: Layer = Layer {
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    block_size: 16,
    block_rows: None,
    window: None,
    scale: 0.088_388_35,
    soft_cap: None,
};

/// Bytes per second that an H100 SXM reads from its memory, as its data sheet says.
pub const H100_BYTES_PER_SECOND: f64 = 3.35e12;
/// Bytes per second that an H100 SXM sends to others over NVLink, by its data sheet: half of what goes both ways.
pub const H100_LINK_BYTES_PER_SECOND: f64 = 4.5e11;
/// Multiplications and additions per second of an H100 SXM on tensor cores, bf16 without sparsity, as its data sheet says.
pub const H100_TENSOR_OPERATIONS_PER_SECOND: f64 = 9.89e14;
/// The same in f32, without tensor cores.
pub const H100_F32_OPERATIONS_PER_SECOND: f64 = 6.7e13;
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

/// What a decode step costs each of several devices that share a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Weight bytes that it reads.
    pub base_bytes: usize,
    /// Adapter bytes that it reads.
    pub adapter_bytes: usize,
    /// Sums over all devices.
    pub sums: usize,
    /// Bytes that come out of them all together.
    pub summed_bytes: usize,
    /// Bytes of logits, in f32, that come together from all devices.
    pub gathered_bytes: usize,
}

impl Share {
    /// Bytes that it sends at least: a ring sends each sum twice but for a device's own part, and a gather once.
    #[must_use]
    pub fn sent_bytes(&self, devices: usize) -> usize {
        (2 * self.summed_bytes + self.gathered_bytes) / devices * (devices - 1)
    }

    /// Seconds that its bytes take on an H100, one after the other. What starting a sum takes comes on top.
    #[must_use]
    pub fn seconds(&self, devices: usize) -> f64 {
        (self.base_bytes + self.adapter_bytes) as f64 / H100_BYTES_PER_SECOND
            + self.sent_bytes(devices) as f64 / H100_LINK_BYTES_PER_SECOND
    }
}

impl Site {
    /// Whether devices have parts of its outputs, and all inputs; else the other way round, and a sum follows.
    fn is_by_outputs(&self) -> bool {
        !matches!(self.name, "o" | "down")
    }
}

impl Model {
    /// As [`Model::decode`], of each of `devices` that share the model in equal parts. Of an adapter a device has all of A where it has some
    /// outputs, and all of B where it has some inputs.
    #[must_use]
    pub fn share(&self, devices: usize, ranks: &[usize], format: Format) -> Share {
        let mut share = Share { base_bytes: self.base_bytes() / devices, ..Share::default() };
        let hidden = self.sites.first().map_or(0, |site| site.inputs);
        for site in self.sites {
            let [of_inputs, of_outputs] = if site.is_by_outputs() { [1, devices] } else { [devices, 1] };
            let halves = |rank: usize, outputs: usize| {
                format.bytes(rank, site.inputs / of_inputs) + format.bytes(rank, outputs / of_outputs)
            };
            let of_rank = |rank: &usize| site.outputs.iter().map(|outputs| halves(*rank, *outputs)).sum::<usize>();
            share.adapter_bytes += self.layers * ranks.iter().map(of_rank).sum::<usize>();
            if devices > 1 && !site.is_by_outputs() {
                share.sums += self.layers;
            }
        }
        let rows = ranks.len();
        share.summed_bytes = share.sums * rows * hidden * self.bytes_per_weight;
        if devices > 1 && hidden > 0 {
            share.gathered_bytes = rows * self.head / hidden * 4;
        }
        share
    }

    /// Weight bytes that every step reads.
    #[must_use]
    pub fn base_bytes(&self) -> usize {
        let layer: usize = self.sites.iter().map(|site| site.inputs * site.outputs.iter().sum::<usize>()).sum();
        (self.layers * layer + self.head) * self.bytes_per_weight
    }

    /// A decode step of one row for each entry of `ranks`, each with an adapter of its own on every linear.
    ///
    /// # Errors
    ///
    /// When a launch cannot be made for these ranks.
    pub fn decode(&self, ranks: &[usize], format: Format, multiprocessors: usize) -> Result<Step, table::Error> {
        let mut step = Step::default();
        let Some(rank_max) = ranks.iter().copied().max() else { return Ok(step) };
        let choice = Choice { activations: Format::Bf16, batch_invariant: false, rank_max };
        for site in self.sites {
            let targets = site.outputs.len();
            let segments: Vec<Segment> =
                (0..ranks.len()).map(|row| (row..row + 1, row * targets..(row + 1) * targets)).collect();
            let (path, items) = table::items(&segments, choice);
            debug_assert_eq!(path, Path::Decode);
            let out_stride = site.outputs.iter().sum();
            let shape = table::shape(path, items.len(), rank_max, out_stride, multiprocessors)?;
            step.launches += self.layers;
            let mut read = BTreeSet::new();
            for item in &items {
                let rank = ranks[item.first_target as usize / targets];
                let mut offset = 0;
                for (index, outputs) in (item.first_target..).zip(site.outputs) {
                    let (a, b) = (format.bytes(rank, site.inputs), format.bytes(rank, *outputs));
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
        Ok(step)
    }

    /// Attention over a prompt of `tokens` in one step, in all layers.
    ///
    /// # Errors
    ///
    /// When a launch cannot be made for it.
    pub fn prompt(&self, layer: &Layer, path: attention::Path, tokens: usize) -> Result<Work, attention::Error> {
        let blocks: Vec<u32> = (0..tokens.div_ceil(layer.block_size) as u32).collect();
        let seqs = [AttentionSeq { rows: 0..tokens, start: 0, blocks: &blocks }];
        let step = attention::Step::new(layer, path, tokens, blocks.len(), &seqs)?;
        let work = step.prefill_work(layer, [self.bytes_per_weight; 2]);
        Ok(Work {
            read_bytes: self.layers * work.read_bytes,
            written_bytes: self.layers * work.written_bytes,
            operations: self.layers * work.operations,
            products: self.layers * work.products,
        })
    }

    /// Multiplications and additions of this many rows with all weights of layers.
    #[must_use]
    pub fn product_operations(&self, rows: usize) -> usize {
        rows * (self.base_bytes() / self.bytes_per_weight - self.head) * 2
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
    use crate::pack::{self, Half};

    fn decode(ranks: &[usize], format: Format) -> Step {
        LLAMA_8B.decode(ranks, format, H100_MULTIPROCESSORS).unwrap()
    }

    #[test]
    fn the_ceiling_of_an_8b_model_is_what_its_bytes_say() {
        assert_eq!(LLAMA_8B.base_bytes(), 15_009_316_864);
        let ceiling = |(adapters, format)| {
            let step = decode(&vec![16; adapters], format);
            assert_eq!(step.launches, 4 * 32);
            // 2.62 M values for each rank; with codes, two scales for each rank of seven linears in 32 layers besides.
            let (value_bytes, scale_bytes) = if format == Format::Bf16 { (2, 0) } else { (1, 7 * 32 * 2 * 16 * 4) };
            assert_eq!(step.adapter_bytes, adapters * (2_621_440 * 16 * value_bytes + scale_bytes));
            (LLAMA_8B.ceiling(step) * 100.0).round() as u32
        };
        let cases = [(32, Format::Bf16), (64, Format::Bf16), (32, Format::Int8), (64, Format::Fp8)];
        assert_eq!(cases.map(ceiling), [85, 74, 92, 85]);
        assert_eq!(decode(&[], Format::Int8), Step::default());
        assert!(LLAMA_8B.decode(&[16, 769], Format::Int8, 132).is_err());
    }

    #[test]
    fn devices_share_the_base_and_less_of_adapters() {
        for format in Format::ALL {
            let (one, step) = (LLAMA_8B.share(1, &[16; 64], format), decode(&[16; 64], format));
            let alone =
                Share { base_bytes: LLAMA_8B.base_bytes(), adapter_bytes: step.adapter_bytes, ..Share::default() };
            assert_eq!(one, alone, "{format:?}");
        }
        let eight = LLAMA_8B.share(8, &[16; 64], Format::Bf16);
        assert_eq!(eight.base_bytes * 8, LLAMA_8B.base_bytes());
        // Of 20 times 4096 values a rank and a layer 7 times 4096 are whole on each device.
        assert_eq!(eight.adapter_bytes, 64 * 32 * 16 * 2 * (7 * 4096 + 13 * 4096 / 8));
        assert_eq!((eight.sums, eight.summed_bytes), (64, 2 * 32 * 64 * 4096 * 2));
        assert_eq!(eight.gathered_bytes, 64 * 128_256 * 4);
        assert_eq!(eight.sent_bytes(8), (2 * eight.summed_bytes + eight.gathered_bytes) / 8 * 7);
        let milliseconds = |devices| LLAMA_8B.share(devices, &[16; 64], Format::Bf16).seconds(devices) * 1e3;
        let rounded = [1, 2, 4, 8].map(|devices| (milliseconds(devices) * 100.0).round() as u32);
        assert_eq!(rounded, [608, 343, 211, 145]);
    }

    #[test]
    fn attention_over_a_prompt_grows_with_its_square() {
        for tokens in [1000, 2048, 8192] {
            let [by_vectors, by_tensors] = [attention::Path::Prefill, attention::Path::Tensor]
                .map(|path| LLAMA_8B.prompt(&LLAMA_8B_ATTENTION, path, tokens).unwrap());
            assert_eq!(Work { products: 0, ..by_tensors }, by_vectors);
            // 32 layers, 32 heads of 128 features, half of all pairs.
            assert_eq!(by_vectors.operations, 32 * 4 * 32 * 128 * tokens * (tokens + 1) / 2);
            assert_eq!(by_vectors.read_bytes, 32 * tokens * 2 * (4096 + 2 * 1024));
            // A row's last tile is half of others' on average.
            let more = by_tensors.products as f64 / by_tensors.operations as f64 - 1.0;
            assert!(more > 0.0 && more < 80.0 / tokens as f64, "{tokens}: {more}");
        }
        let seconds = |operations: usize, rate: f64| (operations as f64 / rate * 1e4).round() / 10.0;
        let work = LLAMA_8B.prompt(&LLAMA_8B_ATTENTION, attention::Path::Tensor, 8192).unwrap();
        let milliseconds = [
            seconds(LLAMA_8B.product_operations(8192), H100_TENSOR_OPERATIONS_PER_SECOND),
            seconds(work.operations, H100_F32_OPERATIONS_PER_SECOND),
            seconds(work.products, H100_TENSOR_OPERATIONS_PER_SECOND),
        ];
        assert_eq!(milliseconds, [115.6, 262.6, 17.9]);
    }

    #[test]
    fn bytes_follow_the_sum_of_actual_ranks() {
        for format in Format::ALL {
            let bytes = |ranks: &[usize]| decode(ranks, format).adapter_bytes;
            assert_eq!(bytes(&[8, 16, 32, 64]), bytes(&[32, 32, 28, 28]), "{format:?}");
        }
    }

    /// What the model counts is what lies in a slot.
    #[test]
    fn bytes_are_those_of_packed_adapters() {
        const SITES: &[Site] = &[Site { name: "only", inputs: 40, outputs: &[24, 9] }];
        let model = Model { layers: 3, sites: SITES, head: 0, bytes_per_weight: 2 };
        for format in Format::ALL {
            for rank in [1, 4, 13, 16] {
                let half = |half, width| pack::half(&vec![0.5; rank * width], half, rank, format).unwrap().len();
                let (a, b) = (half(Half::Shrink(40), 40), half(Half::Grow(24), 24) + half(Half::Grow(9), 9));
                assert_eq!(
                    model.decode(&[rank], format, 1).unwrap().adapter_bytes,
                    3 * (2 * a + b),
                    "{format:?} {rank}"
                );
            }
        }
    }
}
