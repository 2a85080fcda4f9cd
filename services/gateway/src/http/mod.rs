//! The HTTP face: two listeners, two dialects, one order of stages.
//!
//! Here is what all routes share: the routers, what happens around each request, and the way from a request to an
//! [`Admission`]. The dialects are in [`openai_chat`], [`openai_completions`], [`models`] and [`lorax`]; operators'
//! routes in [`admin`] and [`ops`].

mod admin;
mod admin_aliases;
mod admin_experiments;
mod admin_gc;
mod admin_import;
mod admin_limits;
mod admin_merge;
mod admin_placement;
mod admin_policy;
mod admin_publish;
mod admin_residency;
mod admin_smoke;
mod admin_update;
mod admin_usage;
mod admin_workers;
mod archive;
mod body;
mod errors;
mod experiment_page;
mod feedback;
mod identify;
mod lorax;
mod lorax_merged;
mod lorax_request;
mod lorax_stream;
mod models;
mod objects;
mod openai;
mod openai_chat;
mod openai_chat_answer;
mod openai_completions;
mod openai_completions_answer;
mod openapi;
mod openapi_shared;
mod ops;
mod per_address;
mod prewarm;
mod publish_cost;
mod response_format;
mod sse;
mod standing;

pub(crate) use identify::{Known, RequestId, unasked_lines};
pub use openapi::openapi_json;
pub(crate) use ops::Waiting;
pub(crate) use per_address::{Addresses, Peer};

use crate::app::Gateway;
use crate::authenticate;
use crate::directory::Key;
use crate::directory::Snapshot;
use crate::error::Error;
use crate::experiments::{ResponseId, mirror};
use crate::generate::{Admission, Collected, Facts, Wanted};
use crate::quota::Meter;
use crate::resolve::resolve_split;
use crate::usage::Account;
use crate::workers::Base;
use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequestParts, MatchedPath, Path, Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, patch, post};
use errors::{LoraxError, OpenAiError};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::de::DeserializeOwned;
use std::any::Any;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tower::util::option_layer;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use weft_fault::Fault;

