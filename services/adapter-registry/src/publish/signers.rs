//! Who signed a package, as far as operators trust somebody to.

use super::upload::Upload;
use crate::{Error, Settings};
use std::path::Path;
use weft_adapter_format::Refusal;
use weft_adapter_signatures::{PackageDigests, Trust, verify};

/// Largest file of keys or certificates.
const PEM_BYTES_MAX: u64 = weft_adapter_signatures::PEM_BYTES_MAX as u64;
/// Of who signed, in a version's record.
const SIGNER_BYTES_MAX: usize = 256;

/// The keys and authorities of the settings.
#[derive(Clone, Debug, Default)]
pub(crate) struct Signers(Trust);

impl Signers {
    /// Reads the files that the settings name.
    ///
    /// # Errors
    /// [`Error::Settings`] with every file that is none of keys or certificates.
    pub(crate) fn read(settings: &Settings) -> Result<Self, Error> {
        let mut trust = Trust::default();
        let mut problems = Vec::new();
        for path in &settings.signature_key_files {
            let added = pem(path).and_then(|(name, pem)| trust.add_key(&name, &pem).map_err(|error| error.to_string()));
            problems.extend(added.err().map(|problem| format!("signature_key_files: {path}: {problem}")));
        }
        for path in &settings.signature_authority_files {
            let added =
                pem(path).and_then(|(name, pem)| trust.add_authorities(&name, &pem).map_err(|error| error.to_string()));
            problems.extend(added.err().map(|problem| format!("signature_authority_files: {path}: {problem}")));
        }
        if problems.is_empty() { Ok(Self(trust)) } else { Err(Error::Settings { problems }) }
    }

    /// Who signed the package. None: nobody did, or nobody is trusted here and nobody has to.
    ///
    /// # Errors
    /// It is not signed and has to be, or its signature does not count.
    pub(crate) fn check(&self, upload: &Upload, is_required: bool, now_ms: u64) -> Result<Option<String>, Refusal> {
        let refused = |reason: String| Err(Refusal { reasons: vec![reason] });
        let Some(bundle) = &upload.signature else {
            return match is_required {
                true => refused("the package has no model.sig, and the tenant's policy wants it signed".to_owned()),
                false => Ok(None),
            };
        };
        if self.0.is_empty() {
            return match is_required {
                true => refused("the tenant's policy wants packages signed, and no key is trusted here".to_owned()),
                false => Ok(None),
            };
        }
        let package = PackageDigests { config: upload.config_sha256, weights: upload.weights_sha256 };
        match verify(bundle, &package, &self.0, now_ms) {
            Ok(signed) => {
                let who = format!("{} ({}: {})", signed.by, signed.method.as_str(), signed.trusted_by);
                Ok(Some(super::cut(&who, SIGNER_BYTES_MAX)))
            }
            Err(error) => refused(format!("model.sig: {error}")),
        }
    }
}

/// A file's name and its text.
fn pem(path: &str) -> Result<(String, String), String> {
    let bytes = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if bytes > PEM_BYTES_MAX {
        return Err(format!("has {bytes} bytes, the limit is {PEM_BYTES_MAX}"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let name = Path::new(path).file_name().map_or_else(|| path.to_owned(), |name| name.to_string_lossy().into_owned());
    Ok((name, text))
}
