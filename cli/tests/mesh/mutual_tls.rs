//! The four binaries over TCP with certificates: they serve each other, and nobody else.

use crate::support::process::{Started, binary, until};
use crate::support::{ADMIN_KEY, Reply, post, tiny_adapter, tiny_model};
use prost::Message;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tonic::{Code, Request, Status};
use weft_bus::{Bus, NatsSettings, State, subjects};
use weft_certificate_testkit::{Authority, Signed};
use weft_cli::client::Admin;
use weft_nats_testkit::NatsServer;
use weft_object_store::{EmbeddedS3, ObjectStore, S3Store, keys};
use weft_proto::cache::v1 as cache;
use weft_proto::cache::v1::cache_daemon_client::CacheDaemonClient;
use weft_proto::mesh::v1::WorkerHeartbeat;
use weft_proto::registry::v1 as registry;
use weft_proto::registry::v1::registry_client::RegistryClient;
use weft_proto::worker::v1 as worker;
use weft_proto::worker::v1::worker_client::WorkerClient;
use weft_service_kit::health::Health;
use weft_service_kit::readiness::Readiness;
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::transport::{Peers, Service, TlsSettings, server};
use weft_types::Digest;

fn sign(authority: &Authority, service: Service) -> Signed {
    authority.sign(service.as_str(), &[&format!("spiffe://test/weft/{service}")])
}

fn tls(ca: &Path, signed: &Signed) -> TlsSettings {
    let (cert_file, key_file) = (Some(signed.cert.clone()), Some(signed.key.clone()));
    TlsSettings { cert_file, key_file, ca_file: Some(ca.to_owned()), insecure_network: false }
}

fn peers(service: Service, settings: TlsSettings) -> Peers {
    Peers::new(service, settings, &prometheus::Registry::new()).unwrap()
}

async fn bus(url: &str) -> Arc<dyn Bus> {
    let settings = NatsSettings { url: url.to_owned(), subject_prefix: "weft".to_owned(), ..Default::default() };
    let bus = weft_bus::connect(settings, &prometheus::Registry::new()).unwrap();
    bus.state().wait_for(|state| *state == State::Connected).await.unwrap();
    bus
}

struct Mesh {
    dir: tempfile::TempDir,
    authority: Authority,
    s3: EmbeddedS3,
    nats: NatsServer,
    processes: BTreeMap<&'static str, Started>,
}

struct Gateway {
    data: String,
    admin_url: String,
}

impl Gateway {
    fn of(started: &Started) -> Self {
        let url = |what: &str| format!("http://{}", started.says[what]);
        Self { data: url("listening on"), admin_url: url("admin listening on") }
    }

    fn admin(&self) -> Admin {
        Admin::new(&self.admin_url, ADMIN_KEY)
    }

    async fn ask(&self, secret: &str, model: &str) -> Reply {
        let body = json!({ "model": model, "prompt": [65, 66], "max_tokens": 4, "temperature": 0 });
        post(&format!("{}/v1/completions", self.data), secret, body).await
    }

    async fn until_answered(&self, secret: &str, model: &str) -> Reply {
        until(&format!("answered by {model}"), async || {
            let reply = self.ask(secret, model).await;
            (reply.status == 200).then_some(reply)
        })
        .await
    }

    async fn workers(&self) -> Vec<Value> {
        self.admin().get("workers").await.unwrap()["workers"].as_array().unwrap().clone()
    }

    /// Waits until a worker at this address has a problem with these words.
    async fn until_problem(&self, address: &str, words: &str) {
        until(words, async || {
            let workers = self.workers().await;
            let worker = workers.iter().find(|worker| worker["address"] == address)?;
            assert_ne!(worker["up"], true, "{worker}");
            worker["problem"].as_str()?.contains(words).then_some(())
        })
        .await;
    }
}

impl Mesh {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let s3 = EmbeddedS3::start(&dir.path().join("s3"), "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let authority = Authority::new(&dir.path().join("tls"));
        Self { dir, authority, s3, nats: NatsServer::start(), processes: BTreeMap::new() }
    }

