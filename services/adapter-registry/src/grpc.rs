//! The gRPC face.
//!
//! Every answer to a call that may have changed something names the directory that shows the change, in
//! [`DIRECTORY_INCARNATION_HEADER`] and [`DIRECTORY_GENERATION_HEADER`]: a gateway that waits for it shows its own
//! admin writes at once.

use crate::Error;
use crate::admin::{Expected, check_text};
use crate::core::Core;
use crate::experiments::{Change, Observed};
use crate::layout::{ROOT, adapter_prefix, tenant_prefix};
use crate::metrics::Running;
use crate::placing::{DesiredWatcher, PlacementWatcher, Placing};
use crate::publish::{Asked, Outcome, Publisher, Signers};
use crate::{usage, wire};
use futures::StreamExt;
use futures::stream::BoxStream;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status};
use weft_adapter_sources::Sources;
use weft_fault::Fault;
use weft_object_store::ObjectMeta;
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::merge_response::Result as Merged;
use weft_proto::registry::v1::publish_response::Result::{Published, Refusal};
use weft_proto::registry::v1::registry_server::Registry;
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::transport::Peer;
use weft_types::{Digest, NameError, Selector, TenantName};

/// Response metadata: the process that the generation belongs to.
pub const DIRECTORY_INCARNATION_HEADER: &str = "weft-directory-incarnation";
/// Response metadata: the first generation of the directory that shows what the call did.
pub const DIRECTORY_GENERATION_HEADER: &str = "weft-directory-generation";

/// One for each worker that a placement can have.
const DESIRED_WATCHERS_MAX: usize = weft_placement::WORKERS_MAX;
const WORKER_BYTES_MAX: usize = 256;

/// The service.
pub(crate) struct Service {
    core: Arc<Core>,
    publisher: Publisher,
    watchers: Arc<Semaphore>,
    placing: Arc<Placing>,
    observed: Arc<Observed>,
    placement_watchers: Arc<Semaphore>,
    desired_watchers: Arc<Semaphore>,
    usage_reads: Arc<Semaphore>,
    stopping: Shutdown,
}

type Answer<T> = Result<Response<T>, Status>;

fn name<T: FromStr<Err = NameError>>(param: &'static str, text: &str) -> Result<T, Error> {
    text.parse().map_err(|source| Error::Name { param, source })
}

impl Service {
    pub(crate) fn new(
        core: Arc<Core>,
        placing: Arc<Placing>,
        observed: Arc<Observed>,
        sources: Arc<Sources>,
        signers: Arc<Signers>,
        stopping: Shutdown,
    ) -> Self {
        let (watchers_max, usage_reads_max) = (core.settings.watchers_max, core.settings.usage_reads_max);
        let streams = |max: usize| Arc::new(Semaphore::new(max));
        Self {
            publisher: Publisher::new(Arc::clone(&core), sources, signers),
            core,
            watchers: streams(watchers_max),
            placing,
            observed,
            placement_watchers: streams(watchers_max),
            desired_watchers: streams(DESIRED_WATCHERS_MAX),
            usage_reads: streams(usage_reads_max),
            stopping,
        }
    }

    /// Counts a call and puts its result on the wire.
    async fn call<T>(&self, method: &'static str, work: impl Future<Output = Result<T, Error>>) -> Answer<T> {
        let started = Instant::now();
        let result = work.await.map_err(Fault::from);
        let kind = result.as_ref().map_or_else(|fault| fault.kind.as_str(), |_| "ok");
        self.core.metrics.called(method, kind, started.elapsed());
        match result {
            Ok(message) => Ok(self.with_directory(message)),
            Err(fault) => {
                if fault.kind.http_status().is_server_error() {
                    tracing::warn!(method, kind, fault = %fault, "call failed");
                }
                Err(fault.into())
            }
        }
    }

