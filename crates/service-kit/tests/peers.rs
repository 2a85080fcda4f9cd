//! Services that meet over TLS: who is let in, who is called, and what happens when the files change.

use hyper_util::rt::TokioIo;
use prometheus::Registry;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_rustls::{TlsConnector, rustls};
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};
use tower::{Service as _, ServiceExt};
use weft_certificate_testkit::{Authority, Signed};
use weft_service_kit::health::Health;
use weft_service_kit::readiness::Readiness;
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::transport::{Address, ListenError, Listener, Peers, Service, TlsSettings, server};

const GENERATE: &str = "/weft.worker.v1.Worker/Generate";
const ANNOUNCE: &str = "/weft.registry.v1.Registry/AnnounceBase";
const LEASE: &str = "/weft.cache.v1.CacheDaemon/Lease";
const READ_BLOB: &str = "/weft.cache.v1.CacheDaemon/ReadBlob";
const CREATE_KEY: &str = "/weft.registry.v1.Registry/CreateKey";
const CHECK: &str = "/grpc.health.v1.Health/Check";

fn of(authority: &Authority, service: Service) -> Signed {
    authority.sign(service.as_str(), &[&format!("spiffe://test/weft/{service}")])
}

fn settings(ca: &Path, signed: &Signed) -> TlsSettings {
    TlsSettings {
        cert_file: Some(signed.cert.clone()),
        key_file: Some(signed.key.clone()),
        ca_file: Some(ca.to_owned()),
        insecure_network: false,
    }
}

/// One process of the mesh.
struct Party {
    peers: Peers,
    metrics: Registry,
}

impl Party {
    fn new(service: Service, settings: TlsSettings) -> Self {
        let metrics = Registry::new();
        Self { peers: Peers::new(service, settings, &metrics).unwrap(), metrics }
    }

    fn of(authority: &Authority, service: Service) -> Self {
        Self::new(service, settings(&authority.ca(), &of(authority, service)))
    }

