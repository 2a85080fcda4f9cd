//! The canonical blob: the one spelling of an adapter, whose SHA-256 is its identity.
//!
//! It is a valid safetensors file, written by this module alone, so that no library's later version can move a digest:
//!
//! ```text
//! u64 little endian   length of the header, so that 8 + length is a multiple of 64
//! {"__metadata__":{"weft.format":"1","weft.peft_type":"LORA",
//!   "weft.rank.model.layers.0.self_attn.q_proj":"8", ...,
//!   "weft.scale.model.layers.0.self_attn.q_proj":"2.0", ...},
//!  "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight":
//!    {"data_offsets":[0,2048],"dtype":"F32","shape":[8,64]}, ...}      no white space, keys in byte order
//! spaces              up to the multiple of 64
//! data                the tensors in the order of their names, without gaps, dtype as it came
//! ```
//!
//! DoRA has format 2 and the kind `DORA`; each module has one more tensor, its magnitude per output:
//!
//! ```text
//! {"__metadata__":{"weft.format":"2","weft.peft_type":"DORA", ...},
//!  ..., "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector":
//!    {"data_offsets":[6144,6400],"dtype":"F32","shape":[64]}, ...}
//! ```
//!
//! A number of its own, so that a build from before DoRA says that it does not read the format. Plain LoRA stays format 1.
//!
//! A rank is a decimal integer, a scale the shortest decimal that reads back as the same double. Nothing else is kept:
//! not the config's patterns, dropout, paths or dates. A blob once written is never written again in another way; a
//! change of this layout takes a new format number and leaves the reader of the old one in place.

use crate::base::Module;
use crate::check::PREFIX;
use crate::error::{Error, Reasons, shown};
use crate::header::{self, Entry, Header};
use crate::tensor::{Dtype, TensorView, VectorView};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::ops::Range;

/// The format number of plain LoRA.
pub const FORMAT_LORA: &str = "1";
/// The format number of DoRA.
pub const FORMAT_DORA: &str = "2";
/// Where the data starts is a multiple of this.
pub const ALIGNMENT: usize = 64;
/// A header has about 350 bytes per module, 500 with DoRA; 32 MiB are 67,000 modules.
const HEADER_BYTES_MAX: usize = 32 << 20;

/// What the name of a module's magnitudes ends with in files of PEFT (`_get_adapter_state_dict` of its `LoraModel`);
/// in memory the parameter has one more part, `weight`.
pub(crate) const MAGNITUDE: &str = "lora_magnitude_vector";

/// One module's part of an adapter. Without a magnitude, `scale * B (A x)` is added to the base's output `W x`. With one
/// (DoRA), output `o` is `magnitude[o] / ‖W + scale * B A‖ₒ * (W x + scale * B (A x))`, with the Euclidean norm of row `o`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ModuleDelta<'a> {
    /// The decoder layer, from 0.
    pub layer: usize,
    /// The linear in that layer.
    pub module: Module,
    /// Rows of A and columns of B.
    pub rank: usize,
    /// Finite; resolved from alpha, rank and rsLoRA at publication.
    pub scale: f64,
    /// `[rank, in_features]`
    pub a: TensorView<'a>,
    /// `[out_features, rank]`
    pub b: TensorView<'a>,
    /// `[out_features]`, of any sign; every module of a DoRA adapter has one, no module of any other.
    pub magnitude: Option<VectorView<'a>>,
}

/// A canonical blob, opened. Borrows the bytes; copies no tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct CanonicalAdapter<'a> {
    modules: Vec<ModuleDelta<'a>>,
}

