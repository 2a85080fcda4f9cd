//! Our certificate, its key and the authorities of the mesh: read from files, and again when the files have changed.
//!
//! Nothing watches the files. They are looked at for each new connection; those that are open go on as they began.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::version::TLS13;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::peer_metrics::PeerMetrics;
use super::verify::{PeerVerifier, check_chain};
use super::{Identity, Service};

/// HTTP/2, which is what gRPC speaks.
const ALPN: &[u8] = b"h2";
/// Of each file; a bundle of all public authorities has a quarter of that.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where they are.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
    pub(super) ca: PathBuf,
}

/// What tells one content of a file from another without reading it; none: it is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp(Option<(u64, u64, u64, i64, i64, i64, i64)>);

impl Stamp {
    /// Follows links: a mounted secret is replaced by turning one.
    fn of(path: &Path) -> Self {
        let facts = |meta: std::fs::Metadata| {
            (meta.dev(), meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec())
        };
        Self(std::fs::metadata(path).ok().map(facts))
    }
}

impl Files {
    fn stamps(&self) -> [Stamp; 3] {
        [Stamp::of(&self.cert), Stamp::of(&self.key), Stamp::of(&self.ca)]
    }
}

/// One reading of the files. Never changes.
pub(super) struct Material {
    pub(super) identity: Identity,
    pub(super) server: Arc<ServerConfig>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
    expires_unix: i64,
}

impl Material {
    /// For a connection to this service of our mesh.
    pub(super) fn client(&self, to: Service) -> Result<ClientConfig, String> {
        let expected = Identity::of_service(&self.identity.trust_domain, to);
        let verifier = PeerVerifier::new(Arc::clone(&self.roots), expected, provider());
        let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]);
        let mut config = builder
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| error.to_string())?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Each connection shows its certificate: a resumed one would stand for an earlier one.
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    fn read(files: &Files, us: Service) -> Result<Self, String> {
        let chain = certificates("tls_cert_file", &files.cert)?;
        let wrong = |name: &str, path: &Path, problem: String| format!("{name} {}: {problem}", path.display());
        let of_chain = |problem: String| wrong("tls_cert_file", &files.cert, problem);
        let key = contents("tls_key_file", &files.key)?;
        let of_key = |problem: String| wrong("tls_key_file", &files.key, problem);
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| of_key(error.to_string()))?;

        let mut roots = RootCertStore::empty();
        for authority in certificates("tls_ca_file", &files.ca)? {
            roots.add(authority).map_err(|error| wrong("tls_ca_file", &files.ca, error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let identity = Identity::of_certificate(&chain[0]).map_err(|error| of_chain(error.to_string()))?;
        if identity.service != us {
            return Err(of_chain(format!("names {identity}, but this is the {us}")));
        }
        let untrusted = |error| of_chain(format!("is not trusted by tls_ca_file {}: {error}", files.ca.display()));
        check_chain(&chain[0], &chain[1..], &roots, &provider()).map_err(untrusted)?;

        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider());
        let clients = clients.build().map_err(|error| wrong("tls_ca_file", &files.ca, error.to_string()))?;
        let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13]);
        let mut server = builder
            .map_err(|error| error.to_string())?
            .with_client_cert_verifier(clients)
            .with_single_cert(chain.clone(), key.clone_key())
            .map_err(|error| of_key(format!("does not go with tls_cert_file: {error}")))?;
        server.alpn_protocols = vec![ALPN.to_vec()];
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        let expires_unix = X509Certificate::from_der(&chain[0])
            .map(|(_, certificate)| certificate.validity().not_after.timestamp())
            .map_err(|error| of_chain(error.to_string()))?;
        Ok(Self { identity, server: Arc::new(server), chain, key, roots, expires_unix })
    }
}

/// The one that is used everywhere here.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn contents(name: &str, path: &Path) -> Result<Vec<u8>, String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("{name} {}: {error}", path.display()))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("{name} {}: has more than {FILE_BYTES_MAX} bytes", path.display()));
    }
    Ok(bytes)
}

/// The certificates of a PEM file; at least one.
fn certificates(name: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let bytes = contents(name, path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match all {
        Ok(all) if all.is_empty() => Err(format!("{name} {}: has no certificate in PEM", path.display())),
        Ok(all) => Ok(all),
        Err(error) => Err(format!("{name} {}: {error}", path.display())),
    }
}

/// The files, and what they last said.
pub(super) struct Certificates {
    files: Files,
    us: Service,
    metrics: PeerMetrics,
    current: Mutex<Current>,
}

struct Current {
    stamps: [Stamp; 3],
    material: Arc<Material>,
}

impl Certificates {
    /// Reads the files of the service that we are.
    pub(super) fn open(files: Files, us: Service, metrics: PeerMetrics) -> Result<Self, String> {
        let stamps = files.stamps();
        let material = Arc::new(Material::read(&files, us)?);
        metrics.expires.set(material.expires_unix);
        Ok(Self { files, us, metrics, current: Mutex::new(Current { stamps, material }) })
    }

    /// What the files say now, or, if that cannot be used, what they said before. Blocks: looks at three files, and reads them if
    /// they have changed.
    pub(super) fn current(&self) -> Arc<Material> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the contents: a file that changes while it is read has another stamp at the next look.
        let stamps = self.files.stamps();
        if stamps != current.stamps {
            current.stamps = stamps;
            let read = Material::read(&self.files, self.us);
            self.metrics.read(read.is_ok());
            match read {
                Ok(material) => {
                    tracing::info!(identity = %material.identity, expires_unix = material.expires_unix, "read new certificates");
                    self.metrics.expires.set(material.expires_unix);
                    current.material = Arc::new(material);
                }
                Err(problem) => {
                    tracing::error!(problem, "the changed certificates cannot be used; the ones before stay")
                }
            }
        }
        Arc::clone(&current.material)
    }
}