    /// Serves health, and nothing else.
    async fn serve(&self) -> Address {
        let listener = self.peers.listen(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
        serve(listener)
    }

    fn count(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let families = self.metrics.gather();
        let metrics = families.iter().filter(|family| family.name() == name).flat_map(|family| family.get_metric());
        let mut found = metrics.filter(|metric| {
            let pairs = metric.get_label();
            labels.iter().all(|(name, value)| pairs.iter().any(|pair| pair.name() == *name && pair.value() == *value))
        });
        found.next().map_or(0.0, |metric| metric.get_counter().get_value())
    }

    async fn until_counted(&self, name: &str, labels: &[(&str, &str)]) {
        while self.count(name, labels) == 0.0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn serve(listener: Listener) -> Address {
    let address = listener.local_addr().unwrap().to_string();
    let health = Health::new(&Shutdown::new()).report("", &Readiness::new());
    let serving = server().add_service(health.into_server()).serve_with_incoming(listener.incoming());
    tokio::spawn(async move { serving.await.unwrap() });
    address.parse().unwrap()
}

/// What the other end says to this call. Methods that it does not have are `Unimplemented` to whoever is let in.
async fn call(channel: &Channel, path: &str) -> Status {
    let request = http::Request::post(format!("http://x{path}")).header("content-type", "application/grpc");
    // An empty message.
    let body = Body::new(axum::body::Body::from(vec![0; 5]));
    let mut channel = channel.clone();
    let answered = async { channel.ready().await?.call(request.body(body).unwrap()).await };
    match answered.await {
        Err(error) => Status::from_error(error.into()),
        Ok(response) => {
            let headers = response.headers().clone();
            Status::from_header_map(&headers).unwrap_or_else(|| Status::ok(""))
        }
    }
}

async fn code(caller: &Party, address: &Address, to: Service, path: &str) -> Code {
    call(&caller.peers.connect(address, to).unwrap(), path).await.code()
}

#[tokio::test]
async fn a_service_answers_those_who_may_call_it_and_tells_others_that_they_may_not() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let [gateway, registry, worker, daemon] = Service::ALL.map(|service| Party::of(&authority, service));
    let (at_worker, at_registry) = (worker.serve().await, registry.serve().await);

    assert_eq!(code(&gateway, &at_worker, Service::Worker, GENERATE).await, Code::Unimplemented);
    assert_eq!(code(&worker, &at_registry, Service::Registry, ANNOUNCE).await, Code::Unimplemented);
    assert_eq!(worker.count("peer_refusals_total", &[]), 0.0);
    for stranger in [&registry, &worker, &daemon] {
        let said = call(&stranger.peers.connect(&at_worker, Service::Worker).unwrap(), GENERATE).await;
        assert_eq!(said.code(), Code::PermissionDenied);
        assert!(said.message().contains("may not call /weft.worker.v1.Worker/Generate of the worker"), "{said}");
        assert_eq!(code(stranger, &at_worker, Service::Worker, CHECK).await, Code::Ok);
    }
    assert_eq!(worker.count("peer_refusals_total", &[("side", "caller"), ("why", "call")]), 3.0);
    // A worker may announce its base, and cannot make itself a key.
    assert_eq!(code(&worker, &at_registry, Service::Registry, CREATE_KEY).await, Code::PermissionDenied);
    // A neighbour reads blobs, and a worker leases them.
    let at_daemon = daemon.serve().await;
    for (caller, allowed, refused) in [(&daemon, READ_BLOB, LEASE), (&worker, LEASE, READ_BLOB)] {
        assert_eq!(code(caller, &at_daemon, Service::CacheDaemon, allowed).await, Code::Unimplemented);
        assert_eq!(code(caller, &at_daemon, Service::CacheDaemon, refused).await, Code::PermissionDenied);
    }
}

#[tokio::test]
async fn a_server_is_not_spoken_to_unless_it_is_the_service_that_is_meant() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, others) = (Authority::new(&folder.path().join("ours")), Authority::new(&folder.path().join("others")));
    let gateway = Party::of(&ours, Service::Gateway);
    let daemon = Party::of(&ours, Service::CacheDaemon).serve().await;
    let said = call(&gateway.peers.connect(&daemon, Service::Worker).unwrap(), GENERATE).await;
    assert_eq!(said.code(), Code::Unavailable);
    let (named, meant) = ("spiffe://test/weft/cache-daemon", "spiffe://test/weft/worker");
    assert!(said.message().contains(named) && said.message().contains(meant), "{said}");
    assert_eq!(gateway.count("peer_refusals_total", &[("side", "server"), ("why", "identity")]), 1.0);

    // The right name, signed by somebody else.
    let foreign = Party::of(&others, Service::Worker).serve().await;
    assert_eq!(code(&gateway, &foreign, Service::Worker, GENERATE).await, Code::Unavailable);
    assert_eq!(gateway.count("peer_refusals_total", &[("side", "server"), ("why", "handshake")]), 1.0);
    // No TLS at all.
    let plain = serve(Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap());
    assert_eq!(code(&gateway, &plain, Service::Worker, GENERATE).await, Code::Unavailable);
    // A worker of another mesh of the same authority.
    let elsewhere = ours.sign("elsewhere", &["spiffe://elsewhere/weft/worker"]);
    let elsewhere = Party::new(Service::Worker, settings(&ours.ca(), &elsewhere));
    let at = elsewhere.serve().await;
    assert_eq!(code(&gateway, &at, Service::Worker, GENERATE).await, Code::Unavailable);
}

/// A client that trusts `ca`, looks for the name `localhost` as browsers do, and shows what it is given.
fn stranger(address: &Address, ca: &Path, shows: Option<&Signed>) -> Channel {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    let config = config.unwrap().with_root_certificates(roots);
    let mut config = match shows {
        None => config.with_no_client_auth(),
        Some(Signed { cert, key }) => {
            let chain = vec![CertificateDer::from_pem_file(cert).unwrap()];
            config.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(key).unwrap()).unwrap()
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let Address::Tcp(host_port) = address.clone() else { panic!() };
    Endpoint::from_static("http://x").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (connector, host_port) = (connector.clone(), host_port.clone());
        async move {
            let stream = TcpStream::connect(host_port).await?;
            connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.map(TokioIo::new)
        }
    }))
}

