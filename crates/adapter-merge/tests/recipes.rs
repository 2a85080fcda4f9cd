//! Recipes: their text, their bounds, their digests.

use proptest::prelude::*;
use serde_json::{Value, json};
use weft_adapter_merge::recipe::{PARENTS_MAX, RECIPE_BYTES_MAX};
use weft_adapter_merge::{CheckedRecipe, Error, Recipe};
use weft_types::Digest;

fn digest(of: u8) -> String {
    Digest::of(&[of]).to_string()
}

fn ties() -> Value {
    json!({
        "parents": [{"digest": digest(1), "weight": 1.0}, {"digest": digest(2), "weight": -0.5}],
        "method": {"kind": "ties", "density": 0.2, "majority_sign": "frequency"},
        "target_rank": 16,
        "dtype": "BF16"
    })
}

fn read(recipe: &Value) -> Result<CheckedRecipe, Error> {
    Recipe::from_json(recipe.to_string().as_bytes())?.check()
}

/// [`ties`] with the value at a JSON pointer set; a pointer's last key may be new.
fn with(pointer: &str, value: Value) -> Value {
    let mut recipe = ties();
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    recipe.pointer_mut(parent).expect(pointer)[key] = value;
    recipe
}

#[test]
fn digests_are_those_of_the_record_written_out_by_hand() {
    let mut parents = [(Digest::of(&[1]), 1.0f64), (Digest::of(&[2]), -0.5)];
    parents.sort_by_key(|(digest, _)| *digest);
    let mut record = Vec::new();
    let text = |record: &mut Vec<u8>, text: &str| {
        record.extend((text.len() as u32).to_le_bytes());
        record.extend(text.bytes());
    };
    ["weft/merge-recipe/1", "delta", "ties"].iter().for_each(|word| text(&mut record, word));
    record.extend([2, 0, 0, 0]);
    for (digest, weight) in parents {
        record.extend(digest.as_bytes());
        record.extend(weight.to_bits().to_le_bytes());
    }
    record.push(1);
    record.extend(0.2f64.to_bits().to_le_bytes());
    text(&mut record, "frequency");
    record.push(0);
    record.extend([1, 16, 0, 0, 0]);
    text(&mut record, "BF16");
    let found = read(&ties()).unwrap().digest();
    assert_eq!(found, Digest::of(&record));
    // Committed: a digest never moves.
    assert_eq!(found.to_string(), "sha256:989d0e375aaa42ef8a0a07ee1b559674320f52c102d5420a068b2c8407d5dd20");
}

#[test]
fn defaults_and_the_order_of_parents_are_no_part_of_a_digest_and_everything_else_is() {
    let base = read(&ties()).unwrap().digest();
    let mut swapped = ties();
    swapped["parents"].as_array_mut().unwrap().reverse();
    assert_eq!(read(&swapped).unwrap().digest(), base);
    assert_eq!(read(&with("/space", json!("delta"))).unwrap().digest(), base);
    let mut digests = vec![base];
    for (pointer, value) in [
        ("/parents/0/weight", json!(1.000_000_000_000_000_2)),
        ("/parents/1/digest", json!(digest(3))),
        ("/method/density", json!(0.3)),
        ("/method/majority_sign", json!("total")),
        ("/method", json!({"kind": "dare_ties", "density": 0.2, "seed": 0, "majority_sign": "frequency"})),
        ("/method", json!({"kind": "dare_ties", "density": 0.2, "seed": u64::MAX, "majority_sign": "frequency"})),
        ("/method", json!({"kind": "dare_linear", "density": 0.2, "seed": 0})),
        ("/method", json!({"kind": "svd"})),
        ("/target_rank", json!(17)),
        ("/dtype", json!("F32")),
    ] {
        digests.push(read(&with(pointer, value)).unwrap().digest());
    }
    let mut lorax = with("/space", json!("lorax"));
    lorax.as_object_mut().unwrap().remove("target_rank");
    digests.push(read(&lorax).unwrap().digest());
    lorax["parents"].as_array_mut().unwrap().reverse();
    digests.push(read(&lorax).unwrap().digest());
    let count = digests.len();
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), count);
    let zeros = [0.0, -0.0].map(|zero| read(&with("/parents/0/weight", json!(zero))).unwrap().digest());
    assert_eq!(zeros[0], zeros[1]);
}

