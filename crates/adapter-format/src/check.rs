//! The check of a package: its tensors against what its config selects.

use crate::base::{BaseShape, Module};
use crate::canonical::{self, MAGNITUDE, ModuleDelta};
use crate::config;
use crate::error::{Reasons, Refusal, shown, some_names};
use crate::header::{self, Entry, Header};
use crate::select::{Resolved, select};
use crate::tensor::{Dtype, TensorView, VectorView, scan};
use std::collections::{BTreeMap, HashMap};
use weft_types::{Digest, DigestHasher};

/// What PEFT puts before every module name.
pub(crate) const PREFIX: &str = "base_model.model.";

/// How large a package may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest rank of a module.
    pub rank_max: usize,
    /// Largest `adapter_config.json`, in bytes.
    pub config_bytes_max: usize,
    /// Largest `adapter_model.safetensors`, in bytes.
    pub weights_bytes_max: u64,
    /// Largest header of it, in bytes; reading one takes a few times as much memory.
    pub header_bytes_max: usize,
}

impl Default for Limits {
    /// Rank 256, config 1 MiB, weights 4 GiB, header 8 MiB.
    fn default() -> Self {
        Self { rank_max: 256, config_bytes_max: 1 << 20, weights_bytes_max: 4 << 30, header_bytes_max: 8 << 20 }
    }
}

/// A package that fits the base, with its canonical blob, whose tensors stay where the weights are.
#[derive(Clone, Debug)]
pub struct CheckedPackage<'w> {
    /// What the publisher should know and what changes no answer.
    pub warnings: Vec<String>,
    /// The largest rank of a module.
    pub rank_max: usize,
    /// The kinds of modules that the adapter changes, `q_proj` first, each once.
    pub modules: Vec<String>,
    /// Every changed module with its resolved rank and scale, in layer order.
    pub resolved: Vec<Resolved>,
    blob: canonical::Blob<'w>,
}

impl<'w> CheckedPackage<'w> {
    /// The canonical blob; `Digest::of` it is the adapter digest. Cost: a copy, which [`CheckedPackage::into_pieces`] spares.
    #[must_use]
    pub fn canonical_blob(&self) -> Vec<u8> {
        [&self.blob.head[..]].into_iter().chain(self.blob.data.iter().copied()).collect::<Vec<_>>().concat()
    }

    /// The canonical blob without a copy: what comes before the tensors, and then parts of the weights, in order. There are few, mostly one:
    /// tensors that lie in the weights as in the blob are one part.
    #[must_use]
    pub fn into_pieces(self) -> (Vec<u8>, Vec<&'w [u8]>) {
        (self.blob.head, self.blob.data)
    }

    /// Length of the canonical blob.
    #[must_use]
    pub fn canonical_bytes(&self) -> u64 {
        (self.blob.head.len() + self.blob.data.iter().map(|piece| piece.len()).sum::<usize>()) as u64
    }

    /// The adapter digest. Cost: one pass over the blob.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut hasher = DigestHasher::new();
        hasher.update(&self.blob.head);
        for piece in &self.blob.data {
            hasher.update(piece);
        }
        hasher.finish()
    }
}

