//! Adapters made for tests, and merges of them written again: plainly, densely, in double precision.

#![allow(dead_code, reason = "each test file uses a part")]

use serde_json::{Value, json};
use std::collections::BTreeMap;
use weft_adapter_format::{BaseShape, CanonicalAdapter, CheckedPackage, Limits, LinearShape, check_package};
use weft_adapter_merge::{Component, Merged, Method, OutputDtype, Parent, Recipe, Space, merge};
use weft_types::Digest;

/// A base with these sizes.
pub(crate) fn llama(layers: usize, hidden: usize, kv: usize, inter: usize) -> BaseShape {
    let linear = |parent: &str, module: &str, in_features, out_features| LinearShape {
        module: module.to_owned(),
        parent: parent.to_owned(),
        in_features,
        out_features,
    };
    BaseShape {
        layers,
        linears: vec![
            linear("self_attn", "q_proj", hidden, hidden),
            linear("self_attn", "k_proj", hidden, kv),
            linear("self_attn", "v_proj", hidden, kv),
            linear("self_attn", "o_proj", hidden, hidden),
            linear("mlp", "gate_proj", hidden, inter),
            linear("mlp", "up_proj", hidden, inter),
            linear("mlp", "down_proj", inter, hidden),
        ],
    }
}

/// Two layers, hidden 10, key-value width 6, intermediate 15: no multiple of the tiles of four.
pub(crate) fn base() -> BaseShape {
    llama(2, 10, 6, 15)
}

/// Numbers around 0 that look random, the same everywhere: SplitMix64.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((word ^ (word >> 31)) >> 40) as f32 / (1 << 24) as f32 - 0.5
    }
}

/// A module of an adapter to make: layer, name, rank, dtype.
pub(crate) type Wanted = (usize, &'static str, usize, &'static str);

/// A package's weights with these modules, filled from `seed`.
pub(crate) fn weights(base: &BaseShape, modules: &[Wanted], seed: u64) -> Vec<u8> {
    let mut numbers = Numbers(seed);
    let mut header = json!({"__metadata__": {"format": "pt"}});
    let mut data = Vec::new();
    for (layer, module, rank, dtype) in modules {
        let linear = base.linears.iter().find(|linear| linear.module == *module).expect("a linear of the base");
        let name = format!("base_model.model.{}", linear.full_name(*layer));
        for (which, shape) in [("lora_A", [*rank, linear.in_features]), ("lora_B", [linear.out_features, *rank])] {
            let start = data.len();
            for _ in 0..shape[0] * shape[1] {
                let value = numbers.next();
                match *dtype {
                    "F16" => data.extend(half::f16::from_f32(value).to_le_bytes()),
                    "BF16" => data.extend(half::bf16::from_f32(value).to_le_bytes()),
                    _ => data.extend(value.to_le_bytes()),
                }
            }
            header[format!("{name}.{which}.weight")] =
                json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
        }
    }
    let text = header.to_string();
    let mut file = (text.len() as u64).to_le_bytes().to_vec();
    file.extend(text.as_bytes());
    file.extend(data);
    file
}

pub(crate) fn check<'w>(config: &Value, weights: &'w [u8], base: &BaseShape) -> CheckedPackage<'w> {
    check_package(config.to_string().as_bytes(), weights, base, None, &Limits::default())
        .unwrap_or_else(|refusal| panic!("{refusal}"))
}

fn config(changes: Value) -> Value {
    let mut config = json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none"});
    for (key, value) in changes.as_object().expect("an object") {
        config[key] = value.clone();
    }
    config
}

