//! `/metrics`, `/livez` and `/readyz` of a service whose own face is gRPC, for scrapers and probes that speak HTTP.
//!
//! It answers from before the service is built until the process ends, so that a slow start and a drain can be seen.

use crate::readiness::Readiness;
use crate::shutdown::Shutdown;
use crate::transport::{Address, Connection, Listener};
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::StreamExt;
use futures::future::BoxFuture;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use prometheus::{Encoder, TextEncoder};
use serde_json::json;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Connections at once; more wait in the system's backlog.
const CONNECTIONS_MAX: usize = 32;
/// A client that does not finish its headers in this time is hung up on, and so is one whose connection lasts longer
/// than the other: a scrape takes milliseconds, and 32 idle connections would shut everybody out.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);
const HEADER_BYTES_MAX: usize = 16 << 10;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[derive(Clone)]
struct Facts {
    metrics: prometheus::Registry,
    /// Empty until the service is built.
    readiness: Arc<OnceLock<Readiness>>,
    draining: Shutdown,
}

/// The operations listener of a process. Dropped: it no longer answers.
pub struct Operations {
    facts: Facts,
    address: Option<String>,
    _serving: JoinSet<()>,
}

impl Operations {
    /// Listens at `listen` (`host:port`; port 0 picks one) and answers from now on. Empty: nothing is listened on.
    ///
    /// # Errors
    /// The text is no address, or the address cannot be listened on; the error names it.
    pub fn start<'a>(
        listen: &'a str,
        metrics: &'a prometheus::Registry,
        draining: &'a Shutdown,
    ) -> BoxFuture<'a, io::Result<Self>> {
        Box::pin(Self::listen(listen, metrics, draining))
    }

    async fn listen(listen: &str, metrics: &prometheus::Registry, draining: &Shutdown) -> io::Result<Self> {
        let facts = Facts { metrics: metrics.clone(), readiness: Arc::default(), draining: draining.clone() };
        let mut serving = JoinSet::new();
        let mut address = None;
        if !listen.is_empty() {
            let wrong = |error| io::Error::new(io::ErrorKind::InvalidInput, format!("metrics_listen: {error}"));
            let listener = Listener::bind(&listen.parse::<Address>().map_err(wrong)?).await?;
            address = Some(listener.address().to_owned());
            serving.spawn(serve(listener, router(facts.clone())));
        }
        Ok(Self { facts, address, _serving: serving })
    }

    /// From now on `/readyz` follows these conditions; until then the service is starting.
    pub fn follow(&self, readiness: &Readiness) {
        // A second call changes nothing: a process has one service.
        let _ = self.facts.readiness.set(readiness.clone());
    }

    /// Where it listens, with the real port; none if it does not.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }
}

/// Whether the text can be a `metrics_listen`.
///
/// # Errors
/// What is wrong, naming the setting.
pub fn check_listen(listen: &str) -> Result<(), String> {
    match listen.parse::<Address>() {
        _ if listen.is_empty() => Ok(()),
        Ok(_) => Ok(()),
        Err(error) => Err(format!("metrics_listen: {error}")),
    }
}

fn router(facts: Facts) -> Router {
    Router::new()
        .route("/livez", get(async || Json(json!({"alive": true}))))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(facts)
}

async fn readyz(State(facts): State<Facts>) -> Response {
    let mut waiting = match facts.readiness.get() {
        Some(readiness) => readiness.waiting(),
        None => vec![("start".to_owned(), "the service is starting".to_owned())],
    };
    if facts.draining.is_triggered() {
        waiting.push(("shutdown".to_owned(), "the service is draining".to_owned()));
    }
    let status = if waiting.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let degraded = facts.readiness.get().map(Readiness::degradations).unwrap_or_default();
    let body = json!({"ready": waiting.is_empty(), "waiting_for": rows(&waiting), "degraded": rows(&degraded)});
    (status, Json(body)).into_response()
}

fn rows(conditions: &[(String, String)]) -> Vec<serde_json::Value> {
    conditions.iter().map(|(condition, why)| json!({"condition": condition, "why": why})).collect()
}

async fn metrics(State(facts): State<Facts>) -> Response {
    let mut text = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&facts.metrics.gather(), &mut text) {
        tracing::error!(%error, "metrics cannot be written");
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response()
}

async fn serve(listener: Listener, router: Router) {
    let mut incoming = listener.incoming();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // Never closed.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match incoming.next().await {
            Some(Ok(connection)) => {
                let router = router.clone();
                connections.spawn(async move {
                    let _permit = permit;
                    // Both ends hang up all the time; neither is worth a word.
                    let _ = tokio::time::timeout(CONNECTION_TIMEOUT, serve_one(connection, router)).await;
                });
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot accept on the operations listener");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
            None => return,
        }
    }
}

async fn serve_one(connection: Connection, router: Router) {
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(HEADER_BYTES_MAX);
    let io = TokioIo::new(connection);
    if let Err(error) = builder.serve_connection(io, TowerToHyperService::new(router)).await {
        tracing::debug!(%error, "operations connection ended");
    }
}
