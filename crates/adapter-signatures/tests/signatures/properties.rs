//! Anybody's bytes: nothing panics, and nothing counts that was not signed.

use crate::support::{
    AT, Signer, data, decoded, encoded, golden, golden_trust, package, statement, text, verify_value,
};
use proptest::prelude::*;
use serde_json::Value;
use std::sync::LazyLock;
use weft_adapter_signatures::{Signed, Trust, verify};

const BUNDLES: [&str; 5] =
    ["key-p256.sig", "key-p384.sig", "key-p521.sig", "certificate-mixed.sig", "certificate-p521.sig"];

static TRUST: LazyLock<Trust> = LazyLock::new(golden_trust);
static SIGNER: LazyLock<Signer> = LazyLock::new(Signer::new);

/// A change of a text at a place between 0 and 1.
#[derive(Clone, Debug)]
enum Change {
    Replace(u8),
    Insert(Vec<u8>),
    Remove(usize),
    Repeat(usize),
    End,
}

fn any_change() -> impl Strategy<Value = (f64, Change)> {
    let json = prop::sample::select(&br#"{}[]",:\0/.-e"#[..]);
    let change = prop_oneof![
        any::<u8>().prop_map(Change::Replace),
        json.prop_map(Change::Replace),
        prop::collection::vec(any::<u8>(), 1..8).prop_map(Change::Insert),
        (1usize..64).prop_map(Change::Remove),
        (1usize..64).prop_map(Change::Repeat),
        Just(Change::End),
    ];
    (0.0..1.0, change)
}

fn apply(bytes: &mut Vec<u8>, changes: &[(f64, Change)]) {
    for (place, change) in changes {
        if bytes.is_empty() {
            return;
        }
        let at = ((bytes.len() as f64 * place) as usize).min(bytes.len() - 1);
        let end = |count: &usize| (at + count).min(bytes.len());
        match change {
            Change::Replace(byte) => bytes[at] = *byte,
            Change::Insert(more) => drop(bytes.splice(at..at, more.iter().copied())),
            Change::Remove(count) => drop(bytes.drain(at..end(count))),
            Change::Repeat(count) => {
                let part = bytes[at..end(count)].to_vec();
                drop(bytes.splice(at..at, part));
            }
            Change::End => bytes.truncate(at),
        }
    }
}

fn original(bundle: &str) -> Signed {
    verify(&data(bundle), &package(), &TRUST, AT).expect("signed")
}

/// Places of bytes in base64 that all count.
fn covered(bundle: &str) -> Vec<&'static str> {
    let mut fields = vec!["/dsseEnvelope/payload", "/dsseEnvelope/signatures/0/sig"];
    if bundle.starts_with("certificate") {
        fields.push("/verificationMaterial/x509CertificateChain/certificates/0/rawBytes");
        fields.push("/verificationMaterial/x509CertificateChain/certificates/1/rawBytes");
    }
    fields
}

/// Any JSON, not deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        Just(Value::from("adapter_config.json")),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::hash_map("(name|digest|sha256|.{0,4})", inner, 0..4)
                .prop_map(|map| map.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}

/// Paths of all values in one.
fn paths(value: &Value, path: String, into: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| paths(value, format!("{path}/{key}"), into)),
        Value::Array(list) => list.iter().enumerate().for_each(|(i, value)| paths(value, format!("{path}/{i}"), into)),
        _ => {}
    }
    into.push(path);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        prop_assert!(verify(&bytes, &package(), &TRUST, AT).is_err());
    }

    #[test]
    fn a_changed_bundle_is_refused_or_says_the_same(
        bundle in prop::sample::select(&BUNDLES[..]),
        changes in prop::collection::vec(any_change(), 1..4),
    ) {
        let mut bytes = data(bundle);
        apply(&mut bytes, &changes);
        // White space, the id of the key and unknown fields are nobody's word.
        if let Ok(signed) = verify(&bytes, &package(), &TRUST, AT) {
            prop_assert_eq!(signed, original(bundle));
        }
    }

    #[test]
    fn a_bit_changed_in_payload_signature_or_certificates_is_refused(
        bundle in prop::sample::select(&BUNDLES[..]),
        field in any::<prop::sample::Index>(),
        byte in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let mut value = golden(bundle);
        let fields = covered(bundle);
        let field = value.pointer_mut(fields[field.index(fields.len())]).expect("a field");
        let mut bytes = decoded(field);
        let at = byte.index(bytes.len());
        bytes[at] ^= 1 << bit;
        *field = encoded(&bytes);
        prop_assert!(verify_value(&value, &TRUST).is_err());
    }

    #[test]
    fn parts_of_bundles_do_not_mix(
        one in prop::sample::select(&BUNDLES[..]),
        other in prop::sample::select(&BUNDLES[..]),
        part in prop::sample::select(&["/verificationMaterial", "/dsseEnvelope/signatures"][..]),
    ) {
        let mut value = golden(one);
        *value.pointer_mut(part).expect("a part") = golden(other).pointer(part).expect("a part").clone();
        prop_assert_eq!(verify_value(&value, &TRUST).is_ok(), one == other);
    }

    #[test]
    fn a_statement_changed_before_it_is_signed_does_not_panic(changes in prop::collection::vec(any_change(), 1..4)) {
        let mut payload = statement().to_string().into_bytes();
        apply(&mut payload, &changes);
        let bundle = SIGNER.sign(&payload);
        if let Ok(signed) = verify_value(&bundle, &SIGNER.trust) {
            prop_assert_eq!(signed.trusted_by, "ours");
        }
    }

    #[test]
    fn a_statement_with_other_values_does_not_panic(place in any::<prop::sample::Index>(), value in any_json()) {
        let mut statement = statement();
        let mut all = Vec::new();
        paths(&statement, String::new(), &mut all);
        *statement.pointer_mut(&all[place.index(all.len())]).expect("a place") = value;
        let bundle = SIGNER.sign(statement.to_string().as_bytes());
        let _ = verify_value(&bundle, &SIGNER.trust);
    }

    #[test]
    fn a_bundle_with_other_values_does_not_panic(
        bundle in prop::sample::select(&BUNDLES[..]),
        place in any::<prop::sample::Index>(),
        value in any_json(),
    ) {
        let mut changed = golden(bundle);
        let mut all = Vec::new();
        paths(&changed, String::new(), &mut all);
        *changed.pointer_mut(&all[place.index(all.len())]).expect("a place") = value;
        if let Ok(signed) = verify_value(&changed, &TRUST) {
            prop_assert_eq!(signed, original(bundle));
        }
    }

    #[test]
    fn any_text_to_trust_does_not_panic(
        file in prop::sample::select(&["p256.pem", "p521.pem", "root-mixed.pem", "root-p521.pem"][..]),
        changes in prop::collection::vec(any_change(), 0..4),
        noise in ".{0,64}",
    ) {
        let mut bytes = text(file).into_bytes();
        apply(&mut bytes, &changes);
        let pem = String::from_utf8_lossy(&bytes).into_owned();
        let mut trust = Trust::default();
        let _ = (trust.add_key("key", &pem), trust.add_authorities("authority", &pem));
        let _ = (trust.add_key("noise", &noise), trust.add_authorities("noise", &noise));
        for bundle in BUNDLES {
            let _ = verify(&data(bundle), &package(), &trust, AT);
        }
    }
}