#[tokio::test]
async fn callers_without_a_certificate_of_the_mesh_are_refused_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, others) = (Authority::new(&folder.path().join("ours")), Authority::new(&folder.path().join("others")));
    let name = ours.sign("worker", &["spiffe://test/weft/worker", "localhost"]);
    let worker = Party::new(Service::Worker, settings(&ours.ca(), &name));
    let at = worker.serve().await;
    let handshake = [("side", "caller"), ("why", "handshake")];

    let nobody = call(&stranger(&at, &ours.ca(), None), GENERATE).await;
    assert!(!matches!(nobody.code(), Code::Ok | Code::Unimplemented | Code::PermissionDenied), "{nobody}");
    assert_eq!(worker.count("peer_refusals_total", &handshake), 1.0);

    // Trusts ours, is signed by others: a file of both authorities makes that possible.
    let both = folder.path().join("both.pem");
    let pem = |authority: &Authority| std::fs::read_to_string(authority.ca()).unwrap();
    std::fs::write(&both, pem(&ours) + &pem(&others)).unwrap();
    let foreign = Party::new(Service::Gateway, settings(&both, &of(&others, Service::Gateway)));
    assert_ne!(code(&foreign, &at, Service::Worker, GENERATE).await, Code::Unimplemented);
    assert_eq!(worker.count("peer_refusals_total", &handshake), 2.0);
    // In the clear.
    let plain = weft_service_kit::transport::connect(&at);
    assert_ne!(call(&plain, GENERATE).await.code(), Code::Unimplemented);

    // Of our authority, but of another mesh, of no service, of two.
    let (elsewhere, gateway) = ("spiffe://elsewhere/weft/gateway", "spiffe://test/weft/gateway");
    for (names, why) in [
        (&[elsewhere][..], "names spiffe://elsewhere/weft/gateway, expected is spiffe://test/weft/gateway"),
        (&["gateway.example"], "has no URI"),
        (&["https://test/weft/gateway"], "is not spiffe://"),
        (&[gateway, elsewhere], "has 2 URIs"),
    ] {
        let said = call(&stranger(&at, &ours.ca(), Some(&ours.sign("stranger", names))), GENERATE).await;
        assert!(said.code() == Code::PermissionDenied && said.message().contains(why), "{names:?}: {said}");
    }
    assert_eq!(worker.count("peer_refusals_total", &[("side", "caller"), ("why", "identity")]), 4.0);
    let sound = stranger(&at, &ours.ca(), Some(&ours.sign("sound", &[gateway])));
    assert_eq!(call(&sound, GENERATE).await.code(), Code::Unimplemented);
}

#[tokio::test]
async fn new_files_are_used_for_new_connections_and_broken_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let gateway = Party::of(&authority, Service::Gateway);
    let signed = of(&authority, Service::Worker);
    let worker = Party::new(Service::Worker, settings(&authority.ca(), &signed));
    let at = worker.serve().await;
    let reads = |outcome| worker.count("peer_certificate_reads_total", &[("outcome", outcome)]);
    let running = gateway.peers.connect(&at, Service::Worker).unwrap();
    assert_eq!(call(&running, GENERATE).await.code(), Code::Unimplemented);
    assert_eq!((reads("ok"), reads("failed")), (0.0, 0.0));

    // Half of a new pair: the old one goes on, and it is looked at once.
    let key = std::fs::read(&signed.key).unwrap();
    std::fs::write(&signed.key, "no key").unwrap();
    for _ in 0..2 {
        assert_eq!(code(&gateway, &at, Service::Worker, GENERATE).await, Code::Unimplemented);
    }
    assert_eq!((reads("ok"), reads("failed")), (0.0, 1.0));
    std::fs::remove_file(&signed.key).unwrap();
    assert_eq!(code(&gateway, &at, Service::Worker, GENERATE).await, Code::Unimplemented);
    assert_eq!((reads("ok"), reads("failed")), (0.0, 2.0));
    std::fs::write(&signed.key, key).unwrap();
    assert_eq!(code(&gateway, &at, Service::Worker, GENERATE).await, Code::Unimplemented);
    assert_eq!((reads("ok"), reads("failed")), (1.0, 2.0));

    // A new certificate of a new authority, which the gateway does not know yet.
    let next = Authority::new(&folder.path().join("next"));
    let of_next = of(&next, Service::Worker);
    std::fs::rename(&of_next.cert, &signed.cert).unwrap();
    std::fs::rename(&of_next.key, &signed.key).unwrap();
    let both = [authority.ca(), next.ca()].map(|ca| std::fs::read_to_string(ca).unwrap()).concat();
    let old_ca = folder.path().join("old-ca.pem");
    std::fs::copy(authority.ca(), &old_ca).unwrap();
    std::fs::write(authority.ca(), &both).unwrap();
    let of_old = Party::new(Service::Gateway, settings(&old_ca, &of(&authority, Service::Gateway)));
    assert_eq!(code(&of_old, &at, Service::Worker, GENERATE).await, Code::Unavailable);
    // The one that reads the same file of authorities does.
    assert_eq!(code(&gateway, &at, Service::Worker, GENERATE).await, Code::Unimplemented);
    // What was open before goes on.
    assert_eq!(call(&running, GENERATE).await.code(), Code::Unimplemented);
}