#[test]
fn a_recipe_survives_its_own_text() {
    for recipe in [ties(), with("/method", json!({"kind": "dare_linear", "density": 0.1, "seed": u64::MAX}))] {
        let checked = read(&recipe).unwrap();
        let text = serde_json::to_vec(checked.recipe()).unwrap();
        let again = Recipe::from_json(&text).unwrap().check().unwrap();
        assert_eq!(again, checked);
        assert_eq!(again.digest(), checked.digest());
    }
}

#[test]
fn what_is_out_of_bounds_is_refused_with_field_value_and_limit() {
    let many: Vec<Value> = (0..=PARENTS_MAX).map(|i| json!({"digest": digest(i as u8), "weight": 1})).collect();
    let svd_lorax = json!({"parents": ties()["parents"], "method": {"kind": "svd"}, "space": "lorax"});
    let no_rank = json!({"parents": ties()["parents"], "method": {"kind": "ties", "density": 0.5}});
    for (recipe, message) in [
        (with("/parents", json!([])), "parents is a list of 0, there must be 1 to 32"),
        (with("/parents", json!(many)), "parents is a list of 33, there must be 1 to 32"),
        (with("/parents/1/weight", json!(100.5)), "parents[1].weight is 100.5, it must be a number from -100 to 100"),
        (with("/parents/1/digest", json!(digest(1))), "parents[1].digest is sha256:"),
        (with("/parents/1/digest", json!(digest(1))), "the same as parents[0].digest"),
        (with("/method/density", json!(0)), "method.density is 0, it must be over 0 and at most 1"),
        (with("/method/density", json!(-0.1)), "method.density is -0.1"),
        (with("/method/density", json!(1.1)), "method.density is 1.1"),
        (with("/target_rank", json!(0)), "target_rank is 0, it must be from 1 to 256"),
        (with("/target_rank", json!(257)), "target_rank is 257, it must be from 1 to 256"),
        (with("/target_rank", Value::Null), "target_rank is missing, method ties needs one from 1 to 256"),
        (no_rank, "target_rank is missing"),
        (with("/method", json!({"kind": "linear"})), "target_rank is 16, method linear is exact and takes none"),
        (with("/space", json!("lorax")), "target_rank is 16, space \"lorax\" keeps the parents' rank"),
        (svd_lorax, "method.kind is svd, space \"lorax\" has linear, ties, dare_linear and dare_ties"),
        (with("/parents/0/digest", json!("sha256:12")), "parents[0].digest: a digest is written sha256:"),
        (with("/parents/0/name", json!("x")), "unknown field `name`"),
        (with("/seed", json!(1)), "unknown field `seed`"),
        (with("/method/seed", json!(1)), "unknown field `seed`"),
        (with("/method", json!({"kind": "svd", "density": 0.5})), "unknown field `density`"),
        (with("/method", json!({"kind": "slerp"})), "unknown variant `slerp`"),
        (with("/method", json!({"kind": "dare_linear", "density": 0.5})), "missing field `seed`"),
        (with("/dtype", json!("F64")), "dtype: unknown variant `F64`"),
        (with("/target_rank", json!(-1)), "target_rank: invalid value"),
    ] {
        let error = read(&recipe).expect_err(message).to_string();
        assert!(error.contains(message), "{error}\nnot\n{message}");
        assert!(error.len() < 400, "{error}");
    }
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut recipe = Recipe::from_json(ties().to_string().as_bytes()).unwrap();
        recipe.parents[0].weight = bad;
        assert!(recipe.check().unwrap_err().to_string().starts_with("parents[0].weight is "));
    }
    let long = format!("{}{}", ties(), " ".repeat(RECIPE_BYTES_MAX));
    assert!(Recipe::from_json(long.as_bytes()).unwrap_err().to_string().contains("the limit is 16384"));
    assert!(Recipe::from_json(format!("{} x", ties()).as_bytes()).is_err(), "something behind the recipe");
}

proptest! {
    #[test]
    fn random_bytes_are_refused_or_read_and_never_more(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Recipe::from_json(&bytes).and_then(Recipe::check);
    }

    #[test]
    fn recipes_with_a_piece_replaced_are_refused_or_read(at in 0usize..300, piece in "[\\[\\]{}\":,0-9a-z.eE+-]{0,12}") {
        let mut text = ties().to_string().into_bytes();
        let at = at.min(text.len());
        let end = (at + piece.len() / 2).min(text.len());
        text.splice(at..end, piece.bytes());
        if let Ok(checked) = Recipe::from_json(&text).and_then(Recipe::check) {
            let again = serde_json::to_vec(checked.recipe()).unwrap();
            prop_assert_eq!(Recipe::from_json(&again).unwrap().check().unwrap().digest(), checked.digest());
        }
    }
}