    fn with_directory<T>(&self, message: T) -> Response<T> {
        let mut response = Response::new(message);
        let metadata = response.metadata_mut();
        metadata.insert(DIRECTORY_GENERATION_HEADER, MetadataValue::from(self.core.generation()));
        if let Ok(incarnation) = self.core.incarnation().parse() {
            metadata.insert(DIRECTORY_INCARNATION_HEADER, incarnation);
        }
        response
    }

    /// So that a list shows what others wrote a moment ago; while the store is away it shows what is known, and whoever finds nothing
    /// there answers with the error that this returns: what is not known then may be there all the same.
    async fn freshen(&self, prefix: &str) -> Result<Option<Error>, Error> {
        match self.core.refresh(prefix).await {
            Err(error) if error.is_passing() => {
                tracing::warn!(error = &error as &dyn std::error::Error, "answering a list from memory");
                Ok(Some(error))
            }
            result => result.map(|()| None),
        }
    }
}

#[tonic::async_trait]
impl Registry for Service {
    async fn publish(&self, request: Request<tonic::Streaming<pb::PublishRequest>>) -> Answer<pb::PublishResponse> {
        let work = async {
            let outcome = self.publisher.publish(request.into_inner()).await;
            self.core.metrics.published(outcome.as_ref().ok().map(|(_, outcome)| outcome));
            let (adapter, outcome) = outcome?;
            let result = match outcome {
                Outcome::Created(version) => Published(wire::published(&adapter, version, true)),
                Outcome::Existing(version) => Published(wire::published(&adapter, version, false)),
                Outcome::Refused(refusal) => Refusal(wire::refusal(refusal.reasons)),
            };
            Ok(pb::PublishResponse { result: Some(result) })
        };
        self.call("publish", work).await
    }

    async fn merge(&self, request: Request<pb::MergeRequest>) -> Answer<pb::MergeResponse> {
        let work = async {
            let lately = self.placing.asked_lately();
            let merge = self.publisher.merge(Asked::read(request.into_inner())?, &lately).await;
            self.core.metrics.published(merge.as_ref().ok().map(|merge| &merge.outcome));
            let merge = merge?;
            let result = match merge.outcome {
                Outcome::Created(version) => Merged::Published(wire::published(&merge.adapter, version, true)),
                Outcome::Existing(version) => Merged::Published(wire::published(&merge.adapter, version, false)),
                Outcome::Refused(refusal) => Merged::Refusal(wire::refusal(refusal.reasons)),
            };
            Ok(pb::MergeResponse { result: Some(result), lineage: Some(wire::lineage(&merge.lineage)) })
        };
        self.call("merge", work).await
    }

    async fn import(&self, request: Request<pb::ImportRequest>) -> Answer<pb::ImportResponse> {
        use pb::import_response::Result as Imported;
        let work = async {
            let imported = self.publisher.import(request.into_inner()).await;
            self.core.metrics.published(imported.as_ref().ok().map(|(_, outcome, _)| outcome));
            let (adapter, outcome, origin) = imported?;
            let result = match outcome {
                Outcome::Created(version) => Imported::Published(wire::published(&adapter, version, true)),
                Outcome::Existing(version) => Imported::Published(wire::published(&adapter, version, false)),
                Outcome::Refused(refusal) => Imported::Refusal(wire::refusal(refusal.reasons)),
            };
            Ok(pb::ImportResponse { result: Some(result), origin })
        };
        self.call("import", work).await
    }

    async fn keep_usage(&self, request: Request<pb::KeepUsageRequest>) -> Answer<pb::KeepUsageResponse> {
        let work = async {
            self.core.keep_usage(request.into_inner()).await?;
            Ok(pb::KeepUsageResponse {})
        };
        self.call("keep_usage", work).await
    }

    type ReadUsageStream = BoxStream<'static, Result<pb::ReadUsageResponse, Status>>;

