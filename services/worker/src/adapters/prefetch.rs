//! Asks the cache daemon to bring bytes near for requests whose turn for a lease has not come. Hints: what is lost costs
//! time, never an answer.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::transport::Channel;
use weft_proto::cache::v1 as pb;
use weft_proto::cache::v1::cache_daemon_client::CacheDaemonClient;
use weft_service_kit::transport::within;
use weft_types::Digest;

/// Hints that are not taken in this time are dropped.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Hints that wait; more are dropped. As many as the daemon takes in one call.
const HINTS_MAX: usize = 1024;

/// Where the loop leaves its hints. Cheap to clone; when all clones are gone, the task ends.
#[derive(Clone)]
pub(crate) struct Prefetch(mpsc::Sender<Digest>);

impl Prefetch {
    /// Starts the task that passes hints on to the daemon behind `channel`.
    pub(crate) fn connect(channel: Channel) -> Self {
        let (hints, mut inbox) = mpsc::channel(HINTS_MAX);
        tokio::spawn(async move {
            let mut client = CacheDaemonClient::new(channel);
            let mut digests: Vec<Digest> = Vec::new();
            while inbox.recv_many(&mut digests, HINTS_MAX).await > 0 {
                digests.sort_unstable();
                digests.dedup();
                let request = pb::PrefetchRequest { digests: digests.drain(..).map(|d| d.to_vec().into()).collect() };
                let problem = match timeout(CALL_TIMEOUT, client.prefetch(within(CALL_TIMEOUT, request))).await {
                    Ok(Ok(_)) => continue,
                    Ok(Err(status)) => status.message().to_owned(),
                    Err(_) => "no answer".to_owned(),
                };
                tracing::debug!(problem, "the cache daemon did not take hints");
            }
        });
        Self(hints)
    }

    /// Never waits. False: there are too many already.
    pub(crate) fn hint(&self, digest: Digest) -> bool {
        self.0.try_send(digest).is_ok()
    }
}
