//! The resident base in device memory.

use super::DeviceOptions;
use super::kv::{self, KvFormat};
use super::linear::{self, Linear, Role, WeightFormat};
use super::precision::Precision;
use super::shard::Shard;
use crate::Error;
use crate::shape::{Shape, Site};
use crate::weights::Values;
use weft_base_model::{BaseModel, ModelConfig};
use weft_cuda_device::{Buffer, Device, Pinned, Stream};

/// One decoder layer; linears that read the same input are one matrix `[out, in]`.
pub(crate) struct Layer {
    /// `[hidden]`.
    pub(crate) input_norm: Buffer,
    /// `[hidden]`.
    pub(crate) post_norm: Buffer,
    sites: [Linear; 4],
}

impl Layer {
    pub(crate) fn site(&self, site: Site) -> &Linear {
        &self.sites[site as usize]
    }

    pub(crate) fn linears(&self) -> &[Linear] {
        &self.sites
    }
}

/// All weights of the base: linears in their format, all else in one precision.
pub(crate) struct Weights {
    /// `[vocabulary, hidden]`.
    pub(crate) embeddings: Buffer,
    pub(crate) layers: Vec<Layer>,
    /// `[hidden]`.
    pub(crate) final_norm: Buffer,
    /// `[vocabulary, hidden]`; as floats the embeddings, if they are tied. A rank's columns of it on a device among others.
    pub(crate) head: Linear,
    /// f32 `[head_dim / 2]`.
    pub(crate) inv_freq: Buffer,
    /// Of each layer's keys and values, f32 `[kv_heads]`; empty unless those are codes.
    pub(crate) kv_scales: Vec<[Buffer; 2]>,
}

impl Weights {
    /// Reads, converts and copies everything, or a device's part of it. Cost: the model once through main memory, for each device, and once over the
    /// bus, for all; one fused f32 matrix at a time, and its part.
    pub(crate) fn load(
        model: &BaseModel,
        shape: &Shape,
        shard: Shard,
        options: &DeviceOptions,
        stream: &Stream,
    ) -> Result<Self, Error> {
        let (device, precision) = (&options.device, options.precision);
        let values = Values { weights: &model.weights };
        let whole = &Shape::of(&model.config);
        let mut loader = Loader::new(device, stream, precision)?;
        let mut layers = Vec::with_capacity(shape.layers);
        let mut kv_scales = Vec::new();
        for layer in 0..shape.layers {
            let norm = |name| values.layer_norm(layer, name, shape.hidden);
            let (input_norm, post_norm) = (norm("input_layernorm")?, norm("post_attention_layernorm")?);
            let mut site = |site| {
                let (_, inputs) = whole.site(site);
                let rows = values.site(layer, site, whole)?;
                let rows = shard.rows(&rows, site, whole);
                if site == Site::Qkv && options.kv == KvFormat::Fp8 {
                    kv_scales.push(kv::scales(&rows, &input_norm, shape));
                }
                let (outputs, _) = shape.site(site);
                let part = shard.inputs(site, inputs);
                loader.linear(&rows, [outputs, inputs], &part, options.weights, Role::Layer)
            };
            let sites = [site(Site::Qkv)?, site(Site::Output)?, site(Site::GateUp)?, site(Site::Down)?];
            layers.push(Layer { input_norm: loader.put(&input_norm)?, post_norm: loader.put(&post_norm)?, sites });
        }
        let table = |name| values.read(name, shape.vocabulary * shape.hidden);
        let tokens = table("model.embed_tokens.weight")?;
        let embeddings = loader.put(&tokens)?;
        let mut head = |values: &[f32]| {
            let (sizes, inputs) = ([shard.columns(shape.vocabulary), shape.hidden], 0..shape.hidden);
            let values = shard.head(values, shape.vocabulary, shape.hidden);
            loader.linear(&values, sizes, &inputs, options.weights, Role::Head)
        };
        let is_shared = options.weights == WeightFormat::Precision && shard == Shard::WHOLE;
        let head = match model.config.tied_embeddings {
            true if is_shared => Linear::Plain(embeddings.clone()),
            true => head(&tokens)?,
            false => head(&table("lm_head.weight")?)?,
        };
        let final_norm = loader.put(&values.read("model.norm.weight", shape.hidden)?)?;
        loader.precision = Precision::F32;
        let inv_freq = loader.put(&shape.inv_freq)?;
        let kv_scales = loader.kv_scales(&kv_scales)?;
        Ok(Self { embeddings, layers, final_norm, head, inv_freq, kv_scales })
    }

