//! `POST /admin/v1/tenants/{tenant}/adapters/{name}/versions`: an upload on its way to the registry.
//!
//! The weights are never whole in memory: pieces of at most 1 MiB go on as they come, and the registry's pace is the
//! client's pace. Config and weights go on in the order in which they come.
//! When the upload breaks off, the call to the registry is dropped before its stream could end, so that half a package
//! never looks like a whole one.

use super::InPath;
use super::admin::{checked, operator, registry_silent};
use super::archive::{ARCHIVES, Archive};
use super::errors::{OpenAiBody, OpenAiError};
use super::publish_cost::CostBody;
use crate::app::Gateway;
use crate::directory::{Snapshot, registry_fault};
use crate::error::Error;
use axum::Json;
use axum::body::Body;
use axum::extract::multipart::{Field, Multipart, MultipartRejection};
use axum::extract::{FromRequest, Query, Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::future::{Either, select};
use http::{StatusCode, header};
use serde::{Deserialize, Serialize};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use utoipa::ToSchema;
use weft_adapter_sources::SIGNATURE_BYTES_MAX;
use weft_fault::{Fault, Kind};
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::publish_request::Part;
use weft_proto::registry::v1::publish_response::Result as Published;
use weft_types::{AdapterName, AliasName, Digest, TenantName};

/// Pieces on their way.
const PIECES_IN_FLIGHT: usize = 4;
/// How long the registry may take to judge and store a package after its last byte.
const JUDGE_TIMEOUT: Duration = Duration::from_secs(300);
/// A piece found nobody who takes it.
const STOPPED: &str = "registry_stopped";
/// How long the answer of a call that takes no more pieces may take.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Names of other files.
const OTHERS_BYTES_MAX: usize = 64 << 10;
/// Files that are pickles: executable, so never opened.
const PICKLES: &[&str] = &[".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"];

/// `?alias=`
#[derive(Deserialize)]
pub(crate) struct Wish {
    alias: Option<String>,
    #[serde(default)]
    quarantine: bool,
}

/// A published version.
#[derive(Serialize, ToSchema)]
pub(crate) struct PublishedBody {
    adapter: String,
    version: u64,
    #[schema(value_type = Option<String>)]
    digest: Option<Digest>,
    warnings: Vec<String>,
    /// Nobody is shown it until it is released (`…/versions/{version}/smoke` or `…/release`), and no alias moved.
    quarantined: bool,
    /// The key or certificate that signed the package; null: none did, or nobody asked.
    signed_by: Option<String>,
    cost: CostBody,
}

/// The two files of a package.
#[derive(ToSchema)]
#[allow(dead_code, reason = "for the schema")]
pub(crate) struct Package {
    /// `adapter_config.json`
    #[schema(value_type = String, format = Binary)]
    config: Vec<u8>,
    /// `adapter_model.safetensors`
    #[schema(value_type = String, format = Binary)]
    weights: Vec<u8>,
    /// `model.sig`: an OpenSSF model signature of the two files.
    #[schema(value_type = Option<String>, format = Binary)]
    signature: Option<Vec<u8>>,
    /// Names of what lies beside them, one a line: what would change what prompts become is refused.
    others: Option<String>,
}

/// The two files of a package in one archive.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[allow(dead_code, reason = "for the schema")]
pub(crate) struct PackedPackage(Vec<u8>);

/// Publish a package as a new version, and move the alias `live` to it.
///
/// `?alias=none` moves no alias, `?alias=NAME` another one. The same bytes again are the version that they were. In place of the form the body may be an
/// archive with the two files (`application/x-tar` or `application/gzip`), alone or in one folder.
#[utoipa::path(
    post, path = "/admin/v1/tenants/{tenant}/adapters/{name}/versions", tag = "admin", security(("admin" = [])),
    params(("tenant" = String, Path), ("name" = String, Path, description = "One segment: a slash is `%2F`"),
        ("alias" = Option<String>, Query, description = "`none`, or the alias to move; absent: `live`"),
        ("quarantine" = Option<bool>, Query, description = "Shown to nobody, and no alias moves, until it is released")),
    request_body(content((Package = "multipart/form-data"), (PackedPackage = "application/x-tar"), (PackedPackage = "application/gzip"))),
    responses(
        (status = 201, description = "A new version", body = PublishedBody),
        (status = 200, description = "These bytes were a version already", body = PublishedBody),
        (status = 400, description = "The upload is not what it should be", body = OpenAiBody),
        (status = 409, description = "These bytes are in quarantine, or an experiment splits the alias", body = OpenAiBody),
        (status = 413, description = "A part is over its cap", body = OpenAiBody),
        (status = 422, description = "Refused; every reason is in `error.reasons`", body = OpenAiBody),
    )
)]
pub(crate) async fn publish(
    State(gateway): State<Arc<Gateway>>,
    InPath((tenant, name)): InPath<(String, String)>,
    request: Request,
) -> Result<Response, OpenAiError> {
    let tenant: TenantName = checked("tenant", &tenant)?;
    let name: AdapterName = checked("name", &name)?;
    let (alias, quarantined) = (wished_alias(request.uri())?, wished_quarantine(request.uri())?);
    let _room = gateway.mesh.limits.upload()?;
    let (parts, stream) = request.into_parts();
    let actor = operator(&parts);
    let moving = gateway.moving(&tenant, &name, alias, &actor);
    let start = pb::PublishStart {
        tenant: tenant.to_string(),
        adapter: name.to_string(),
        alias: moving.at_once(),
        actor,
        quarantined,
    };
    let mut upload = Upload::of(&gateway, parts, stream).await?;
    let published = send(&gateway, start, &mut upload).await?;

    let (status, body) = gateway.finish_publish(&tenant, &name, moving, published).await?;
    Ok((status, Json(body)).into_response())
}

