//! An upload that is one archive: the two files of a package in tar, compressed with gzip or not.

use super::admin_publish::{Pieces, refused};
use crate::app::Gateway;
use axum::body::Body;
use futures::TryStreamExt;
use std::io;
use std::time::Duration;
use tokio_util::io::StreamReader;
use weft_adapter_sources::archive::{Event, Limits, Reader};
use weft_fault::{Fault, Kind};
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::publish_request::Part;

/// Content types of archives; what is inside decides whether it is compressed.
pub(super) const ARCHIVES: [&str; 4] =
    ["application/x-tar", "application/gzip", "application/x-gzip", "application/x-gtar"];

/// An archive on its way.
pub(super) struct Archive {
    body: Option<Body>,
    limits: Limits,
    timeout: Duration,
}

impl Archive {
    pub(super) fn new(gateway: &Gateway, body: Body) -> Self {
        let limits = Limits { weights_bytes_max: gateway.settings.package_weights_bytes_max };
        Self { body: Some(body), limits, timeout: gateway.settings.body_timeout() }
    }

    /// To the registry, file by file as they come.
    pub(super) async fn forward(&mut self, start: pb::PublishStart, pieces: Pieces) -> Result<(), Fault> {
        let Some(body) = self.body.take() else { return Err(Fault::internal("an archive is read once")) };
        let (limits, timeout) = (self.limits, self.timeout);
        pieces.put(Part::Start(start)).await?;
        let bytes = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
        let mut reader = in_time(timeout, Reader::open(bytes, limits)).await?;
        while let Some(event) = in_time(timeout, reader.next()).await? {
            let part = match event {
                Event::Config(config) => Part::Config(config),
                Event::Weights(piece) => Part::Weights(piece),
            };
            pieces.put(part).await?;
        }
        if let Some(pickle) = reader.other_files().into_iter().find(|name| name.ends_with(".bin")) {
            return Err(refused(vec![format!("the archive has {pickle}, a pickle, which can run code")]));
        }
        pieces.whole();
        Ok(())
    }
}

/// The next thing of the upload, in time.
async fn in_time<T>(
    timeout: Duration,
    next: impl Future<Output = Result<T, weft_adapter_sources::Error>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(timeout, next).await {
        Ok(result) => Ok(result?),
        Err(_) => {
            let seconds = timeout.as_secs();
            Err(Fault::new(Kind::Timeout, format!("the upload brought nothing for {seconds} s")))
        }
    }
}
