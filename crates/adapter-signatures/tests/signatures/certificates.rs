//! Chains of certificates, good ones and all others.

use crate::support::{Authority, golden, golden_trust, package, refused, verify_value};
use rcgen::{BasicConstraints, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType, date_time_ymd};
use serde_json::{Value, json};
use weft_adapter_signatures::{CHAIN_MAX, Trust, verify};

const LEAF: &str = "verificationMaterial.x509CertificateChain.certificates[0] ";
const CHAIN: &str = r#"verificationMaterial.x509CertificateChain of "email:release@example.com" "#;

/// What is said about a signer's certificate that is made otherwise.
fn leaf_refused(change: impl FnOnce(&mut rcgen::CertificateParams)) -> String {
    let root = Authority::root();
    refused(&root.bundle(&[], change), &root.trust())
}

#[test]
fn chains_may_hold_the_root_or_not_and_authorities_between() {
    let root = Authority::root();
    let between = Authority::new("Between", Some(&root), |_| {});
    for bundle in [
        root.bundle(&[], |_| {}),
        root.bundle(&[&root], |_| {}),
        between.bundle(&[&between], |_| {}),
        between.bundle(&[&root, &between], |_| {}),
    ] {
        let signed = verify_value(&bundle, &root.trust()).expect("signed");
        assert_eq!((signed.by.as_str(), signed.trusted_by.as_str()), ("email:release@example.com", "root.pem"));
    }
    // An authority between may be trusted itself, and is needed otherwise.
    assert!(verify_value(&between.bundle(&[], |_| {}), &between.trust()).is_ok());
    let found = refused(&between.bundle(&[], |_| {}), &root.trust());
    assert!(found.starts_with(&format!(r#"{CHAIN}leads by "CN=Between" to no trusted authority"#)), "{found}");
}

#[test]
fn the_signer_is_the_first_alternative_name_that_has_a_form_or_the_subject() {
    let root = Authority::root();
    let by = |names: Vec<SanType>| {
        let bundle = root.bundle(&[], |params| params.subject_alt_names = names);
        verify_value(&bundle, &root.trust()).expect("signed").by
    };
    let dns = || SanType::DnsName("ci.example.com".try_into().expect("ASCII"));
    let uri = || SanType::URI("spiffe://example.com/ci".try_into().expect("ASCII"));
    assert_eq!(by(vec![SanType::IpAddress([10, 0, 0, 1].into()), dns(), uri()]), "DNS:ci.example.com");
    assert_eq!(by(vec![uri(), dns()]), "URI:spiffe://example.com/ci");
    assert_eq!(by(vec![]), "CN=Signer");
    let found = leaf_refused(|params| {
        params.subject_alt_names.clear();
        params.distinguished_name = rcgen::DistinguishedName::new();
    });
    assert!(found.starts_with(&format!("{LEAF}names \"\", wanted a subject or alternative name")), "{found}");
    let found =
        leaf_refused(|params| params.subject_alt_names = vec![SanType::URI("a:\nb".try_into().expect("ASCII"))]);
    assert!(found.starts_with(&format!(r#"{LEAF}names "URI:a:\nb", wanted"#)), "{found}");
}

#[test]
fn certificates_that_are_not_for_signing_code_are_refused() {
    let found = leaf_refused(|params| params.key_usages = vec![KeyUsagePurpose::KeyEncipherment]);
    assert!(found.starts_with(&format!("{LEAF}is not for signing, wanted digitalSignature")), "{found}");
    let found = leaf_refused(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert!(found.starts_with(&format!("{LEAF}is for other uses than signing code, wanted")), "{found}");
    let found = leaf_refused(|params| {
        params.key_usages.clear();
        params.extended_key_usages.clear();
    });
    assert!(found.starts_with(&format!("{LEAF}names no uses, wanted")), "{found}");
    // Each is enough.
    let root = Authority::root();
    assert!(verify_value(&root.bundle(&[], |params| params.key_usages.clear()), &root.trust()).is_ok());
    assert!(verify_value(&root.bundle(&[], |params| params.extended_key_usages.clear()), &root.trust()).is_ok());
    let any = |params: &mut rcgen::CertificateParams| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
    assert!(verify_value(&root.bundle(&[], any), &root.trust()).is_ok());
}

#[test]
fn authorities_for_other_uses_do_not_make_signers() {
    let root = Authority::root();
    let tls = Authority::new("TLS", Some(&root), |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    });
    let found = refused(&tls.bundle(&[&tls], |_| {}), &root.trust());
    assert!(found.starts_with(&format!("{CHAIN}has an authority that is not for signing code")), "{found}");
}

#[test]
fn expired_certificates_are_refused_wherever_they_stand() {
    let old = |params: &mut rcgen::CertificateParams| params.not_after = date_time_ymd(2026, 6, 30);
    let new = |params: &mut rcgen::CertificateParams| params.not_before = date_time_ymd(2026, 7, 2);
    let found = leaf_refused(old);
    assert!(found.starts_with(&format!("{LEAF}is valid from ")), "{found}");
    assert!(
        found.contains("until 2026-06-30T00:00:00Z") && found.contains("wanted it valid at 2026-07-01T00:00:00Z"),
        "{found}"
    );
    assert!(leaf_refused(new).starts_with(&format!("{LEAF}is valid from 2026-07-02T00:00:00Z")));
    let root = Authority::root();
    let between = Authority::new("Between", Some(&root), old);
    let found = refused(&between.bundle(&[&between], |_| {}), &root.trust());
    assert!(found.starts_with(&format!("{CHAIN}has a certificate that is valid until 2026-06-30")), "{found}");
    let between = Authority::new("Between", Some(&root), new);
    let found = refused(&between.bundle(&[&between], |_| {}), &root.trust());
    assert!(found.starts_with(&format!("{CHAIN}has a certificate that is valid from 2026-07-02")), "{found}");
    for change in [old, new] {
        let root = Authority::new("Root", None, change);
        let found = refused(&root.bundle(&[], |_| {}), &root.trust());
        assert!(
            found.starts_with(&format!("{CHAIN}leads by \"CN=Root\" to no trusted authority, trusted at 2026-07-01")),
            "{found}"
        );
        assert!(found.ends_with(r#": none, not valid then: "root.pem""#), "{found}");
    }
}

#[test]
fn any_time_is_a_time() {
    for at in [0, 1, u64::MAX] {
        let bundle = crate::support::data("certificate-mixed.sig");
        assert!(verify(&bundle, &package(), &golden_trust(), at).is_err());
    }
}

#[test]
fn an_authority_of_the_same_name_is_another_one() {
    let (root, other) = (Authority::root(), Authority::root());
    let found = refused(&other.bundle(&[], |_| {}), &root.trust());
    assert!(found.starts_with(&format!("{CHAIN}has a certificate that the key of its issuer did not sign")), "{found}");
    // Both may be trusted, as while one takes over from the other.
    let mut trust = root.trust();
    trust.add_authorities("other.pem", &other.pem).expect("an authority");
    assert_eq!(verify_value(&other.bundle(&[], |_| {}), &trust).expect("signed").trusted_by, "other.pem");
}

#[test]
fn whoever_is_no_authority_cannot_vouch() {
    let root = Authority::root();
    let signer = Authority::new("Signer", Some(&root), |params| {
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    });
    let found = refused(&signer.bundle(&[&signer], |_| {}), &root.trust());
    assert!(found.ends_with("certificates[1] is not of an authority, wanted CA:TRUE"), "{found}");
    let without = Authority::new("Without", Some(&root), |params| params.key_usages = vec![KeyUsagePurpose::CrlSign]);
    let found = refused(&without.bundle(&[&without], |_| {}), &root.trust());
    assert!(found.contains("certificates[1] may not sign certificates, wanted keyCertSign"), "{found}");
    let short = Authority::new("Root", None, |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let (a, b) =
        (Authority::new("A", Some(&root), |params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))), short);
    let c = Authority::new("C", Some(&a), |_| {});
    let found = refused(&c.bundle(&[&c, &a, &b], |_| {}), &root.trust());
    assert!(found.contains("PathLenConstraintViolated"), "{found}");
    let found = leaf_refused(|params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign];
    });
    assert_eq!(found, format!("{LEAF}is of an authority, wanted a signer's with CA:FALSE"));
}

#[test]
fn a_chain_is_no_key_and_a_key_no_authority() {
    let root = Authority::root();
    let bundle = root.bundle(&[], |_| {});
    let found = refused(&bundle, &golden_trust());
    assert!(found.contains("to no trusted authority"), "{found}");
    let found = refused(&bundle, &Trust::default());
    assert!(found.ends_with(": none"), "{found}");
    let found = refused(&golden("key-p256.sig"), &root.trust());
    assert!(found.ends_with("wanted the hint of a trusted key: none"), "{found}");
    // Somebody else's chain around our signature.
    let mut mixed = golden("key-p256.sig");
    mixed["verificationMaterial"] = bundle["verificationMaterial"].clone();
    let found = refused(&mixed, &root.trust());
    assert_eq!(
        found,
        r#"dsseEnvelope.signatures[0].sig does not sign this payload with the key of "email:release@example.com""#
    );
}

#[test]
fn chains_have_a_length_and_certificates_a_form() {
    let root = Authority::root();
    let mut bundle = root.bundle(&[&root; CHAIN_MAX - 1], |_| {});
    assert!(verify_value(&bundle, &root.trust()).is_ok());
    let mut set = |chain: Value| {
        bundle["verificationMaterial"]["x509CertificateChain"]["certificates"] = chain;
        refused(&bundle, &root.trust())
    };
    let one = json!({"rawBytes": "AAAA"});
    let found = set(json!(vec![one.clone(); CHAIN_MAX + 1]));
    assert!(found.ends_with("certificates is a list of 9, wanted 1 to 8 certificates"), "{found}");
    assert!(set(json!([])).ends_with("certificates is a list of 0, wanted 1 to 8 certificates"));
    assert_eq!(set(json!([one])), format!("{LEAF}is no X.509 certificate, wanted one in DER"));
    assert!(set(json!([{"rawBytes": "?"}])).contains("certificates[0].rawBytes is no base64"));
}

#[test]
fn keys_that_oms_does_not_know_are_refused() {
    let root = Authority::root();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let bundle = root.bundle_with(&key, &[], |_| {});
    let found = refused(&bundle, &root.trust());
    assert!(
        found.starts_with(&format!("{LEAF}has a public key of algorithm 1.3.101.112, wanted an EC key")),
        "{found}"
    );
}