    async fn read_usage(&self, request: Request<pb::ReadUsageRequest>) -> Answer<Self::ReadUsageStream> {
        let max = self.core.settings.usage_reads_max;
        let busy = |_| Error::Busy { what: "reads of usage", max, setting: "usage_reads_max" };
        let work = async {
            let asked = usage::Asked::read(request.get_ref())?;
            let permit = Arc::clone(&self.usage_reads).try_acquire_owned().map_err(busy)?;
            let mut pieces = self.core.read_usage(asked, permit)?;
            let next = futures::stream::poll_fn(move |cx| pieces.poll_recv(cx));
            let stream: Self::ReadUsageStream = Box::pin(next.map(|piece| match piece {
                Ok(piece) => Ok(pb::ReadUsageResponse { piece }),
                Err(error) => Err(Fault::from(error).into()),
            }));
            Ok(stream)
        };
        self.call("read_usage", work).await
    }

    async fn list_adapters(&self, request: Request<pb::ListAdaptersRequest>) -> Answer<pb::ListAdaptersResponse> {
        let work = async {
            let tenant: TenantName = name("tenant", &request.get_ref().tenant)?;
            let away = self.freshen(&tenant_prefix(&tenant)).await?;
            let catalog = self.core.catalog();
            let unknown = || Error::NotFound(format!("there is no tenant {tenant}"));
            let found = catalog.tenant(&tenant).ok_or_else(|| away.unwrap_or_else(unknown))?;
            let adapters = found.adapters.iter().filter(|(_, adapter)| adapter.is_visible());
            let adapters = adapters.map(|(name, adapter)| wire::adapter(&tenant, name, adapter));
            Ok(pb::ListAdaptersResponse { adapters: adapters.collect() })
        };
        self.call("list_adapters", work).await
    }

    async fn list_versions(&self, request: Request<pb::ListVersionsRequest>) -> Answer<pb::ListVersionsResponse> {
        let work = async {
            let request = request.into_inner();
            let (tenant, adapter) = (name("tenant", &request.tenant)?, name("adapter", &request.adapter)?);
            self.core.require_tenant(&tenant).await?;
            let away = self.freshen(&adapter_prefix(&tenant, &adapter)).await?;
            let catalog = self.core.catalog();
            let unknown = || Error::NotFound(format!("tenant {tenant} has no adapter {adapter}"));
            let found = catalog.tenant(&tenant).and_then(|tenant| tenant.adapters.get(&adapter));
            let found = found.filter(|found| found.listed().next().is_some());
            let found = found.ok_or_else(|| away.unwrap_or_else(unknown))?;
            let versions = found.listed().map(|version| wire::version(&tenant, &adapter, version));
            Ok(pb::ListVersionsResponse { versions: versions.collect() })
        };
        self.call("list_versions", work).await
    }

    async fn delete_version(&self, request: Request<pb::DeleteVersionRequest>) -> Answer<pb::DeleteVersionResponse> {
        let work = async {
            let request = request.into_inner();
            let (tenant, adapter) = (name("tenant", &request.tenant)?, name("adapter", &request.adapter)?);
            let asked = self.placing.asked_lately();
            let core = Arc::clone(&self.core);
            // Whoever stops waiting does not stop it between mark and second look.
            let deleted = tokio::spawn(async move {
                core.delete_version(&tenant, &adapter, request.version, &asked, &request.actor).await
            });
            deleted.await??;
            Ok(pb::DeleteVersionResponse {})
        };
        self.call("delete_version", work).await
    }

    async fn release_version(&self, request: Request<pb::ReleaseVersionRequest>) -> Answer<pb::ReleaseVersionResponse> {
        let work = async {
            let request = request.into_inner();
            let record = self.core.release_version(&request).await?;
            let (tenant, adapter) = (name("tenant", &request.tenant)?, name("adapter", &request.adapter)?);
            Ok(pb::ReleaseVersionResponse { version: Some(wire::version(&tenant, &adapter, &record)) })
        };
        self.call("release_version", work).await
    }

