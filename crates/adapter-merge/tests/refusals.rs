//! What cannot be merged, and what is said about it.

mod support;

use serde_json::json;
use support::{base, blob_of, even_blobs, llama, merge_blobs, mixed_blobs, recipe, weights};
use weft_adapter_format::{BaseShape, check_package};
use weft_adapter_merge::{Error, Limits, Method, OutputDtype, Parent, Recipe, Space, merge};
use weft_fault::{Fault, Kind};
use weft_types::Digest;

fn try_merge(recipe: Recipe, blobs: &[Vec<u8>], base: &BaseShape, limits: &Limits) -> Result<(), Error> {
    let parents: Vec<Parent<'_>> = blobs.iter().map(|blob| Parent::open(blob).expect("a blob")).collect();
    merge(&recipe.check()?, &parents, base, limits).map(|_| ())
}

fn refused(recipe: Recipe, blobs: &[Vec<u8>], base: &BaseShape, limits: &Limits) -> (String, Kind) {
    let error = try_merge(recipe, blobs, base, limits).expect_err("must be refused");
    (error.to_string(), Fault::from(error).kind)
}

fn linear(blobs: &[Vec<u8>]) -> Recipe {
    recipe(blobs, &[1.0; 8], Method::Linear {}, None)
}

#[test]
fn parents_of_another_base_are_refused_with_the_tensor_and_both_shapes() {
    let blobs = even_blobs(&base(), 2, 2);
    let limits = Limits::default();
    for (other, message) in [
        (llama(2, 12, 6, 15), "model.layers.0.self_attn.q_proj.lora_A is [2, 10], this base needs [2, 12]"),
        (llama(2, 10, 5, 15), "model.layers.0.self_attn.v_proj.lora_B is [6, 2], this base needs [5, 2]"),
        (llama(1, 10, 6, 15), "it changes model.layers.1.self_attn.q_proj, the base has 1 layers and no such module"),
        (BaseShape { layers: 2, linears: Vec::new() }, "it changes model.layers.0.self_attn.q_proj"),
    ] {
        let (found, kind) = refused(linear(&blobs), &blobs, &other, &limits);
        assert!(found.contains(message) && found.starts_with("parent sha256:"), "{found}");
        assert_eq!(kind, Kind::Refused);
    }
}

#[test]
fn parents_that_the_recipe_does_not_name_and_names_without_parents_are_refused() {
    let blobs = even_blobs(&base(), 3, 2);
    let limits = Limits::default();
    let (found, kind) = refused(linear(&blobs), &blobs[..2], &base(), &limits);
    assert!(found.contains("which was not given") && kind == Kind::Invalid, "{found}");
    let (found, _) = refused(linear(&blobs[..2]), &blobs, &base(), &limits);
    assert!(found.contains("the recipe does not name it"), "{found}");
}

#[test]
fn what_is_more_than_lora_on_linears_never_becomes_a_parent() {
    let modules = [(0, "q_proj", 2, "F32"), (1, "q_proj", 2, "F32")];
    let weights = weights(&base(), &modules, 1);
    for (key, value) in [("use_qalora", json!(true)), ("modules_to_save", json!(["lm_head"])), ("bias", json!("all"))] {
        let mut config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]});
        config[key] = value;
        let limits = weft_adapter_format::Limits::default();
        let refusal = check_package(config.to_string().as_bytes(), &weights, &base(), None, &limits).unwrap_err();
        assert!(refusal.to_string().contains(key), "{refusal}");
    }
    // Nor do a package's own weights, or a blob with a byte changed in its header.
    assert!(matches!(Parent::open(&weights), Err(Error::Blob { .. })));
    let mut blob = even_blobs(&base(), 1, 2).remove(0);
    blob[20] ^= 1;
    assert!(matches!(Parent::open(&blob), Err(Error::Blob { .. })));
    assert!(matches!(Parent::open(&[]), Err(Error::Blob { .. })));
}

/// The weights of a package, and magnitudes of 1 for these modules and their outputs.
fn with_magnitudes(weights: &[u8], modules: &[(&str, usize)]) -> Vec<u8> {
    let (length, rest) = weights.split_first_chunk::<8>().expect("a package");
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut header: serde_json::Value = serde_json::from_slice(header).expect("a header");
    let mut data = data.to_vec();
    for (module, outputs) in modules {
        let start = data.len();
        data.extend(1f32.to_le_bytes().repeat(*outputs));
        header[format!("base_model.model.{module}.lora_magnitude_vector")] =
            json!({"dtype": "F32", "shape": [outputs], "data_offsets": [start, data.len()]});
    }
    let text = header.to_string();
    [&(text.len() as u64).to_le_bytes(), text.as_bytes(), &data].concat()
}

#[test]
fn a_dora_parent_is_refused_by_name_and_takes_no_other_along() {
    let modules = [(0, "q_proj", 2, "F32"), (1, "q_proj", 2, "F32")];
    let names = [("model.layers.0.self_attn.q_proj", 10), ("model.layers.1.self_attn.q_proj", 10)];
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"], "use_dora": true});
    let weights = with_magnitudes(&weights(&base(), &modules, 1), &names);
    let dora = support::check(&config, &weights, &base()).canonical_blob();
    let mut blobs = even_blobs(&base(), 2, 2);
    blobs.push(dora);
    let limits = Limits::default();
    for (method, rank) in
        [(Method::Linear {}, None), (Method::Svd {}, Some(2)), (Method::DareLinear { density: 0.5, seed: 1 }, Some(2))]
    {
        let (found, kind) = refused(recipe(&blobs, &[1.0, 1.0, 0.0], method, rank), &blobs, &base(), &limits);
        assert!(found.starts_with(&format!("parent {}: it is a DoRA adapter", Digest::of(&blobs[2]))), "{found}");
        assert_eq!(kind, Kind::Refused);
    }
    assert_eq!(try_merge(linear(&blobs[..2]), &blobs[..2], &base(), &limits), Ok(()));
}