/// Checks a package against a base and writes its canonical blob.
///
/// `config` and `weights` are the two files as they came. `base_name` is what the base is called; another name in the
/// config is only a warning, for a base is told by its module names and shapes.
///
/// Cost: one pass over `weights`; memory for their header. Blocks: run it off the loop.
///
/// # Errors
/// Every reason at once, if the package is not sound, does not fit the base, or holds anything whose effect Weft
/// would not compute exactly as PEFT does.
pub fn check_package<'w>(
    config: &[u8],
    weights: &'w [u8],
    base: &BaseShape,
    base_name: Option<&str>,
    limits: &Limits,
) -> Result<CheckedPackage<'w>, Refusal> {
    let mut reasons = Reasons::default();
    let mut warnings = Reasons::default();
    let lora = config::parse(config, limits.config_bytes_max, base_name, &mut reasons, &mut warnings);
    let use_dora = lora.as_ref().is_some_and(|lora| lora.use_dora);
    let selected = lora.and_then(|lora| select(&lora, base, limits.rank_max, &mut reasons, &mut warnings));

    // Found after the faults of the config, so that what a person wrote comes first in the list.
    let mut weight_reasons = Reasons::default();
    let blob = open_weights(weights, limits, &mut weight_reasons).and_then(|(header, data)| {
        let found = sort_tensors(&header.tensors, base, &mut weight_reasons);
        check_shapes(&found, selected.as_deref(), base, &mut weight_reasons);
        let selected = selected.as_deref();
        if let Some(selected) = selected {
            compare_names(&found, selected, use_dora, &mut weight_reasons);
        }
        let views = view_all(&found, data?, &mut weight_reasons);
        if !weight_reasons.is_empty() {
            return None;
        }
        let deltas = join(selected?, &views, &mut warnings)?;
        Some(canonical::write(&deltas, weights))
    });
    reasons.append(weight_reasons);

    if let Some(refusal) = reasons.into_refusal() {
        return Err(refusal);
    }
    let (Some(resolved), Some(blob)) = (selected, blob) else {
        return Err(Refusal { reasons: vec!["the package could not be checked".to_owned()] });
    };
    let used = |module: &Module| resolved.iter().any(|one| one.module == *module);
    Ok(CheckedPackage {
        warnings: warnings.into_list(),
        rank_max: resolved.iter().map(|one| one.rank).max().unwrap_or(0),
        modules: Module::ALL.into_iter().filter(used).map(|module| module.as_str().to_owned()).collect(),
        resolved,
        blob,
    })
}

/// The header of the weights, and their data if the file's layout is sound.
fn open_weights<'a>(weights: &'a [u8], limits: &Limits, reasons: &mut Reasons) -> Option<(Header, Option<&'a [u8]>)> {
    if weights.len() as u64 > limits.weights_bytes_max {
        reasons.push(format!("the weights have {} bytes, the limit is {}", weights.len(), limits.weights_bytes_max));
        return None;
    }
    let opened = header::split(weights, limits.header_bytes_max)
        .and_then(|(text, data)| header::parse(text).map(|header| (header, data)));
    let (header, data) = match opened {
        Ok(opened) => opened,
        Err(reason) => {
            reasons.push(reason);
            return None;
        }
    };
    if header.tensors.is_empty() {
        reasons.push("the weights hold no tensor");
        return None;
    }
    let sound = header::check_layout(&header.tensors, data.len(), reasons);
    Some((header, sound.then_some(data)))
}

/// The tensors of one module.
#[derive(Default)]
struct Parts<'h> {
    a: Option<&'h Entry>,
    b: Option<&'h Entry>,
    magnitude: Option<&'h Entry>,
}

/// The tensors of each module that the base has.
type Found<'h> = BTreeMap<(usize, Module), Parts<'h>>;

/// Which tensor of its module this is, by what its name ends with after the module.
type Part = for<'p, 'h> fn(&'p mut Parts<'h>) -> &'p mut Option<&'h Entry>;

/// The second spelling of magnitudes is that of PEFT's parameter in memory: PEFT reads it from files too.
const PARTS: [(&str, Part); 4] = [
    (".lora_A.weight", |parts| &mut parts.a),
    (".lora_B.weight", |parts| &mut parts.b),
    (".lora_magnitude_vector", |parts| &mut parts.magnitude),
    (".lora_magnitude_vector.weight", |parts| &mut parts.magnitude),
];

