//! A server that shows a certificate and wants to see ours.

use crate::support::{A, connected, listen, message, next, settings, state};
use prometheus::Registry;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::path::{Path, PathBuf};
use weft_bus::{Heard, NatsSettings, State};
use weft_nats_testkit::NatsServer;

/// An authority, and files signed by it.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
}

impl Authority {
    fn new(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(folder.join("ca.pem"), certificate.pem()).unwrap();
        Self { issuer: Issuer::new(params, key), folder: folder.to_owned() }
    }

    fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Certificate and key for this host.
    fn sign(&self, name: &str, host: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = (self.folder.join(format!("{name}.pem")), self.folder.join(format!("{name}.key")));
        std::fs::write(&files.0, certificate.pem()).unwrap();
        std::fs::write(&files.1, key.serialize_pem()).unwrap();
        files
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_show_certificates_and_strangers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, others) = (Authority::new(&folder.path().join("ours")), Authority::new(&folder.path().join("others")));
    let (cert, key) = ours.sign("server", "127.0.0.1");
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (cert, key, ca) = (text(&cert), text(&key), text(&ours.ca()));
    let server = NatsServer::start_with(&["--tlsverify", "--tlscert", &cert, "--tlskey", &key, "--tlscacert", &ca]);
    let with = |ca: PathBuf, files: Option<(PathBuf, PathBuf)>| {
        let (cert_file, key_file) = files.unzip();
        let url = format!("tls://127.0.0.1:{}", server.port());
        let settings = NatsSettings { ca_file: Some(ca), cert_file, key_file, ..settings(&url) };
        weft_bus::connect(settings, &Registry::new()).unwrap()
    };
    let bus = with(ours.ca(), Some(ours.sign("client", "client")));
    connected(&bus).await;
    let mut heard = listen(&bus, A, 4).await;
    bus.publish(A, message(1)).unwrap();
    assert_eq!(next(&mut heard).await, Heard::Message(message(1)));

    let refused = |state: &State| matches!(state, State::Away { why } if !why.contains("not yet connected"));
    // It cannot show that it is the server that we mean.
    let State::Away { why } = state(&with(others.ca(), Some(ours.sign("other", "other"))), refused).await else {
        panic!()
    };
    assert!(why.to_lowercase().contains("certificate") || why.contains("TLS"), "{why}");
    // We cannot show who we are, or not to it.
    state(&with(ours.ca(), None), refused).await;
    state(&with(ours.ca(), Some(others.sign("stranger", "stranger"))), refused).await;
}
