//! The bundle around the statement, signed with keys.

use crate::support::{
    AT, Authority, Signer, data, decoded, encoded, golden, golden_trust, package, refused, statement, text,
    verify_value,
};
use serde_json::{Value, json};
use weft_adapter_signatures::{BUNDLE_BYTES_MAX, Error, Trust, verify};
use weft_fault::{Fault, Kind};

/// What is said about a golden bundle that is changed.
fn changed(change: impl FnOnce(&mut Value)) -> String {
    let mut bundle = golden("key-p256.sig");
    change(&mut bundle);
    refused(&bundle, &golden_trust())
}

#[test]
fn another_payload_or_signature_is_refused_with_the_key_that_was_tried() {
    let wanted = r#"dsseEnvelope.signatures[0].sig does not sign this payload with the key of "p256.pem""#;
    let payload = changed(|bundle| {
        let mut payload = decoded(&bundle["dsseEnvelope"]["payload"]);
        payload.push(b' ');
        bundle["dsseEnvelope"]["payload"] = encoded(&payload);
    });
    let signature = changed(|bundle| {
        let other = golden("without-readme.sig")["dsseEnvelope"]["signatures"].clone();
        bundle["dsseEnvelope"]["signatures"] = other;
    });
    let nonsense = changed(|bundle| bundle["dsseEnvelope"]["signatures"][0]["sig"] = encoded(b"nonsense"));
    assert_eq!([payload.as_str(), &signature, &nonsense], [wanted; 3]);
}

