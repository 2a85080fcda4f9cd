//! Certificate authorities for tests: made on the spot, so that nothing in the repository expires.
//!
//! Everything here panics when it fails: it is for tests alone.

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, SanType};
use std::path::{Path, PathBuf};

/// An authority, with its certificate and what it signs as PEM files in a folder.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
}

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// A new authority; the folder is made.
    ///
    /// # Panics
    /// The folder cannot be written.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).expect("a folder for certificates");
        let mut params = CertificateParams::new(Vec::new()).expect("no names are valid names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name = named("authority");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate of its own");
        std::fs::write(folder.join("ca.pem"), certificate.pem()).expect("ca.pem can be written");
        Self { issuer: Issuer::new(params, key), folder: folder.to_owned() }
    }

    /// Its certificate.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// A certificate with these alternative names: URIs, IP addresses or host names. A second one of the same `name` replaces the first.
    ///
    /// # Panics
    /// A name is none of these, or the files cannot be written.
    #[must_use]
    pub fn sign(&self, name: &str, alternative_names: &[&str]) -> Signed {
        self.sign_for(name, alternative_names, |_| {})
    }

    /// The same with further changes: times, uses.
    ///
    /// # Panics
    /// As [`Authority::sign`].
    #[must_use]
    pub fn sign_for(
        &self,
        name: &str,
        alternative_names: &[&str],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Signed {
        let key = KeyPair::generate().expect("a key");
        let (uris, others): (Vec<&str>, Vec<&str>) = alternative_names.iter().partition(|name| name.contains("://"));
        let others: Vec<String> = others.into_iter().map(str::to_owned).collect();
        let mut params = CertificateParams::new(others).expect("host names and addresses");
        params.subject_alt_names.extend(uris.into_iter().map(|uri| SanType::URI(uri.try_into().expect("a URI"))));
        params.distinguished_name = named(name);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).expect("a signature");
        let signed =
            Signed { cert: self.folder.join(format!("{name}.pem")), key: self.folder.join(format!("{name}.key")) };
        std::fs::write(&signed.cert, certificate.pem()).expect("the certificate can be written");
        std::fs::write(&signed.key, key.serialize_pem()).expect("the key can be written");
        signed
    }
}

/// Of two certificates with one name OpenSSL takes the one for the other's issuer.
fn named(name: &str) -> DistinguishedName {
    let mut named = DistinguishedName::new();
    named.push(DnType::CommonName, name);
    named
}
