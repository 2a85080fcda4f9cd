//! What `model-signing` 1.1.1 wrote (`tests/data/make.py`).

use crate::support::{AT, data, golden, golden_trust, package, refused, text, verify_value};
use weft_adapter_signatures::{Error, Method, PackageDigests, Trust, verify};
use weft_types::Digest;

#[test]
fn bundles_by_keys_on_each_curve_verify_and_name_the_key() {
    let trust = golden_trust();
    for (bundle, name) in [("key-p256.sig", "p256.pem"), ("key-p384.sig", "p384.pem"), ("key-p521.sig", "p521.pem")] {
        let signed = verify(&data(bundle), &package(), &trust, AT).unwrap_or_else(|error| panic!("{bundle}: {error}"));
        assert_eq!((signed.method, signed.trusted_by.as_str()), (Method::Key, name));
        let id = trust.key_ids().find(|(named, _)| *named == name).expect("a trusted key").1;
        assert_eq!((&signed.by, &signed.key_id), (&id, &id));
        assert_eq!((signed.model.as_str(), &signed.others[..]), ("adapter", &["README.md".to_owned()][..]));
        let readme = Digest::of(&data("adapter/README.md"));
        let digests = [readme, package().config, package().weights].map(|digest| digest.to_vec()).concat();
        assert_eq!(signed.model_digest, Digest::of(&digests));
    }
}

#[test]
fn bundles_by_certificates_verify_and_name_signer_and_authority() {
    let trust = golden_trust();
    for (bundle, by, authority) in [
        ("certificate-mixed.sig", "email:release@example.com", "root-mixed.pem"),
        ("certificate-p521.sig", "URI:https://ci.example.com/adapters", "root-p521.pem"),
    ] {
        let signed = verify(&data(bundle), &package(), &trust, AT).unwrap_or_else(|error| panic!("{bundle}: {error}"));
        assert_eq!((signed.method, signed.by.as_str()), (Method::Certificate, by));
        assert_eq!(signed.trusted_by, authority);
        assert!(trust.key_ids().all(|(_, id)| id != signed.key_id) && signed.key_id.len() == 64);
    }
}

#[test]
fn ids_of_keys_are_those_that_openssl_computes() {
    let mut trust = Trust::default();
    trust.add_key("key", &text("p256.pem")).expect("a key");
    let pem = text("p256.pem");
    let base64: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    let der = crate::support::decoded(&base64.into());
    assert_eq!(trust.key_ids().collect::<Vec<_>>(), [("key", Digest::of(&der).hex())]);
}

#[test]
fn a_file_that_was_left_out_is_not_reported() {
    let signed = verify_value(&golden("without-readme.sig"), &golden_trust()).expect("signed");
    assert!(signed.others.is_empty());
}

#[test]
fn weights_that_were_ignored_are_refused() {
    let found = refused(&golden("without-weights.sig"), &golden_trust());
    assert!(found.starts_with("predicate.serialization.ignore_paths["), "{found}");
    assert!(found.ends_with(r#"is "adapter_model.safetensors", wanted no file of the package"#), "{found}");
}

#[test]
fn shards_and_other_digests_are_refused() {
    let trust = golden_trust();
    let found = refused(&golden("shards.sig"), &trust);
    assert!(found.starts_with(r#"predicate.serialization.method is "shards", wanted files"#), "{found}");
    let found = refused(&golden("blake3.sig"), &trust);
    assert!(found.starts_with(r#"predicate.serialization.hash_type is "blake3", wanted sha256"#), "{found}");
}

#[test]
fn a_package_with_another_file_is_refused_with_both_digests() {
    let (ours, other) = (package(), Digest::of(b"another"));
    for (package, file, signed, index) in [
        (PackageDigests { config: other, ..ours }, "adapter_config.json", ours.config, 1),
        (PackageDigests { weights: other, ..ours }, "adapter_model.safetensors", ours.weights, 2),
    ] {
        let error = verify(&data("key-p384.sig"), &package, &golden_trust(), AT).expect_err("must be refused");
        let field = format!("predicate.resources[{index}].digest");
        assert_eq!(error, Error::OtherDigest { field: field.clone(), file, signed, package: other });
        assert_eq!(error.to_string(), format!("{field} of {file} is {signed}, the package's file has {other}"));
    }
}

#[test]
fn certificates_count_while_they_are_valid() {
    let trust = golden_trust();
    let at = |unix_s: u64| verify(&data("certificate-mixed.sig"), &package(), &trust, unix_s * 1000 + 999);
    let (from, until) = (1_767_225_600, 1_830_297_600); // 2026 and 2028, both included
    assert!(at(from).is_ok() && at(until).is_ok());
    for (unix_s, date) in [(from - 1, "2025-12-31T23:59:59Z"), (until + 1, "2028-01-01T00:00:01Z")] {
        let found = at(unix_s).expect_err("must be refused").to_string();
        assert!(
            found.starts_with("verificationMaterial.x509CertificateChain.certificates[0] is valid from 2026-01-01T00:00:00Z until 2028-01-01T00:00:00Z, "),
            "{found}"
        );
        assert!(found.contains(&format!("wanted it valid at {date}")), "{found}");
    }
}

#[test]
fn certificates_of_another_authority_are_refused() {
    let mut trust = Trust::default();
    trust.add_authorities("other.pem", &text("root-p521.pem")).expect("an authority");
    let found = refused(&golden("certificate-mixed.sig"), &trust);
    let wanted = r#"verificationMaterial.x509CertificateChain of "email:release@example.com" leads by "O=Example, CN=Intermediate mixed" to no trusted authority, trusted at "#;
    assert!(found.starts_with(wanted) && found.ends_with(r#": "other.pem""#), "{found}");
}
