//! Whom a certificate names: one URI, `spiffe://TRUST-DOMAIN/weft/SERVICE` or `spiffe://TRUST-DOMAIN/weft/SERVICE/INSTANCE`, among its
//! alternative names. An instance is the host at which the process is reached.
//!
//! A DNS name is no identity: it says where a service is, and any pod of a cluster may be given one.

use std::fmt;
use std::str::FromStr;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// What a trust domain may be long, as SPIFFE has it.
const TRUST_DOMAIN_BYTES_MAX: usize = 255;
/// What an instance may be long: a host name.
const INSTANCE_BYTES_MAX: usize = 253;
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

/// A service of a mesh, or one process of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Whose mesh: peers must have the same.
    pub trust_domain: String,
    /// Which of its services.
    pub service: Service,
    /// Which process of it: the host at which it is reached, a name or an IPv4 address in lower case, 1 to 253 bytes. None: any.
    pub instance: Option<String>,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/weft/{}", self.trust_domain, self.service)?;
        self.instance.as_ref().map_or(Ok(()), |instance| write!(f, "/{instance}"))
    }
}

/// A certificate that names no service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It cannot be parsed.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// It has no URI.
    #[error("the certificate has no URI spiffe://TRUST-DOMAIN/weft/SERVICE[/INSTANCE] among its alternative names")]
    Missing,
    /// It has several URIs.
    #[error("the certificate has {0} URIs among its alternative names, allowed is one")]
    Several(usize),
    /// The URI is another one.
    #[error(
        "the certificate names {0:?}, which is not spiffe://TRUST-DOMAIN/weft/SERVICE[/INSTANCE] with gateway, adapter-registry, worker or cache-daemon"
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
        let (name, instance) = name.split_once('/').map_or((name, None), |(name, instance)| (name, Some(instance)));
        let service = Service::ALL.into_iter().find(|service| service.as_str() == name).ok_or_else(foreign)?;
        let is_instance = |text: &str| {
            (1..=INSTANCE_BYTES_MAX).contains(&text.len())
                && text.bytes().all(is_domain_byte)
                // SPIFFE has no such segments: whoever resolves paths would read another identity.
                && !matches!(text, "." | "..")
        };
        if !instance.is_none_or(is_instance) {
            return Err(foreign());
        }
        Ok(Self { trust_domain: trust_domain.to_owned(), service, instance: instance.map(str::to_owned) })
    }
}

impl Identity {
    /// Any process of a service.
    pub(super) fn of_service(trust_domain: &str, service: Service) -> Self {
        Self { trust_domain: trust_domain.to_owned(), service, instance: None }
    }

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

    /// Whether this is who should be there; whoever expects no instance takes all.
    ///
    /// # Errors
    /// [`IdentityError::Other`].
    pub fn must_be(&self, expected: &Self) -> Result<(), IdentityError> {
        let is_instance = expected.instance.is_none() || self.instance == expected.instance;
        if self.trust_domain == expected.trust_domain && self.service == expected.service && is_instance {
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
        assert_eq!(good, Identity::of_service("prod.example", Service::CacheDaemon));
        for host in ["1", "10.1.2.3", "worker-1.pool_a.example", "...", &"x".repeat(INSTANCE_BYTES_MAX)] {
            let good: Identity = format!("spiffe://prod.example/weft/worker/{host}").parse().unwrap();
            assert_eq!((good.service, good.instance.as_deref()), (Service::Worker, Some(host)));
        }
        let long = format!("spiffe://prod.example/weft/worker/{}", "x".repeat(INSTANCE_BYTES_MAX + 1));
        assert!(long.parse::<Identity>().is_err());
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
            "spiffe://prod.example/weft/worker//",
            "spiffe://prod.example/weft/worker/.",
            "spiffe://prod.example/weft/worker/..",
            "spiffe://prod.example/weft/worker/1/",
            "spiffe://prod.example/weft/worker/1/2",
            "spiffe://prod.example/weft/worker/One",
            "spiffe://prod.example/weft/worker/1:7003",
            "spiffe://prod.example/weft/worker/%31",
            "spiffe://prod.example/weft//worker",
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
        // One process of a service is of that service; another process, and the service as such, are not that process.
        let one: Identity = "spiffe://a/weft/worker/one".parse().unwrap();
        assert!(one.must_be(&named).is_ok() && one.must_be(&one).is_ok());
        assert!(
            named.must_be(&one).is_err()
                && "spiffe://a/weft/worker/two".parse::<Identity>().unwrap().must_be(&one).is_err()
        );
    }

    proptest! {
        #[test]
        fn an_identity_is_read_as_it_is_written(
            domain in "[a-z0-9._-]{1,255}", service in 0usize..4, instance in proptest::option::of("[a-z0-9._-]{0,8}[a-z0-9]"),
        ) {
            let identity = Identity { trust_domain: domain, service: Service::ALL[service], instance };
            prop_assert_eq!(identity.to_string().parse(), Ok(identity));
        }

        #[test]
        fn whatever_is_accepted_is_the_canonical_text(uri in "(spiffe://)?[a-zA-Z0-9./%_-]{0,12}(/weft/)?(worker|gateway|[a-z/]{0,4})(/[a-z0-9A-Z.:_/-]{0,3})?") {
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
