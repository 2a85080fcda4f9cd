//! A server that shows a certificate and wants to see ours.

use crate::support::{A, connected, listen, message, next, settings, state};
use prometheus::Registry;
use std::path::{Path, PathBuf};
use weft_bus::{Heard, NatsSettings, State};
use weft_certificate_testkit::{Authority, Signed};
use weft_nats_testkit::NatsServer;

#[tokio::test(flavor = "multi_thread")]
async fn both_ends_show_certificates_and_strangers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, others) = (Authority::new(&folder.path().join("ours")), Authority::new(&folder.path().join("others")));
    let Signed { cert, key } = ours.sign("server", &["127.0.0.1"]);
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (cert, key, ca) = (text(&cert), text(&key), text(&ours.ca()));
    let server = NatsServer::start_with(&["--tlsverify", "--tlscert", &cert, "--tlskey", &key, "--tlscacert", &ca]);
    let with = |ca: PathBuf, files: Option<Signed>| {
        let (cert_file, key_file) = files.map(|files| (files.cert, files.key)).unzip();
        let url = format!("tls://127.0.0.1:{}", server.port());
        let settings = NatsSettings { ca_file: Some(ca), cert_file, key_file, ..settings(&url) };
        weft_bus::connect(settings, &Registry::new()).unwrap()
    };
    let bus = with(ours.ca(), Some(ours.sign("client", &["client"])));
    connected(&bus).await;
    let mut heard = listen(&bus, A, 4).await;
    bus.publish(A, message(1)).unwrap();
    assert_eq!(next(&mut heard).await, Heard::Message(message(1)));

    let refused = |state: &State| matches!(state, State::Away { why } if !why.contains("not yet connected"));
    // It cannot show that it is the server that we mean.
    let State::Away { why } = state(&with(others.ca(), Some(ours.sign("other", &["other"]))), refused).await else {
        panic!()
    };
    assert!(why.to_lowercase().contains("certificate") || why.contains("TLS"), "{why}");
    // We cannot show who we are, or not to it.
    state(&with(ours.ca(), None), refused).await;
    state(&with(ours.ca(), Some(others.sign("stranger", &["stranger"]))), refused).await;
}
