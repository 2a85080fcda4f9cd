//! The gRPC face at the listener that neighbour daemons have for themselves: what they need, and nothing else.

use crate::CacheService;
use crate::serve::Pieces;
use tonic::{Request, Response, Status, Streaming};
use weft_proto::cache::v1 as proto;
use weft_proto::cache::v1::cache_daemon_server::CacheDaemon;

/// Lists and sends blobs as the daemon's own face does. Leases and prefetches are for the workers of its node, whoever asks for them
/// here and whatever certificate he has: a lease from afar is a path that means nothing there, and both fill this node's disk.
pub(crate) struct ForNeighbours(pub(crate) CacheService);

#[tonic::async_trait]
impl CacheDaemon for ForNeighbours {
    type LeaseStream = futures::stream::Empty<Result<proto::LeaseResponse, Status>>;
    type ReadBlobStream = Pieces;

    async fn lease(&self, _: Request<Streaming<proto::LeaseRequest>>) -> Result<Response<Self::LeaseStream>, Status> {
        Err(refused("Lease"))
    }

    async fn prefetch(&self, _: Request<proto::PrefetchRequest>) -> Result<Response<proto::PrefetchResponse>, Status> {
        Err(refused("Prefetch"))
    }

    async fn list_residency(
        &self,
        request: Request<proto::ListResidencyRequest>,
    ) -> Result<Response<proto::ListResidencyResponse>, Status> {
        self.0.list_residency(request).await
    }

    async fn read_blob(&self, request: Request<proto::ReadBlobRequest>) -> Result<Response<Pieces>, Status> {
        self.0.read_blob(request).await
    }
}

fn refused(method: &str) -> Status {
    tracing::warn!(method, "refused a call at neighbours_listen");
    Status::permission_denied(format!(
        "{method} is for workers of this node, who have another listener than neighbours"
    ))
}