    async fn collect_garbage(&self, request: Request<pb::CollectGarbageRequest>) -> Answer<pb::CollectGarbageResponse> {
        let work = async {
            let request = request.into_inner();
            let only: Option<TenantName> =
                (!request.tenant.is_empty()).then(|| name("tenant", &request.tenant)).transpose()?;
            let rules = wire::rules(&request, self.core.gc_rules());
            let asked = self.placing.asked_lately();
            let (core, dry_run) = (Arc::clone(&self.core), request.dry_run);
            let turn = tokio::spawn(async move { core.collect_garbage(only.as_ref(), rules, &asked, dry_run).await });
            let found = turn.await??;
            tracing::info!(
                actor = request.actor,
                dry_run = request.dry_run,
                versions = found.len(),
                "clean-up was asked for"
            );
            Ok(pb::CollectGarbageResponse { garbage: found.iter().map(wire::garbage).collect() })
        };
        self.call("collect_garbage", work).await
    }

    async fn resolve(&self, request: Request<pb::ResolveRequest>) -> Answer<pb::ResolveResponse> {
        let work = async {
            let request = request.into_inner();
            // A name that nobody can have is one that nobody has.
            let unknown = |error: NameError| Error::NotFound(error.to_string());
            let tenant = request.tenant.parse().map_err(unknown)?;
            let adapter = request.adapter.parse().map_err(unknown)?;
            let selector: Selector = request.selector.parse().map_err(unknown)?;
            let found = self.core.resolve(&tenant, &adapter, &selector).await?;
            Ok(pb::ResolveResponse { version: Some(wire::version(&tenant, &adapter, &found)) })
        };
        self.call("resolve", work).await
    }

    async fn set_alias(&self, request: Request<pb::SetAliasRequest>) -> Answer<pb::SetAliasResponse> {
        let work = async {
            let request = request.into_inner();
            let (tenant, adapter) = (name("tenant", &request.tenant)?, name("adapter", &request.adapter)?);
            let alias = name("alias", &request.alias)?;
            let expected = Expected::from_wire(&request.expected_etag);
            let moved =
                self.core.set_alias(tenant, adapter, Clone::clone(&alias), request.version, expected, &request.actor);
            let (record, etag) = moved.await?;
            Ok(pb::SetAliasResponse { alias: Some(wire::alias(&alias, &record, &etag)) })
        };
        self.call("set_alias", work).await
    }

    async fn roll_back_alias(&self, request: Request<pb::RollBackAliasRequest>) -> Answer<pb::SetAliasResponse> {
        let work = async {
            let request = request.into_inner();
            let (tenant, adapter) = (name("tenant", &request.tenant)?, name("adapter", &request.adapter)?);
            let alias = name("alias", &request.alias)?;
            let expected = Expected::from_wire(&request.expected_etag);
            let moved = self.core.roll_back_alias(tenant, adapter, Clone::clone(&alias), expected, &request.actor);
            let (record, etag) = moved.await?;
            Ok(pb::SetAliasResponse { alias: Some(wire::alias(&alias, &record, &etag)) })
        };
        self.call("roll_back_alias", work).await
    }

    async fn list_alias_moves(
        &self,
        request: Request<pb::ListAliasMovesRequest>,
    ) -> Answer<pb::ListAliasMovesResponse> {
        let work = async {
            let request = request.into_inner();
            let (tenant, adapter) = (name("tenant", &request.tenant)?, name("adapter", &request.adapter)?);
            let alias = name("alias", &request.alias)?;
            let (record, etag) = self.core.fresh_alias(&tenant, &adapter, &alias).await?;
            let earlier = record.history.iter().map(wire::alias_move).collect();
            Ok(pb::ListAliasMovesResponse { alias: Some(wire::alias(&alias, &record, &etag)), earlier })
        };
        self.call("list_alias_moves", work).await
    }

