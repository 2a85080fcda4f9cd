//! What can be wrong with a signature, or with what is trusted.

use std::fmt;
use weft_fault::{Fault, Kind};
use weft_types::Digest;

/// Text quoted from outside is cut to this many characters.
const SHOWN_CHARS_MAX: usize = 120;

/// Why a package does not count as signed. Each message names the field or certificate, its value and what was wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A PEM text of [`crate::Trust`] holds something else. The operator's to mend, not the signer's.
    #[error("trusted {name}: {problem}")]
    Trust {
        /// The name that was given to it, quoted.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// More than a written limit.
    #[error("{what} {value}, the limit is {limit}")]
    TooLarge {
        /// What is counted, e.g. `the bundle's bytes are`.
        what: &'static str,
        /// How many there are.
        value: usize,
        /// How many are allowed.
        limit: usize,
    },
    /// The bundle or its payload is no JSON of the wanted form.
    #[error("{part} cannot be read: {problem}")]
    Unreadable {
        /// `bundle` or `payload`.
        part: &'static str,
        /// The path of the field and what is wrong with it.
        problem: String,
    },
    /// A field has a value that is not allowed.
    #[error("{field} is {value}, wanted {wanted}")]
    Field {
        /// Its path from the top of the bundle or of the statement, e.g. `predicate.resources[3].name`.
        field: String,
        /// The value as found, quoted and cut.
        value: String,
        /// What would be allowed.
        wanted: String,
    },
    /// The bundle is signed without a key of one's own, by way of Sigstore.
    #[error(
        "verificationMaterial.certificate is a keyless Sigstore signature (Fulcio, Rekor), which is not supported: sign with a key or with a certificate of a trusted authority"
    )]
    Keyless,
    /// No trusted key can have made the signature, by the bundle's hint.
    #[error("verificationMaterial.publicKey.hint is {hint}, wanted the hint of a trusted key: {trusted}")]
    UnknownKey {
        /// The hint, quoted and cut, or `none`.
        hint: String,
        /// Names of trusted keys, or `none`.
        trusted: String,
    },
    /// The signature is not by the keys that may have made it.
    #[error("dsseEnvelope.signatures[0].sig does not sign this payload with the key of {by}")]
    Signature {
        /// Names of the keys that were tried, or of the certificate.
        by: String,
    },
    /// A certificate of the chain cannot be used.
    #[error("verificationMaterial.x509CertificateChain.certificates[{index}] {problem}")]
    Certificate {
        /// Its place in the chain: 0 is the signer's.
        index: usize,
        /// What was found and what was wanted.
        problem: String,
    },
    /// The chain leads to no trusted authority, or not at this time.
    #[error("verificationMaterial.x509CertificateChain of {by} {problem}")]
    Chain {
        /// Whom the signer's certificate names.
        by: String,
        /// What was found and what was wanted.
        problem: String,
    },
    /// The signature is good and does not cover a file.
    #[error("predicate.resources are {found}, wanted {file} among them")]
    Missing {
        /// The file.
        file: &'static str,
        /// Names of resources, cut.
        found: String,
    },
    /// The signature is good and covers a file with other content.
    #[error("{field} of {file} is {signed}, the package's file has {package}")]
    OtherDigest {
        /// The path of the digest, e.g. `predicate.resources[1].digest`.
        field: String,
        /// The file.
        file: &'static str,
        /// What was signed.
        signed: Digest,
        /// What is there.
        package: Digest,
    },
}

impl Error {
    pub(crate) fn field(field: impl Into<String>, value: impl fmt::Display, wanted: impl Into<String>) -> Self {
        Self::Field { field: field.into(), value: value.to_string(), wanted: wanted.into() }
    }

    /// A field whose value is a text from outside.
    pub(crate) fn text(field: impl Into<String>, value: &str, wanted: impl Into<String>) -> Self {
        Self::field(field, shown(value), wanted)
    }

    pub(crate) fn certificate(index: usize, problem: impl Into<String>) -> Self {
        Self::Certificate { index, problem: problem.into() }
    }

    /// What a caller should do.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Trust { .. } | Self::Unreadable { .. } => Kind::Invalid,
            Self::TooLarge { .. } => Kind::TooLarge,
            Self::Field { .. }
            | Self::Keyless
            | Self::UnknownKey { .. }
            | Self::Signature { .. }
            | Self::Certificate { .. }
            | Self::Chain { .. }
            | Self::Missing { .. }
            | Self::OtherDigest { .. } => Kind::Refused,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Trust { .. } => "trust_invalid",
            Error::TooLarge { .. } => "signature_too_large",
            Error::Unreadable { .. } => "signature_unreadable",
            _ => "signature_refused",
        };
        Fault::new(error.kind(), error.to_string()).with_code(code)
    }
}

/// A text from outside for a message: quoted, control characters escaped, cut.
pub(crate) fn shown(text: &str) -> String {
    let cut: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{more}")
}

/// Words of a parser, which may quote what it found: without control characters, cut.
pub(crate) fn plain(text: &str) -> String {
    text.chars()
        .take(2 * SHOWN_CHARS_MAX)
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

/// Names for a message, comma-separated and cut; `none` if there are none.
pub(crate) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    const NAMES_MAX: usize = 8;
    let mut names = names.into_iter();
    let mut shown: Vec<String> = names.by_ref().take(NAMES_MAX).map(shown).collect();
    let more = names.count();
    if more > 0 {
        shown.push(format!("{more} more"));
    }
    if shown.is_empty() { "none".to_owned() } else { shown.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_is_quoted_escaped_and_cut() {
        let error = Error::text("payloadType", &format!("a\n{}", "9".repeat(500)), "another");
        let message = error.to_string();
        assert!(message.starts_with("payloadType is \"a\\n999"), "{message}");
        assert!(message.len() < 200 && message.ends_with("…, wanted another"), "{message}");
        let fault = Fault::from(error);
        assert_eq!((fault.kind, fault.code.as_str()), (Kind::Refused, "signature_refused"));
    }

    #[test]
    fn lists_are_cut_and_never_empty() {
        assert_eq!(listed([]), "none");
        assert_eq!(listed(["a", "b"]), r#""a", "b""#);
        assert!(listed(["a"; 30]).ends_with("\"a\", 22 more"));
    }
}