    fn launch(&mut self, name: &'static str, program: &str, tls: &TlsSettings, flags: &[(&'static str, String)]) {
        let path = |file: &Option<std::path::PathBuf>| file.as_ref().unwrap().display().to_string();
        let names = |name| flags.iter().any(|(flag, _)| *flag == name);
        let mut all = vec![
            ("nats-url", self.nats.url()),
            ("tls-cert-file", path(&tls.cert_file)),
            ("tls-key-file", path(&tls.key_file)),
            ("tls-ca-file", path(&tls.ca_file)),
        ];
        all.extend_from_slice(flags);
        if !names("listen") {
            all.push(("listen", "127.0.0.1:0".to_owned()));
        }
        let lines = if names("neighbours-listen") { 3 } else { 2 };
        let log = self.dir.path().join(format!("{name}.log"));
        self.processes.insert(name, Started::new(program, &all, lines, &log));
    }

    fn launch_signed(&mut self, program: &'static str, service: Service, flags: &[(&'static str, String)]) {
        let tls = tls(&self.authority.ca(), &sign(&self.authority, service));
        let mut all = vec![("metrics-listen", "127.0.0.1:0".to_owned())];
        all.extend_from_slice(flags);
        self.launch(program, program, &tls, &all);
    }

    fn gateway(&mut self, name: &'static str, tls: &TlsSettings, flags: &[(&'static str, String)]) -> Gateway {
        let mut all = vec![
            ("admin-listen", "127.0.0.1:0".to_owned()),
            ("admin-key", ADMIN_KEY.to_owned()),
            ("registry", self.at("weft-adapter-registry")),
            ("worker-poll-ms", "200".to_owned()),
        ];
        all.extend_from_slice(flags);
        self.launch(name, "weft-gateway", tls, &all);
        Gateway::of(&self.processes[name])
    }

    fn s3_flags(&self) -> [(&'static str, String); 5] {
        let store = self.s3.settings("weft");
        [
            ("s3-endpoint", store.endpoint.unwrap()),
            ("s3-bucket", store.bucket),
            ("s3-region", store.region),
            ("s3-access-key-id", store.access_key_id.unwrap()),
            ("s3-secret-access-key", store.secret_access_key.unwrap()),
        ]
    }

    /// A cache daemon with a socket for workers and a port for neighbours, as on a node of its own.
    fn launch_daemon_on_socket(&mut self, name: &'static str, tls: &TlsSettings) {
        let folder = self.dir.path().join(format!("of-{name}"));
        std::fs::create_dir(&folder).unwrap();
        let own = [
            ("listen", format!("unix:{}", folder.join("socket").display())),
            ("neighbours-listen", "127.0.0.1:0".to_owned()),
            ("metrics-listen", "127.0.0.1:0".to_owned()),
            ("residency-interval-ms", "200".to_owned()),
            // Patient with a neighbour on a slow machine.
            ("neighbour-first-byte-timeout-ms", "60000".to_owned()),
            ("dir", folder.join("cache").display().to_string()),
        ];
        let flags = [&self.s3_flags()[..], &own].concat();
        self.launch(name, "weft-cache-daemon", tls, &flags);
    }

    /// Registry, cache daemon and worker, signed by the authority.
    fn launch_inner(&mut self) {
        let s3 = self.s3_flags();
        self.launch_signed("weft-adapter-registry", Service::Registry, &s3);
        let dir = ("dir", self.dir.path().join("cache").display().to_string());
        self.launch_signed("weft-cache-daemon", Service::CacheDaemon, &[&s3[..], &[dir]].concat());
        let flags = [
            ("model", tiny_model().display().to_string()),
            ("dtype", "f32".to_owned()),
            ("threads", "1".to_owned()),
            ("heartbeat-interval-ms", "200".to_owned()),
            ("cache", self.at("weft-cache-daemon")),
            ("registry", self.at("weft-adapter-registry")),
        ];
        self.launch_signed("weft-worker", Service::Worker, &flags);
    }

    fn at(&self, name: &str) -> String {
        self.processes[name].says["listening on"].clone()
    }

    async fn metric(&self, name: &str, metric: &str, labels: &[&str]) -> f64 {
        let text = reqwest::get(format!("{}/metrics", self.processes[name].metrics_url())).await.unwrap();
        let text = text.text().await.unwrap();
        let is_meant = |line: &&str| line.starts_with(metric) && labels.iter().all(|label| line.contains(label));
        let line = text.lines().find(is_meant);
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    async fn refusals(&self, name: &str, why: &str) -> f64 {
        self.metric(name, "peer_refusals_total", &[why]).await
    }

    async fn stop(self) {
        drop(self.processes);
        self.s3.stop().await;
    }
}

async fn generate(peers: &Peers, address: &str) -> Status {
    let channel = peers.connect(&address.parse().unwrap(), Service::Worker).unwrap();
    let request = worker::GenerateRequest { tenant: "harbour".to_owned(), ..Default::default() };
    WorkerClient::new(channel).generate(request).await.err().unwrap_or_else(|| Status::ok(""))
}

async fn list(peers: &Peers, address: &str) -> Status {
    let channel = peers.connect(&address.parse().unwrap(), Service::CacheDaemon).unwrap();
    let answer = CacheDaemonClient::new(channel).list_residency(cache::ListResidencyRequest {}).await;
    answer.err().unwrap_or_else(|| Status::ok(""))
}

async fn make_key(peers: &Peers, address: &str) -> Status {
    let channel = peers.connect(&address.parse().unwrap(), Service::Registry).unwrap();
    let request = registry::CreateKeyRequest { tenant: "harbour".to_owned(), ..Default::default() };
    RegistryClient::new(channel).create_key(request).await.err().unwrap_or_else(|| Status::ok(""))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_passes_all_four_binaries_and_strangers_pass_none() {
    let mut mesh = Mesh::new().await;
    mesh.launch_inner();
    let signed = sign(&mesh.authority, Service::Gateway);
    let ca = mesh.authority.ca();
    // One of the workers that it is told of is none.
    let daemon = mesh.at("weft-cache-daemon");
    let gateway = mesh.gateway("gateway", &tls(&ca, &signed), &[("workers", daemon.clone())]);
    gateway.admin().create_tenant("harbour").await.unwrap();
    let secret = gateway.admin().create_key("harbour", None).await.unwrap().secret;
    let digest = until("published", async || {
        let published = gateway.admin().publish("harbour", "pirate", &tiny_adapter("rank8"), Some("live")).await;
        Some(published.ok()?.digest)
    })
    .await;
    let reply = gateway.until_answered(&secret, "pirate").await;
    assert_eq!(reply.header("x-weft-adapter-digest"), Some(digest.as_str()));
    let meant = "names spiffe://test/weft/cache-daemon, expected is spiffe://test/weft/worker";
    gateway.until_problem(&daemon, meant).await;

    // Of the mesh, but not those who may call.
    let [gateways, registrys, workers, daemons] =
        Service::ALL.map(|service| peers(service, tls(&ca, &sign(&mesh.authority, service))));
    for (service, stranger) in [("worker", &workers), ("cache-daemon", &daemons), ("adapter-registry", &registrys)] {
        let said = generate(stranger, &mesh.at("weft-worker")).await;
        assert_eq!(said.code(), Code::PermissionDenied, "{service}: {said}");
        assert!(said.message().contains(&format!("spiffe://test/weft/{service} may not call")), "{said}");
    }
    assert_eq!(mesh.refusals("weft-worker", "why=\"call\"").await, 3.0);
    assert_eq!(list(&gateways, &daemon).await.code(), Code::PermissionDenied);
    assert_eq!(list(&registrys, &daemon).await.code(), Code::PermissionDenied);
    // A daemon reads what is there, and a worker has things brought there.
    let digest = digest.parse().unwrap();
    for (caller, reads, brings) in
        [(&daemons, Code::Ok, Code::PermissionDenied), (&workers, Code::PermissionDenied, Code::Ok)]
    {
        assert_eq!(list(caller, &daemon).await.code(), reads);
        assert_eq!(read_blob(caller, &daemon, &digest).await.code(), reads);
        assert_eq!(lease(caller, &daemon).await.code(), brings);
        assert_eq!(prefetch(caller, &daemon, &digest).await.code(), brings);
    }
    assert_eq!(mesh.refusals("weft-cache-daemon", "why=\"call\"").await, 6.0);
    let at_registry = mesh.at("weft-adapter-registry");
    assert_eq!(make_key(&workers, &at_registry).await.code(), Code::PermissionDenied);
    assert_eq!(make_key(&daemons, &at_registry).await.code(), Code::PermissionDenied);

    // Signed by somebody else, who is trusted by the stranger alone.
    let others = Authority::new(&mesh.dir.path().join("others"));
    let both = mesh.dir.path().join("both.pem");
    let pem = [ca.clone(), others.ca()].map(|ca| std::fs::read_to_string(ca).unwrap()).concat();
    std::fs::write(&both, pem).unwrap();
    let foreign = peers(Service::Gateway, tls(&both, &sign(&others, Service::Gateway)));
    let said = generate(&foreign, &mesh.at("weft-worker")).await;
    assert!(!matches!(said.code(), Code::Ok | Code::InvalidArgument | Code::PermissionDenied), "{said}");
    // Without TLS.
    let plain = weft_service_kit::transport::connect(&mesh.at("weft-worker").parse().unwrap());
    let said = WorkerClient::new(plain).describe(Request::new(worker::DescribeRequest {})).await.unwrap_err();
    assert!(!matches!(said.code(), Code::Ok | Code::PermissionDenied), "{said}");
    until("counted", async || (mesh.refusals("weft-worker", "why=\"handshake\"").await >= 2.0).then_some(())).await;
    mesh.stop().await;
}

async fn lease(peers: &Peers, address: &str) -> Status {
    let channel = peers.connect(&address.parse().unwrap(), Service::CacheDaemon).unwrap();
    let asks = futures::stream::pending::<cache::LeaseRequest>();
    CacheDaemonClient::new(channel).lease(asks).await.err().unwrap_or_else(|| Status::ok(""))
}

async fn prefetch(peers: &Peers, address: &str, digest: &Digest) -> Status {
    let channel = peers.connect(&address.parse().unwrap(), Service::CacheDaemon).unwrap();
    let request = cache::PrefetchRequest { digests: vec![digest.to_vec().into()] };
    CacheDaemonClient::new(channel).prefetch(request).await.err().unwrap_or_else(|| Status::ok(""))
}

async fn read_blob(peers: &Peers, address: &str, digest: &Digest) -> Status {
    let channel = peers.connect(&address.parse().unwrap(), Service::CacheDaemon).unwrap();
    let request = cache::ReadBlobRequest { digest: digest.to_vec().into(), offset: 0 };
    CacheDaemonClient::new(channel).read_blob(request).await.err().unwrap_or_else(|| Status::ok(""))
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_read_blobs_over_tls_and_workers_of_the_node_use_its_socket() {
    let mut mesh = Mesh::new().await;
    let ca = mesh.authority.ca();
    let [gateways, registries, workers, daemons] =
        Service::ALL.map(|service| peers(service, tls(&ca, &sign(&mesh.authority, service))));
    let signed = tls(&ca, &sign(&mesh.authority, Service::CacheDaemon));
    mesh.launch_daemon_on_socket("there", &signed);
    mesh.launch_daemon_on_socket("here", &signed);
    let store = S3Store::connect(&mesh.s3.settings("weft")).await.unwrap();
    store.ensure_bucket().await.unwrap();
    let digest = Digest::of(b"a blob");
    store.put(&keys::blob(&digest), "a blob".into()).await.unwrap();

    assert_eq!(prefetch(&workers, &mesh.at("there"), &digest).await.code(), Code::Ok);
    let known = async || (mesh.metric("here", "cache_daemon_neighbour_blobs ", &[]).await == 1.0).then_some(());
    until("what the neighbour has is known", known).await;
    assert_eq!(prefetch(&workers, &mesh.at("here"), &digest).await.code(), Code::Ok);
    let fetched = async |source| mesh.metric("here", "cache_daemon_fetches_total", &[source, "\"done\""]).await;
    until("fetched", async || (fetched("\"neighbour\"").await == 1.0).then_some(())).await;
    assert_eq!(fetched("\"remote\"").await, 0.0);

    let port = mesh.processes["there"].says["neighbours listening on"].clone();
    assert_eq!(read_blob(&daemons, &port, &digest).await.code(), Code::Ok);
    assert_eq!(list(&daemons, &port).await.code(), Code::Ok);
    // Whoever is no neighbour, and whatever no neighbour needs.
    for stranger in [&gateways, &registries, &workers] {
        assert_eq!(list(stranger, &port).await.code(), Code::PermissionDenied);
        assert_eq!(read_blob(stranger, &port, &digest).await.code(), Code::PermissionDenied);
    }
    for caller in [&gateways, &registries, &workers, &daemons] {
        assert_eq!(lease(caller, &port).await.code(), Code::PermissionDenied);
        assert_eq!(prefetch(caller, &port, &digest).await.code(), Code::PermissionDenied);
    }
    // Without TLS.
    let plain = weft_service_kit::transport::connect(&port.parse().unwrap());
    let said = CacheDaemonClient::new(plain).list_residency(cache::ListResidencyRequest {}).await.unwrap_err();
    assert!(!matches!(said.code(), Code::Ok | Code::PermissionDenied), "{said}");
    mesh.stop().await;
}

/// The first word on what is wanted of a worker.
async fn watch_desired(peers: &Peers, at: &str, worker: &str) -> Result<registry::Desired, Status> {
    let channel = peers.connect(&at.parse().unwrap(), Service::Registry).unwrap();
    let request = registry::WatchDesiredRequest { worker: worker.to_owned() };
    let mut words = RegistryClient::new(channel).watch_desired(request).await?.into_inner();
    Ok(words.message().await?.expect("the stream goes on"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_its_certificate_names_is_told_what_is_wanted_of_it_and_of_nobody_else() {
    let mut mesh = Mesh::new().await;
    let fast = [("placement-epoch-ms", "200".to_owned()), ("placement-silence-ms", "1500".to_owned())];
    let flags = [&mesh.s3_flags()[..], &fast].concat();
    mesh.launch_signed("weft-adapter-registry", Service::Registry, &flags);
    let named = |name: &str, uri: &str| tls(&mesh.authority.ca(), &mesh.authority.sign(name, &[uri]));
    let of_this_host = named("this", "spiffe://test/weft/worker/127.0.0.1");
    let of_another = named("another", "spiffe://test/weft/worker/worker-2.pool");
    let of_any = named("any", "spiffe://test/weft/worker");
    let gateway = named("gateway", "spiffe://test/weft/gateway/gateway-1");
    let stranger = named("stranger", "spiffe://test/weft/cache-daemon/127.0.0.1");
    let worker_flags = [
        ("metrics-listen", "127.0.0.1:0".to_owned()),
        ("model", tiny_model().display().to_string()),
        ("dtype", "f32".to_owned()),
        ("threads", "1".to_owned()),
        ("heartbeat-interval-ms", "200".to_owned()),
        // Nobody is there, which holds up neither heartbeats nor the list.
        ("cache", "127.0.0.1:1".to_owned()),
        ("registry", mesh.at("weft-adapter-registry")),
    ];
    mesh.launch("worker", "weft-worker", &of_this_host, &worker_flags);
    let epoch = async || (mesh.metric("worker", "worker_placement_epoch ", &[]).await > 0.0).then_some(());
    until("a real worker hears of a placement", epoch).await;

    let (registry, own) = (mesh.at("weft-adapter-registry"), mesh.at("worker"));
    let [of_this_host, of_another, of_any] = [of_this_host, of_another, of_any].map(|tls| peers(Service::Worker, tls));
    let told = watch_desired(&of_this_host, &registry, &own).await.unwrap();
    assert!(told.is_list && told.epoch > 0, "{told:?}");
    for (caller, worker) in [
        // Which of the processes on a host it is, no certificate says.
        (&of_this_host, "127.0.0.1:1"),
        (&of_this_host, &*format!("http://{own}/")),
        (&of_another, "worker-2.pool:7003"),
        (&of_another, "Worker-2.POOL:7003"),
        (&of_any, "worker-2.pool:7003"),
        (&of_any, &*own),
        (&peers(Service::Gateway, gateway), &*own),
    ] {
        assert!(watch_desired(caller, &registry, worker).await.is_ok(), "{worker}");
    }
    for worker in
        [&*own, "worker-2.pool.example:7003", "worker-2:7003", "worker-2.pool", "unix:/worker-2.pool:7003", ""]
    {
        let said = watch_desired(&of_another, &registry, worker).await.unwrap_err();
        assert_eq!(said.code(), Code::PermissionDenied, "{worker}: {said}");
        assert!(said.message().contains("spiffe://test/weft/worker/worker-2.pool may not"), "{said}");
    }
    assert_eq!(mesh.refusals("weft-adapter-registry", "why=\"call\"").await, 6.0);
    let said = watch_desired(&peers(Service::CacheDaemon, stranger), &registry, &own).await.unwrap_err();
    assert_eq!(said.code(), Code::PermissionDenied, "{said}");
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_heard_on_nats_gets_no_prompt_unless_a_worker_is_there() {
    let mut mesh = Mesh::new().await;
    mesh.launch_inner();
    let gateway_tls = tls(&mesh.authority.ca(), &sign(&mesh.authority, Service::Gateway));
    let gateway = mesh.gateway("gateway", &gateway_tls, &[]);
    gateway.admin().create_tenant("harbour").await.unwrap();
    let secret = gateway.admin().create_key("harbour", None).await.unwrap().secret;
    gateway.until_answered(&secret, "base").await;

    // Somebody of the mesh who is no worker, and somebody without TLS, say that they are workers.
    let daemons = peers(Service::CacheDaemon, tls(&mesh.authority.ca(), &sign(&mesh.authority, Service::CacheDaemon)));
    let impostor = daemons.listen(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let plain = weft_service_kit::transport::Listener::bind(&"127.0.0.1:0".parse().unwrap()).await.unwrap();
    let addresses = [impostor.address().to_owned(), plain.address().to_owned(), "unix:/tmp/impostor".to_owned()];
    for listener in [impostor, plain] {
        let health = Health::new(&Shutdown::new()).report("", &Readiness::new());
        tokio::spawn(server().add_service(health.into_server()).serve_with_incoming(listener.incoming()));
    }
    let bus = bus(&mesh.nats.url()).await;
    let lying = tokio::spawn({
        let addresses = addresses.clone();
        async move {
            for sequence in 1.. {
                for (number, address) in addresses.iter().enumerate() {
                    let beat = WorkerHeartbeat {
                        worker: format!("impostor-{number}"),
                        address: address.clone(),
                        incarnation: format!("incarnation-{number}"),
                        sequence,
                        interval_ms: 200,
                        base_digest: vec![7; 32].into(),
                        ..Default::default()
                    };
                    bus.publish(subjects::WORKER_HEARTBEAT, beat.encode_to_vec().into()).unwrap();
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    });
    gateway.until_problem(&addresses[0], "expected is spiffe://test/weft/worker").await;
    gateway.until_problem(&addresses[1], "is refused").await;
    let log = mesh.dir.path().join("gateway.log");
    until("the socket is refused", async || {
        std::fs::read_to_string(&log).unwrap().contains("unix:/tmp/impostor is a Unix socket").then_some(())
    })
    .await;
    assert!(gateway.workers().await.iter().all(|worker| worker["address"] != "unix:/tmp/impostor"));
    for _ in 0..20 {
        assert_eq!(gateway.ask(&secret, "base").await.header("x-weft-worker"), Some("worker-1"));
    }
    lying.abort();
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_authority_takes_over_without_a_restart() {
    let mut mesh = Mesh::new().await;
    mesh.launch_inner();
    let old = tls(&mesh.authority.ca(), &sign(&mesh.authority, Service::Gateway));
    let before = mesh.gateway("before", &old, &[]);
    before.admin().create_tenant("harbour").await.unwrap();
    let secret = before.admin().create_key("harbour", None).await.unwrap().secret;
    before.until_answered(&secret, "base").await;

    // Everybody trusts both, then shows what the new one signed; the processes go on.
    let next = Authority::new(&mesh.dir.path().join("next"));
    let both = [mesh.authority.ca(), next.ca()].map(|ca| std::fs::read_to_string(ca).unwrap()).concat();
    std::fs::write(mesh.authority.ca(), both).unwrap();
    for service in [Service::Registry, Service::CacheDaemon, Service::Worker] {
        let signed = sign(&next, service);
        let folder = mesh.authority.ca().with_file_name("");
        std::fs::rename(&signed.key, folder.join(format!("{service}.key"))).unwrap();
        std::fs::rename(&signed.cert, folder.join(format!("{service}.pem"))).unwrap();
    }
    // One that knows the new authority alone is served by all of them.
    let after = mesh.gateway("after", &tls(&next.ca(), &sign(&next, Service::Gateway)), &[]);
    after.until_answered(&secret, "base").await;
    assert_eq!(before.ask(&secret, "base").await.status, 200);
    // A file that is broken changes nothing, and is told.
    std::fs::write(mesh.authority.ca().with_file_name("worker.pem"), "nothing").unwrap();
    let third = mesh.gateway("third", &tls(&next.ca(), &sign(&next, Service::Gateway)), &[]);
    third.until_answered(&secret, "base").await;
    let log = std::fs::read_to_string(mesh.dir.path().join("weft-worker.log")).unwrap();
    assert!(log.contains("tls_cert_file") && log.contains("the ones before stay"), "{log}");
    mesh.stop().await;
}

/// Exit status and words of a program that must end by itself.
fn refused(program: &str, flags: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(binary(program)).args(flags).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_certificates_nothing_goes_beyond_this_machine_unless_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let cache = dir.path().join("cache").display().to_string();
    let model = tiny_model().display().to_string();
    for (program, flags, setting) in [
        ("weft-adapter-registry", &["--listen=0.0.0.0:0"][..], "listen"),
        ("weft-cache-daemon", &["--listen=[::]:0", "--dir", &cache], "listen"),
        ("weft-cache-daemon", &["--neighbours-listen=0.0.0.0:0", "--dir", &cache], "neighbours_listen"),
        ("weft-worker", &["--listen=0.0.0.0:0", "--model", &model], "listen"),
        ("weft-worker", &["--listen=127.0.0.1:0", "--model", &model, "--cache=daemon.example:7002"], "cache"),
        ("weft-worker", &["--listen=127.0.0.1:0", "--model", &model, "--registry=10.0.0.1:7001"], "registry"),
        ("weft-gateway", &["--registry=registry.example:7001"], "registry"),
        ("weft-gateway", &["--workers=10.0.0.1:7003"], "workers"),
    ] {
        let (status, said) = refused(program, flags);
        assert_eq!(status, Some(2), "{program} {flags:?}: {said}");
        assert!(said.contains("--insecure-network") && said.contains("tls_cert_file"), "{program}: {said}");
        assert!(said.contains(setting), "{program} {setting}: {said}");
    }
    let (status, said) = refused("weft-cache-daemon", &["--dir", &cache, "--tls-cert-file=/nowhere"]);
    assert!(status == Some(2) && said.contains("not set: tls_key_file, tls_ca_file"), "{said}");

    // Asked for, it listens everywhere.
    let flags = [("listen", "0.0.0.0:0"), ("dir", &cache), ("insecure-network", "true")];
    let careless = Started::new("weft-cache-daemon", &flags, 1, &dir.path().join("careless.log"));
    assert!(careless.says["listening on"].starts_with("0.0.0.0:"));

    // What is heard on NATS is refused likewise, told and counted; the gateway goes on.
    let nats = NatsServer::start();
    let url = nats.url();
    let log = dir.path().join("gateway.log");
    let flags =
        [("listen", "127.0.0.1:0"), ("admin-listen", "127.0.0.1:0"), ("admin-key", ADMIN_KEY), ("nats-url", &url)];
    let started = Started::new("weft-gateway", &flags, 2, &log);
    let gateway = Gateway::of(&started);
    let bus = bus(&url).await;
    until("told and counted", async || {
        let beat = WorkerHeartbeat {
            worker: "far".to_owned(),
            address: "10.0.0.7:7003".to_owned(),
            incarnation: "one".to_owned(),
            base_digest: vec![7; 32].into(),
            ..Default::default()
        };
        bus.publish(subjects::WORKER_HEARTBEAT, beat.encode_to_vec().into()).unwrap();
        let metrics = reqwest::get(format!("{}/metrics", gateway.admin_url)).await.ok()?.text().await.ok()?;
        let counted = metrics.lines().any(|line| line.starts_with("peer_refusals_total") && line.contains("plaintext"));
        let told = std::fs::read_to_string(&log).unwrap();
        (counted && told.contains("http://10.0.0.7:7003 is beyond this machine")).then_some(())
    })
    .await;
    assert!(gateway.workers().await.is_empty());
}
