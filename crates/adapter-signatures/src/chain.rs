//! Certificates: whom the first one of a chain names, and that it leads to a trusted authority (RFC 5280 6).

use crate::error::{Error, listed, plain, shown};
use crate::key::{ECDSA_P521_SHA512, PublicKey, WANTED};
use crate::trust::{Authority, check_authority};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use webpki::{
    EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeId, KeyPurposeIdIter, KeyUsage, RequiredEkuNotFoundContext,
};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How certificates may be signed. RSA of 2048 to 8192 bits.
static ALGORITHMS: &[&dyn SignatureVerificationAlgorithm] = &[
    webpki::ring::ECDSA_P256_SHA256,
    webpki::ring::ECDSA_P256_SHA384,
    webpki::ring::ECDSA_P384_SHA256,
    webpki::ring::ECDSA_P384_SHA384,
    ECDSA_P521_SHA512,
    webpki::ring::ED25519,
    webpki::ring::RSA_PKCS1_2048_8192_SHA256,
    webpki::ring::RSA_PKCS1_2048_8192_SHA384,
    webpki::ring::RSA_PKCS1_2048_8192_SHA512,
    webpki::ring::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    webpki::ring::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    webpki::ring::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// Whom a chain vouches for.
#[derive(Debug)]
pub(crate) struct Signer {
    /// Whom the certificate names.
    pub(crate) by: String,
    pub(crate) key: PublicKey,
    /// The trusted authority's name.
    pub(crate) authority: String,
}

/// Follows a chain (DER, the signer's certificate first) to one of `authorities`, all valid at that time.
///
/// Cost: a signature for each certificate; webpki stops after 100, for a chain that was made to take long.
pub(crate) fn verify(chain: &[Vec<u8>], authorities: &[Authority], at_unix_ms: u64) -> Result<Signer, Error> {
    let at_unix_s = (at_unix_ms / 1000).cast_signed();
    let leaf = parse(chain, 0)?;
    if leaf.is_ca() {
        return Err(Error::certificate(0, "is of an authority, wanted a signer's with CA:FALSE"));
    }
    check_uses(&leaf)?;
    check_time(&leaf, at_unix_s)?;
    let by = whom(&leaf)?;
    let key = PublicKey::from_spki(leaf.public_key().raw)
        .map_err(|found| Error::certificate(0, format!("has {found}, wanted {WANTED}")))?;
    for i in 1..chain.len() {
        check_authority(&parse(chain, i)?).map_err(|problem| Error::certificate(i, problem))?;
    }
    let issuer = leaf.issuer().to_string();
    let authority =
        follow(chain, authorities, at_unix_s, &issuer).map_err(|problem| Error::Chain { by: shown(&by), problem })?;
    Ok(Signer { by, key, authority })
}

fn parse(chain: &[Vec<u8>], index: usize) -> Result<X509Certificate<'_>, Error> {
    match X509Certificate::from_der(&chain[index]) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Error::certificate(index, "is no X.509 certificate, wanted one in DER")),
    }
}

/// RFC 5280 4.2.1.3 and 4.2.1.12: what is there must allow signing code. That one is there at all is `model-signing`'s rule.
fn check_uses(leaf: &X509Certificate<'_>) -> Result<(), Error> {
    const WANTED: &str = "wanted digitalSignature among its key usages and codeSigning among its extended ones";
    let (Ok(usage), Ok(extended)) = (leaf.key_usage(), leaf.extended_key_usage()) else {
        return Err(Error::certificate(0, format!("has uses that cannot be read, {WANTED}")));
    };
    if usage.is_none() && extended.is_none() {
        return Err(Error::certificate(
            0,
            "names no uses, wanted the key usage digitalSignature or the extended codeSigning",
        ));
    }
    if usage.is_some_and(|usage| !usage.value.digital_signature()) {
        return Err(Error::certificate(0, format!("is not for signing, {WANTED}")));
    }
    if extended.is_some_and(|extended| !extended.value.code_signing && !extended.value.any) {
        return Err(Error::certificate(0, format!("is for other uses than signing code, {WANTED}")));
    }
    Ok(())
}

fn check_time(leaf: &X509Certificate<'_>, at_unix_s: i64) -> Result<(), Error> {
    let validity = leaf.validity();
    if is_within(validity, at_unix_s) {
        return Ok(());
    }
    let (from, until) = (date(validity.not_before.timestamp()), date(validity.not_after.timestamp()));
    Err(Error::certificate(0, format!("is valid from {from} until {until}, wanted it valid at {}", date(at_unix_s))))
}

fn is_within(validity: &x509_parser::certificate::Validity, at_unix_s: i64) -> bool {
    (validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&at_unix_s)
}