/// A path and what answers there. Routers are built from tables of these, and so is the test that all are documented.
type Route = (&'static str, MethodRouter<Arc<Gateway>>);

fn openai_routes() -> Vec<Route> {
    vec![
        ("/v1/chat/completions", post(openai_chat::chat)),
        ("/v1/completions", post(openai_completions::completions)),
        ("/v1/feedback", post(feedback::feedback)),
        ("/v1/models", get(models::list)),
        ("/v1/models/{*id}", get(models::one)),
    ]
}

fn lorax_routes() -> Vec<Route> {
    vec![
        ("/", get(lorax::root).post(lorax::compat)),
        ("/generate", post(lorax::generate)),
        ("/generate_stream", post(lorax::generate_stream)),
        ("/invocations", post(lorax::invocations)),
        ("/tokenize", post(lorax::tokenize)),
        ("/info", get(lorax::info)),
        ("/health", get(lorax::health)),
        ("/ping", get(lorax::ping)),
    ]
}

/// Whether a path is one of LoRAX's, whose clients read errors of their own shape.
fn is_lorax(path: &str) -> bool {
    matches!(
        path,
        "/" | "/generate" | "/generate_stream" | "/invocations" | "/tokenize" | "/info" | "/health" | "/ping"
    )
}

/// What both listeners have.
fn ops_routes() -> Vec<Route> {
    vec![("/livez", get(ops::livez)), ("/openapi.json", get(openapi::document)), ("/docs", get(openapi::page))]
}

fn data_ops_routes() -> Vec<Route> {
    vec![("/readyz", get(ops::readyz))]
}

/// What needs an admin key.
fn admin_routes() -> Vec<Route> {
    vec![
        ("/admin/v1/tenants", get(admin::list_tenants).post(admin::create_tenant)),
        ("/admin/v1/tenants/{tenant}", patch(admin_update::update_tenant)),
        ("/admin/v1/tenants/{tenant}/keys", get(admin::list_keys).post(admin::create_key)),
        ("/admin/v1/tenants/{tenant}/keys/{id}", delete(admin::revoke_key).patch(admin_update::update_key)),
        ("/admin/v1/tenants/{tenant}/adapters", get(admin::list_adapters)),
        ("/admin/v1/tenants/{tenant}/adapters/{name}/versions", get(admin::list_versions).post(admin_publish::publish)),
        ("/admin/v1/tenants/{tenant}/adapters/{name}/versions/{version}", delete(admin_gc::delete_version)),
        ("/admin/v1/tenants/{tenant}/adapters/{name}/versions/{version}/smoke", post(admin_smoke::smoke)),
        ("/admin/v1/tenants/{tenant}/adapters/{name}/versions/{version}/release", post(admin_smoke::release)),
        ("/admin/v1/tenants/{tenant}/adapters/{name}/imports", post(admin_import::import)),
        ("/admin/v1/gc", post(admin_gc::collect)),
        ("/admin/v1/usage", get(admin_usage::usage)),
        ("/admin/v1/tenants/{tenant}/adapters/{name}/merges", post(admin_merge::merge)),
        ("/admin/v1/tenants/{tenant}/adapters/{name}/aliases", get(admin_aliases::list_aliases)),
        (
            "/admin/v1/tenants/{tenant}/adapters/{name}/aliases/{alias}",
            get(admin_aliases::get_alias).put(admin_aliases::set_alias),
        ),
        ("/admin/v1/tenants/{tenant}/adapters/{name}/aliases/{alias}/history", get(admin_aliases::history)),
        ("/admin/v1/tenants/{tenant}/adapters/{name}/aliases/{alias}/rollback", post(admin_aliases::roll_back)),
        ("/admin/v1/tenants/{tenant}/experiments", get(admin_experiments::list).post(admin_experiments::create)),
        ("/admin/v1/tenants/{tenant}/experiments/{id}", get(admin_experiments::show)),
        ("/admin/v1/tenants/{tenant}/experiments/{id}/start", post(admin_experiments::start)),
        ("/admin/v1/tenants/{tenant}/experiments/{id}/weight", post(admin_experiments::weigh)),
        ("/admin/v1/tenants/{tenant}/experiments/{id}/promote", post(admin_experiments::promote)),
        ("/admin/v1/tenants/{tenant}/experiments/{id}/stop", post(admin_experiments::stop)),
        ("/admin/v1/tenants/{tenant}/experiments/{id}/exposures", get(admin_experiments::exposures)),
        (
            "/admin/v1/tenants/{tenant}/adapters/{name}/pin",
            axum::routing::put(admin_residency::pin).delete(admin_residency::unpin),
        ),
        ("/admin/v1/tenants/{tenant}/adapters/{name}/evict", post(admin_residency::evict)),
        ("/admin/v1/workers", get(admin_workers::workers)),
        ("/admin/v1/residency", get(admin_workers::residency)),
        ("/admin/v1/placement", get(admin_placement::placement)),
    ]
}

fn admin_ops_routes() -> Vec<Route> {
    vec![("/metrics", get(ops::metrics)), ("/readyz", get(ops::readyz_in_full))]
}

fn router(routes: Vec<Route>) -> Router<Arc<Gateway>> {
    routes.into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods))
}

/// What tenants reach.
pub(crate) fn data_router(gateway: &Arc<Gateway>) -> Router {
    let openai = router(openai_routes())
        .method_not_allowed_fallback(openai_wrong_method)
        .layer(CatchPanicLayer::custom(openai_panic));
    let lorax = router(lorax_routes())
        .method_not_allowed_fallback(lorax_wrong_method)
        .layer(CatchPanicLayer::custom(lorax_panic));
    let ops = router(ops_routes()).merge(router(data_ops_routes()));
    around(openai.merge(lorax).merge(ops), gateway, cors(&gateway.settings.cors_allow_origins))
}

