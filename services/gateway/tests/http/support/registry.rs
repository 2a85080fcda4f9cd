//! A registry in memory, with the promises of `weft.registry.v1` that a gateway relies on.

use super::spawn_server;
use super::worker::deadline;
use futures::StreamExt;
use futures::stream::BoxStream;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status, Streaming};
use weft_fault::{Fault, Kind};
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::publish_request::Part;
use weft_proto::registry::v1::registry_server::{Registry, RegistryServer};
use weft_service_kit::transport::{Listener, MESSAGE_BYTES_MAX, server};
use weft_types::Digest;

#[derive(Clone)]
pub(crate) struct FakeRegistry(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    directory: watch::Sender<pb::Directory>,
    placement: watch::Sender<pb::Placement>,
    publishing: AtomicUsize,
    /// Calls with a `grpc-timeout`, and what it was; empty: none.
    deadlines: Mutex<Vec<(&'static str, String)>>,
}

#[derive(Default)]
struct State {
    tenants: BTreeMap<String, Tenant>,
    uploads: Vec<Upload>,
    refusal: Option<Vec<String>>,
    reports: Vec<pb::ReportObservationsRequest>,
    usage: Vec<pb::KeepUsageRequest>,
    refuses_reports: bool,
}

#[derive(Default)]
struct Tenant {
    weight: f64,
    limits: pb::Limits,
    keys: BTreeMap<String, Key>,
    adapters: BTreeMap<String, Adapter>,
    /// Descriptions of experiments that run.
    experiments: Vec<Vec<u8>>,
}

#[derive(Default)]
struct Key {
    secret: String,
    revoked: bool,
    limits: pb::Limits,
}

#[derive(Default)]
struct Adapter {
    versions: Vec<Digest>,
    aliases: HashMap<String, (u64, u64)>,
}

/// What came over `Publish`: whole, or broken off.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Upload {
    pub(crate) start: pb::PublishStart,
    pub(crate) config: Vec<u8>,
    pub(crate) weights: Vec<u8>,
    pub(crate) piece_bytes_max: usize,
    /// The stream ended as a whole one does.
    pub(crate) whole: bool,
}