#[test]
fn without_a_trusted_key_the_hint_and_the_trusted_names_are_told() {
    let mut trust = Trust::default();
    trust.add_key("team/other", &text("p384.pem")).expect("a key");
    let bundle = golden("key-p256.sig");
    let hint = bundle["verificationMaterial"]["publicKey"]["hint"].as_str().expect("a hint").to_owned();
    let error = verify_value(&bundle, &trust).expect_err("must be refused");
    let message =
        format!(r#"verificationMaterial.publicKey.hint is "{hint}", wanted the hint of a trusted key: "team/other""#);
    assert_eq!(error.to_string(), message);
    let none = refused(&bundle, &Trust::default());
    assert!(none.ends_with("wanted the hint of a trusted key: none"), "{none}");
    // Whoever writes the hint of a trusted key does not have that key.
    let mut bundle = bundle;
    bundle["verificationMaterial"] = golden("key-p384.sig")["verificationMaterial"].clone();
    assert!(refused(&bundle, &trust).ends_with(r#"with the key of "team/other""#));
}

#[test]
fn without_a_hint_every_trusted_key_is_tried() {
    let mut bundle = golden("key-p521.sig");
    for material in [json!({"publicKey": {}}), json!({"publicKey": {"hint": ""}}), json!({"publicKey": {"hint": null}})]
    {
        bundle["verificationMaterial"] = material;
        assert_eq!(verify_value(&bundle, &golden_trust()).expect("signed").trusted_by, "p521.pem");
    }
    // As before 1.1: a key in the bundle, which nobody has to believe.
    bundle["verificationMaterial"] =
        json!({"publicKey": {"rawBytes": "AAAA", "keyDetails": "PKIX_ECDSA_P384_SHA_384"}});
    assert!(verify_value(&bundle, &golden_trust()).is_ok());
    let mut trust = Trust::default();
    trust.add_key("a", &text("p256.pem")).expect("a key");
    trust.add_key("b", &text("p384.pem")).expect("a key");
    assert!(refused(&bundle, &trust).ends_with(r#"with the key of "a", "b""#));
}

#[test]
fn ids_of_keys_that_the_signature_does_not_cover_are_any() {
    for keyid in [json!(null), json!("any")] {
        let mut bundle = golden("key-p256.sig");
        bundle["dsseEnvelope"]["signatures"][0]["keyid"] = keyid;
        assert!(verify_value(&bundle, &golden_trust()).is_ok());
    }
}

#[test]
fn other_types_are_refused() {
    let found = changed(|bundle| bundle["mediaType"] = "application/vnd.dev.sigstore.bundle+json;version=0.1".into());
    assert_eq!(
        found,
        r#"mediaType is "application/vnd.dev.sigstore.bundle+json;version=0.1", wanted application/vnd.dev.sigstore.bundle.v0.3+json"#
    );
    let found = changed(|bundle| bundle["dsseEnvelope"]["payloadType"] = "text/plain".into());
    assert_eq!(found, r#"dsseEnvelope.payloadType is "text/plain", wanted application/vnd.in-toto+json"#);
}

#[test]
fn keyless_signatures_are_refused_as_such() {
    let bundle = Authority::root().bundle(&[], |_| {});
    let found = changed(|keyless| {
        let certificate = bundle["verificationMaterial"]["x509CertificateChain"]["certificates"][0].clone();
        keyless["verificationMaterial"] = json!({"certificate": certificate, "tlogEntries": [{"logIndex": "1"}]});
    });
    assert!(found.contains("keyless Sigstore signature (Fulcio, Rekor), which is not supported"), "{found}");
}

#[test]
fn log_entries_and_timestamps_beside_a_key_are_refused() {
    let found = changed(|bundle| bundle["verificationMaterial"]["tlogEntries"] = json!([{"logIndex": "1"}]));
    assert!(found.starts_with("verificationMaterial.tlogEntries is a list of 1, wanted none"), "{found}");
    let stamps = json!({"rfc3161Timestamps": [{"signedTimestamp": "AAAA"}]});
    let found = changed(|bundle| bundle["verificationMaterial"]["timestampVerificationData"] = stamps);
    assert!(found.contains("timestampVerificationData.rfc3161Timestamps is a list of 1, wanted none"), "{found}");
    let mut bundle = golden("key-p256.sig");
    bundle["verificationMaterial"]["timestampVerificationData"] = json!({});
    assert!(verify_value(&bundle, &golden_trust()).is_ok());
}

#[test]
fn what_is_missing_doubled_or_unknown_is_refused_by_its_name() {
    for (path, wanted) in [
        ("/mediaType", "bundle cannot be read: missing field `mediaType`"),
        ("/dsseEnvelope", "dsseEnvelope is missing, wanted a DSSE envelope"),
        ("/dsseEnvelope/payload", "bundle cannot be read: dsseEnvelope: missing field `payload`"),
        (
            "/verificationMaterial/publicKey",
            "verificationMaterial is without a key, wanted publicKey or x509CertificateChain",
        ),
    ] {
        let found = changed(|bundle| {
            let (object, field) = path.rsplit_once('/').expect("a path");
            bundle.pointer_mut(object).and_then(Value::as_object_mut).expect("an object").remove(field);
        });
        assert!(found.starts_with(wanted), "{found}");
    }
    let chain = json!({"certificates": [{"rawBytes": "AAAA"}]});
    let found = changed(|bundle| bundle["verificationMaterial"]["x509CertificateChain"] = chain);
    assert_eq!(found, "verificationMaterial is publicKey and x509CertificateChain, wanted one of them");
    let found = changed(|bundle| bundle["messageSignature"] = json!({}));
    assert!(found.starts_with("messageSignature is present, wanted a dsseEnvelope"), "{found}");
    let found = changed(|bundle| bundle["other"] = json!(1));
    assert!(found.starts_with("bundle cannot be read: other: unknown field `other`"), "{found}");
    let found = changed(|bundle| {
        let signatures = bundle["dsseEnvelope"]["signatures"].as_array_mut().expect("a list");
        signatures.push(signatures[0].clone());
    });
    assert!(found.starts_with("dsseEnvelope.signatures is a list of 2, wanted a list of one"), "{found}");
    let doubled = text("key-p256.sig").replacen(r#""payload":"#, r#""payload": "AAAA", "payload":"#, 1);
    let found = verify(doubled.as_bytes(), &package(), &golden_trust(), AT).expect_err("must be refused").to_string();
    assert!(found.contains("duplicate field `payload`"), "{found}");
}

#[test]
fn base64_has_one_spelling() {
    for (field, spelling) in [("payload", "e30"), ("payload", "e31="), ("payload", "_-8="), ("payload", "e3 0=")] {
        let found = changed(|bundle| bundle["dsseEnvelope"][field] = spelling.into());
        assert!(found.starts_with(&format!("dsseEnvelope.{field} is no base64 (")), "{found}");
    }
    let found = changed(|bundle| bundle["dsseEnvelope"]["signatures"][0]["sig"] = "".into());
    assert_eq!(found, "dsseEnvelope.signatures[0].sig is empty, wanted standard base64 with padding");
}

#[test]
fn large_and_deep_bundles_are_too_large() {
    let mut large = data("key-p256.sig");
    large.resize(BUNDLE_BYTES_MAX, b' ');
    assert!(verify(&large, &package(), &golden_trust(), AT).is_ok());
    large.push(b' ');
    let error = verify(&large, &package(), &golden_trust(), AT).expect_err("must be refused");
    assert_eq!(error.to_string(), "the bundle's bytes are 1048577, the limit is 1048576");
    assert_eq!(error.kind(), Kind::TooLarge);
    let deep = "[".repeat(BUNDLE_BYTES_MAX);
    let error = verify(deep.as_bytes(), &package(), &golden_trust(), AT).expect_err("must be refused");
    assert_eq!(error.to_string(), "the bundle nests to 1048576, the limit is 16");
}

#[test]
fn kinds_tell_bundles_that_cannot_be_read_from_those_that_do_not_count() {
    let unreadable = verify(b"\xff{}", &package(), &golden_trust(), AT).expect_err("must be refused");
    let fault = Fault::from(unreadable);
    assert_eq!((fault.kind, fault.code.as_str()), (Kind::Invalid, "signature_unreadable"));
    let refused = verify(&data("key-p256.sig"), &package(), &Trust::default(), AT).expect_err("must be refused");
    assert!(matches!(refused, Error::UnknownKey { .. }));
    let fault = Fault::from(refused);
    assert_eq!((fault.kind, fault.code.as_str()), (Kind::Refused, "signature_refused"));
}

#[test]
fn signers_of_these_tests_sign_what_verifies() {
    let signer = Signer::new();
    let signed = verify_value(&signer.sign(statement().to_string().as_bytes()), &signer.trust).expect("signed");
    assert_eq!((signed.trusted_by.as_str(), &signed.others[..]), ("ours", &["README.md".to_owned()][..]));
}
