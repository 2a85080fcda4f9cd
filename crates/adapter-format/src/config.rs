//! `adapter_config.json`: every key is understood, known to be harmless, or refused.
//!
//! The classification follows PEFT 0.21's `LoraConfig` and, for each key, what its layers do with it when a trained
//! adapter is loaded for inference. A key that we do not know may be anything a later PEFT invents; it passes only
//! with a value that says "off", and then with a warning.

mod fields;

use crate::error::{Reasons, shown};
use crate::json::Json;
use crate::pattern::{BACKTRACKING_MAX, PATTERNS_MAX, Pattern, REGEXES_MAX};
use fields::Fields;

/// Keys that a trained adapter carries along and that cannot change what it computes.
///
/// Dropout and the VeLoRA compression act in training only; `eva`, `corda`, `loftq` and `lora_ga` settings only
/// choose how training starts (that start itself is judged by `init_lora_weights`); weight tying concerns embeddings,
/// which are refused anyway; `megatron_core` and `qalora_group_size` mean nothing unless their feature is on;
/// `merge_weights` is from the first PEFT releases and only says when to merge.
const HARMLESS: [&str; 15] = [
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "merge_weights",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "velora_config",
];

/// Features that change the answer and that Weft does not compute: with any value but "off" they are refused.
const REFUSED: [(&str, &str); 13] = [
    ("use_qalora", "QALoRA groups the input"),
    ("lora_bias", "biases on lora_B are not supported"),
    ("modules_to_save", "fully trained modules are not supported"),
    ("target_parameters", "LoRA on parameters is not supported"),
    ("trainable_token_indices", "trained token embeddings are not supported"),
    ("layer_replication", "replicated layers are another base"),
    ("alora_invocation_tokens", "activated LoRA is not supported"),
    ("arrow_config", "Arrow routes between adapters"),
    ("kasa_config", "KaSA changes the base weights"),
    ("monteclora_config", "MonteCLoRA adds tensors"),
    ("use_bdlora", "block-diagonal LoRA is not supported"),
    ("megatron_config", "Megatron layers are not supported"),
    ("enable_lora", "merged linears of the first PEFT releases are not supported"),
];

/// Starts of training after which the adapter alone is what was trained.
const PLAIN_STARTS: [&str; 4] = ["gaussian", "eva", "orthogonal", "mica"];

/// What is left of a config once it is checked: how to select modules and how to scale them.
#[derive(Debug)]
pub(crate) struct LoraConfig {
    pub(crate) rank: u64,
    pub(crate) alpha: f64,
    pub(crate) use_rslora: bool,
    /// Every selected module has a magnitude per output.
    pub(crate) use_dora: bool,
    pub(crate) target: Names,
    pub(crate) exclude: Option<Names>,
    pub(crate) layers: Option<Layers>,
    /// In the order of the file: the first key that matches counts.
    pub(crate) rank_pattern: Vec<(Pattern, u64)>,
    pub(crate) alpha_pattern: Vec<(Pattern, f64)>,
}

/// A way to say which modules.
#[derive(Debug)]
pub(crate) enum Names {
    /// Every linear but the output head.
    AllLinear,
    /// Whole names, or endings after a dot.
    List(Vec<String>),
    /// A pattern for the whole name.
    Pattern(Pattern),
}

/// `layers_to_transform` and `layers_pattern`.
#[derive(Debug)]
pub(crate) struct Layers {
    pub(crate) indices: Vec<u64>,
    /// Tried in order; the first that matches says where the layer number stands.
    pub(crate) patterns: Vec<Pattern>,
}

/// Reads and classifies a config. Faults go to `reasons`; `None` if what is left cannot select modules.
pub(crate) fn parse(
    bytes: &[u8],
    bytes_max: usize,
    base_name: Option<&str>,
    reasons: &mut Reasons,
    warnings: &mut Reasons,
) -> Option<LoraConfig> {
    if bytes.len() > bytes_max {
        reasons.push(format!("adapter_config.json has {} bytes, the limit is {bytes_max}", bytes.len()));
        return None;
    }
    let entries = match Json::parse(bytes) {
        Ok(Json::Object(entries)) => entries,
        Ok(other) => {
            reasons.push(format!("adapter_config.json holds {}, not an object", other.shown()));
            return None;
        }
        Err(error) => {
            reasons.push(format!("adapter_config.json is not valid JSON: {error}"));
            return None;
        }
    };
    let mut fields = Fields::new(entries, reasons);
    check_kind(&mut fields);
    check_start(&mut fields);
    for (key, why) in REFUSED {
        if let Some(value) = fields.take(key).filter(|value| !value.is_falsy()) {
            fields.refuse(format!("{key} is {}: {why}", value.shown()));
        }
    }
    for key in HARMLESS {
        fields.take(key);
    }
    if fields.flag("fan_in_fan_out") == Some(true) {
        warnings
            .push("fan_in_fan_out is true: PEFT ignores it for the linears of a Llama, and so does Weft".to_owned());
    }
    if let (Some(trained_on), Some(base)) = (fields.text("base_model_name_or_path"), base_name)
        && trained_on != base
    {
        warnings.push(format!("base_model_name_or_path is {:?}, this base is {base:?}", shown(&trained_on)));
    }
    let config = read_lora(&mut fields, warnings);
    for (key, value) in fields.rest() {
        let key = shown(&key);
        if value == Json::Null {
            continue;
        } else if value.is_falsy() {
            warnings.push(format!("key {key:?} is not known to Weft and is {}: taken as off", value.shown()));
        } else {
            reasons.push(format!("key {key:?} is not known to Weft and is {}", value.shown()));
        }
    }
    config
}

