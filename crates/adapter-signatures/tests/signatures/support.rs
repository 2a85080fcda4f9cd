//! Golden files, and signers of what `model-signing` would not sign.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType, SigningKey,
};
use serde_json::{Value, json};
use std::path::Path;
use weft_adapter_signatures::{CONFIG, Error, PackageDigests, Signed, Trust, WEIGHTS, verify};
use weft_types::Digest;

/// 2026-07-01, when the golden certificates are valid.
pub(crate) const AT: u64 = 1_782_864_000_000;

/// A file of `tests/data`.
pub(crate) fn data(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn text(name: &str) -> String {
    String::from_utf8(data(name)).expect("text")
}

/// Of `tests/data/adapter`.
pub(crate) fn package() -> PackageDigests {
    let digest = |file: &str| Digest::of(&data(&format!("adapter/{file}")));
    PackageDigests { config: digest(CONFIG), weights: digest(WEIGHTS) }
}

/// The golden keys and authorities.
pub(crate) fn golden_trust() -> Trust {
    let mut trust = Trust::default();
    for name in ["p256.pem", "p384.pem", "p521.pem"] {
        trust.add_key(name, &text(name)).expect("a key");
    }
    for name in ["root-mixed.pem", "root-p521.pem"] {
        trust.add_authorities(name, &text(name)).expect("an authority");
    }
    trust
}

pub(crate) fn verify_value(bundle: &Value, trust: &Trust) -> Result<Signed, Error> {
    verify(bundle.to_string().as_bytes(), &package(), trust, AT)
}

/// The message of the error.
pub(crate) fn refused(bundle: &Value, trust: &Trust) -> String {
    verify_value(bundle, trust).expect_err("must be refused").to_string()
}

pub(crate) fn golden(name: &str) -> Value {
    serde_json::from_slice(&data(name)).expect("JSON")
}

/// The bytes behind a field in base64.
pub(crate) fn decoded(field: &Value) -> Vec<u8> {
    STANDARD.decode(field.as_str().expect("a text")).expect("base64")
}

pub(crate) fn encoded(bytes: &[u8]) -> Value {
    STANDARD.encode(bytes).into()
}

/// A statement about the package and its README, as it should be.
pub(crate) fn statement() -> Value {
    let package = package();
    let readme = Digest::of(b"read me");
    let mut statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "adapter", "digest": {"sha256": ""}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks": false, "ignore_paths": ["model.sig"]},
            "resources": [
                {"name": "README.md", "algorithm": "sha256", "digest": readme.hex()},
                {"name": CONFIG, "algorithm": "sha256", "digest": package.config.hex()},
                {"name": WEIGHTS, "algorithm": "sha256", "digest": package.weights.hex()},
            ],
        },
    });
    close(&mut statement);
    statement
}

/// Makes the subject that of the resources.
pub(crate) fn close(statement: &mut Value) {
    let resources = statement["predicate"]["resources"].as_array().expect("a list");
    let digests = resources.iter().map(|resource| hex::decode(resource["digest"].as_str().expect("a text")));
    let digests: Vec<u8> = digests.flat_map(|digest| digest.expect("hex")).collect();
    statement["subject"][0]["digest"]["sha256"] = Digest::of(&digests).hex().into();
}

/// Somebody with a key.
pub(crate) struct Signer {
    pub(crate) key: KeyPair,
    pub(crate) trust: Trust,
}

impl Signer {
    /// Trusted as `ours`.
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let mut trust = Trust::default();
        trust.add_key("ours", &key.public_key_pem()).expect("a key");
        Self { key, trust }
    }

    /// A bundle of any payload.
    pub(crate) fn sign(&self, payload: &[u8]) -> Value {
        bundle(json!({"publicKey": {}}), &self.key, payload)
    }

    /// What is said about a statement that is changed and then signed.
    pub(crate) fn refuses(&self, change: impl FnOnce(&mut Value)) -> String {
        let mut statement = statement();
        change(&mut statement);
        refused(&self.sign(statement.to_string().as_bytes()), &self.trust)
    }
}

/// Signs a payload.
pub(crate) fn bundle(material: Value, key: &KeyPair, payload: &[u8]) -> Value {
    let mut message = format!("DSSEv1 28 application/vnd.in-toto+json {} ", payload.len()).into_bytes();
    message.extend_from_slice(payload);
    json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": material,
        "dsseEnvelope": {
            "payload": encoded(payload),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": encoded(&key.sign(&message).expect("a signature")), "keyid": ""}],
        },
    })
}

/// An authority that is signed by itself or by another one.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) der: Vec<u8>,
    pub(crate) pem: String,
}

impl Authority {
    pub(crate) fn new(name: &str, by: Option<&Self>, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = params(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        change(&mut params);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let certificate = match by {
            None => params.self_signed(&key),
            Some(by) => params.signed_by(&key, &by.issuer),
        };
        let certificate = certificate.expect("a certificate");
        let (der, pem) = (certificate.der().to_vec(), certificate.pem());
        Self { issuer: Issuer::new(params, key), der, pem }
    }

    pub(crate) fn root() -> Self {
        Self::new("Root", None, |_| {})
    }

    pub(crate) fn trust(&self) -> Trust {
        let mut trust = Trust::default();
        trust.add_authorities("root.pem", &self.pem).expect("an authority");
        trust
    }

    /// The package's bundle by a signer that this authority certifies.
    pub(crate) fn bundle(&self, above: &[&Self], change: impl FnOnce(&mut CertificateParams)) -> Value {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        self.bundle_with(&key, above, change)
    }

    /// The same with a key of any kind.
    pub(crate) fn bundle_with(
        &self,
        key: &KeyPair,
        above: &[&Self],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Value {
        let mut params = params("Signer");
        params.subject_alt_names.push(SanType::Rfc822Name("release@example.com".try_into().expect("ASCII")));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        change(&mut params);
        let leaf = params.signed_by(key, &self.issuer).expect("a certificate").der().to_vec();
        let chain = [&leaf].into_iter().chain(above.iter().map(|authority| &authority.der));
        let chain: Vec<Value> = chain.map(|der| json!({"rawBytes": encoded(der)})).collect();
        let material = json!({"x509CertificateChain": {"certificates": chain}});
        bundle(material, key, statement().to_string().as_bytes())
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