/// What operators reach.
pub(crate) fn admin_router(gateway: &Arc<Gateway>) -> Router {
    let admin = router(admin_routes())
        // Bodies have limits of ours, with answers of ours: see `body` and `admin_publish`.
        .layer(DefaultBodyLimit::disable())
        // Before any route is run, and so also before a body is read.
        .route_layer(from_fn_with_state(Arc::clone(gateway), admin::require_operator));
    let admin = admin.merge(router(ops_routes())).merge(router(admin_ops_routes()));
    let admin = admin.method_not_allowed_fallback(openai_wrong_method).layer(CatchPanicLayer::custom(openai_panic));
    around(admin, gateway, None)
}

/// Around every request, from the outside in: its id, what browsers ask before it, its metrics, its address' rate. The fallback is inside,
/// so that unknown paths are counted and identified too.
fn around(router: Router<Arc<Gateway>>, gateway: &Arc<Gateway>, cors: Option<CorsLayer>) -> Router {
    router
        .fallback(unknown_path)
        .layer(from_fn_with_state(Arc::clone(gateway), per_address::limit))
        .layer(from_fn_with_state(Arc::clone(gateway), observe))
        .layer(option_layer(cors))
        .layer(from_fn_with_state(Arc::clone(gateway), identify::identify))
        .with_state(Arc::clone(gateway))
}

/// Headers of an answer that a page may read, besides those that it always may.
const EXPOSED: [HeaderName; 20] = [
    identify::REQUEST_ID,
    HeaderName::from_static(identify::ADAPTER),
    HeaderName::from_static(identify::ADAPTER_DIGEST),
    HeaderName::from_static(identify::BASE_DIGEST),
    HeaderName::from_static(identify::WORKER),
    HeaderName::from_static(identify::RESPONSE_ID),
    HeaderName::from_static(identify::EXPERIMENT),
    HeaderName::from_static("x-weft-first-step"),
    HeaderName::from_static("x-weft-last-step"),
    HeaderName::from_static("x-weft-adapters-in-step-max"),
    HeaderName::from_static("x-weft-requests-in-step-max"),
    http::header::RETRY_AFTER,
    HeaderName::from_static("retry-after-ms"),
    HeaderName::from_static("x-should-retry"),
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// A browser may send whatever headers its client library adds: none of them means anything here but `authorization`.
fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    Some(
        CorsLayer::new()
            .allow_origin(allowed)
            .allow_methods([http::Method::GET, http::Method::POST])
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(EXPOSED),
    )
}

async fn observe(State(gateway): State<Arc<Gateway>>, request: Request, next: Next) -> Response {
    let arrived = Instant::now();
    // The pattern, never the path: labels stay bounded.
    let route = request.extensions().get::<MatchedPath>().map_or("none".to_owned(), |path| path.as_str().to_owned());
    let response = next.run(request).await;
    gateway.mesh.metrics.answered(&route, response.status(), arrived.elapsed());
    if response.extensions().get::<Panicked>().is_some() {
        gateway.mesh.metrics.panics.inc();
    }
    response
}

async fn unknown_path(request: Request) -> OpenAiError {
    OpenAiError(errors::unknown_url(request.method(), request.uri().path()))
}

async fn openai_wrong_method(request: Request) -> OpenAiError {
    OpenAiError(errors::method_not_allowed(request.method(), request.uri().path()))
}

async fn lorax_wrong_method(request: Request) -> LoraxError {
    LoraxError(errors::method_not_allowed(request.method(), request.uri().path()))
}

/// What a path names; a path that is no UTF-8 after decoding is answered in JSON too.
pub(crate) struct InPath<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for InPath<T> {
    type Rejection = OpenAiError;

    async fn from_request_parts(parts: &mut http::request::Parts, state: &S) -> Result<Self, OpenAiError> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(named)) => Ok(Self(named)),
            Err(rejection) => Err(Fault::invalid("path", rejection.body_text().to_lowercase()).into()),
        }
    }
}

/// Marks an answer that stands for a panic.
#[derive(Clone)]
struct Panicked;

fn panicked(panic: &(dyn Any + Send)) -> Fault {
    let what = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(what = what.unwrap_or("unknown"), "a request ended in a bug");
    Fault::internal("internal error")
}

fn openai_panic(panic: Box<dyn Any + Send>) -> Response<Body> {
    let mut response = OpenAiError(panicked(&*panic)).into_response();
    response.extensions_mut().insert(Panicked);
    response
}