/// `?quarantine=`: whether the version is shown to nobody until it is released.
pub(super) fn wished_quarantine(uri: &http::Uri) -> Result<bool, Fault> {
    let wish = Query::<Wish>::try_from_uri(uri).map_err(|error| Fault::invalid("quarantine", error.body_text()))?;
    Ok(wish.0.quarantine)
}

/// `?alias=`: the alias to move; empty for none.
pub(super) fn wished_alias(uri: &http::Uri) -> Result<String, Fault> {
    let wish = Query::<Wish>::try_from_uri(uri).map_err(|error| Fault::invalid("alias", error.body_text()))?;
    Ok(match wish.0.alias.as_deref() {
        Some("none") => String::new(),
        Some(alias) => checked::<AliasName>("alias", alias)?.to_string(),
        None => AliasName::live().to_string(),
    })
}

/// The alias of a version that is being published.
pub(super) struct Moving {
    alias: String,
    /// It waits until the version is warm.
    is_later: bool,
    actor: String,
}

impl Moving {
    /// The alias that the registry moves with the version; empty: none.
    pub(super) fn at_once(&self) -> String {
        if self.is_later { String::new() } else { self.alias.clone() }
    }
}

fn too_long_judged(limit: Duration) -> Fault {
    Fault::new(Kind::Timeout, format!("the registry did not answer within {} s", limit.as_secs_f64()))
}

impl Gateway {
    /// A call that makes the registry judge a package, within the time that this may take.
    pub(crate) async fn judged<T>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Fault> {
        self.judged_within(JUDGE_TIMEOUT, call).await
    }

