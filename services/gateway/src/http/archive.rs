//! An upload that is one archive: the two files of a package in tar, compressed with gzip or not.

use super::admin_publish::{Pieces, refused};
use crate::app::Gateway;
use crate::error::code;
use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_util::io::StreamReader;
use weft_adapter_sources::archive::{Event, Limits, Reader};
use weft_fault::{Fault, Kind};
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::publish_request::Part;

/// Content types of archives; what is inside decides whether it is compressed.
pub(super) const ARCHIVES: [&str; 4] =
    ["application/x-tar", "application/gzip", "application/x-gzip", "application/x-gtar"];

/// While other files are passed over the registry gets nothing, and would give the upload up: so often it is told that it still comes.
const SIGN_OF_LIFE: Duration = Duration::from_secs(5);

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
        let is_late = Arc::new(AtomicBool::new(false));
        let failed = |error: weft_adapter_sources::Error| {
            if is_late.load(Ordering::Relaxed) {
                let seconds = timeout.as_secs();
                let message = format!("the upload brought nothing for {seconds} s");
                return Fault::new(Kind::Timeout, message).with_code(code::BODY_TIMEOUT);
            }
            error.into()
        };
        let bytes = StreamReader::new(in_time(body, timeout, Arc::clone(&is_late)));
        let mut reader = Reader::open(bytes, limits).await.map_err(failed)?;
        loop {
            let event = {
                let mut next = pin!(reader.next());
                loop {
                    match tokio::time::timeout(SIGN_OF_LIFE, &mut next).await {
                        Ok(event) => break event.map_err(failed)?,
                        Err(_) => pieces.put(Part::Weights(Bytes::new())).await?,
                    }
                }
            };
            let part = match event {
                Some(Event::Config(config)) => Part::Config(config),
                Some(Event::Signature(bundle)) => Part::Signature(bundle),
                Some(Event::Weights(piece)) => Part::Weights(piece),
                None => break,
            };
            pieces.put(part).await?;
        }
        let names = reader.other_files();
        if let Some(pickle) = names.iter().find(|name| name.ends_with(".bin")) {
            return Err(refused(vec![format!("the archive has {pickle}, a pickle, which can run code")]));
        }
        pieces.put(Part::Others(pb::OtherFiles { names })).await?;
        pieces.whole();
        Ok(())
    }
}

/// The upload's bytes, each piece in time: an event of the archive may take as many as it likes, and the registry the time it likes.
fn in_time(body: Body, timeout: Duration, is_late: Arc<AtomicBool>) -> BoxStream<'static, io::Result<Bytes>> {
    let pieces = stream::unfold((body.into_data_stream(), is_late), move |(mut pieces, is_late)| async move {
        let piece = match tokio::time::timeout(timeout, pieces.next()).await {
            Ok(piece) => piece?.map_err(io::Error::other),
            Err(_) => {
                is_late.store(true, Ordering::Relaxed);
                Err(io::ErrorKind::TimedOut.into())
            }
        };
        Some((piece, (pieces, is_late)))
    });
    pieces.boxed()
}