pub(crate) fn digest_of(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

impl FakeRegistry {
    pub(crate) fn with_tenants() -> Self {
        let directory = watch::Sender::new(pb::Directory { incarnation: "one".into(), ..Default::default() });
        let placement = watch::Sender::new(pb::Placement::default());
        let registry = Self(Arc::new(Shared {
            state: Mutex::default(),
            directory,
            placement,
            publishing: AtomicUsize::new(0),
            deadlines: Mutex::default(),
        }));
        registry.change(|state| {
            for (tenant, adapters) in [("harbour", &["pirate", "org/tuned"][..]), ("helpdesk", &["triage"][..])] {
                let tenant_state = state.tenants.entry(tenant.into()).or_default();
                let key = Key { secret: format!("{tenant}-key"), ..Key::default() };
                tenant_state.keys.insert("k1".into(), key);
                for name in adapters {
                    let versions = vec![digest_of(&format!("{name} 1")), digest_of(&format!("{name} 2"))];
                    let aliases = HashMap::from([("live".to_owned(), (2, 1)), ("old".to_owned(), (1, 1))]);
                    tenant_state.adapters.insert((*name).into(), Adapter { versions, aliases });
                }
            }
        });
        registry
    }

    pub(crate) fn serve(&self, listener: Listener) -> tokio::task::JoinHandle<()> {
        let service = RegistryServer::new(self.clone()).max_encoding_message_size(MESSAGE_BYTES_MAX);
        spawn_server(server().add_service(service).serve_with_incoming(listener.incoming()))
    }

    /// Splits an alias of `harbour`'s by this experiment, which runs.
    pub(crate) fn split(&self, description: &serde_json::Value) {
        let description = serde_json::to_vec(description).unwrap();
        self.change(|state| state.tenants.get_mut("harbour").unwrap().experiments = vec![description]);
    }

    /// All experiments have ended.
    pub(crate) fn split_nothing(&self) {
        self.change(|state| state.tenants.values_mut().for_each(|tenant| tenant.experiments.clear()));
    }

    /// What gateways observed.
    pub(crate) fn reports(&self) -> Vec<pb::ReportObservationsRequest> {
        self.0.state.lock().unwrap().reports.clone()
    }

    /// What gateways sent of their usage logs, as records.
    pub(crate) fn usage(&self) -> Vec<weft_usage::Request> {
        let state = self.0.state.lock().unwrap();
        let lines = state.usage.iter().flat_map(|batch| batch.lines.split(|byte| *byte == b'\n'));
        let lines = lines.filter(|line| !line.is_empty());
        let record = |line: &[u8]| match weft_usage::Record::from_json(line).unwrap() {
            weft_usage::Record::Request(request) => request,
            other => panic!("{other:?}"),
        };
        lines.map(record).collect()
    }

    /// Whether reports are answered with "unavailable" from now on.
    pub(crate) fn refuse_reports(&self, refuses: bool) {
        self.0.state.lock().unwrap().refuses_reports = refuses;
    }

    pub(crate) fn refuse_packages(&self, reasons: &[&str]) {
        self.0.state.lock().unwrap().refusal = Some(reasons.iter().map(|reason| (*reason).to_owned()).collect());
    }

    fn note<T>(&self, method: &'static str, request: &Request<T>) {
        self.0.deadlines.lock().unwrap().push((method, deadline(request).unwrap_or_default()));
    }

    /// Of the calls that are noted: `grpc-timeout`.
    pub(crate) fn deadlines(&self, method: &str) -> Vec<String> {
        let noted = self.0.deadlines.lock().unwrap();
        noted.iter().filter(|(of, _)| *of == method).map(|(_, deadline)| deadline.clone()).collect()
    }

    /// Sends these bytes as a placement.
    pub(crate) fn place(&self, epoch: u64, document: Vec<u8>) {
        self.0.placement.send_replace(pb::Placement { epoch, document: document.into() });
    }

    /// Calls of `Publish` that have not ended.
    pub(crate) fn publishing(&self) -> usize {
        self.0.publishing.load(Ordering::SeqCst)
    }

    pub(crate) fn uploads(&self) -> Vec<Upload> {
        self.0.state.lock().unwrap().uploads.clone()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.0.state.lock().unwrap();
        let changed = change(&mut state);
        let tenants = state.tenants.iter().map(|(name, tenant)| pb::DirectoryTenant {
            name: name.clone(),
            default_adapter: String::new(),
            salt: vec![name.len() as u8; 32].into(),
            weight: if tenant.weight == 0.0 { 1.0 } else { tenant.weight },
            limits: Some(tenant.limits),
            keys: tenant
                .keys
                .iter()
                .filter(|(_, key)| !key.revoked)
                .map(|(id, key)| pb::DirectoryKey {
                    id: id.clone(),
                    secret_sha256: digest_of(&key.secret).to_vec().into(),
                    limits: Some(key.limits),
                })
                .collect(),
            adapters: tenant.adapters.iter().map(|(name, adapter)| directory_adapter(name, adapter)).collect(),
            experiments: tenant.experiments.iter().map(|json| json.clone().into()).collect(),
            policy: None,
        });
        let tenants = tenants.collect();
        self.0.directory.send_modify(|directory| {
            directory.generation += 1;
            directory.tenants = tenants;
        });
        changed
    }
}

fn directory_adapter(name: &str, adapter: &Adapter) -> pb::DirectoryAdapter {
    let versions = (1..).zip(&adapter.versions);
    pb::DirectoryAdapter {
        name: name.to_owned(),
        created_ms: 1_700_000_000_000,
        versions: versions
            .map(|(number, digest)| pb::DirectoryVersion { number, digest: digest.to_vec().into(), bytes: 1 })
            .collect(),
        aliases: adapter
            .aliases
            .iter()
            .map(|(name, (version, _))| pb::DirectoryAlias { name: name.clone(), version: *version })
            .collect(),
    }
}

fn alias(name: &str, adapter: &Adapter) -> pb::Alias {
    let (version, etag) = adapter.aliases[name];
    pb::Alias {
        name: name.to_owned(),
        version,
        digest: adapter.versions[version as usize - 1].to_vec().into(),
        // In quotes, as S3 has it.
        etag: format!("\"e{etag}\""),
        moved_ms: 1,
        actor: "admin".into(),
        experiment: String::new(),
    }
}

fn wire_key(tenant: &str, id: &str, key: &Key) -> pb::Key {
    pb::Key {
        id: id.to_owned(),
        tenant: tenant.to_owned(),
        revoked_ms: u64::from(key.revoked),
        limits: Some(key.limits),
        ..Default::default()
    }
}

fn changed(limits: pb::Limits, change: Option<pb::LimitsChange>) -> pb::Limits {
    let change = change.unwrap_or_default();
    pb::Limits {
        requests_per_minute: change.requests_per_minute.unwrap_or(limits.requests_per_minute),
        tokens_per_minute: change.tokens_per_minute.unwrap_or(limits.tokens_per_minute),
        tokens_per_day: change.tokens_per_day.unwrap_or(limits.tokens_per_day),
        concurrent_requests: change.concurrent_requests.unwrap_or(limits.concurrent_requests),
        queue_length: change.queue_length.unwrap_or(limits.queue_length),
    }
}

fn unknown(what: &str) -> Status {
    Fault::not_found(format!("unknown {what}")).into()
}

#[tonic::async_trait]
impl Registry for FakeRegistry {
    type ReadUsageStream = BoxStream<'static, Result<pb::ReadUsageResponse, Status>>;
    type ReadExposuresStream = BoxStream<'static, Result<pb::ReadExposuresResponse, Status>>;
    type WatchPlacementStream = BoxStream<'static, Result<pb::Placement, Status>>;
    type WatchDesiredStream = BoxStream<'static, Result<pb::Desired, Status>>;
    type WatchDirectoryStream = BoxStream<'static, Result<pb::Directory, Status>>;

    async fn publish(
        &self,
        request: Request<Streaming<pb::PublishRequest>>,
    ) -> Result<Response<pb::PublishResponse>, Status> {
        /// Records the upload however this call ends.
        struct Record(FakeRegistry, Upload);
        impl Drop for Record {
            fn drop(&mut self) {
                self.0.0.state.lock().unwrap().uploads.push(std::mem::take(&mut self.1));
                self.0.0.publishing.fetch_sub(1, Ordering::SeqCst);
            }
        }
        let mut stream = request.into_inner();
        self.0.publishing.fetch_add(1, Ordering::SeqCst);
        let mut record = Record(self.clone(), Upload::default());
        while let Some(message) = stream.message().await? {
            let upload = &mut record.1;
            match message.part {
                Some(Part::Start(start)) => upload.start = start,
                Some(Part::Config(piece)) => {
                    upload.config.extend(piece);
                }
                Some(Part::Weights(piece)) => {
                    upload.piece_bytes_max = upload.piece_bytes_max.max(piece.len());
                    upload.weights.extend(piece);
                }
                // What comes beside a package is tested with a real registry (`cli/tests/mesh/policy.rs`).
                Some(Part::Signature(_) | Part::Others(_)) => {}
                None => return Err(Status::invalid_argument("empty message")),
            }
        }
        // tonic shows a cancelled call as the end of its stream, and drops the handler the next time it waits. The real
        // registry waits for its store before anything is kept; so does this one.
        tokio::task::yield_now().await;
        record.1.whole = true;
        let upload = record.1.clone();
        if let Some(reasons) = self.0.state.lock().unwrap().refusal.clone() {
            let refusal = pb::publish_response::Result::Refusal(pb::Refusal { reasons });
            return Ok(Response::new(pb::PublishResponse { result: Some(refusal) }));
        }
        let digest = Digest::of(&upload.weights);
        let published = self.change(|state| {
            let tenant = state.tenants.get_mut(&upload.start.tenant).ok_or_else(|| unknown("tenant"))?;
            let adapter = tenant.adapters.entry(upload.start.adapter.clone()).or_default();
            let known = adapter.versions.iter().position(|version| *version == digest);
            let version = match known {
                Some(index) => index as u64 + 1,
                None => {
                    adapter.versions.push(digest);
                    adapter.versions.len() as u64
                }
            };
            // An alias never moves back by a publish.
            let is_older = adapter.aliases.get(&upload.start.alias).is_none_or(|(now, _)| *now < version);
            if !upload.start.alias.is_empty() && is_older {
                let etag = adapter.aliases.get(&upload.start.alias).map_or(1, |(_, etag)| etag + 1);
                adapter.aliases.insert(upload.start.alias.clone(), (version, etag));
            }
            Ok::<_, Status>(pb::Published {
                adapter: upload.start.adapter.clone(),
                version,
                digest: digest.to_vec().into(),
                warnings: vec!["base name differs".into()],
                created: known.is_none(),
                ..pb::Published::default()
            })
        })?;
        Ok(Response::new(pb::PublishResponse { result: Some(pb::publish_response::Result::Published(published)) }))
    }

    /// Merges are tested with a real registry (`cli/tests/mesh/merge.rs`).
    async fn merge(&self, _: Request<pb::MergeRequest>) -> Result<Response<pb::MergeResponse>, Status> {
        Err(Status::unimplemented("merge"))
    }

    async fn report_observations(
        &self,
        request: Request<pb::ReportObservationsRequest>,
    ) -> Result<Response<pb::ReportObservationsResponse>, Status> {
        let mut state = self.0.state.lock().unwrap();
        if state.refuses_reports {
            return Err(Fault::unavailable("the store is away").into());
        }
        state.reports.push(request.into_inner());
        Ok(Response::new(pb::ReportObservationsResponse {}))
    }

    /// Residency is told by workers.
    async fn keep_residency(
        &self,
        _: Request<pb::KeepResidencyRequest>,
    ) -> Result<Response<pb::KeepResidencyResponse>, Status> {
        Err(Status::unimplemented("keep_residency"))
    }

    async fn release_version(
        &self,
        request: Request<pb::ReleaseVersionRequest>,
    ) -> Result<Response<pb::ReleaseVersionResponse>, Status> {
        let asked = request.into_inner();
        let version = self.change(|state| {
            let tenant = state.tenants.get_mut(&asked.tenant).ok_or_else(|| unknown("tenant"))?;
            let adapter = tenant.adapters.get_mut(&asked.adapter).ok_or_else(|| unknown("adapter"))?;
            let number = asked.version;
            let digest = adapter.versions.get(number as usize - 1).ok_or_else(|| unknown("version"))?.to_vec().into();
            let now = adapter.aliases.get(&asked.alias).copied();
            if !asked.alias.is_empty() && now.is_none_or(|(now, _)| now < number) {
                adapter.aliases.insert(asked.alias.clone(), (number, now.map_or(1, |(_, etag)| etag + 1)));
            }
            let (tenant, adapter) = (asked.tenant.clone(), asked.adapter.clone());
            Ok::<_, Status>(pb::Version { tenant, adapter, number, digest, ..Default::default() })
        })?;
        Ok(Response::new(pb::ReleaseVersionResponse { version: Some(version) }))
    }

    async fn keep_usage(
        &self,
        request: Request<pb::KeepUsageRequest>,
    ) -> Result<Response<pb::KeepUsageResponse>, Status> {
        self.0.state.lock().unwrap().usage.push(request.into_inner());
        Ok(Response::new(pb::KeepUsageResponse {}))
    }

    // What follows is tested with a real registry (`cli/tests/mesh/experiments.rs`).

    /// Never ends.
    async fn import(&self, _: Request<pb::ImportRequest>) -> Result<Response<pb::ImportResponse>, Status> {
        std::future::pending().await
    }

    async fn read_usage(&self, _: Request<pb::ReadUsageRequest>) -> Result<Response<Self::ReadUsageStream>, Status> {
        Err(Status::unimplemented("read_usage"))
    }

    async fn delete_version(
        &self,
        _: Request<pb::DeleteVersionRequest>,
    ) -> Result<Response<pb::DeleteVersionResponse>, Status> {
        Err(Status::unimplemented("delete_version"))
    }

    async fn collect_garbage(
        &self,
        _: Request<pb::CollectGarbageRequest>,
    ) -> Result<Response<pb::CollectGarbageResponse>, Status> {
        Err(Status::unimplemented("collect_garbage"))
    }

    async fn roll_back_alias(
        &self,
        _: Request<pb::RollBackAliasRequest>,
    ) -> Result<Response<pb::SetAliasResponse>, Status> {
        Err(Status::unimplemented("roll_back_alias"))
    }

    async fn list_alias_moves(
        &self,
        _: Request<pb::ListAliasMovesRequest>,
    ) -> Result<Response<pb::ListAliasMovesResponse>, Status> {
        Err(Status::unimplemented("list_alias_moves"))
    }

    async fn create_experiment(
        &self,
        _: Request<pb::CreateExperimentRequest>,
    ) -> Result<Response<pb::ExperimentResponse>, Status> {
        Err(Status::unimplemented("create_experiment"))
    }

    async fn list_experiments(
        &self,
        _: Request<pb::ListExperimentsRequest>,
    ) -> Result<Response<pb::ListExperimentsResponse>, Status> {
        Err(Status::unimplemented("list_experiments"))
    }

    async fn get_experiment(
        &self,
        _: Request<pb::GetExperimentRequest>,
    ) -> Result<Response<pb::ExperimentResponse>, Status> {
        Err(Status::unimplemented("get_experiment"))
    }

    async fn change_experiment(
        &self,
        _: Request<pb::ChangeExperimentRequest>,
    ) -> Result<Response<pb::ExperimentResponse>, Status> {
        Err(Status::unimplemented("change_experiment"))
    }

    async fn read_exposures(
        &self,
        _: Request<pb::ReadExposuresRequest>,
    ) -> Result<Response<Self::ReadExposuresStream>, Status> {
        Err(Status::unimplemented("read_exposures"))
    }

    async fn list_adapters(
        &self,
        request: Request<pb::ListAdaptersRequest>,
    ) -> Result<Response<pb::ListAdaptersResponse>, Status> {
        let state = self.0.state.lock().unwrap();
        let tenant = state.tenants.get(&request.get_ref().tenant).ok_or_else(|| unknown("tenant"))?;
        let adapters = tenant.adapters.iter().map(|(name, adapter)| pb::Adapter {
            tenant: request.get_ref().tenant.clone(),
            name: name.clone(),
            aliases: adapter.aliases.keys().map(|name| alias(name, adapter)).collect(),
            latest_version: adapter.versions.len() as u64,
            created_ms: 1,
        });
        Ok(Response::new(pb::ListAdaptersResponse { adapters: adapters.collect() }))
    }

    async fn list_versions(
        &self,
        request: Request<pb::ListVersionsRequest>,
    ) -> Result<Response<pb::ListVersionsResponse>, Status> {
        let asked = request.into_inner();
        let state = self.0.state.lock().unwrap();
        let tenant = state.tenants.get(&asked.tenant).ok_or_else(|| unknown("tenant"))?;
        let adapter = tenant.adapters.get(&asked.adapter).ok_or_else(|| unknown("adapter"))?;
        let versions = (1..).zip(&adapter.versions).map(|(number, digest)| pb::Version {
            tenant: asked.tenant.clone(),
            adapter: asked.adapter.clone(),
            number,
            digest: digest.to_vec().into(),
            ..Default::default()
        });
        Ok(Response::new(pb::ListVersionsResponse { versions: versions.collect() }))
    }

    async fn resolve(&self, _: Request<pb::ResolveRequest>) -> Result<Response<pb::ResolveResponse>, Status> {
        Err(Status::unimplemented("the gateway resolves from the directory"))
    }

    async fn set_alias(&self, request: Request<pb::SetAliasRequest>) -> Result<Response<pb::SetAliasResponse>, Status> {
        let asked = request.into_inner();
        let moved = self.change(|state| {
            let tenant = state.tenants.get_mut(&asked.tenant).ok_or_else(|| unknown("tenant"))?;
            let adapter = tenant.adapters.get_mut(&asked.adapter).ok_or_else(|| unknown("adapter"))?;
            if asked.version == 0 || asked.version as usize > adapter.versions.len() {
                return Err(unknown("version"));
            }
            let now = adapter.aliases.get(&asked.alias).copied();
            let met = match asked.expected_etag.as_str() {
                "" => true,
                "*" => now.is_some(),
                "none" => now.is_none(),
                etag => now.is_some_and(|(_, known)| format!("\"e{known}\"") == etag),
            };
            if !met {
                return Err(Status::from(Fault::new(Kind::Conflict, "the alias moved meanwhile")));
            }
            adapter.aliases.insert(asked.alias.clone(), (asked.version, now.map_or(1, |(_, etag)| etag + 1)));
            Ok(alias(&asked.alias, adapter))
        })?;
        Ok(Response::new(pb::SetAliasResponse { alias: Some(moved) }))
    }

    async fn create_tenant(
        &self,
        request: Request<pb::CreateTenantRequest>,
    ) -> Result<Response<pb::CreateTenantResponse>, Status> {
        let pb::CreateTenantRequest { name, weight, limits, .. } = request.into_inner();
        let limits = limits.unwrap_or_default();
        let weight = if weight == 0.0 { 1.0 } else { weight };
        let (created, weight, limits) = self.change(|state| {
            let created = !state.tenants.contains_key(&name);
            let tenant = state.tenants.entry(name.clone()).or_insert(Tenant { weight, limits, ..Tenant::default() });
            (created, tenant.weight, tenant.limits)
        });
        let tenant = pb::Tenant {
            name,
            created_ms: 1,
            default_adapter: String::new(),
            weight,
            limits: Some(limits),
            ..Default::default()
        };
        Ok(Response::new(pb::CreateTenantResponse { tenant: Some(tenant), created }))
    }

    async fn update_tenant(
        &self,
        request: Request<pb::UpdateTenantRequest>,
    ) -> Result<Response<pb::UpdateTenantResponse>, Status> {
        let pb::UpdateTenantRequest { name, weight, limits, .. } = request.into_inner();
        let (weight, limits) = self.change(|state| {
            let tenant = state.tenants.get_mut(&name).ok_or_else(|| unknown("tenant"))?;
            tenant.weight = weight.unwrap_or(tenant.weight);
            tenant.limits = changed(tenant.limits, limits);
            Ok::<_, Status>((tenant.weight, tenant.limits))
        })?;
        let tenant = pb::Tenant {
            name,
            created_ms: 1,
            default_adapter: String::new(),
            weight,
            limits: Some(limits),
            ..Default::default()
        };
        Ok(Response::new(pb::UpdateTenantResponse { tenant: Some(tenant) }))
    }

    async fn list_tenants(
        &self,
        request: Request<pb::ListTenantsRequest>,
    ) -> Result<Response<pb::ListTenantsResponse>, Status> {
        self.note("ListTenants", &request);
        let state = self.0.state.lock().unwrap();
        let tenants = state.tenants.keys().map(|name| pb::Tenant { name: name.clone(), ..Default::default() });
        Ok(Response::new(pb::ListTenantsResponse { tenants: tenants.collect() }))
    }

    async fn create_key(
        &self,
        request: Request<pb::CreateKeyRequest>,
    ) -> Result<Response<pb::CreateKeyResponse>, Status> {
        let asked = request.into_inner();
        self.change(|state| {
            let tenant = state.tenants.get_mut(&asked.tenant).ok_or_else(|| unknown("tenant"))?;
            let id = format!("k{}", tenant.keys.len() + 1);
            let secret = format!("{}-secret-{id}", asked.tenant);
            let limits = asked.limits.unwrap_or_default();
            tenant.keys.insert(id.clone(), Key { secret: secret.clone(), revoked: false, limits });
            Ok(Response::new(pb::CreateKeyResponse { id, secret }))
        })
    }

    async fn list_keys(&self, request: Request<pb::ListKeysRequest>) -> Result<Response<pb::ListKeysResponse>, Status> {
        let asked = request.into_inner();
        let state = self.0.state.lock().unwrap();
        let tenant = state.tenants.get(&asked.tenant).ok_or_else(|| unknown("tenant"))?;
        let keys = tenant.keys.iter().map(|(id, key)| wire_key(&asked.tenant, id, key));
        Ok(Response::new(pb::ListKeysResponse { keys: keys.collect() }))
    }

    async fn update_key(
        &self,
        request: Request<pb::UpdateKeyRequest>,
    ) -> Result<Response<pb::UpdateKeyResponse>, Status> {
        let asked = request.into_inner();
        self.change(|state| {
            let tenant = state.tenants.get_mut(&asked.tenant).ok_or_else(|| unknown("tenant"))?;
            let key = tenant.keys.get_mut(&asked.id).ok_or_else(|| unknown("key"))?;
            key.limits = changed(key.limits, asked.limits);
            Ok(Response::new(pb::UpdateKeyResponse { key: Some(wire_key(&asked.tenant, &asked.id, key)) }))
        })
    }

    async fn revoke_key(
        &self,
        request: Request<pb::RevokeKeyRequest>,
    ) -> Result<Response<pb::RevokeKeyResponse>, Status> {
        let asked = request.into_inner();
        self.change(|state| {
            let tenant = state.tenants.get_mut(&asked.tenant).ok_or_else(|| unknown("tenant"))?;
            tenant.keys.get_mut(&asked.id).ok_or_else(|| unknown("key"))?.revoked = true;
            Ok(Response::new(pb::RevokeKeyResponse {}))
        })
    }

    async fn watch_directory(
        &self,
        request: Request<pb::WatchDirectoryRequest>,
    ) -> Result<Response<Self::WatchDirectoryStream>, Status> {
        self.note("WatchDirectory", &request);
        let directories = WatchStream::new(self.0.directory.subscribe());
        Ok(Response::new(directories.map(Ok).boxed()))
    }

    async fn watch_placement(
        &self,
        _: Request<pb::WatchPlacementRequest>,
    ) -> Result<Response<Self::WatchPlacementStream>, Status> {
        let placements = WatchStream::new(self.0.placement.subscribe());
        Ok(Response::new(placements.map(Ok).boxed()))
    }

    async fn watch_desired(
        &self,
        _: Request<pb::WatchDesiredRequest>,
    ) -> Result<Response<Self::WatchDesiredStream>, Status> {
        Err(Status::unimplemented("no gateway asks for it"))
    }

    async fn announce_base(
        &self,
        _: Request<pb::AnnounceBaseRequest>,
    ) -> Result<Response<pb::AnnounceBaseResponse>, Status> {
        Ok(Response::new(pb::AnnounceBaseResponse {}))
    }
}