    /// The same within another time.
    pub(crate) async fn judged_within<T>(
        &self,
        limit: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Fault> {
        let answer = tokio::time::timeout(limit, call).await.map_err(|_| too_long_judged(limit))?;
        Ok(answer.map_err(|status| registry_fault(&status))?.into_inner())
    }

    /// How the alias of a version that is to be published moves.
    pub(super) fn moving(&self, tenant: &TenantName, name: &AdapterName, alias: String, actor: &str) -> Moving {
        Moving { is_later: self.moves_later(tenant, name, &alias), alias, actor: actor.to_owned() }
    }

    /// After a publish: an alias that waits moves once the version is warm. A gateway that dies before leaves a version that the same publish
    /// again gives its alias.
    pub(super) async fn finish_publish(
        &self,
        tenant: &TenantName,
        name: &AdapterName,
        moving: Moving,
        published: pb::Published,
    ) -> Result<(StatusCode, PublishedBody), Fault> {
        let version = published.version;
        // Old bytes again move no alias back.
        let is_ahead = self.directory.last().is_some_and(|snapshot| {
            let adapter = snapshot.adapter(tenant.as_str(), name.as_str());
            adapter.is_some_and(|adapter| adapter.aliases.get(&moving.alias) < Some(&version))
        });
        if moving.is_later && is_ahead && !published.quarantined {
            self.show(|snapshot| {
                let adapter = snapshot.adapter(tenant.as_str(), name.as_str());
                adapter.is_some_and(|adapter| adapter.versions.contains_key(&version))
            })
            .await;
            let alias: AliasName = checked("alias", &moving.alias)?;
            self.prewarm(tenant, name, &alias, version).await;
            self.release(tenant, name, version, &moving.alias, moving.actor).await?;
        }
        self.show_published(tenant, name, &moving.alias, published).await
    }

    /// Waits until this gateway serves the version, and says how that is answered.
    async fn show_published(
        &self,
        tenant: &TenantName,
        name: &AdapterName,
        alias: &str,
        published: pb::Published,
    ) -> Result<(StatusCode, PublishedBody), Fault> {
        let shown = |snapshot: &Snapshot| {
            let adapter = snapshot.adapter(tenant.as_str(), name.as_str());
            published.quarantined
                || adapter.is_some_and(|adapter| {
                    let aliased = alias.is_empty()
                        || !published.created
                        || adapter.aliases.get(alias) >= Some(&published.version);
                    aliased && adapter.versions.contains_key(&published.version)
                })
        };
        self.show(shown).await;
        let cost = CostBody::of(self, &published);
        let mut warnings = published.warnings;
        if !published.created && !alias.is_empty() {
            let aliases = self.aliases(tenant, name).await?;
            warnings.extend(elsewhere(&aliases, alias, published.version));
        }
        let status = if published.created { StatusCode::CREATED } else { StatusCode::OK };
        let body = PublishedBody {
            adapter: published.adapter,
            version: published.version,
            digest: Digest::try_from(published.digest.as_ref()).ok(),
            warnings,
            quarantined: published.quarantined,
            signed_by: Some(published.signed_by).filter(|by| !by.is_empty()),
            cost,
        };
        Ok((status, body))
    }
}

/// Old bytes again move no alias back: whoever expects to have published something new is told so.
fn elsewhere(aliases: &[pb::Alias], alias: &str, version: u64) -> Option<String> {
    let moved = aliases.iter().find(|known| known.name == alias).filter(|known| known.version != version)?;
    Some(format!(
        "these bytes are version {version} already; alias {alias} stays at version {} (PUT the alias to move it)",
        moved.version
    ))
}

/// Runs the upload and the call side by side: a refusal half way ends the upload, a broken upload the call.
async fn send(gateway: &Gateway, start: pb::PublishStart, upload: &mut Upload) -> Result<pb::Published, Fault> {
    let (sender, received) = mpsc::channel(PIECES_IN_FLIGHT);
    let mut registry = gateway.registry.clone();
    let outcome = {
        let pieces = Pieces { sender: Some(sender), limit: gateway.settings.registry_timeout() };
        let call = pin!(registry.publish(ReceiverStream::new(received)));
        let forwarding = pin!(upload.forward(gateway, start, pieces));
        match select(call, forwarding).await {
            Either::Left((answer, _upload)) => Ok(answer),
            // The registry has ended the call: why is in its answer.
            Either::Right((Err(fault), call)) if fault.code == STOPPED => {
                match tokio::time::timeout(LAST_WORD, call).await {
                    Ok(answer) => Ok(answer),
                    Err(_) => Err(fault),
                }
            }
            Either::Right((Err(fault), _call)) => Err(fault),
            Either::Right((Ok(()), call)) => {
                tokio::time::timeout(JUDGE_TIMEOUT, call).await.map_err(|_| too_long_judged(JUDGE_TIMEOUT))
            }
        }
    };
    // What the client still sends is read and dropped, so that it gets to read the answer; but who is too slow has
    // had its time.
    if outcome.as_ref().err().is_none_or(|fault| fault.kind != Kind::Timeout) {
        upload.discard().await;
    }
    let result = outcome?.map_err(|status| registry_fault(&status))?.into_inner().result;
    judgement(result.map(|result| match result {
        Published::Published(published) => Ok(published),
        Published::Refusal(refusal) => Err(refusal),
    }))
}

/// What the registry said of a package, however it got it.
pub(super) fn judgement(said: Option<Result<pb::Published, pb::Refusal>>) -> Result<pb::Published, Fault> {
    let said = said.ok_or_else(|| Fault::internal("the registry answered with nothing"))?;
    said.map_err(|refusal| refused(refusal.reasons))
}

pub(super) fn refused(reasons: Vec<String>) -> Fault {
    Fault::new(Kind::Refused, format!("the package is refused: {}", reasons.join("; ")))
        .with_code("package_refused")
        .with_reasons(reasons)
}

/// What comes in: the parts of a form, or one archive.
enum Upload {
    Form(Multipart),
    Archive(Archive),
}

impl Upload {
    async fn of(gateway: &Gateway, parts: http::request::Parts, stream: Body) -> Result<Self, Fault> {
        let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        if ARCHIVES.contains(&kind) {
            return Ok(Self::Archive(Archive::new(gateway, stream)));
        }
        let multipart = Multipart::from_request(Request::from_parts(parts, stream), &()).await;
        let wrong = |error: MultipartRejection| Fault::invalid("content-type", error.body_text());
        Ok(Self::Form(multipart.map_err(wrong)?))
    }