/// RFC 3339, as far as it has years.
fn date(unix_s: i64) -> String {
    let date = OffsetDateTime::from_unix_timestamp(unix_s).ok().and_then(|date| date.format(&Rfc3339).ok());
    date.unwrap_or_else(|| format!("{unix_s} s after 1970"))
}

/// The first URI, e-mail address or DNS name among the alternative names, with its kind before it; otherwise the subject.
fn whom(leaf: &X509Certificate<'_>) -> Result<String, Error> {
    let names = leaf.subject_alternative_name();
    let names =
        names.map_err(|_| Error::certificate(0, "has alternative names that cannot be read, wanted one of them"))?;
    let names = names.map_or(&[][..], |extension| &extension.value.general_names);
    let alternative = names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some(format!("URI:{uri}")),
        GeneralName::RFC822Name(address) => Some(format!("email:{address}")),
        GeneralName::DNSName(name) => Some(format!("DNS:{name}")),
        _ => None,
    });
    let by = alternative.unwrap_or_else(|| leaf.subject().to_string());
    if by.is_empty() || by.len() > 1024 || by.chars().any(char::is_control) {
        let wanted = "wanted a subject or alternative name of 1 to 1024 bytes without control characters";
        return Err(Error::certificate(0, format!("names {}, {wanted}", shown(&by))));
    }
    Ok(by)
}

/// The name of the authority that the chain leads to.
fn follow(chain: &[Vec<u8>], authorities: &[Authority], at_unix_s: i64, issuer: &str) -> Result<String, String> {
    // webpki does not look at the time of anchors.
    let (valid, other): (Vec<&Authority>, Vec<&Authority>) =
        authorities.iter().partition(|authority| is_within(&authority.validity, at_unix_s));
    let anchors: Vec<TrustAnchor<'_>> = valid.iter().map(|authority| authority.anchor.clone()).collect();
    let chain: Vec<CertificateDer<'_>> = chain.iter().map(|der| CertificateDer::from(&der[..])).collect();
    let time = UnixTime::since_unix_epoch(Duration::from_secs(at_unix_s.cast_unsigned()));
    let leaf = EndEntityCert::try_from(&chain[0]).map_err(|error| explain(&error))?;
    let path = leaf.verify_for_usage(ALGORITHMS, &anchors, &chain[1..], time, SigningCode, None, None);
    let path = path.map_err(|error| match error {
        webpki::Error::UnknownIssuer => {
            let names =
                |authorities: &[&Authority]| listed(authorities.iter().map(|authority| authority.name.as_str()));
            let at = date(at_unix_s);
            let mut problem =
                format!("leads by {} to no trusted authority, trusted at {at}: {}", shown(issuer), names(&valid));
            if !other.is_empty() {
                problem.push_str(&format!(", not valid then: {}", names(&other)));
            }
            problem
        }
        error => explain(&error),
    })?;
    let index = anchors.iter().position(|anchor| anchor == path.anchor());
    Ok(valid[index.expect("the path ends in one of these anchors")].name.clone())
}

fn explain(error: &webpki::Error) -> String {
    let date = |time: &UnixTime| date(time.as_secs().cast_signed());
    match error {
        webpki::Error::CertExpired { time, not_after } => {
            format!("has a certificate that is valid until {}, wanted it valid at {}", date(not_after), date(time))
        }
        webpki::Error::CertNotValidYet { time, not_before } => {
            format!("has a certificate that is valid from {}, wanted it valid at {}", date(not_before), date(time))
        }
        webpki::Error::InvalidSignatureForPublicKey => {
            "has a certificate that the key of its issuer did not sign, wanted it signed by the authority it names"
                .to_owned()
        }
        webpki::Error::RequiredEkuNotFoundContext(_) => {
            "has an authority that is not for signing code, wanted codeSigning among its extended key usages".to_owned()
        }
        other => format!("does not hold, wanted a path of RFC 5280: {}", plain(&other.to_string())),
    }
}

/// Extended key usages of the certificates of a path, if they have any.
struct SigningCode;

impl ExtendedKeyUsageValidator for SigningCode {
    fn validate(&self, purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        const CODE_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 3];
        const ANY: &[u8] = &[0x55, 0x1d, 0x25, 0];
        let mut is_restricted = false;
        for purpose in purposes {
            let purpose = purpose?;
            if purpose == KeyPurposeId::new(CODE_SIGNING) || purpose == KeyPurposeId::new(ANY) {
                return Ok(());
            }
            is_restricted = true;
        }
        if !is_restricted {
            return Ok(());
        }
        let required = KeyUsage::required_if_present(CODE_SIGNING);
        Err(webpki::Error::RequiredEkuNotFoundContext(RequiredEkuNotFoundContext { required, present: Vec::new() }))
    }
}