impl<'a> CanonicalAdapter<'a> {
    /// Opens a blob. Cost: the header is read and written once for comparison; the data is not touched.
    ///
    /// The digest is not checked here: the caller hashes the bytes it is given. Values are not checked again either.
    ///
    /// # Errors
    /// If the bytes are not exactly what the writer writes for some adapter.
    pub fn parse(blob: &'a [u8]) -> Result<Self, Error> {
        let (text, data) = header::split(blob, HEADER_BYTES_MAX).map_err(Error::NotSafetensors)?;
        let header = header::parse(text).map_err(Error::NotSafetensors)?;
        let mut reasons = Reasons::default();
        header::check_layout(&header.tensors, data.len(), &mut reasons);
        if let Some(refusal) = reasons.into_refusal() {
            return Err(Error::NotSafetensors(refusal.reasons.join("; ")));
        }
        let modules = read_modules(&header, data)?;
        if header_text(&modules).as_bytes() != text {
            return Err(Error::NotCanonical("its header is spelled in another way".to_owned()));
        }
        Ok(Self { modules })
    }

    /// Every changed module, by layer and then `q_proj`, `k_proj`, `v_proj`, `o_proj`, `gate_proj`, `up_proj`,
    /// `down_proj`.
    #[must_use]
    pub fn modules(&self) -> &[ModuleDelta<'a>] {
        &self.modules
    }

    /// Whether the modules have magnitudes.
    #[must_use]
    pub fn is_dora(&self) -> bool {
        is_dora(&self.modules)
    }

    /// The largest rank of a module.
    #[must_use]
    pub fn rank_max(&self) -> usize {
        self.modules.iter().map(|delta| delta.rank).max().unwrap_or(0)
    }
}

fn is_dora(modules: &[ModuleDelta<'_>]) -> bool {
    modules.iter().any(|delta| delta.magnitude.is_some())
}

/// A blob to write: its tensors are in the weights that they came in.
#[derive(Clone, Debug)]
pub(crate) struct Blob<'w> {
    /// Length and header, up to where the data starts.
    pub(crate) head: Vec<u8>,
    /// The data, in order. No two of them in a row adjoin in the weights.
    pub(crate) data: Vec<&'w [u8]>,
}

/// The blob of these modules, given in any order, whose tensors lie in `weights`. Either all have a magnitude or none.
pub(crate) fn write<'w>(modules: &[ModuleDelta<'w>], weights: &'w [u8]) -> Blob<'w> {
    let text = header_text(modules);
    let mut head = Vec::with_capacity(8 + text.len());
    head.extend((text.len() as u64).to_le_bytes());
    head.extend(text.as_bytes());
    let mut ranges: Vec<Range<usize>> = Vec::new();
    for Stored { bytes, .. } in sorted_tensors(modules) {
        if bytes.is_empty() {
            continue;
        }
        // Every view of a module was cut from the weights.
        let start = bytes.as_ptr().addr().wrapping_sub(weights.as_ptr().addr());
        let end = start.wrapping_add(bytes.len());
        match ranges.last_mut() {
            Some(before) if before.end == start => before.end = end,
            _ => ranges.push(start..end),
        }
    }
    Blob { head, data: ranges.into_iter().map(|range| &weights[range]).collect() }
}

/// A tensor to write.
struct Stored<'a> {
    name: String,
    dtype: Dtype,
    /// As in the header: `8,64`.
    shape: String,
    bytes: &'a [u8],
}

fn sorted_tensors<'a>(modules: &[ModuleDelta<'a>]) -> Vec<Stored<'a>> {
    let mut tensors = Vec::with_capacity(modules.len() * 3);
    for delta in modules {
        let module = format!("{PREFIX}{}", delta.module.full_name(delta.layer));
        for (matrix, which) in [(delta.a, "lora_A"), (delta.b, "lora_B")] {
            let TensorView { dtype, shape: [rows, columns], bytes } = matrix;
            let (name, shape) = (format!("{module}.{which}.weight"), format!("{rows},{columns}"));
            tensors.push(Stored { name, dtype, shape, bytes });
        }
        if let Some(magnitude) = delta.magnitude {
            let VectorView { dtype, bytes } = magnitude;
            let (name, shape) = (format!("{module}.{MAGNITUDE}"), magnitude.len().to_string());
            tensors.push(Stored { name, dtype, shape, bytes });
        }
    }
    tensors.sort_by(|left, right| left.name.cmp(&right.name));
    tensors
}