fn lorax_panic(panic: Box<dyn Any + Send>) -> Response<Body> {
    let mut response = LoraxError(panicked(&*panic)).into_response();
    response.extensions_mut().insert(Panicked);
    response
}

/// A tenant's request with room to run. The room is held until the answer has ended.
pub(crate) struct Call {
    tenant: Arc<crate::directory::Tenant>,
    key: Arc<Key>,
    request_id: String,
    known: Known,
    /// `x-weft-session`: whose requests get the same arm of an experiment.
    session: Option<String>,
    arrived: Instant,
    room: OwnedSemaphorePermit,
    /// What it may cost, if that was taken from the limits before it was admitted.
    meter: Option<Meter>,
}

impl Call {
    /// The same call by a tenant as a newer directory has it.
    pub(crate) fn seen_by(mut self, snapshot: &Snapshot) -> Self {
        if let Some(tenant) = snapshot.tenant(&self.tenant.name) {
            self.tenant = Arc::clone(tenant);
        }
        self
    }

    /// Gives its room back.
    pub(crate) fn leave(self) -> Arc<crate::directory::Tenant> {
        self.tenant
    }
}

impl Gateway {
    /// Who asks? Is there room? Both before a byte of the body is read.
    pub(crate) fn enter(&self, parts: &http::request::Parts) -> Result<Call, Fault> {
        let arrived = Instant::now();
        let (key, tenant) = authenticate::tenant(&*self.directory.snapshot()?, &parts.headers)?;
        let room = self.mesh.limits.generations(1)?;
        let request_id = parts.extensions.get::<RequestId>().map_or_else(String::new, |id| id.0.clone());
        let session = parts.headers.get(identify::SESSION).and_then(|value| value.to_str().ok());
        let session = session.filter(|text| !text.is_empty()).map(ToOwned::to_owned);
        Ok(Call { tenant, key, request_id, known: Known::of(&parts.extensions), session, arrived, room, meter: None })
    }

    /// Reads the body within the limits of the data listener.
    pub(crate) async fn read_body(&self, parts: &http::request::Parts, body: Body) -> Result<body::ReadBody, Fault> {
        let bounds = body::Bounds { bytes_max: self.settings.body_bytes_max, timeout: self.settings.body_timeout() };
        Ok(body::read(&parts.headers, body, bounds, &self.mesh.limits).await?)
    }

    /// From a name to bytes, room for every answer that the request asks for, and leave to use what they may cost. `user`: whose request
    /// it is among the tenant's own; a session that the headers name goes before.
    pub(crate) async fn admit(
        &self,
        mut call: Call,
        model: Option<&str>,
        user: Option<&str>,
        wanted: &[Wanted],
    ) -> Result<(Admission, OwnedSemaphorePermit), Fault> {
        let base = self.mesh.pool.base()?;
        call.known.base(&base);
        let key = call.session.as_deref().or(user).filter(|key| !key.is_empty());
        let (resolved, assigned) = resolve_split(&call.tenant, model, base.served_name(), key)?;
        call.known.resolved(&call.tenant.name, &resolved);
        let more = if wanted.len() > 1 { Some(self.mesh.limits.generations(wanted.len() - 1)?) } else { None };
        let meter = self.reserve_once(&mut call, wanted, &base).await?;
        let mut room = call.room;
        if let Some(more) = more {
            room.merge(more);
        }
        // From here on the request counts: what the limits refused was not shown to an arm.
        let entered =
            assigned.map(|assigned| (self.experiments.enter(&call.tenant, &assigned, &call.request_id), assigned));
        let (response_id, trial) = match &entered {
            Some((entered, assigned)) => {
                call.known.experiment(&assigned.label());
                (entered.response_id(assigned), Some(entered.trial(assigned)))
            }
            None => (ResponseId::new(None).plain(), None),
        };
        call.known.response_id(&response_id);
        let admission = Admission {
            request_id: call.request_id,
            known: call.known,
            tenant: call.tenant,
            resolved,
            base,
            arrived: call.arrived,
            timeout: self.settings.request_timeout(),
            meter,
            response_id,
            trial,
            account: self.mesh.usage.get().map(|usage| Account::new(Arc::clone(usage), &call.key.id)),
        };
        if let Some((entered, assigned)) = &entered {
            mirror(self, entered, assigned, &admission, wanted);
        }
        Ok((admission, room))
    }