/// Finds each module's tensors by name; every other tensor is a reason.
fn sort_tensors<'h>(tensors: &'h [Entry], base: &BaseShape, reasons: &mut Reasons) -> Found<'h> {
    let known: HashMap<String, (usize, Module)> =
        base.targets().map(|(layer, module, linear)| (linear.full_name(layer), (layer, module))).collect();
    let mut found: Found<'h> = BTreeMap::new();
    let mut strange: BTreeMap<&'static str, Vec<&str>> = BTreeMap::new();
    for tensor in tensors {
        let name = tensor.name.as_str();
        let inner = name.strip_prefix(PREFIX).unwrap_or_default();
        let part = PARTS.iter().find_map(|(suffix, part)| Some((inner.strip_suffix(suffix)?, part)));
        let Some((module, part)) = part else {
            strange.entry(why_strange(name)).or_default().push(name);
            continue;
        };
        let Some(key) = known.get(module) else {
            let is_embedding = matches!(module, "lm_head" | "model.embed_tokens");
            let why = if is_embedding { TRAINED_EMBEDDING } else { "this base has no such module" };
            strange.entry(why).or_default().push(name);
            continue;
        };
        if part(found.entry(*key).or_default()).replace(tensor).is_some() {
            strange.entry("the module's magnitudes are there in two spellings").or_default().push(name);
        }
    }
    for (why, names) in strange {
        let count = if names.len() == 1 { "a tensor".to_owned() } else { format!("{} tensors", names.len()) };
        reasons.push(format!("{count} that Weft cannot use: {}: {why}", some_names(&names)));
    }
    found
}

const TRAINED_EMBEDDING: &str = "trained embeddings and lm_head are not supported";

fn why_strange(name: &str) -> &'static str {
    if name.contains("lora_embedding_")
        || name.ends_with("embed_tokens.weight")
        || name.ends_with("lm_head.weight")
        || name.contains("token_adapter")
    {
        TRAINED_EMBEDDING
    } else if name.contains("modules_to_save") {
        "fully trained modules are not supported"
    } else if name.ends_with(".lora_B.bias") {
        "biases on lora_B are not supported"
    } else if name.ends_with(".bias") {
        "trained biases are not supported"
    } else {
        "the name is not base_model.model.<module>.lora_A.weight, .lora_B.weight or .lora_magnitude_vector"
    }
}

/// Holds every shape against the base, and against the config's rank where that is known.
fn check_shapes(found: &Found<'_>, selected: Option<&[Resolved]>, base: &BaseShape, reasons: &mut Reasons) {
    let ranks: HashMap<(usize, Module), usize> =
        selected.unwrap_or_default().iter().map(|one| ((one.layer, one.module), one.rank)).collect();
    let mut wrong: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (key, parts) in found {
        let Some(linear) = base.linear(key.1) else { continue };
        let rank = ranks.get(key).copied();
        let (inputs, outputs) = (Some(linear.in_features), Some(linear.out_features));
        let wanted: [(_, &[Option<usize>]); 3] =
            [(parts.a, &[rank, inputs]), (parts.b, &[outputs, rank]), (parts.magnitude, &[outputs])];
        for (entry, wanted) in wanted {
            let Some(entry) = entry else { continue };
            let fits = |(found, wanted): (&u64, &Option<usize>)| wanted.is_none_or(|wanted| wanted as u64 == *found);
            if entry.shape.len() != wanted.len() || !entry.shape.iter().zip(wanted).all(fits) {
                let any_rank = |size: &Option<usize>| size.map_or("r".to_owned(), |size| size.to_string());
                let wanted = wanted.iter().map(any_rank).collect::<Vec<_>>().join(", ");
                let group = format!("shape {:?}, the config and this base need [{wanted}]", entry.shape);
                wrong.entry(group).or_default().push(&entry.name);
            }
        }
    }
    for (group, names) in wrong {
        let tensors = if names.len() == 1 { "tensor" } else { "tensors" };
        reasons.push(format!("{tensors} {}: {group}", some_names(&names)));
    }
}

/// Views of a module's tensors, and whether B is all zero.
#[derive(Clone, Copy)]
struct Views<'a> {
    a: TensorView<'a>,
    b: TensorView<'a>,
    b_is_zero: bool,
    magnitude: Option<VectorView<'a>>,
}

/// Looks at every value of every tensor found.
fn view_all<'a>(found: &Found<'_>, data: &'a [u8], reasons: &mut Reasons) -> BTreeMap<(usize, Module), Views<'a>> {
    let mut views = BTreeMap::new();
    for (key, parts) in found {
        let mut see = |entry: Option<&Entry>| entry.and_then(|entry| view(entry, data, reasons));
        let (a, b) = (see(parts.a), see(parts.b));
        let magnitude = parts.magnitude.and_then(|entry| values(entry, data, reasons)).map(|(vector, _)| vector);
        if let (Some((a, _)), Some((b, b_is_zero))) = (a, b) {
            views.insert(*key, Views { a, b, b_is_zero, magnitude });
        }
    }
    views
}