/// Blobs of adapters that differ in rank, alpha, rsLoRA, patterns, dtype and modules.
pub(crate) fn mixed_blobs() -> Vec<Vec<u8>> {
    let base = base();
    let f32s = |modules: &[(usize, &'static str, usize)]| -> Vec<Wanted> {
        modules.iter().map(|(layer, module, rank)| (*layer, *module, *rank, "F32")).collect()
    };
    let one = f32s(&[(0, "q_proj", 3), (1, "q_proj", 3), (0, "v_proj", 3), (1, "v_proj", 3)]);
    let two = f32s(&[(0, "q_proj", 2), (1, "q_proj", 4), (0, "down_proj", 2), (1, "down_proj", 2)]);
    let three: Vec<Wanted> = [(0, "q_proj", 1, "F16"), (0, "up_proj", 1, "F16"), (1, "q_proj", 1, "BF16")].to_vec();
    [
        (config(json!({"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]})), one),
        (
            config(json!({"r": 2, "lora_alpha": 5, "use_rslora": true, "target_modules": ["q_proj", "down_proj"],
                "rank_pattern": {"1.self_attn.q_proj": 4}, "alpha_pattern": {"down_proj": 1}})),
            two,
        ),
        (
            config(json!({"r": 1, "lora_alpha": 0.75,
                "target_modules": ["0.self_attn.q_proj", "1.self_attn.q_proj", "0.mlp.up_proj"]})),
            three,
        ),
    ]
    .iter()
    .enumerate()
    .map(|(seed, (config, modules))| check(config, &weights(&base, modules, seed as u64), &base).canonical_blob())
    .collect()
}

/// Blobs of adapters of one rank and scale on q and v of every layer.
pub(crate) fn even_blobs(base: &BaseShape, count: u64, rank: usize) -> Vec<Vec<u8>> {
    let modules: Vec<Wanted> =
        (0..base.layers).flat_map(|layer| [(layer, "q_proj", rank, "F32"), (layer, "v_proj", rank, "F32")]).collect();
    let config = config(json!({"r": rank, "lora_alpha": rank, "target_modules": ["q_proj", "v_proj"]}));
    (0..count).map(|seed| check(&config, &weights(base, &modules, seed + 100), base).canonical_blob()).collect()
}

/// A recipe on deltas over these blobs.
pub(crate) fn recipe(blobs: &[Vec<u8>], shares: &[f64], method: Method, target_rank: Option<u32>) -> Recipe {
    let parents =
        blobs.iter().zip(shares).map(|(blob, weight)| Component { digest: Digest::of(blob), weight: *weight });
    Recipe { parents: parents.collect(), method, target_rank, space: Space::Delta, dtype: OutputDtype::F32 }
}

pub(crate) fn merge_blobs(recipe: Recipe, blobs: &[Vec<u8>], base: &BaseShape) -> Merged {
    let parents: Vec<Parent<'_>> = blobs.iter().map(|blob| Parent::open(blob).expect("a blob")).collect();
    let checked = recipe.check().unwrap_or_else(|error| panic!("{error}"));
    merge(&checked, &parents, base, &weft_adapter_merge::Limits::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// The canonical blob of what came out; every merge must pass the check of packages.
pub(crate) fn blob_of(merged: &Merged, base: &BaseShape) -> Vec<u8> {
    let package = check_package(&merged.config, &merged.weights, base, None, &Limits::default())
        .unwrap_or_else(|refusal| panic!("{refusal}\n{}", String::from_utf8_lossy(&merged.config)));
    assert!(package.warnings.iter().all(|warning| warning.contains("all zero")), "{:?}", package.warnings);
    package.canonical_blob()
}

/// A dense matrix.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dense {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) values: Vec<f64>,
}

impl Dense {
    pub(crate) fn norm(&self) -> f64 {
        self.values.iter().map(|value| value * value).sum::<f64>().sqrt()
    }

    pub(crate) fn less(&self, other: &Self) -> Self {
        assert_eq!((self.rows, self.columns), (other.rows, other.columns));
        let values = self.values.iter().zip(&other.values).map(|(one, other)| one - other).collect();
        Self { values, ..*self }
    }
}

/// `scale · B A` of every module, by full name, summed in double precision.
pub(crate) fn deltas(blob: &[u8]) -> BTreeMap<String, Dense> {
    let adapter = CanonicalAdapter::parse(blob).expect("a blob");
    let mut all = BTreeMap::new();
    for module in adapter.modules() {
        let (a, b) = (module.a.to_f32(), module.b.to_f32());
        let (rows, columns, rank) = (module.b.shape[0], module.a.shape[1], module.rank);
        let mut values = vec![0.0; rows * columns];
        for row in 0..rows {
            for column in 0..columns {
                let terms = (0..rank).map(|k| f64::from(b[row * rank + k]) * f64::from(a[k * columns + column]));
                values[row * columns + column] = terms.sum::<f64>() * module.scale;
            }
        }
        all.insert(module.module.full_name(module.layer), Dense { rows, columns, values });
    }
    all
}

/// The largest relative difference in the Frobenius norm between two adapters' deltas, over modules.
pub(crate) fn difference(one: &BTreeMap<String, Dense>, other: &BTreeMap<String, Dense>) -> f64 {
    assert!(one.keys().eq(other.keys()), "{:?} {:?}", one.keys(), other.keys());
    let each = one.values().zip(other.values());
    each.map(|(one, other)| one.less(other).norm() / other.norm().max(1e-30)).fold(0.0, f64::max)
}
