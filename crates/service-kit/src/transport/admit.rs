//! Lets a call through if whoever connected may make it.

use std::task::{Context, Poll};

use futures::future::{Either, Ready, ready};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service as Tower};

use super::address::host_of;
use super::calls::may_call;
use super::peer_metrics::{PeerMetrics, Why};
use super::{Address, Identity, IdentityError, Service};

/// Of a foreign address that is shown.
const ADDRESS_SHOWN_CHARS_MAX: usize = 200;

/// Who is at the other end of a connection, as its certificate says. Without TLS: nobody in particular, who may call everything.
#[derive(Clone, Debug, Default)]
pub struct Peer(Option<Certified>);

#[derive(Clone, Debug)]
struct Certified {
    caller: Result<Identity, IdentityError>,
    us: Service,
    metrics: PeerMetrics,
}

impl Peer {
    /// Somebody with a certificate of the right authority, who calls `us`.
    pub(super) fn certified(caller: Result<Identity, IdentityError>, us: Service, metrics: PeerMetrics) -> Self {
        Self(Some(Certified { caller, us, metrics }))
    }

    /// Whether it may call the method at `path`.
    fn admit(&self, path: &str) -> Result<(), Status> {
        let Some(Certified { caller, us, metrics }) = &self.0 else { return Ok(()) };
        let (why, problem) = match caller {
            Ok(identity) if may_call(identity.service, *us, path) => return Ok(()),
            Ok(identity) => (Why::Call, format!("{identity} may not call {path} of the {us}")),
            Err(error) => (Why::Identity, error.to_string()),
        };
        Err(refuse(metrics, why, problem))
    }

    /// Whether a worker may ask for what is of the worker at this address, as heartbeats tell it: only if that is its own. A certificate
    /// without an instance is that of any worker, which is all that can be known of its holder; callers that are no worker are a matter
    /// of the table alone.
    ///
    /// # Errors
    /// `PERMISSION_DENIED`, which is also logged and counted.
    pub fn admit_as_worker_at(&self, address: &str) -> Result<(), Status> {
        let Some(Certified { caller: Ok(caller), metrics, .. }) = &self.0 else { return Ok(()) };
        let (Service::Worker, Some(instance)) = (caller.service, &caller.instance) else { return Ok(()) };
        let is_own = match address.parse() {
            Ok(Address::Tcp(host_port)) => host_of(&host_port).eq_ignore_ascii_case(instance),
            _ => false,
        };
        if is_own {
            return Ok(());
        }
        let shown: String = address.chars().take(ADDRESS_SHOWN_CHARS_MAX).collect();
        Err(refuse(metrics, Why::Call, format!("{caller} may not ask for what is of the worker at {shown:?}")))
    }
}

fn refuse(metrics: &PeerMetrics, why: Why, problem: String) -> Status {
    metrics.refused_caller(why);
    tracing::warn!(problem, "refused a call");
    Status::permission_denied(problem)
}

/// Adds [`Admit`].
#[derive(Clone, Copy, Debug)]
pub struct AdmitLayer;

impl<S> Layer<S> for AdmitLayer {
    type Service = Admit<S>;

    fn layer(&self, inner: S) -> Admit<S> {
        Admit(inner)
    }
}

/// Answers `PERMISSION_DENIED` to calls that the caller may not make. A request without a [`Peer`] came over no listener of ours.
#[derive(Clone, Debug)]
pub struct Admit<S>(S);

impl<S, B> Tower<http::Request<B>> for Admit<S>
where
    S: Tower<http::Request<B>, Response = http::Response<Body>>,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Self::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let admitted = match request.extensions().get::<Peer>() {
            Some(peer) => peer.admit(request.uri().path()),
            None => Ok(()),
        };
        match admitted {
            Ok(()) => Either::Left(self.0.call(request)),
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}
