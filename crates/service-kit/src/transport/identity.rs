//! Whom a certificate names: one URI, `spiffe://TRUST-DOMAIN/weft/SERVICE`, among its alternative names.
//!
//! A DNS name is no identity: it says where a service is, and any pod of a cluster may be given one.

use std::fmt;
use std::str::FromStr;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What a trust domain may be long, as SPIFFE has it.
const TRUST_DOMAIN_BYTES_MAX: usize = 255;
/// Of a foreign text that is shown.
const SHOWN_CHARS_MAX: usize = 200;

/// A kind of process of a mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// `weft-gateway`.
    Gateway,
    /// `weft-adapter-registry`.
    Registry,
    /// `weft-worker`.
    Worker,
    /// `weft-cache-daemon`.
    CacheDaemon,
}

impl Service {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Gateway, Self::Registry, Self::Worker, Self::CacheDaemon];

    /// As certificates name it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Registry => "adapter-registry",
            Self::Worker => "worker",
            Self::CacheDaemon => "cache-daemon",
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A service of a mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Whose mesh: peers must have the same.
    pub trust_domain: String,
    /// Which of its services.
    pub service: Service,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/weft/{}", self.trust_domain, self.service)
    }
}

/// A certificate that names no service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It cannot be parsed.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// It has no URI.
    #[error("the certificate has no URI spiffe://TRUST-DOMAIN/weft/SERVICE among its alternative names")]
    Missing,
    /// It has several URIs.
    #[error("the certificate has {0} URIs among its alternative names, allowed is one")]
    Several(usize),
    /// The URI is another one.
    #[error(
        "the certificate names {0:?}, which is not spiffe://TRUST-DOMAIN/weft/SERVICE with gateway, adapter-registry, worker or cache-daemon"
    )]
    Foreign(String),
    /// It is a service, but not the one that is expected.
    #[error("the certificate names {named}, expected is {expected}")]
    Other {
        /// In the certificate.
        named: Box<Identity>,
        /// Who should be there.
        expected: Box<Identity>,
    },
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(uri: &str) -> Result<Self, IdentityError> {
        let foreign = || IdentityError::Foreign(uri.chars().take(SHOWN_CHARS_MAX).collect());
        let rest = uri.strip_prefix("spiffe://").ok_or_else(foreign)?;
        let (trust_domain, path) = rest.split_once('/').ok_or_else(foreign)?;
        let is_domain_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if !(1..=TRUST_DOMAIN_BYTES_MAX).contains(&trust_domain.len()) || !trust_domain.bytes().all(is_domain_byte) {
            return Err(foreign());
        }
        let name = path.strip_prefix("weft/").ok_or_else(foreign)?;
        let service = Service::ALL.into_iter().find(|service| service.as_str() == name).ok_or_else(foreign)?;
        Ok(Self { trust_domain: trust_domain.to_owned(), service })
    }
}

impl Identity {
    /// Whom this certificate (DER) names. Says nothing about who signed it.
    ///
    /// # Errors
    /// It names no service, or more than one thing.
    pub fn of_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, certificate) = X509Certificate::from_der(der).map_err(|_| IdentityError::Unreadable)?;
        let names = certificate.subject_alternative_name().map_err(|_| IdentityError::Unreadable)?;
        let names = names.map_or(&[][..], |extension| &extension.value.general_names);
        let uris: Vec<&str> = names
            .iter()
            .filter_map(|name| match name {
                GeneralName::URI(uri) => Some(*uri),
                _ => None,
            })
            .collect();
        match uris[..] {
            [] => Err(IdentityError::Missing),
            [uri] => uri.parse(),
            _ => Err(IdentityError::Several(uris.len())),
        }
    }

    /// Whether this is who should be there.
    ///
    /// # Errors
    /// [`IdentityError::Other`].
    pub fn must_be(&self, expected: &Self) -> Result<(), IdentityError> {
        if self == expected {
            return Ok(());
        }
        Err(IdentityError::Other { named: Box::new(self.clone()), expected: Box::new(expected.clone()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, SanType};

    #[test]
    fn only_one_spelling_names_a_service() {
        let good: Identity = "spiffe://prod.example/weft/cache-daemon".parse().unwrap();
        assert_eq!((good.trust_domain.as_str(), good.service), ("prod.example", Service::CacheDaemon));
        for wrong in [
            "",
            "worker",
            "https://prod.example/weft/worker",
            "SPIFFE://prod.example/weft/worker",
            "spiffe:///weft/worker",
            "spiffe://prod.example",
            "spiffe://prod.example/worker",
            "spiffe://prod.example/weft/",
            "spiffe://prod.example/weft/Worker",
            "spiffe://prod.example/weft/worker/",
            "spiffe://prod.example/weft/worker/1",
            "spiffe://prod.example//weft/worker",
            "spiffe://prod.example/weft/../weft/worker",
            "spiffe://prod.example/weft/%77orker",
            "spiffe://prod.example/weft/worker?x",
            "spiffe://prod.example/weft/worker#x",
            "spiffe://Prod.example/weft/worker",
            "spiffe://user@prod.example/weft/worker",
            "spiffe://prod.example:443/weft/worker",
        ] {
            assert!(matches!(wrong.parse::<Identity>(), Err(IdentityError::Foreign(_))), "{wrong}");
        }
    }

    fn certificate(names: &[SanType]) -> Vec<u8> {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = names.to_vec();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    #[test]
    fn a_certificate_names_one_service_by_its_uri_alone() {
        let dns = || SanType::DnsName("worker".try_into().unwrap());
        let named = Identity::of_certificate(&certificate(&[dns(), uri("spiffe://a/weft/worker")])).unwrap();
        assert_eq!(named.service, Service::Worker);
        assert_eq!(Identity::of_certificate(&certificate(&[dns()])), Err(IdentityError::Missing));
        assert_eq!(Identity::of_certificate(&certificate(&[])), Err(IdentityError::Missing));
        let two = certificate(&[uri("spiffe://a/weft/worker"), uri("spiffe://a/weft/gateway")]);
        assert_eq!(Identity::of_certificate(&two), Err(IdentityError::Several(2)));
        assert_eq!(Identity::of_certificate(b"no certificate"), Err(IdentityError::Unreadable));
        let other: Identity = "spiffe://b/weft/worker".parse().unwrap();
        assert!(matches!(named.must_be(&other), Err(IdentityError::Other { .. })));
    }

    proptest! {
        #[test]
        fn an_identity_is_read_as_it_is_written(domain in "[a-z0-9._-]{1,255}", service in 0usize..4) {
            let identity = Identity { trust_domain: domain, service: Service::ALL[service] };
            prop_assert_eq!(identity.to_string().parse(), Ok(identity));
        }

        #[test]
        fn whatever_is_accepted_is_the_canonical_text(uri in "(spiffe://)?[a-zA-Z0-9./%_-]{0,12}(/weft/)?(worker|gateway|[a-z/]{0,4})") {
            if let Ok(identity) = uri.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), uri);
            }
        }

        #[test]
        fn no_bytes_make_the_reading_of_a_certificate_panic(bytes: Vec<u8>, at in 0usize..4096, flip in 1u8..) {
            let _ = Identity::of_certificate(&bytes);
            let mut bent = certificate(&[uri("spiffe://a/weft/worker")]);
            let at = at % bent.len();
            bent[at] ^= flip;
            let _ = Identity::of_certificate(&bent);
            bent.truncate(at);
            let _ = Identity::of_certificate(&bent);
        }
    }
}