/// Rank and scale from the config, tensors from the weights.
fn join<'a>(
    selected: &[Resolved],
    views: &BTreeMap<(usize, Module), Views<'a>>,
    warnings: &mut Reasons,
) -> Option<Vec<ModuleDelta<'a>>> {
    let mut deltas = Vec::with_capacity(selected.len());
    let mut idle = Vec::new();
    for Resolved { layer, module, rank, scale } in selected.iter().cloned() {
        let Views { a, b, b_is_zero, magnitude } = *views.get(&(layer, module))?;
        if b_is_zero && magnitude.is_none() {
            idle.push(module.full_name(layer));
        }
        deltas.push(ModuleDelta { layer, module, rank, scale, a, b, magnitude });
    }
    if !idle.is_empty() {
        warnings.push(format!("lora_B is all zero, so nothing changes in {}", some_names(&idle)));
    }
    Some(deltas)
}

/// A selected module without all of its tensors, and tensors that no selected module has.
fn compare_names(found: &Found<'_>, selected: &[Resolved], use_dora: bool, reasons: &mut Reasons) {
    let mut missing: [Vec<String>; 4] = Default::default();
    let mut plain = Vec::new();
    let mut wanted = BTreeMap::new();
    for one in selected {
        wanted.insert((one.layer, one.module), ());
        let which = match found.get(&(one.layer, one.module)) {
            Some(Parts { a: None, .. }) => 0,
            Some(Parts { b: None, .. }) => 1,
            None => 2,
            Some(Parts { magnitude: None, .. }) if use_dora => 3,
            Some(Parts { magnitude, .. }) => {
                if magnitude.is_some() && !use_dora {
                    plain.push(one.module.full_name(one.layer));
                }
                continue;
            }
        };
        missing[which].push(one.module.full_name(one.layer));
    }
    if !plain.is_empty() {
        let names = some_names(&plain);
        reasons.push(format!("the weights hold magnitudes for {names}, but the config does not say use_dora"));
    }
    let no_magnitude = format!("no {MAGNITUDE} tensor (use_dora is true)");
    for (names, what) in missing.iter().zip(["no lora_A tensor", "no lora_B tensor", "no tensors", &no_magnitude]) {
        if !names.is_empty() {
            reasons.push(format!("the config selects {}, the weights hold {what} for it", some_names(names)));
        }
    }
    let extra: Vec<String> =
        found.keys().filter(|key| !wanted.contains_key(key)).map(|(layer, module)| module.full_name(*layer)).collect();
    if !extra.is_empty() {
        reasons.push(format!("the weights hold tensors for {}, which the config does not select", some_names(&extra)));
    }
}

/// A view of the matrix and whether it is all zero; its dtype and values are checked.
fn view<'a>(entry: &Entry, data: &'a [u8], reasons: &mut Reasons) -> Option<(TensorView<'a>, bool)> {
    let (VectorView { dtype, bytes }, all_zero) = values(entry, data, reasons)?;
    Some((TensorView { dtype, shape: entry.matrix()?, bytes }, all_zero))
}

/// The elements of the tensor and whether all are zero; its dtype and values are checked.
fn values<'a>(entry: &Entry, data: &'a [u8], reasons: &mut Reasons) -> Option<(VectorView<'a>, bool)> {
    let Some(dtype) = Dtype::from_name(&entry.dtype) else {
        let (name, dtype) = (&entry.name, shown(&entry.dtype));
        reasons.push(format!("tensor {name} has dtype {dtype}, only F32, F16 and BF16 are supported"));
        return None;
    };
    let bytes = entry.slice(data);
    let scan = scan(dtype, bytes);
    if let Some(index) = scan.not_finite_at {
        let columns = entry.shape.last().copied().unwrap_or(1).max(1);
        let (row, column) = (index as u64 / columns, index as u64 % columns);
        reasons.push(format!("tensor {} holds NaN or infinity, first at row {row}, column {column}", entry.name));
    }
    Some((VectorView { dtype, bytes }, scan.all_zero))
}