    /// Takes from the tenant's and the key's limits what these answers may cost. The answer's headers tell what is left.
    pub(crate) async fn reserve(&self, call: &Call, wanted: &[Wanted], context_tokens: u64) -> Result<Meter, Fault> {
        match self.quota.reserve(&call.tenant, &call.key, wanted, context_tokens).await {
            Ok(meter) => {
                self.mesh.metrics.limits.allowed.inc();
                call.known.standing(&meter.standing());
                Ok(meter)
            }
            Err((error, standing)) => {
                if let Error::LimitReached { refusal, .. } = &error {
                    let whose = if refusal.of_key { "key" } else { "tenant" };
                    self.mesh.metrics.limits.refused.with_label_values(&[refusal.kind.as_str(), whose]).inc();
                }
                call.known.standing(&standing);
                Err(error.into())
            }
        }
    }

    /// The same, at most once for each call.
    pub(crate) async fn reserve_once(&self, call: &mut Call, wanted: &[Wanted], base: &Base) -> Result<Meter, Fault> {
        let meter = match call.meter.take() {
            Some(meter) => meter,
            None => self.reserve(call, wanted, u64::from(base.description.context_tokens_max)).await?,
        };
        call.meter = Some(meter.clone());
        Ok(meter)
    }
}

/// `x-weft-*` of an answer that has begun: with several, those of the first.
fn weft_headers(facts: &Facts) -> HeaderMap {
    let mut headers = HeaderMap::new();
    put(&mut headers, identify::WORKER, &facts.worker);
    if let Some(wait_us) = facts.adapter_wait_us {
        put(&mut headers, identify::ADAPTER_WAIT_US, &wait_us.to_string());
    }
    headers
}

/// `x-weft-*-step*`: which steps computed a whole answer, and with how much company. Only where an operator allows it.
fn step_headers(gateway: &Gateway, answers: &[Collected], headers: &mut HeaderMap) {
    if !gateway.settings.step_headers {
        return;
    }
    let finished = || answers.iter().map(|answer| &answer.finished);
    let numbers = [
        ("x-weft-first-step", finished().map(|finished| finished.first_step).min()),
        ("x-weft-last-step", finished().map(|finished| finished.last_step).max()),
        ("x-weft-adapters-in-step-max", finished().map(|finished| u64::from(finished.adapters_in_step_max)).max()),
        ("x-weft-requests-in-step-max", finished().map(|finished| u64::from(finished.requests_in_step_max)).max()),
    ];
    for (name, number) in numbers {
        put(headers, name, &number.unwrap_or(0).to_string());
    }
}

/// Sets a header, unless the value has characters that no header can have.
fn put(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(HeaderName::from_static(name), value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tower::ServiceExt;

    #[test]
    fn the_paths_of_lorax_are_known_apart() {
        assert!(lorax_routes().iter().all(|(path, _)| is_lorax(path)));
        let others = [openai_routes(), ops_routes(), data_ops_routes(), admin_routes(), admin_ops_routes()];
        assert!(others.into_iter().flatten().all(|(path, _)| !is_lorax(path)));
    }

    async fn bug() {
        panic!("a bug of ours");
    }

    #[tokio::test]
    async fn a_bug_answers_json_with_status_500() {
        let openai: Router = Router::new().route("/", get(bug)).layer(CatchPanicLayer::custom(openai_panic));
        let lorax: Router = Router::new().route("/", get(bug)).layer(CatchPanicLayer::custom(lorax_panic));
        for (router, key) in [(openai, "code"), (lorax, "error_type")] {
            let response = router.oneshot(Request::new(Body::empty())).await.unwrap();
            assert_eq!(response.status(), 500);
            let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let error = body["error"].as_object().map_or(&body, |_| &body["error"]);
            assert!(error[key].is_string(), "{body}");
        }
    }
}