#[test]
fn values_that_are_not_finite_or_become_so_are_refused() {
    let blobs = even_blobs(&base(), 2, 2);
    let limits = Limits::default();
    let mut broken = blobs.clone();
    let end = broken[1].len();
    broken[1][end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    let (found, kind) = refused(linear(&broken), &broken, &base(), &limits);
    assert!(
        found.contains("model.layers.1.self_attn.v_proj.lora_B holds NaN or infinity at row 5, column 1"),
        "{found}"
    );
    assert_eq!(kind, Kind::Refused);

    let mut huge = blobs.clone();
    for blob in &mut huge {
        let end = blob.len();
        blob[end - 4..].copy_from_slice(&f32::MAX.to_le_bytes());
    }
    let heavy = |method, rank, dtype| Recipe { dtype, ..recipe(&huge, &[50.0, 50.0], method, rank) };
    for recipe in [
        heavy(Method::Linear {}, None, OutputDtype::F32),
        heavy(Method::Svd {}, Some(2), OutputDtype::F32),
        heavy(Method::DareLinear { density: 1.0, seed: 1 }, Some(3), OutputDtype::Bf16),
    ] {
        let (found, _) = refused(recipe, &huge, &base(), &limits);
        assert!(found.contains("a value too large for"), "{found}");
    }
    // The largest single is no bfloat16.
    let mut at_limit = recipe(&huge, &[1.0, 0.0], Method::Linear {}, None);
    assert!(try_merge(at_limit.clone(), &huge, &base(), &limits).is_ok());
    at_limit.dtype = OutputDtype::Bf16;
    assert!(refused(at_limit, &huge, &base(), &limits).0.ends_with("a value too large for BF16"));
}

#[test]
fn limits_are_named_with_the_value_and_held_before_anything_is_computed() {
    let blobs = even_blobs(&base(), 3, 2);
    let base = base();
    let with = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        limits
    };
    for (limits, message) in [
        (
            with(|limits| limits.rank_max = 5),
            "the rank of model.layers.0.self_attn.q_proj would be 6, the limit is 5: method svd cuts the rank",
        ),
        (with(|limits| limits.modules_max = 3), "the modules of the result would be 4, the limit is 3"),
        (
            with(|limits| limits.package_bytes_max = 99),
            "the tensors of the result would have, in bytes, 1728, the limit",
        ),
        (with(|limits| limits.parents_bytes_max = 99), "the parents have together, in bytes,"),
        (
            with(|limits| limits.work_bytes_max = 99),
            "merging model.layers.0.self_attn.q_proj would take, in bytes, 5760",
        ),
    ] {
        let (found, kind) = refused(linear(&blobs), &blobs, &base, &limits);
        assert!(found.contains(message), "{found}");
        assert_eq!(kind, Kind::TooLarge);
    }
    // Just at each limit is fine.
    let exact =
        Limits { rank_max: 6, modules_max: 4, package_bytes_max: 1728, work_bytes_max: 5760, ..Limits::default() };
    assert_eq!(try_merge(linear(&blobs), &blobs, &base, &exact), Ok(()));
}

#[test]
fn weights_of_zero_leave_a_parent_out_and_nothing_at_all_is_refused() {
    let blobs = mixed_blobs();
    let merged = merge_blobs(recipe(&blobs, &[0.0, 1.0, 0.0], Method::Linear {}, None), &blobs, &base());
    let alone = merge_blobs(recipe(&blobs[1..2], &[1.0], Method::Linear {}, None), &blobs[1..2], &base());
    assert_eq!(Digest::of(&blob_of(&merged, &base())), Digest::of(&blob_of(&alone, &base())));
    assert_ne!(merged.recipe_digest, alone.recipe_digest);
    let nothing = recipe(&blobs, &[0.0; 3], Method::Linear {}, None);
    let (found, _) = refused(nothing, &blobs, &base(), &Limits::default());
    assert_eq!(found, "every weight or scale is 0: nothing is left to merge");
}

#[test]
fn lorax_needs_one_rank_and_one_scale_and_says_which_differ() {
    let limits = Limits::default();
    let lorax = |blobs: &[Vec<u8>]| Recipe { space: Space::Lorax, ..linear(blobs) };
    let blobs = mixed_blobs();
    let (found, kind) = refused(lorax(&blobs), &blobs, &base(), &limits);
    assert!(found.starts_with("space \"lorax\" needs one rank everywhere: "), "{found}");
    assert!(found.ends_with("of the first has rank 3") || found.contains("of the first has 3"), "{found}");
    assert_eq!(kind, Kind::Refused);
    let mut even = even_blobs(&base(), 1, 2);
    even.extend(even_blobs(&base(), 1, 3));
    let (found, _) = refused(lorax(&even), &even, &base(), &limits);
    assert!(found.contains(" has rank 3, model.layers.0.self_attn.q_proj of the first has 2"), "{found}");
    // Alpha by module.
    let config = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"],
        "alpha_pattern": {"1.self_attn.q_proj": 4}});
    let modules = [(0, "q_proj", 2, "F32"), (1, "q_proj", 2, "F32")];
    let uneven = vec![support::check(&config, &weights(&base(), &modules, 1), &base()).canonical_blob()];
    let (found, _) = refused(lorax(&uneven), &uneven, &base(), &limits);
    assert!(found.contains("model.layers.1.self_attn.q_proj has 2, model.layers.0.self_attn.q_proj has 1"), "{found}");
}
