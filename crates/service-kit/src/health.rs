//! `grpc.health.v1`: what probes and load balancers ask, answered from [`Readiness`].
//!
//! Answers are computed when they are asked for, so that they are never older than the conditions behind them.

use crate::readiness::{Changes, Readiness};
use crate::shutdown::Shutdown;
use futures::stream::{BoxStream, StreamExt};
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::{self, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// Most `Watch` streams at once; one more is refused with `RESOURCE_EXHAUSTED`.
const WATCHES_MAX: usize = 64;

/// The health service of one server.
///
/// A service is `SERVING` while its readiness is met and the server does not drain. A `Watch` sees the drain and ends
/// then: nobody who only watches may hold up the end.
pub struct Health {
    services: Vec<(&'static str, Readiness)>,
    draining: Shutdown,
    watches: Arc<Semaphore>,
}

impl Health {
    /// For a server that takes no new work once `draining` is given. Without [`Health::report`] it knows no service.
    #[must_use]
    pub fn new(draining: &Shutdown) -> Self {
        Self { services: Vec::new(), draining: draining.clone(), watches: Arc::new(Semaphore::new(WATCHES_MAX)) }
    }

    /// Answers for `service`: a full name like `weft.worker.v1.Worker`, or `""` for the server as a whole.
    #[must_use]
    pub fn report(mut self, service: &'static str, readiness: &Readiness) -> Self {
        self.services.push((service, readiness.clone()));
        self
    }

    /// What is added to the server.
    #[must_use]
    pub fn into_server(self) -> HealthServer<Self> {
        HealthServer::new(self)
    }

    fn find(&self, service: &str) -> Option<&Readiness> {
        self.services.iter().find(|(name, _)| *name == service).map(|(_, readiness)| readiness)
    }
}

fn status(readiness: Option<&Readiness>, draining: &Shutdown) -> i32 {
    let status = match readiness {
        None => ServingStatus::ServiceUnknown,
        Some(readiness) if readiness.is_ready() && !draining.is_triggered() => ServingStatus::Serving,
        Some(_) => ServingStatus::NotServing,
    };
    status.into()
}

#[tonic::async_trait]
impl health_server::Health for Health {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        let Some(readiness) = self.find(&service) else { return Err(Status::not_found("service not registered")) };
        Ok(Response::new(HealthCheckResponse { status: status(Some(readiness), &self.draining) }))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let Ok(permit) = Arc::clone(&self.watches).try_acquire_owned() else {
            return Err(Status::resource_exhausted(format!("{WATCHES_MAX} watches are open already")));
        };
        let readiness = self.find(&request.into_inner().service).cloned();
        let watch = Watch {
            changes: readiness.as_ref().map(Readiness::changes),
            readiness,
            draining: self.draining.clone(),
            told: None,
            _permit: permit,
        };
        Ok(Response::new(futures::stream::unfold(watch, Watch::next).boxed()))
    }
}

struct Watch {
    /// None: the service is unknown, and stays so.
    readiness: Option<Readiness>,
    changes: Option<Changes>,
    draining: Shutdown,
    told: Option<i32>,
    _permit: OwnedSemaphorePermit,
}

impl Watch {
    /// The next status that differs from the one told; the end once the drain has been told.
    async fn next(mut self) -> Option<(Result<HealthCheckResponse, Status>, Self)> {
        loop {
            let is_draining = self.draining.is_triggered();
            let status = status(self.readiness.as_ref(), &self.draining);
            if self.told != Some(status) {
                self.told = Some(status);
                return Some((Ok(HealthCheckResponse { status }), self));
            }
            if is_draining {
                return None;
            }
            let changed = async {
                match &mut self.changes {
                    Some(changes) => changes.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changed => {}
                () = self.draining.wait() => {}
            }
        }
    }
}
