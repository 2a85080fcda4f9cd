//! A bundle and a package to who signed it.

use crate::bundle::{Bundle, Material};
use crate::chain;
use crate::error::{Error, listed, shown};
use crate::statement::Statement;
use crate::trust::{Trust, TrustedKey};
use weft_types::Digest;

/// The name of a package's configuration.
pub const CONFIG: &str = "adapter_config.json";
/// The name of a package's weights.
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// SHA-256 of the two files of a package, as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackageDigests {
    /// Of `adapter_config.json`.
    pub config: Digest,
    /// Of `adapter_model.safetensors`.
    pub weights: Digest,
}

/// How a bundle was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// With a trusted key.
    Key,
    /// With a certificate that leads to a trusted authority.
    Certificate,
}

impl Method {
    /// As `model-signing sign` calls it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Certificate => "certificate",
        }
    }
}

/// That somebody trusted signed a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signed {
    /// Who: with a key its id; with a certificate the first URI, e-mail address or DNS name among its alternative names (`URI:…`, `email:…`,
    /// `DNS:…`), otherwise its subject (`O=…, CN=…`). 1 to 1024 bytes without control characters.
    pub by: String,
    /// How.
    pub method: Method,
    /// Why that counts: the name in [`Trust`] of the key, or of the authority that the certificate leads to.
    pub trusted_by: String,
    /// SHA-256 of the signing key's SubjectPublicKeyInfo in DER, as 64 hex digits.
    pub key_id: String,
    /// The name of the folder that was signed. Any text but none; it identifies nothing (OMS 6.5.1).
    pub model: String,
    /// The statement's subject: SHA-256 over the digests of all signed files (OMS 6.5.1).
    pub model_digest: Digest,
    /// Names of files that were signed beside the two of the package, in the statement's order. Nobody looked at them.
    pub others: Vec<String>,
}

/// Verifies that `bundle`, the text of a `model.sig`, signs the package with these digests, by somebody in `trust`, at this time. A key counts
/// at any time, certificates while they are valid; for a package that is published now that is the present, in ms since 1970.
///
/// Cost: CPU only, no IO; a few passes over the bundle, and a signature for each trusted key that may have made it (all of them without a hint)
/// or for each certificate: about 0.2 ms on P-256, 1 ms on P-384, 5 ms on P-521. A chain that was made to take long costs 100 of its authority's
/// signatures, so this is not for a thread that others wait for. Allocates a few times the bundle's size.
///
/// # Errors
/// [`Error`], of kind `TooLarge` for a written limit, `Invalid` for what is no bundle, `Refused` for one that does not count.
pub fn verify(bundle: &[u8], package: &PackageDigests, trust: &Trust, at_unix_ms: u64) -> Result<Signed, Error> {
    let bundle = Bundle::parse(bundle)?;
    let message = bundle.signed_bytes();
    let (method, by, trusted_by, key) = match &bundle.material {
        Material::Key { hint } => {
            let candidates = candidates(hint.as_deref(), trust.keys())?;
            let signer = candidates.iter().find(|trusted| trusted.key.has_signed(&message, &bundle.signature));
            let Some(signer) = signer else {
                let by = listed(candidates.iter().map(|trusted| trusted.name.as_str()));
                return Err(Error::Signature { by });
            };
            (Method::Key, signer.key.id(), signer.name.clone(), signer.key.clone())
        }
        Material::Chain(certificates) => {
            let signer = chain::verify(certificates, trust.authorities(), at_unix_ms)?;
            if !signer.key.has_signed(&message, &bundle.signature) {
                return Err(Error::Signature { by: shown(&signer.by) });
            }
            (Method::Certificate, signer.by, signer.authority, signer.key)
        }
    };
    let statement = Statement::parse(&bundle.payload)?;
    let (model, model_digest) = (statement.model.clone(), statement.digest);
    let others = statement.others_than(package)?;
    Ok(Signed { by, method, trusted_by, key_id: key.id(), model, model_digest, others })
}

/// The keys that may have signed, by the hint as `model-signing` compares it; all without one. At least one.
fn candidates<'a>(hint: Option<&str>, keys: &'a [TrustedKey]) -> Result<Vec<&'a TrustedKey>, Error> {
    let candidates: Vec<_> = keys.iter().filter(|trusted| hint.is_none_or(|hint| hint == trusted.hint)).collect();
    if !candidates.is_empty() {
        return Ok(candidates);
    }
    let trusted = listed(keys.iter().map(|trusted| trusted.name.as_str()));
    Err(Error::UnknownKey { hint: hint.map_or_else(|| "none".to_owned(), shown), trusted })
}