/// The header with its padding. Names are made by us and need no escapes.
fn header_text(modules: &[ModuleDelta<'_>]) -> String {
    let mut names: Vec<(String, &ModuleDelta<'_>)> =
        modules.iter().map(|delta| (delta.module.full_name(delta.layer), delta)).collect();
    names.sort_by(|(left, _), (right, _)| left.cmp(right));

    let (format, kind) = if is_dora(modules) { (FORMAT_DORA, "DORA") } else { (FORMAT_LORA, "LORA") };
    let mut text = format!(r#"{{"__metadata__":{{"weft.format":"{format}","weft.peft_type":"{kind}""#);
    for (name, delta) in &names {
        text += &format!(r#","weft.rank.{name}":"{}""#, delta.rank);
    }
    for (name, delta) in &names {
        text += &format!(r#","weft.scale.{name}":"{}""#, ryu::Buffer::new().format_finite(delta.scale));
    }
    text.push('}');
    let mut start = 0;
    for Stored { name, dtype, shape, bytes } in sorted_tensors(modules) {
        let end = start + bytes.len();
        text += &format!(r#","{name}":{{"data_offsets":[{start},{end}],"dtype":"{dtype}","shape":[{shape}]}}"#);
        start = end;
    }
    text.push('}');
    let padded = (8 + text.len()).next_multiple_of(ALIGNMENT) - 8;
    let _ = write!(text, "{:1$}", "", padded - text.len());
    text
}

fn read_modules<'a>(header: &Header, data: &'a [u8]) -> Result<Vec<ModuleDelta<'a>>, Error> {
    let metadata: HashMap<&str, &str> =
        header.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let has_magnitudes = match metadata.get("weft.format").copied() {
        Some(FORMAT_LORA) => false,
        Some(FORMAT_DORA) => true,
        found => return Err(Error::Format { found: found.map(shown) }),
    };
    let tensors: HashMap<&str, &Entry> = header.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let mut modules = Vec::new();
    for (key, rank) in &header.metadata {
        let Some(name) = key.strip_prefix("weft.rank.") else { continue };
        let wrong = |what: &str| Error::NotCanonical(format!("{what} of {:?}", shown(name)));
        let (layer, module) = Module::from_full_name(name).ok_or_else(|| wrong("the name"))?;
        let rank: usize = rank.parse().ok().filter(|rank| *rank > 0).ok_or_else(|| wrong("the rank"))?;
        let scale = metadata.get(format!("weft.scale.{name}").as_str()).and_then(|scale| scale.parse::<f64>().ok());
        let scale = scale.filter(|scale| scale.is_finite()).ok_or_else(|| wrong("the scale"))?;
        let tensor = |which: &str| {
            let entry = tensors.get(format!("{PREFIX}{name}.{which}.weight").as_str())?;
            let dtype = Dtype::from_name(&entry.dtype)?;
            Some(TensorView { dtype, shape: entry.matrix()?, bytes: entry.slice(data) })
        };
        let a = tensor("lora_A").filter(|a| a.shape[0] == rank).ok_or_else(|| wrong("lora_A"))?;
        let b = tensor("lora_B").filter(|b| b.shape[1] == rank).ok_or_else(|| wrong("lora_B"))?;
        let magnitude = || {
            let entry = tensors.get(format!("{PREFIX}{name}.{MAGNITUDE}").as_str())?;
            entry.vector().filter(|length| *length == b.shape[0])?;
            Some(VectorView { dtype: Dtype::from_name(&entry.dtype)?, bytes: entry.slice(data) })
        };
        let magnitude = has_magnitudes.then(|| magnitude().ok_or_else(|| wrong(MAGNITUDE))).transpose()?;
        modules.push(ModuleDelta { layer, module, rank, scale, a, b, magnitude });
    }
    modules.sort_by_key(|delta| (delta.layer, delta.module));
    Ok(modules)
}
