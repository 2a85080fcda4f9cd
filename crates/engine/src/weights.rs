//! The resident base: packed once, at load.

use crate::Error;
use crate::engine::Dtype;
use crate::shape::{Shape, Site};
use candle_core::{DType, Device, Tensor};
use std::ops::Range;
use std::thread;
use weft_base_model::{BaseModel, Weights};
use weft_kernels::{Kernels, PackedLinear};

/// One decoder layer. Rows of linears that read the same input are one packed matrix.
pub(crate) struct Layer {
    /// `[hidden]`.
    pub(crate) input_norm: Tensor,
    pub(crate) qkv: PackedLinear,
    pub(crate) output: PackedLinear,
    /// `[hidden]`.
    pub(crate) post_norm: Tensor,
    pub(crate) gate_up: PackedLinear,
    pub(crate) down: PackedLinear,
}

/// All weights of the base.
pub(crate) struct Base {
    /// `[vocabulary, hidden]`, f32 or bf16. None: the rows of `lm_head`, which is the same matrix in integers.
    pub(crate) embeddings: Option<Tensor>,
    pub(crate) layers: Vec<Layer>,
    /// `[hidden]`.
    pub(crate) final_norm: Tensor,
    pub(crate) lm_head: PackedLinear,
}

impl Base {
    /// Reads and packs everything, on as many threads as there are processors. Peak memory: the packed weights and one
    /// fused f32 matrix per thread, or the f32 embedding table.
    pub(crate) fn load(model: &BaseModel, shape: &Shape, kernels: &dyn Kernels, dtype: Dtype) -> Result<Self, Error> {
        let values = Values { weights: &model.weights };
        let loader = Loader { values, kernels, dtype, device: Device::Cpu };
        let layers = loader.layers(shape)?;
        let final_norm = loader.tensor(values.read("model.norm.weight", shape.hidden)?)?;

        let table = values.read("model.embed_tokens.weight", shape.vocabulary * shape.hidden)?;
        let head = |rows: &[f32]| kernels.pack_linear(rows, shape.vocabulary, shape.hidden, dtype.head());
        let lm_head = if model.config.tied_embeddings {
            head(&table)
        } else {
            head(&values.read("lm_head.weight", shape.vocabulary * shape.hidden)?)
        };
        let shares_head = model.config.tied_embeddings && dtype.head().is_integer();
        let embeddings = (!shares_head).then(|| {
            let table = Tensor::from_vec(table, (shape.vocabulary, shape.hidden), &loader.device)?;
            if dtype == Dtype::F32 { Ok(table) } else { table.to_dtype(DType::BF16) }
        });
        let embeddings = embeddings.transpose()?;
        Ok(Self { embeddings, layers, final_norm, lm_head })
    }

    /// The fused rows of one site.
    pub(crate) fn linear(&self, layer: usize, site: Site) -> &PackedLinear {
        let layer = &self.layers[layer];
        match site {
            Site::Qkv => &layer.qkv,
            Site::Output => &layer.output,
            Site::GateUp => &layer.gate_up,
            Site::Down => &layer.down,
        }
    }
}

/// Reads the base's tensors as f32, and holds each against the size that it should have.
#[derive(Clone, Copy)]
pub(crate) struct Values<'a> {
    pub(crate) weights: &'a Weights,
}

impl Values<'_> {
    /// The rows of the linears of one site, one after the other: `[out of the site, in]`.
    pub(crate) fn site(&self, layer: usize, site: Site, shape: &Shape) -> Result<Vec<f32>, Error> {
        let (hidden, q, kv, inter) = (shape.hidden, shape.q_width(), shape.kv_width(), shape.intermediate);
        match site {
            Site::Qkv => self.fused(
                layer,
                &[("self_attn.q_proj", q), ("self_attn.k_proj", kv), ("self_attn.v_proj", kv)],
                hidden,
            ),
            Site::Output => self.fused(layer, &[("self_attn.o_proj", hidden)], q),
            Site::GateUp => self.fused(layer, &[("mlp.gate_proj", inter), ("mlp.up_proj", inter)], hidden),
            Site::Down => self.fused(layer, &[("mlp.down_proj", hidden)], inter),
        }
    }

    fn fused(&self, layer: usize, parts: &[(&str, usize)], in_features: usize) -> Result<Vec<f32>, Error> {
        let values =
            |&(name, out): &(&str, usize)| self.read(&format!("model.layers.{layer}.{name}.weight"), out * in_features);
        let out_features: usize = parts.iter().map(|(_, out)| out).sum();
        let mut rows = values(&parts[0])?;
        rows.reserve_exact((out_features - parts[0].1) * in_features);
        for part in &parts[1..] {
            rows.extend_from_slice(&values(part)?);
        }
        Ok(rows)
    }

    /// The weight of a norm of a layer.
    pub(crate) fn layer_norm(&self, layer: usize, name: &str, width: usize) -> Result<Vec<f32>, Error> {
        self.read(&format!("model.layers.{layer}.{name}.weight"), width)
    }

    pub(crate) fn read(&self, name: &str, expected: usize) -> Result<Vec<f32>, Error> {
        let values = self.weights.load_f32(name)?;
        if values.len() != expected {
            return Err(Error::TensorSize { name: name.to_owned(), found: values.len(), expected });
        }
        Ok(values)
    }
}

struct Loader<'a> {
    values: Values<'a>,
    kernels: &'a dyn Kernels,
    dtype: Dtype,
    device: Device,
}

impl Loader<'_> {
    /// Each thread packs neighbouring layers.
    fn layers(&self, shape: &Shape) -> Result<Vec<Layer>, Error> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(shape.layers);
        let part = |thread: usize| thread * shape.layers / threads..(thread + 1) * shape.layers / threads;
        let load =
            |layers: Range<usize>| layers.map(|layer| self.layer(layer, shape)).collect::<Result<Vec<_>, Error>>();
        let load = &load;
        thread::scope(|scope| {
            let running: Vec<_> = (0..threads).map(|thread| scope.spawn(move || load(part(thread)))).collect();
            let mut layers = Vec::with_capacity(shape.layers);
            for part in running {
                layers.extend(part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
            }
            Ok(layers)
        })
    }

    fn layer(&self, layer: usize, shape: &Shape) -> Result<Layer, Error> {
        let norm = |name: &str| self.tensor(self.values.layer_norm(layer, name, shape.hidden)?);
        let packed = |site: Site| {
            let rows = self.values.site(layer, site, shape)?;
            let (outputs, inputs) = shape.site(site);
            Ok::<_, Error>(self.kernels.pack_linear(&rows, outputs, inputs, self.dtype.weights()))
        };
        Ok(Layer {
            input_norm: norm("input_layernorm")?,
            qkv: packed(Site::Qkv)?,
            output: packed(Site::Output)?,
            post_norm: norm("post_attention_layernorm")?,
            gate_up: packed(Site::GateUp)?,
            down: packed(Site::Down)?,
        })
    }

    fn tensor(&self, values: Vec<f32>) -> Result<Tensor, Error> {
        let width = values.len();
        Ok(Tensor::from_vec(values, width, &self.device)?)
    }
}