    async fn create_experiment(&self, request: Request<pb::CreateExperimentRequest>) -> Answer<pb::ExperimentResponse> {
        let work = async {
            let request = request.into_inner();
            let tenant: TenantName = name("tenant", &request.tenant)?;
            let created = self.core.create_experiment(tenant.clone(), &request.description, &request.actor);
            let mut record = created.await?;
            if request.start {
                let id = record.experiment.id.clone();
                record = self.core.change_experiment(tenant, &id, Change::Start, &request.actor).await?;
            }
            Ok(pb::ExperimentResponse { experiment: Some(wire::experiment(&record)), report: Default::default() })
        };
        self.call("create_experiment", work).await
    }

    async fn list_experiments(
        &self,
        request: Request<pb::ListExperimentsRequest>,
    ) -> Answer<pb::ListExperimentsResponse> {
        let work = async {
            let tenant: TenantName = name("tenant", &request.get_ref().tenant)?;
            let away = self.freshen(&tenant_prefix(&tenant)).await?;
            let catalog = self.core.catalog();
            let unknown = || Error::NotFound(format!("there is no tenant {tenant}"));
            let found = catalog.tenant(&tenant).ok_or_else(|| away.unwrap_or_else(unknown))?;
            Ok(pb::ListExperimentsResponse { experiments: found.experiments.values().map(wire::experiment).collect() })
        };
        self.call("list_experiments", work).await
    }

    async fn get_experiment(&self, request: Request<pb::GetExperimentRequest>) -> Answer<pb::ExperimentResponse> {
        let work = async {
            let request = request.into_inner();
            let tenant: TenantName = name("tenant", &request.tenant)?;
            let record = self.core.fresh_experiment(&tenant, &request.id).await?;
            let report = self.core.experiment_report(&record, &self.observed).await?;
            let report = serde_json::to_vec(&report).expect("reports are plain data with text keys").into();
            Ok(pb::ExperimentResponse { experiment: Some(wire::experiment(&record)), report })
        };
        self.call("get_experiment", work).await
    }

    async fn change_experiment(&self, request: Request<pb::ChangeExperimentRequest>) -> Answer<pb::ExperimentResponse> {
        let work = async {
            let request = request.into_inner();
            let tenant: TenantName = name("tenant", &request.tenant)?;
            let change =
                request.change.ok_or_else(|| Error::invalid("change", "no change that is known is asked for"))?;
            let changed = self.core.change_experiment(tenant, &request.id, Change::read(change), &request.actor);
            let record = changed.await?;
            Ok(pb::ExperimentResponse { experiment: Some(wire::experiment(&record)), report: Default::default() })
        };
        self.call("change_experiment", work).await
    }

    async fn report_observations(
        &self,
        request: Request<pb::ReportObservationsRequest>,
    ) -> Answer<pb::ReportObservationsResponse> {
        let work = async {
            self.core.keep_observations(request.into_inner()).await?;
            Ok(pb::ReportObservationsResponse {})
        };
        self.call("report_observations", work).await
    }

    type ReadExposuresStream = BoxStream<'static, Result<pb::ReadExposuresResponse, Status>>;

    async fn read_exposures(&self, request: Request<pb::ReadExposuresRequest>) -> Answer<Self::ReadExposuresStream> {
        let work = async {
            let request = request.into_inner();
            let tenant: TenantName = name("tenant", &request.tenant)?;
            let objects = self.core.exposure_log(&tenant, &request.experiment, &request.day).await?;
            let core = Arc::clone(&self.core);
            let read = move |object: ObjectMeta| {
                let core = Arc::clone(&core);
                async move {
                    let found = core.store.get(&object.key).await.map_err(|error| Status::from(Fault::from(error)))?;
                    Ok(pb::ReadExposuresResponse { lines: found.map(|found| found.bytes).unwrap_or_default() })
                }
            };
            let stream: Self::ReadExposuresStream = Box::pin(futures::stream::iter(objects).then(read));
            Ok(stream)
        };
        self.call("read_exposures", work).await
    }