#[test]
fn files_that_cannot_be_used_are_named_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, others) = (Authority::new(&folder.path().join("ours")), Authority::new(&folder.path().join("others")));
    let good = settings(&ours.ca(), &of(&ours, Service::Worker));
    let problem = |service, settings| Peers::new(service, settings, &Registry::new()).err().unwrap_or_default();
    assert_eq!(problem(Service::Worker, good.clone()), "");
    let nameless = problem(Service::Worker, settings(&ours.ca(), &ours.sign("nameless", &["worker.example"])));
    assert!(nameless.starts_with("tls_cert_file") && nameless.contains("has no URI"), "{nameless}");
    let gateways = problem(Service::Gateway, good.clone());
    assert!(gateways.contains("names spiffe://test/weft/worker, but this is the gateway"), "{gateways}");
    let other = of(&others, Service::Worker);
    let wrong_key = problem(Service::Worker, TlsSettings { key_file: Some(other.key.clone()), ..good.clone() });
    assert!(wrong_key.starts_with("tls_key_file") && wrong_key.contains("does not go with"), "{wrong_key}");
    let wrong_ca = problem(Service::Worker, TlsSettings { ca_file: Some(others.ca()), ..good.clone() });
    assert!(wrong_ca.starts_with("tls_cert_file") && wrong_ca.contains("is not trusted by tls_ca_file"), "{wrong_ca}");
    let missing = problem(Service::Worker, TlsSettings { ca_file: Some("/nowhere/ca.pem".into()), ..good.clone() });
    assert!(missing.starts_with("tls_ca_file /nowhere/ca.pem"), "{missing}");
    let no_pem = problem(Service::Worker, TlsSettings { cert_file: Some(other.key), ..good.clone() });
    assert!(no_pem.contains("has no certificate in PEM"), "{no_pem}");
    let year = Duration::from_secs(365 * 24 * 3600);
    let expired = ours.sign_for("expired", &["spiffe://test/weft/worker"], |params| {
        (params.not_before, params.not_after) =
            ((SystemTime::now() - 2 * year).into(), (SystemTime::now() - year).into());
    });
    let expired = problem(Service::Worker, settings(&ours.ca(), &expired));
    assert!(expired.contains("is not trusted") && expired.to_lowercase().contains("expired"), "{expired}");
}

#[tokio::test]
async fn without_tls_nothing_goes_beyond_this_machine_unless_that_is_asked_for() {
    let party = |insecure_network| Party::new(Service::Worker, TlsSettings { insecure_network, ..Default::default() });
    let (careful, careless) = (party(false), party(true));
    let everywhere: Address = "0.0.0.0:0".parse().unwrap();
    let Err(error) = careful.peers.listen(&everywhere).await else { panic!("it listens") };
    assert!(matches!(error, ListenError::Plaintext(_)) && error.to_string().contains("--insecure-network"), "{error}");
    assert!(careless.peers.listen(&everywhere).await.is_ok());
    assert!(careful.peers.listen(&"127.0.0.1:0".parse().unwrap()).await.is_ok());
    let far: Address = "worker.example:7003".parse().unwrap();
    let refused = careful.peers.connect(&far, Service::CacheDaemon).unwrap_err().to_string();
    assert!(refused.contains("worker.example") && refused.contains("tls_cert_file"), "{refused}");
    assert!(careless.peers.connect(&far, Service::CacheDaemon).is_ok());
    // A channel that nobody checked does not get there either.
    let said = call(&weft_service_kit::transport::connect(&far), GENERATE).await;
    assert!(said.message().contains("is beyond this machine"), "{said}");

    // What was heard of is counted.
    assert!(careful.peers.connect_heard("127.0.0.1:1", Service::Worker).is_ok());
    assert!(careful.peers.connect_heard("unix:/run/worker", Service::Worker).is_ok());
    for address in ["10.0.0.7:7003", "worker.example:7003", "nonsense"] {
        assert!(careful.peers.connect_heard(address, Service::Worker).is_err(), "{address}");
    }
    // The last is no address at all.
    assert_eq!(careful.count("peer_refusals_total", &[("side", "server"), ("why", "plaintext")]), 2.0);
}