    async fn forward(&mut self, gateway: &Gateway, start: pb::PublishStart, pieces: Pieces) -> Result<(), Fault> {
        match self {
            Self::Form(multipart) => forward(gateway, start, multipart, pieces).await,
            Self::Archive(archive) => archive.forward(start, pieces).await,
        }
    }

    /// Reads and drops what is left, so that a client that is still sending gets to read the answer.
    async fn discard(&mut self) {
        let Self::Form(multipart) = self else { return };
        let rest = async {
            while let Ok(Some(mut field)) = multipart.next_field().await {
                while let Ok(Some(_)) = field.chunk().await {}
            }
        };
        let _ = tokio::time::timeout(Duration::from_secs(10), rest).await;
    }
}

/// The stream to the registry. Only [`Pieces::whole`] ends it; when dropped before, it stays open until the call that
/// reads it is gone, so that the registry sees a cancelled call and never an early end.
pub(super) struct Pieces {
    sender: Option<mpsc::Sender<pb::PublishRequest>>,
    /// In which the registry must take a piece.
    limit: Duration,
}

impl Pieces {
    pub(super) async fn put(&self, part: Part) -> Result<(), Fault> {
        let message = pb::PublishRequest { part: Some(part) };
        // A closed channel means that the call has its answer already; that one counts.
        let stopped = || Fault::unavailable("the registry stopped listening").with_code(STOPPED);
        let sent = self.sender.as_ref().ok_or_else(stopped)?.send(message);
        let sent = tokio::time::timeout(self.limit, sent).await.map_err(|_| registry_silent(self.limit))?;
        sent.map_err(|_| stopped())
    }

    pub(super) fn whole(mut self) {
        self.sender = None;
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        if let (Some(sender), Ok(runtime)) = (self.sender.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { sender.closed().await });
        }
    }
}