    async fn create_tenant(&self, request: Request<pb::CreateTenantRequest>) -> Answer<pb::CreateTenantResponse> {
        let work = async {
            let request = request.into_inner();
            let name = name("name", &request.name)?;
            let limits = wire::first_limits(request.limits);
            let (record, created) = self.core.create_tenant(name, request.weight, &limits, &request.actor).await?;
            Ok(pb::CreateTenantResponse { tenant: Some(wire::tenant(&record)), created })
        };
        self.call("create_tenant", work).await
    }

    async fn update_tenant(&self, request: Request<pb::UpdateTenantRequest>) -> Answer<pb::UpdateTenantResponse> {
        let work = async {
            let record = self.core.update_tenant(request.into_inner()).await?;
            Ok(pb::UpdateTenantResponse { tenant: Some(wire::tenant(&record)) })
        };
        self.call("update_tenant", work).await
    }

    async fn list_tenants(&self, _: Request<pb::ListTenantsRequest>) -> Answer<pb::ListTenantsResponse> {
        let work = async {
            self.freshen(ROOT).await?;
            let catalog = self.core.catalog();
            let tenants = catalog.tenants.values().filter_map(|tenant| tenant.record.as_ref().map(wire::tenant));
            Ok(pb::ListTenantsResponse { tenants: tenants.collect() })
        };
        self.call("list_tenants", work).await
    }

    async fn create_key(&self, request: Request<pb::CreateKeyRequest>) -> Answer<pb::CreateKeyResponse> {
        let work = async {
            let request = request.into_inner();
            let tenant = name("tenant", &request.tenant)?;
            let limits = wire::first_limits(request.limits);
            let (id, secret) = self.core.create_key(tenant, &request.label, &limits, &request.actor).await?;
            Ok(pb::CreateKeyResponse { id, secret })
        };
        self.call("create_key", work).await
    }

    async fn list_keys(&self, request: Request<pb::ListKeysRequest>) -> Answer<pb::ListKeysResponse> {
        let work = async {
            let tenant: TenantName = name("tenant", &request.get_ref().tenant)?;
            let away = self.freshen(&tenant_prefix(&tenant)).await?;
            let catalog = self.core.catalog();
            let unknown = || Error::NotFound(format!("there is no tenant {tenant}"));
            let found = catalog.tenant(&tenant).ok_or_else(|| away.unwrap_or_else(unknown))?;
            let keys = found.keys.values().map(|key| wire::key(&tenant, key));
            Ok(pb::ListKeysResponse { keys: keys.collect() })
        };
        self.call("list_keys", work).await
    }

    async fn update_key(&self, request: Request<pb::UpdateKeyRequest>) -> Answer<pb::UpdateKeyResponse> {
        let work = async {
            let request = request.into_inner();
            let tenant: TenantName = name("tenant", &request.tenant)?;
            let limits = wire::changes(request.limits);
            let record = self.core.update_key(tenant.clone(), &request.id, &limits, &request.actor).await?;
            Ok(pb::UpdateKeyResponse { key: Some(wire::key(&tenant, &record)) })
        };
        self.call("update_key", work).await
    }

    async fn revoke_key(&self, request: Request<pb::RevokeKeyRequest>) -> Answer<pb::RevokeKeyResponse> {
        let work = async {
            let request = request.into_inner();
            self.core.revoke_key(name("tenant", &request.tenant)?, &request.id, &request.actor).await?;
            Ok(pb::RevokeKeyResponse {})
        };
        self.call("revoke_key", work).await
    }

    type WatchDirectoryStream = BoxStream<'static, Result<pb::Directory, Status>>;

    async fn watch_directory(&self, _: Request<pb::WatchDirectoryRequest>) -> Answer<Self::WatchDirectoryStream> {
        let max = self.core.settings.watchers_max;
        let busy = |_| Error::Busy { what: "directory streams", max, setting: "watchers_max" };
        let watching = async {
            let permit = Arc::clone(&self.watchers).try_acquire_owned().map_err(busy)?;
            let mut changes = self.core.watch();
            // The first turn sends what there is now.
            changes.mark_changed();
            let watcher = Watcher {
                core: Arc::clone(&self.core),
                changes,
                repeat: Duration::from_millis(self.core.settings.directory_refresh_ms),
                stopping: self.stopping.clone(),
                _permit: permit,
                _running: Running::new(&self.core.metrics.watchers),
            };
            let stream: Self::WatchDirectoryStream = Box::pin(futures::stream::unfold(watcher, Watcher::next));
            Ok(stream)
        };
        self.call("watch_directory", watching).await
    }

