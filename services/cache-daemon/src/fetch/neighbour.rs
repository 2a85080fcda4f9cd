//! A neighbour daemon as a source. What it sends is verified like everything else.

use super::{Fetch, Opened};
use crate::Error;
use crate::cache::Origin;
use crate::neighbours::Fault;
use bytes::Bytes;
use futures::StreamExt;
use std::time::Duration;
use tonic::{Code, Status, Streaming};
use weft_proto::cache::v1::{BlobPiece, ReadBlobRequest};

/// Why a neighbour is not read any further.
pub(super) struct Trouble {
    pub(super) fault: Fault,
    pub(super) error: Error,
}

/// Opens the blob at a neighbour from an offset to its end.
pub(super) async fn open(fetch: &Fetch, address: &str, from: u64) -> Result<Opened, Trouble> {
    let timeout_ms = fetch.inner.settings.neighbour_first_byte_timeout_ms;
    let stall = Duration::from_millis(fetch.inner.settings.neighbour_stall_timeout_ms);
    let neighbours = fetch.inner.neighbours.get().ok_or_else(|| failed(address, Fault::Failed, "nobody is known"))?;
    let mut client = neighbours.client(address).map_err(|problem| failed(address, Fault::Failed, &problem))?;
    let request = ReadBlobRequest { digest: fetch.digest.to_vec().into(), offset: from };
    let first = async {
        let mut pieces = client.read_blob(request).await?.into_inner();
        let first = pieces.message().await?;
        Ok::<_, Status>((pieces, first))
    };
    let (pieces, first) = match tokio::time::timeout(Duration::from_millis(timeout_ms), first).await {
        Ok(Ok((pieces, Some(first)))) => (pieces, first),
        Ok(Ok((_, None))) => return Err(failed(address, Fault::Failed, "it sent nothing")),
        Ok(Err(status)) => return Err(failed(address, fault_of(&status), status.message())),
        Err(_) => {
            let message = format!("nothing came for {timeout_ms} ms (setting neighbour_first_byte_timeout_ms)");
            return Err(failed(address, Fault::Failed, &message));
        }
    };
    let bytes = first.blob_bytes;
    let state = Some((fetch.clone(), address.to_owned(), pieces, Some(first.data)));
    let stream = futures::stream::unfold(state, move |state| async move {
        let (fetch, address, mut pieces, first) = state?;
        let next = match first {
            Some(data) => Ok(Some(data)),
            None => next(&mut pieces, stall, &address).await,
        };
        match next {
            Ok(Some(data)) => {
                fetch.inner.metrics.read(Origin::Neighbour, data.len() as u64);
                Some((Ok(data), Some((fetch, address, pieces, None))))
            }
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(Opened { bytes, stream: stream.boxed() })
}

async fn next(pieces: &mut Streaming<BlobPiece>, stall: Duration, address: &str) -> Result<Option<Bytes>, Error> {
    match tokio::time::timeout(stall, pieces.message()).await {
        Ok(Ok(piece)) => Ok(piece.map(|piece| piece.data)),
        Ok(Err(status)) => Err(failed(address, Fault::Failed, status.message()).error),
        Err(_) => {
            let message = format!("nothing came for {} ms (setting neighbour_stall_timeout_ms)", stall.as_millis());
            Err(failed(address, Fault::Failed, &message).error)
        }
    }
}

fn failed(address: &str, fault: Fault, message: &str) -> Trouble {
    let error = Error::Neighbour { address: address.to_owned(), message: message.to_owned() };
    Trouble { fault, error }
}

fn fault_of(status: &Status) -> Fault {
    match status.code() {
        Code::NotFound => Fault::Missing,
        Code::ResourceExhausted => Fault::Busy,
        _ => Fault::Failed,
    }
}