fn check_kind(fields: &mut Fields<'_>) {
    match fields.take("peft_type") {
        Some(Json::String(kind)) if kind == "LORA" => {}
        Some(other) => fields.refuse(format!("peft_type is {}, only \"LORA\" is supported", other.shown())),
        None => fields.refuse("peft_type is missing: this is not a PEFT config"),
    }
    match fields.take("task_type") {
        None | Some(Json::Null) => {}
        Some(Json::String(task)) if task == "CAUSAL_LM" => {}
        Some(other) => fields.refuse(format!("task_type is {}, only \"CAUSAL_LM\" is supported", other.shown())),
    }
    match fields.take("bias") {
        None => {}
        Some(Json::String(bias)) if bias == "none" => {}
        Some(other) => fields.refuse(format!("bias is {}, only \"none\" is supported", other.shown())),
    }
}

/// PiSSA, CorDA, OLoRA, LoftQ and LoRA-GA move part of the base weights into the adapter before training, and PEFT
/// changes the base again when it loads one. Shared weights cannot; PEFT converts such adapters when it saves them.
fn check_start(fields: &mut Fields<'_>) {
    match fields.take("init_lora_weights") {
        None | Some(Json::Null | Json::Bool(_)) => {}
        Some(Json::String(start)) if PLAIN_STARTS.contains(&start.to_lowercase().as_str()) => {}
        Some(other) => fields.refuse(format!(
            "init_lora_weights is {}: such an adapter needs changed base weights; save it with \
             path_initial_model_for_weight_conversion",
            other.shown()
        )),
    }
}

fn read_lora(fields: &mut Fields<'_>, warnings: &mut Reasons) -> Option<LoraConfig> {
    if fields.lacks("lora_alpha") {
        warnings.push("lora_alpha is missing: PEFT's default of 8 is used".to_owned());
    }
    let mut patterns = PatternBudget::default();
    // Each is read before any is asked for, so that all faults are found.
    let rank = fields.rank("r");
    let alpha = fields.alpha("lora_alpha");
    let use_rslora = fields.flag("use_rslora");
    let use_dora = fields.flag("use_dora");
    let rank_pattern = fields.ranks("rank_pattern", &mut patterns);
    let alpha_pattern = fields.alphas("alpha_pattern", &mut patterns);
    let is_text = matches!(fields.peek("target_modules"), Some(Json::String(_)));
    let target = fields.names("target_modules", &mut patterns);
    let exclude = fields.names("exclude_modules", &mut patterns);
    let layers = read_layers(fields, is_text, &mut patterns);
    let target = target.and_then(|target| {
        if target.is_none() {
            fields.refuse("target_modules is missing: name the modules the adapter was trained on");
        }
        target
    });
    Some(LoraConfig {
        rank: rank?,
        alpha: alpha?,
        use_rslora: use_rslora?,
        use_dora: use_dora?,
        target: target?,
        exclude: exclude?,
        layers: layers?,
        rank_pattern: rank_pattern?,
        alpha_pattern: alpha_pattern?,
    })
}

/// The outer `None` means refused, the inner one that every layer is meant.
fn read_layers(fields: &mut Fields<'_>, target_is_text: bool, patterns: &mut PatternBudget) -> Option<Option<Layers>> {
    for key in ["layers_to_transform", "layers_pattern"] {
        if target_is_text && fields.peek(key).is_some_and(|value| *value != Json::Null) {
            fields.refuse(format!("{key} cannot be used when target_modules is a string"));
            fields.take("layers_to_transform");
            fields.take("layers_pattern");
            return None;
        }
    }
    let indices = fields.indices("layers_to_transform");
    let layer_patterns = fields.layer_patterns("layers_pattern", patterns);
    let (indices, mut layer_patterns) = (indices?, layer_patterns?);
    let Some(indices) = indices else {
        if layer_patterns.is_empty() {
            return Some(None);
        }
        fields.refuse("layers_pattern needs layers_to_transform");
        return None;
    };
    if indices.is_empty() {
        return Some(None);
    }
    if layer_patterns.is_empty() {
        layer_patterns.push(Pattern::any_layers());
    }
    Some(Some(Layers { indices, patterns: layer_patterns }))
}

/// Compiles patterns within the limits of one package.
#[derive(Default)]
struct PatternBudget {
    read: usize,
    regexes: usize,
    backtracking: usize,
    spent: bool,
}

impl PatternBudget {
    /// The pattern, or why not; `None` as the reason if the budget was spent before.
    fn compile(&mut self, source: &str, build: fn(&str) -> Result<Pattern, String>) -> Result<Pattern, Option<String>> {
        if self.spent {
            return Err(None);
        }
        let pattern = build(source);
        self.read += 1;
        // A pattern that fails to compile costs too.
        self.regexes += usize::from(pattern.as_ref().map_or(true, Pattern::is_regex));
        self.backtracking += usize::from(pattern.as_ref().is_ok_and(Pattern::backtracks));
        let limits = [
            (self.read, PATTERNS_MAX, "patterns"),
            (self.regexes, REGEXES_MAX, "patterns that are not plain names"),
            (self.backtracking, BACKTRACKING_MAX, "patterns with look-around or references"),
        ];
        for (count, limit, what) in limits {
            if count > limit {
                self.spent = true;
                return Err(Some(format!("more than {limit} {what}")));
            }
        }
        pattern.map_err(Some)
    }
}