/// From the multipart body to the registry.
async fn forward(
    gateway: &Gateway,
    start: pb::PublishStart,
    multipart: &mut Multipart,
    pieces: Pieces,
) -> Result<(), Fault> {
    let settings = &gateway.settings;
    pieces.put(Part::Start(start)).await?;
    let (mut config_seen, mut weights_seen, mut signature_seen, mut others_seen) = (false, false, false, false);
    let timeout = settings.body_timeout();
    while let Some(field) = within(timeout, multipart.next_field()).await? {
        let name = field.name().unwrap_or_default().to_owned();
        match name.as_str() {
            "config" if !config_seen => {
                config_seen = true;
                let config = read_small(field, settings.package_config_bytes_max, timeout).await?;
                pieces.put(Part::Config(config.into())).await?;
            }
            "weights" if !weights_seen => {
                weights_seen = true;
                refuse_pickle(field.file_name())?;
                let mut weights = Weights {
                    field,
                    left: settings.package_weights_bytes_max,
                    max: settings.package_weights_bytes_max,
                    timeout,
                };
                while let Some(piece) = weights.next().await? {
                    pieces.put(Part::Weights(piece)).await?;
                }
            }
            "signature" if !signature_seen => {
                signature_seen = true;
                let signature = read_small(field, SIGNATURE_BYTES_MAX as usize, timeout).await?;
                pieces.put(Part::Signature(signature.into())).await?;
            }
            "others" if !others_seen => {
                others_seen = true;
                let names = read_small(field, OTHERS_BYTES_MAX, timeout).await?;
                let names = String::from_utf8_lossy(&names);
                let names = names.lines().map(str::trim).filter(|name| !name.is_empty()).map(ToOwned::to_owned);
                pieces.put(Part::Others(pb::OtherFiles { names: names.collect() })).await?;
            }
            "config" | "weights" | "signature" | "others" => {
                return Err(Fault::invalid(name.clone(), format!("part `{name}` comes twice")));
            }
            other => {
                refuse_pickle(field.file_name())?;
                let other: String = other.chars().take(64).collect();
                return Err(Fault::invalid(
                    other.clone(),
                    format!(
                        "unknown part `{other}`; a package has the parts `config` and `weights`, and may have `signature` and `others`"
                    ),
                ));
            }
        }
    }
    for (name, file, seen) in
        [("config", "adapter_config.json", config_seen), ("weights", "adapter_model.safetensors", weights_seen)]
    {
        if !seen {
            return Err(Fault::invalid(name, format!("part `{name}` ({file}) is missing")));
        }
    }
    pieces.whole();
    Ok(())
}

fn refuse_pickle(file_name: Option<&str>) -> Result<(), Fault> {
    let Some(name) = file_name else { return Ok(()) };
    let lower = name.to_ascii_lowercase();
    if PICKLES.iter().any(|ending| lower.ends_with(ending)) {
        let name: String = name.chars().take(128).collect();
        return Err(refused(vec![format!(
            "file {name:?} is a pickle, which can run code; only adapter_model.safetensors is accepted"
        )]));
    }
    Ok(())
}

/// The next thing of the upload, in time.
async fn within<T>(
    timeout: Duration,
    next: impl Future<Output = Result<T, axum::extract::multipart::MultipartError>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(timeout, next).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::BodyBroken(error.body_text()).into()),
        Err(_) => Err(Error::BodyTooSlow(timeout.as_secs()).into()),
    }
}

/// A part that is small enough for memory.
async fn read_small(mut field: Field<'_>, max: usize, timeout: Duration) -> Result<Vec<u8>, Fault> {
    let name = field.name().unwrap_or_default().to_owned();
    let mut bytes = Vec::new();
    while let Some(piece) = within(timeout, field.chunk()).await? {
        if bytes.len() + piece.len() > max {
            return Err(part_too_large(&name, max as u64));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes)
}

fn part_too_large(part: &str, max: u64) -> Fault {
    Fault::new(Kind::TooLarge, format!("part `{part}` is larger than the limit of {max} bytes")).with_param(part)
}

/// The weights' part, in pieces that the registry takes.
struct Weights<'a> {
    field: Field<'a>,
    left: u64,
    max: u64,
    timeout: Duration,
}

impl Weights<'_> {
    /// The next piece: what the connection gave, which is far less than what the registry takes at once.
    async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        let Some(piece) = within(self.timeout, self.field.chunk()).await? else { return Ok(None) };
        let Some(left) = self.left.checked_sub(piece.len() as u64) else {
            return Err(part_too_large("weights", self.max));
        };
        self.left = left;
        Ok(Some(piece))
    }
}