#[tokio::test]
async fn with_tls_nobody_is_called_at_a_socket_that_was_only_heard_of() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let gateway = Party::of(&authority, Service::Gateway);
    assert!(gateway.peers.connect_heard("10.0.0.7:7003", Service::Worker).is_ok());
    let refused = gateway.peers.connect_heard("unix:/tmp/mine", Service::Worker).unwrap_err();
    assert!(refused.contains("unix:/tmp/mine"), "{refused}");
    // One that a setting names is of this machine.
    let socket = Address::Unix(folder.path().join("socket"));
    let listener = Party::of(&authority, Service::Worker).peers.listen(&socket).await.unwrap();
    let health = Health::new(&Shutdown::new()).report("", &Readiness::new());
    tokio::spawn(server().add_service(health.into_server()).serve_with_incoming(listener.incoming()));
    assert_eq!(code(&gateway, &socket, Service::Worker, GENERATE).await, Code::Unimplemented);
}

#[tokio::test]
async fn a_peer_that_accepts_and_says_nothing_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let frozen = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at: Address = frozen.local_addr().unwrap().to_string().parse().unwrap();
    let accepted = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = frozen.accept().await {
            held.push(stream);
        }
    });
    // The handshake has its time; without one the call would hang for ever.
    let said =
        call(&Party::of(&authority, Service::Gateway).peers.connect(&at, Service::Worker).unwrap(), GENERATE).await;
    assert!(said.code() == Code::Unavailable && said.message().contains("did not finish a handshake"), "{said}");
    accepted.abort();

    // And so has a caller that connects and says nothing: others come in meanwhile, and it is counted.
    let worker = Party::of(&authority, Service::Worker);
    let at = worker.serve().await;
    let Address::Tcp(host_port) = &at else { panic!() };
    let _silent = TcpStream::connect(host_port).await.unwrap();
    let gateway = Party::of(&authority, Service::Gateway);
    assert_eq!(code(&gateway, &at, Service::Worker, GENERATE).await, Code::Unimplemented);
    worker.until_counted("peer_refusals_total", &[("side", "caller"), ("why", "handshake")]).await;
}

#[tokio::test]
async fn the_documented_commands_make_certificates_that_every_service_takes() {
    let documentation = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/security.md");
    let text = std::fs::read_to_string(documentation).unwrap();
    let script = text.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a block of commands");
    let folder = tempfile::tempdir().unwrap();
    let made = std::process::Command::new("bash").args(["-ec", script]).current_dir(&folder).output().unwrap();
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "the commands need openssl (apt-get install openssl): {said}");
    let [gateway, registry, worker, daemon] = Service::ALL.map(|service| {
        let file = |ending: &str| folder.path().join(format!("{service}.{ending}"));
        Party::new(
            service,
            settings(&file("x").with_file_name("ca.pem"), &Signed { cert: file("pem"), key: file("key") }),
        )
    });
    for (caller, callee, service) in [
        (&gateway, &worker, Service::Worker),
        (&worker, &daemon, Service::CacheDaemon),
        (&gateway, &registry, Service::Registry),
    ] {
        let path = if service == Service::CacheDaemon { LEASE } else { GENERATE };
        assert_eq!(code(caller, &callee.serve().await, service, path).await, Code::Unimplemented);
    }
}
