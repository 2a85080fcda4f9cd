//! What may be trusted.

use crate::support::{Authority, text};
use rcgen::{IsCa, KeyPair, KeyUsagePurpose, PKCS_ED25519};
use weft_adapter_signatures::{AUTHORITIES_MAX, KEYS_MAX, PEM_BYTES_MAX, Trust};
use weft_fault::Kind;

fn key_refused(name: &str, pem: &str) -> String {
    let error = Trust::default().add_key(name, pem).expect_err("must be refused");
    assert_eq!(error.kind(), Kind::Invalid);
    error.to_string()
}

fn authority_refused(pem: &str) -> String {
    let mut trust = Trust::default();
    let found = trust.add_authorities("root.pem", pem).expect_err("must be refused").to_string();
    assert!(trust.is_empty());
    found
}

#[test]
fn what_is_no_key_of_ours_is_refused_with_what_it_is() {
    let ed25519 = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
    let private = KeyPair::generate().expect("a key").serialize_pem();
    let two = text("p256.pem").repeat(2);
    let wanted = "wanted an EC key on P-256, P-384 or P-521 by its name, with an uncompressed point";
    for (pem, problem) in [
        (ed25519.public_key_pem(), format!("is a public key of algorithm 1.3.101.112, {wanted}")),
        // secp256k1, as OpenSSL writes it.
        (
            "-----BEGIN PUBLIC KEY-----\nMFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAE3PC/kzY1bSzQ8IP3n5MeaA/FmX5kV/gr\n9G2KXexcmP0UVwuqMvvMRgWRMGvW4wYal4NQJr9gdnCI5Xlz4o97Qg==\n-----END PUBLIC KEY-----\n".to_owned(),
            format!("is a public key of algorithm 1.2.840.10045.2.1 on curve 1.3.132.0.10, {wanted}"),
        ),
        (private, "holds a private key, wanted PUBLIC KEY".to_owned()),
        (text("root-mixed.pem"), "holds a CERTIFICATE, wanted PUBLIC KEY".to_owned()),
        (two, "holds 2 public keys, wanted one".to_owned()),
        (String::new(), "holds 0 public keys, wanted one".to_owned()),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n".to_owned(), format!("is no public key, {wanted}")),
        (" ".repeat(PEM_BYTES_MAX + 1), "has 1048577 bytes, the limit is 1048576".to_owned()),
    ] {
        assert_eq!(key_refused("ours", &pem), format!(r#"trusted "ours": {problem}"#));
    }
    let broken = key_refused("ours", "-----BEGIN PUBLIC KEY-----\nAAAA\n");
    assert!(broken.starts_with(r#"trusted "ours": is no PEM: "#), "{broken}");
}

#[test]
fn names_are_short_and_on_one_line() {
    for name in ["", "a\nb", &"a".repeat(129)] {
        let found = key_refused(name, &text("p256.pem"));
        assert!(found.ends_with("has a name that is not of 1 to 128 bytes without control characters"), "{found}");
    }
}

#[test]
fn what_is_no_authority_is_refused() {
    let root = Authority::root();
    let signer = Authority::new("Signer", Some(&root), |params| params.is_ca = IsCa::ExplicitNoCa);
    let found = authority_refused(&format!("{}{}", root.pem, signer.pem));
    assert_eq!(found, r#"trusted "root.pem": certificate 1 is not of an authority, wanted CA:TRUE"#);
    let other = Authority::new("Other", None, |params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    let found = authority_refused(&other.pem);
    assert!(
        found.ends_with("certificate 0 may not sign certificates, wanted keyCertSign among its key usages"),
        "{found}"
    );
    assert!(authority_refused(&text("p256.pem")).ends_with("holds a PUBLIC KEY, wanted CERTIFICATE"));
    assert!(authority_refused("").ends_with("holds no CERTIFICATE, wanted one or more"));
    let found = authority_refused("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    assert!(found.ends_with("certificate 0 is no X.509 certificate of version 3"), "{found}");
}

#[test]
fn trust_has_limits() {
    let mut trust = Trust::default();
    assert!(trust.is_empty());
    for i in 0..KEYS_MAX {
        trust.add_key(&i.to_string(), &text("p256.pem")).expect("room");
    }
    let found = trust.add_key("more", &text("p256.pem")).expect_err("must be refused").to_string();
    assert_eq!(found, r#"trusted "more": is one key too many, the limit is 64"#);
    let all = text("root-mixed.pem").repeat(AUTHORITIES_MAX);
    trust.add_authorities("all", &all).expect("room");
    let found = trust.add_authorities("more", &text("root-p521.pem")).expect_err("must be refused").to_string();
    assert_eq!(found, r#"trusted "more": has more certificates than the limit of 64 allows"#);
}