    type WatchPlacementStream = BoxStream<'static, Result<pb::Placement, Status>>;

    async fn watch_placement(&self, _: Request<pb::WatchPlacementRequest>) -> Answer<Self::WatchPlacementStream> {
        let max = self.core.settings.watchers_max;
        let busy = |_| Error::Busy { what: "placement streams", max, setting: "watchers_max" };
        let watching = async {
            let permit = Arc::clone(&self.placement_watchers).try_acquire_owned().map_err(busy)?;
            let watcher = PlacementWatcher::new(&self.core, &self.placing, self.stopping.clone(), permit);
            let stream: Self::WatchPlacementStream = Box::pin(futures::stream::unfold(watcher, PlacementWatcher::next));
            Ok(stream)
        };
        self.call("watch_placement", watching).await
    }

    type WatchDesiredStream = BoxStream<'static, Result<pb::Desired, Status>>;

    async fn watch_desired(&self, request: Request<pb::WatchDesiredRequest>) -> Answer<Self::WatchDesiredStream> {
        let max = DESIRED_WATCHERS_MAX;
        let busy =
            |_| Error::Busy { what: "streams of desired residency", max, setting: "none: workers have one each" };
        // No peer: a call within this process.
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        peer.admit_as_worker_at(&request.get_ref().worker)?;
        let watching = async {
            let worker = request.into_inner().worker;
            check_text("worker", &worker, WORKER_BYTES_MAX)?;
            let permit = Arc::clone(&self.desired_watchers).try_acquire_owned().map_err(busy)?;
            let watcher = DesiredWatcher::new(&self.core, &self.placing, &worker, self.stopping.clone(), permit);
            let stream: Self::WatchDesiredStream = Box::pin(futures::stream::unfold(watcher, DesiredWatcher::next));
            Ok(stream)
        };
        self.call("watch_desired", watching).await
    }

    async fn keep_residency(&self, request: Request<pb::KeepResidencyRequest>) -> Answer<pb::KeepResidencyResponse> {
        // No peer: a call within this process.
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        peer.admit_as_worker_at(&request.get_ref().worker)?;
        let work = async {
            check_text("worker", &request.get_ref().worker, WORKER_BYTES_MAX)?;
            self.core.keep_residency(request.into_inner()).await?;
            Ok(pb::KeepResidencyResponse {})
        };
        self.call("keep_residency", work).await
    }

    async fn announce_base(&self, request: Request<pb::AnnounceBaseRequest>) -> Answer<pb::AnnounceBaseResponse> {
        let work = async {
            let workers_with = |base: &Digest| self.placing.workers_with(base);
            self.core.announce_base(request.into_inner(), workers_with).await?;
            Ok(pb::AnnounceBaseResponse {})
        };
        self.call("announce_base", work).await
    }
}

/// One directory stream.
struct Watcher {
    core: Arc<Core>,
    changes: watch::Receiver<u64>,
    /// A watcher that hears nothing for longer knows that the registry is away.
    repeat: Duration,
    stopping: Shutdown,
    _permit: OwnedSemaphorePermit,
    _running: Running,
}

impl Watcher {
    async fn next(mut self) -> Option<(Result<pb::Directory, Status>, Self)> {
        tokio::select! {
            changed = self.changes.changed() => changed.ok()?,
            () = tokio::time::sleep(self.repeat) => {}
            () = self.stopping.wait() => return None,
        }
        // Before the directory is made: at worst it is sent once more.
        self.changes.mark_unchanged();
        let directory = self.core.directory();
        Some((Ok(directory), self))
    }
}