    /// The same sizes with one small number everywhere: as many bytes and operations as a model, and no meaning. (A chip may clock higher
    /// over equal numbers than over real ones.) Cost: filling the memory.
    pub(crate) fn without_meaning(
        config: &ModelConfig,
        shape: &Shape,
        options: &DeviceOptions,
        stream: &Stream,
    ) -> Result<Self, Error> {
        let (device, precision) = (&options.device, options.precision);
        // 0x3c3c is 0.0115 in bf16, and 0x3c3c3c3c the same in f32.
        const BYTE: u8 = 0x3c;
        let filled = |values: usize| filled(device, stream, values * precision.bytes(), BYTE);
        let linear = |[outputs, inputs]: [usize; 2], role| {
            let codes = linear::without_meaning(device, stream, [outputs, inputs], options.weights, role)?;
            codes.map_or_else(|| filled(outputs * inputs).map(Linear::Plain), Ok)
        };
        let site = |site| linear(shape.site(site).into(), Role::Layer);
        let layer = |_| {
            let sites = [site(Site::Qkv)?, site(Site::Output)?, site(Site::GateUp)?, site(Site::Down)?];
            Ok(Layer { input_norm: filled(shape.hidden)?, post_norm: filled(shape.hidden)?, sites })
        };
        let layers = (0..shape.layers).map(layer).collect::<Result<_, Error>>()?;
        let embeddings = filled(shape.vocabulary * shape.hidden)?;
        let head = if config.tied_embeddings && options.weights == WeightFormat::Precision {
            Linear::Plain(embeddings.clone())
        } else {
            linear([shape.vocabulary, shape.hidden], Role::Head)?
        };
        let mut loader = Loader::new(device, stream, Precision::F32)?;
        let inv_freq = loader.put(&shape.inv_freq)?;
        let ones = || [vec![1.0; shape.kv_heads], vec![1.0; shape.kv_heads]];
        let scaled_layers = if options.kv == KvFormat::Fp8 { shape.layers } else { 0 };
        let kv_scales = loader.kv_scales(&vec![ones(); scaled_layers])?;
        Ok(Self { embeddings, layers, final_norm: filled(shape.hidden)?, head, inv_freq, kv_scales })
    }

    /// Bytes that a step reads, whatever its batch: all linears and the head, each once.
    pub(crate) fn bytes(&self) -> u64 {
        let of_layer = |layer: &Layer| layer.sites.iter().map(Linear::bytes).sum::<usize>();
        (self.layers.iter().map(of_layer).sum::<usize>() + self.head.bytes()) as u64
    }
}

/// A new buffer with the same byte everywhere.
pub(crate) fn filled(device: &Device, stream: &Stream, bytes: usize, byte: u8) -> Result<Buffer, Error> {
    let buffer = device.allocate(bytes)?;
    stream.fill(buffer.all(), byte)?;
    Ok(buffer)
}

/// Copies values to new buffers, a piece at a time through pinned memory.
pub(crate) struct Loader<'a> {
    pub(crate) device: &'a Device,
    stream: &'a Stream,
    precision: Precision,
    staging: Pinned,
    bytes: Vec<u8>,
}

/// Of pinned memory while loading, given back after.
const STAGING_BYTES: usize = 1 << 20;

impl<'a> Loader<'a> {
    fn new(device: &'a Device, stream: &'a Stream, precision: Precision) -> Result<Self, Error> {
        let staging = device.allocate_pinned(STAGING_BYTES)?;
        Ok(Self { device, stream, precision, staging, bytes: Vec::new() })
    }

    /// In f32, whatever the precision.
    fn kv_scales(&mut self, layers: &[[Vec<f32>; 2]]) -> Result<Vec<[Buffer; 2]>, Error> {
        self.precision = Precision::F32;
        layers.iter().map(|[keys, values]| Ok([self.put(keys)?, self.put(values)?])).collect()
    }

    /// In the precision.
    pub(crate) fn put(&mut self, values: &[f32]) -> Result<Buffer, Error> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        self.precision.encode(values, &mut bytes);
        let buffer = self.put_bytes(&[&bytes]);
        self.bytes = bytes;
        buffer
    }

    /// As they are, one after the other.
    pub(crate) fn put_bytes(&mut self, parts: &[&[u8]]) -> Result<Buffer, Error> {
        let buffer = self.device.allocate(parts.iter().map(|part| part.len()).sum())?;
        let mut at = 0;
        for bytes in parts.iter().flat_map(|part| part.chunks(STAGING_BYTES)) {
            self.staging.write(0, bytes)?;
            self.stream.upload(&self.staging, 0..bytes.len(), buffer.part(at..at + bytes.len())?)?;
            self.stream.synchronize()?;
            at += bytes.len();
        }
        Ok(buffer)
    }
}
