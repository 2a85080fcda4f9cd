//! How long one opening may still take.

use crate::{Access, Error};
use bytes::Bytes;
use futures::stream::{Stream, StreamExt};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// The limits in time of one opening, from its first question to the last byte.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    idle_ms: u64,
    whole_ms: u64,
    deadline: Instant,
}

impl Patience {
    /// Begins now.
    pub(crate) fn start(access: &Access) -> Self {
        let deadline = Instant::now() + Duration::from_millis(access.whole_timeout_ms);
        Self { idle_ms: access.idle_timeout_ms, whole_ms: access.whole_timeout_ms, deadline }
    }

    /// What the future brings, in time.
    pub(crate) async fn wait<T>(&self, what: &str, future: impl Future<Output = T>) -> Result<T, Error> {
        let idle = Instant::now() + Duration::from_millis(self.idle_ms);
        match timeout_at(idle.min(self.deadline), future).await {
            Ok(brought) => Ok(brought),
            Err(_) if idle < self.deadline => {
                Err(Error::Timeout { what: what.to_owned(), setting: "idle_timeout_ms", ms: self.idle_ms })
            }
            Err(_) => Err(self.is_over(what)),
        }
    }

    /// Sleeps, if the time is not over before.
    pub(crate) async fn sleep(&self, what: &str, time: Duration) -> Result<(), Error> {
        if Instant::now() + time >= self.deadline {
            return Err(self.is_over(what));
        }
        tokio::time::sleep(time).await;
        Ok(())
    }

    /// The same pieces, each in time.
    pub(crate) fn watch(
        self,
        what: String,
        pieces: impl Stream<Item = Result<Bytes, Error>> + Send + 'static,
    ) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
        futures::stream::unfold(Some((pieces.boxed(), what)), move |state| async move {
            let (mut pieces, what) = state?;
            match self.wait(&what, pieces.next()).await {
                Ok(piece) => piece.map(|piece| (piece, Some((pieces, what)))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    fn is_over(&self, what: &str) -> Error {
        Error::Timeout { what: what.to_owned(), setting: "whole_timeout_ms", ms: self.whole_ms }
    }
}
