//! Statements that somebody trusted signed and that do not hold all the same.

use crate::support::{Signer, close, refused, statement, verify_value};
use serde_json::{Value, json};
use weft_adapter_signatures::RESOURCES_MAX;
use weft_types::Digest;

#[test]
fn other_types_of_statements_are_refused() {
    let signer = Signer::new();
    let found = signer.refuses(|statement| statement["_type"] = "https://in-toto.io/Statement/v0.1".into());
    assert_eq!(found, r#"_type is "https://in-toto.io/Statement/v0.1", wanted https://in-toto.io/Statement/v1"#);
    let found = signer.refuses(|statement| statement["predicateType"] = "https://slsa.dev/provenance/v1".into());
    assert_eq!(
        found,
        r#"predicateType is "https://slsa.dev/provenance/v1", wanted https://model_signing/signature/v1.0"#
    );
    // Whatever such a statement holds.
    let found = signer.refuses(|statement| {
        let subject = json!([{"name": "a", "digest": {"sha256": "00"}}, {"name": "b", "digest": {}}]);
        *statement = json!({"_type": statement["_type"], "subject": subject, "predicateType": "https://model_signing/Digests/v0.1"});
    });
    assert!(found.ends_with("sign again with model-signing 1.0 or later"), "{found}");
}

#[test]
fn the_subject_must_be_that_of_the_resources() {
    let signer = Signer::new();
    let right = statement()["subject"][0]["digest"]["sha256"].as_str().expect("a digest").to_owned();
    let found = signer.refuses(|statement| statement["subject"][0]["digest"]["sha256"] = "00".repeat(32).into());
    let wanted = format!("wanted the SHA-256 over the digests of predicate.resources, {right}");
    assert_eq!(found, format!(r#"subject[0].digest.sha256 is "{}", {wanted}"#, "00".repeat(32)));
    let found =
        signer.refuses(|statement| statement["predicate"]["resources"].as_array_mut().expect("a list").swap(0, 1));
    assert!(found.starts_with("subject[0].digest.sha256 is"), "{found}");
    let found = signer.refuses(|statement| statement["subject"][0]["name"] = "".into());
    assert_eq!(found, r#"subject[0].name is "", wanted any name (OMS 6.5.1)"#);
    let found = signer.refuses(|statement| statement["subject"] = json!([]));
    assert_eq!(found, "subject is a list of 0, wanted a list of one");
    let found = signer.refuses(|statement| {
        let subject = statement["subject"][0].clone();
        statement["subject"].as_array_mut().expect("a list").push(subject);
    });
    assert_eq!(found, "subject is a list of 2, wanted a list of one");
    let found = signer.refuses(|statement| statement["subject"][0]["digest"] = json!({"sha512": "00"}));
    assert!(found.starts_with("payload cannot be read: subject[0].digest: missing field `sha256`"), "{found}");
}

#[test]
fn both_files_must_be_there() {
    let signer = Signer::new();
    for (index, file) in [(1, "adapter_config.json"), (2, "adapter_model.safetensors")] {
        let found = signer.refuses(|statement| {
            statement["predicate"]["resources"].as_array_mut().expect("a list").remove(index);
            close(statement);
        });
        assert!(found.starts_with(r#"predicate.resources are "README.md", "#), "{found}");
        assert!(found.ends_with(&format!("wanted {file} among them")), "{found}");
    }
    let found = signer.refuses(|statement| {
        statement["predicate"]["resources"][2]["name"] = "deeper/adapter_model.safetensors".into();
    });
    assert!(found.ends_with("wanted adapter_model.safetensors among them"), "{found}");
    let found = signer.refuses(|statement| {
        statement["predicate"]["resources"] = json!([]);
        close(statement);
    });
    assert_eq!(found, "predicate.resources are none, wanted adapter_config.json among them");
}

#[test]
fn a_name_is_there_once() {
    let signer = Signer::new();
    let found = signer.refuses(|statement| {
        let resources = statement["predicate"]["resources"].as_array_mut().expect("a list");
        let mut second = resources[2].clone();
        second["digest"] = Digest::of(b"another").hex().into();
        resources.push(second);
        close(statement);
    });
    assert_eq!(
        found,
        r#"predicate.resources[3].name is "adapter_model.safetensors", wanted a name that no resource before it has"#
    );
    let text = statement().to_string().replacen(r#""name":"README.md","#, r#""name":"a","name":"README.md","#, 1);
    let found = refused(&signer.sign(text.as_bytes()), &signer.trust);
    assert!(found.starts_with("payload cannot be read: predicate.resources[0]"), "{found}");
    assert!(found.contains("duplicate field `name`"), "{found}");
}

#[test]
fn names_that_lead_elsewhere_or_have_a_second_spelling_are_refused() {
    let signer = Signer::new();
    for name in ["../adapter_model.safetensors", "/etc/passwd", "./README.md", "a//b", "a\\b", "", "a/..", "a\u{0}b"] {
        let found = signer.refuses(|statement| statement["predicate"]["resources"][0]["name"] = name.into());
        let wanted = format!("predicate.resources[0].name is {name:?}, wanted a relative path");
        assert!(found.starts_with(&wanted), "{found}");
        let found =
            signer.refuses(|statement| statement["predicate"]["serialization"]["ignore_paths"] = json!(["a", name]));
        let wanted = format!("predicate.serialization.ignore_paths[1] is {name:?}, wanted a relative path");
        assert!(found.starts_with(&wanted), "{found}");
    }
}

#[test]
fn paths_that_ignore_a_file_of_the_package_are_refused() {
    let signer = Signer::new();
    for path in ["adapter_model.safetensors", "adapter_config.json", ".", "*", "adapter_model.*", "adapter_[cm]*", "a?"]
    {
        let found = signer.refuses(|statement| statement["predicate"]["serialization"]["ignore_paths"] = json!([path]));
        let wanted = format!("predicate.serialization.ignore_paths[0] is {path:?}, wanted ");
        assert!(found.starts_with(&wanted), "{found}");
    }
    for paths in [json!([]), json!(["deeper/adapter_model.safetensors", ".git"])] {
        let mut statement = statement();
        statement["predicate"]["serialization"]["ignore_paths"] = paths;
        assert!(verify_value(&signer.sign(statement.to_string().as_bytes()), &signer.trust).is_ok());
    }
}

#[test]
fn only_whole_files_and_sha256_count() {
    let signer = Signer::new();
    let serialization = |field: &'static str, value: Value| {
        signer.refuses(move |statement| statement["predicate"]["serialization"][field] = value)
    };
    let found = serialization("method", "shards".into());
    assert!(found.starts_with(r#"predicate.serialization.method is "shards", wanted files"#), "{found}");
    let found = serialization("shard_size", json!(64.0));
    assert_eq!(found, "predicate.serialization.shard_size is present, wanted none with the method files");
    let found = serialization("hash_type", "blake2b".into());
    assert!(found.starts_with(r#"predicate.serialization.hash_type is "blake2b", wanted sha256"#), "{found}");
    let found = serialization("allow_symlinks", "no".into());
    assert!(found.contains("predicate.serialization.allow_symlinks: invalid type"), "{found}");
    let found = signer.refuses(|statement| statement["predicate"]["resources"][1]["algorithm"] = "blake3".into());
    assert_eq!(found, r#"predicate.resources[1].algorithm is "blake3", wanted sha256, which is hash_type"#);
    for digest in ["", "00", "zz", &"A0".repeat(32), &"a0".repeat(33)] {
        let found = signer.refuses(|statement| statement["predicate"]["resources"][1]["digest"] = digest.into());
        assert!(found.starts_with("predicate.resources[1].digest is \""), "{found}");
        assert!(found.ends_with(", wanted 64 lower-case hex digits"), "{found}");
    }
}

#[test]
fn another_digest_of_a_file_is_refused() {
    let signer = Signer::new();
    let other = Digest::of(b"another");
    let found = signer.refuses(|statement| {
        statement["predicate"]["resources"][2]["digest"] = other.hex().into();
        close(statement);
    });
    let wanted =
        format!("predicate.resources[2].digest of adapter_model.safetensors is {other}, the package's file has ");
    assert!(found.starts_with(&wanted), "{found}");
}

#[test]
fn fields_that_v1_0_does_not_know_are_skipped() {
    let signer = Signer::new();
    let mut statement = statement();
    statement["other"] = json!({"a": [1]});
    statement["predicate"]["other"] = json!(1);
    statement["predicate"]["resources"][0]["annotations"] = json!({});
    statement["subject"][0]["digest"]["sha512"] = json!("00");
    assert!(verify_value(&signer.sign(statement.to_string().as_bytes()), &signer.trust).is_ok());
}

#[test]
fn resources_have_a_limit() {
    let signer = Signer::new();
    let mut full = statement();
    let resources = full["predicate"]["resources"].as_array_mut().expect("a list");
    let digest = "00".repeat(32);
    let more = RESOURCES_MAX - resources.len();
    resources.extend((0..more).map(|i| json!({"name": format!("{i}"), "algorithm": "sha256", "digest": digest})));
    close(&mut full);
    let signed = verify_value(&signer.sign(full.to_string().as_bytes()), &signer.trust).expect("signed");
    assert_eq!(signed.others.len(), RESOURCES_MAX - 2);
    full["predicate"]["resources"]
        .as_array_mut()
        .expect("a list")
        .push(json!({"name": "", "algorithm": "", "digest": ""}));
    let found = refused(&signer.sign(full.to_string().as_bytes()), &signer.trust);
    assert_eq!(found, "predicate.resources are 4097, the limit is 4096");
}

#[test]
fn payloads_that_are_no_statement_are_refused_after_their_signature() {
    let signer = Signer::new();
    for payload in ["{", "[]", "1", "{}", "\u{0}"] {
        let found = refused(&signer.sign(payload.as_bytes()), &signer.trust);
        assert!(found.starts_with("payload cannot be read: "), "{found}");
    }
    let found = refused(&signer.sign("[".repeat(17).as_bytes()), &signer.trust);
    assert_eq!(found, "the payload nests to 17, the limit is 16");
    let other = Signer::new();
    let found = refused(&other.sign(b"{"), &signer.trust);
    assert!(found.contains("does not sign this payload"), "{found}");
}
