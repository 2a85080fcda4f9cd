//! Whose signatures count.

use crate::error::{Error, shown};
use crate::key::{PublicKey, WANTED};
use rustls_pki_types::pem::{PemObject, SectionKind};
use rustls_pki_types::{CertificateDer, TrustAnchor};
use x509_parser::certificate::Validity;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Most keys. A bundle without a hint is tried with each.
pub const KEYS_MAX: usize = 64;
/// Most certificates of authorities.
pub const AUTHORITIES_MAX: usize = 64;
/// Most bytes of a PEM text.
pub const PEM_BYTES_MAX: usize = 1 << 20;

/// Most bytes of a name.
const NAME_BYTES_MAX: usize = 128;

/// Keys and authorities whose signatures count. Nobody's, to begin with.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    keys: Vec<TrustedKey>,
    authorities: Vec<Authority>,
}

#[derive(Clone, Debug)]
pub(crate) struct TrustedKey {
    pub(crate) name: String,
    pub(crate) key: PublicKey,
    pub(crate) hint: String,
}

/// A certificate whose subject may vouch for signers.
#[derive(Clone, Debug)]
pub(crate) struct Authority {
    pub(crate) name: String,
    pub(crate) anchor: TrustAnchor<'static>,
    pub(crate) validity: Validity,
}

impl Trust {
    /// Trusts a public key: ECDSA on P-256, P-384 or P-521, as PEM `PUBLIC KEY` (RFC 7468 13), one in a text. `name` is how errors
    /// and [`crate::Signed`] call it: 1 to 128 bytes without control characters, best its file's name.
    ///
    /// # Errors
    /// [`Error::Trust`]: another text, key or name, or more than [`KEYS_MAX`] keys.
    pub fn add_key(&mut self, name: &str, pem: &str) -> Result<(), Error> {
        let refused = |problem: String| Error::Trust { name: shown(name), problem };
        check_name(name).map_err(refused)?;
        let sections = sections(pem, SectionKind::PublicKey, "PUBLIC KEY").map_err(refused)?;
        let [spki] = &sections[..] else {
            return Err(refused(format!("holds {} public keys, wanted one", sections.len())));
        };
        let key = PublicKey::from_spki(spki).map_err(|found| refused(format!("is {found}, wanted {WANTED}")))?;
        if self.keys.len() >= KEYS_MAX {
            return Err(refused(format!("is one key too many, the limit is {KEYS_MAX}")));
        }
        self.keys.push(TrustedKey { name: name.to_owned(), hint: key.hint(), key });
        Ok(())
    }

    /// Trusts authorities: certificates with `CA:TRUE` that may sign certificates, as PEM `CERTIFICATE` (RFC 7468 5), one or more in a text.
    /// Whoever they certify for signing counts, so an authority that certifies anybody else is none for here. Their own
    /// signatures are not checked, their time is, when it counts. Nothing is trusted if one is refused.
    ///
    /// # Errors
    /// [`Error::Trust`]: another text, certificate or name, or more than [`AUTHORITIES_MAX`] certificates.
    pub fn add_authorities(&mut self, name: &str, pem: &str) -> Result<(), Error> {
        let refused = |problem: String| Error::Trust { name: shown(name), problem };
        check_name(name).map_err(refused)?;
        let sections = sections(pem, SectionKind::Certificate, "CERTIFICATE").map_err(refused)?;
        if sections.is_empty() {
            return Err(refused("holds no CERTIFICATE, wanted one or more".to_owned()));
        }
        if self.authorities.len() + sections.len() > AUTHORITIES_MAX {
            return Err(refused(format!("has more certificates than the limit of {AUTHORITIES_MAX} allows")));
        }
        let mut authorities = Vec::new();
        for (i, der) in sections.into_iter().enumerate() {
            let authority = Authority::parse(name, der);
            authorities.push(authority.map_err(|problem| refused(format!("certificate {i} {problem}")))?);
        }
        self.authorities.append(&mut authorities);
        Ok(())
    }

    /// Whether nobody is trusted, so that nothing verifies.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.authorities.is_empty()
    }

    /// Names of keys with their ids, the SHA-256 of the SubjectPublicKeyInfo in DER as 64 hex digits.
    pub fn key_ids(&self) -> impl Iterator<Item = (&str, String)> {
        self.keys.iter().map(|trusted| (trusted.name.as_str(), trusted.key.id()))
    }

    pub(crate) fn keys(&self) -> &[TrustedKey] {
        &self.keys
    }

    pub(crate) fn authorities(&self) -> &[Authority] {
        &self.authorities
    }
}

impl Authority {
    fn parse(name: &str, der: Vec<u8>) -> Result<Self, String> {
        let unreadable = || "is no X.509 certificate of version 3".to_owned();
        let validity = match X509Certificate::from_der(&der) {
            Ok(([], certificate)) => {
                check_authority(&certificate)?;
                certificate.validity().clone()
            }
            _ => return Err(unreadable()),
        };
        let der = CertificateDer::from(der);
        let anchor = webpki::anchor_from_trusted_cert(&der).map_err(|_| unreadable())?.to_owned();
        Ok(Self { name: name.to_owned(), anchor, validity })
    }
}

/// What makes a certificate one of an authority: RFC 5280 4.2.1.9 and 4.2.1.3.
pub(crate) fn check_authority(certificate: &X509Certificate<'_>) -> Result<(), String> {
    if !matches!(certificate.basic_constraints(), Ok(Some(constraints)) if constraints.value.ca) {
        return Err("is not of an authority, wanted CA:TRUE".to_owned());
    }
    match certificate.key_usage() {
        Ok(None) => Ok(()),
        Ok(Some(usage)) if usage.value.key_cert_sign() => Ok(()),
        _ => Err("may not sign certificates, wanted keyCertSign among its key usages".to_owned()),
    }
}

fn check_name(name: &str) -> Result<(), String> {
    if (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    Err(format!("has a name that is not of 1 to {NAME_BYTES_MAX} bytes without control characters"))
}

/// The sections of a PEM text, all of which must be of one kind.
fn sections(pem: &str, kind: SectionKind, label: &str) -> Result<Vec<Vec<u8>>, String> {
    if pem.len() > PEM_BYTES_MAX {
        return Err(format!("has {} bytes, the limit is {PEM_BYTES_MAX}", pem.len()));
    }
    let mut sections = Vec::new();
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem.as_bytes()) {
        match section {
            Ok((found, der)) if found == kind => sections.push(der),
            Ok((found, _)) => return Err(format!("holds a {}, wanted {label}", label_of(found))),
            Err(error) => return Err(format!("is no PEM: {error}")),
        }
    }
    Ok(sections)
}

fn label_of(kind: SectionKind) -> &'static str {
    match kind {
        SectionKind::Certificate => "CERTIFICATE",
        SectionKind::PublicKey => "PUBLIC KEY",
        SectionKind::RsaPrivateKey | SectionKind::PrivateKey | SectionKind::EcPrivateKey => "private key",
        SectionKind::Crl => "X509 CRL",
        SectionKind::Csr => "CERTIFICATE REQUEST",
        _ => "section of another kind",
    }
}
