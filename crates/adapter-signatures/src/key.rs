//! Public keys: ECDSA on the three curves of OMS (its algorithm registry), each with one hash.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use p521::ecdsa::signature::Verifier as _;
use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};
use std::fmt::Write as _;
use weft_types::Digest;
use x509_parser::prelude::{FromDer, SubjectPublicKeyInfo};

/// For messages.
pub(crate) const WANTED: &str = "an EC key on P-256, P-384 or P-521 by its name, with an uncompressed point";

/// What stands before the point in a SubjectPublicKeyInfo (RFC 5480) with a named curve and an uncompressed point (SEC 1, 2.3.3),
/// and the bytes of the point. DER allows one text only, so comparing is parsing.
const CURVES: [(&[u8], usize, &dyn SignatureVerificationAlgorithm); 3] = [
    (
        b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00",
        1 + 2 * 32,
        webpki::ring::ECDSA_P256_SHA256,
    ),
    (
        b"\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22\x03\x62\x00",
        1 + 2 * 48,
        webpki::ring::ECDSA_P384_SHA384,
    ),
    (
        b"\x30\x81\x9b\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x23\x03\x81\x86\x00",
        1 + 2 * 66,
        ECDSA_P521_SHA512,
    ),
];

/// A public key that can check signatures.
#[derive(Clone)]
pub(crate) struct PublicKey {
    spki: Vec<u8>,
    point_at: usize,
    algorithm: &'static dyn SignatureVerificationAlgorithm,
}

impl PublicKey {
    /// From a SubjectPublicKeyInfo in DER; what it is instead, if it is no key of ours.
    pub(crate) fn from_spki(spki: &[u8]) -> Result<Self, String> {
        for (prefix, point_bytes, algorithm) in CURVES {
            let Some(point) = spki.strip_prefix(prefix) else { continue };
            if point.len() == point_bytes && point[0] == 4 {
                return Ok(Self { spki: spki.to_owned(), point_at: prefix.len(), algorithm });
            }
        }
        let Ok((_, other)) = SubjectPublicKeyInfo::from_der(spki) else { return Err("no public key".to_owned()) };
        let curve = other.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        let mut found = format!("a public key of algorithm {}", other.algorithm.algorithm);
        if let Some(curve) = curve {
            let _ = write!(found, " on curve {curve}");
        }
        Err(found)
    }

    /// Whether `signature` (DER, RFC 3279 2.2.3) signs `message` with this key. Cost: about 0.2 ms on P-256, 1 ms on P-384, 5 ms on
    /// P-521.
    pub(crate) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        self.algorithm.verify_signature(&self.spki[self.point_at..], message, signature).is_ok()
    }

    /// SHA-256 of the SubjectPublicKeyInfo in DER, as 64 hex digits.
    pub(crate) fn id(&self) -> String {
        Digest::of(&self.spki).hex()
    }

    /// The hint that `model-signing` writes for this key: SHA-256 of its PEM text, as 64 hex digits.
    pub(crate) fn hint(&self) -> String {
        let mut pem = "-----BEGIN PUBLIC KEY-----\n".to_owned();
        for line in STANDARD.encode(&self.spki).as_bytes().chunks(64) {
            pem.extend(line.iter().map(|byte| char::from(*byte)));
            pem.push('\n');
        }
        pem.push_str("-----END PUBLIC KEY-----\n");
        Digest::of(pem.as_bytes()).hex()
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PublicKey").field(&self.id()).finish()
    }
}

/// ECDSA on P-521 with SHA-512, which ring does not have.
pub(crate) static ECDSA_P521_SHA512: &dyn SignatureVerificationAlgorithm = &EcdsaP521;

#[derive(Debug)]
struct EcdsaP521;

impl SignatureVerificationAlgorithm for EcdsaP521 {
    fn verify_signature(&self, public_key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(public_key).map_err(|_| InvalidSignature)?;
        let signature = p521::ecdsa::Signature::from_der(signature).map_err(|_| InvalidSignature)?;
        key.verify(message, &signature).map_err(|_| InvalidSignature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_P521
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        alg_id::ECDSA_SHA512
    }
}
