//! A package as an archive that can be read twice.

use super::Place;
use super::unchanged::{Seen, unless_changed};
use crate::archive::{Event, Limits, Reader};
use crate::opened::{in_chunks, other_files};
use crate::patience::Patience;
use crate::{Access, Error, Opened};
use bytes::Bytes;
use futures::stream::{self, Stream};
use std::io::SeekFrom;
use tokio::fs::File;
use tokio::io::AsyncSeekExt;

/// Reads the archive to its end, so that it is known to be whole before anything is handed on, then again for the weights.
pub(super) async fn open(place: Place, name: String, access: &Access, patience: Patience) -> Result<Opened, Error> {
    let limits = Limits { weights_bytes_max: access.weights_bytes_max };
    let file: std::fs::File = place.opened.into();
    let seen = Seen::now(&file, name.clone())?;
    let mut file = File::from_std(file);
    let first = file.try_clone().await.map_err(|error| Error::io(&name, error))?;
    let mut reader = Reader::open(first, limits).await?;
    let (mut config, mut signature, mut weights_bytes) = (Bytes::new(), None, 0);
    while let Some(event) = patience.wait(&name, reader.next()).await?? {
        match event {
            Event::Config(bytes) => config = bytes,
            Event::Signature(bytes) => signature = Some(bytes),
            Event::Weights(chunk) => weights_bytes += chunk.len() as u64,
        }
    }
    let names = reader.other_files();
    drop(reader);
    file.seek(SeekFrom::Start(0)).await.map_err(|error| Error::io(&name, error))?;
    let again = again(Reader::open(file, limits).await?, config.clone(), weights_bytes, name.clone());
    // The two readings may be alike and the weights another file's all the same.
    let again = unless_changed(again, vec![seen]);
    Ok(Opened {
        config,
        signature,
        weights: in_chunks(patience.watch(name.clone(), again), access.weights_bytes_max, "weights_bytes_max"),
        weights_bytes: Some(weights_bytes),
        origin: name,
        other_files: other_files(names),
    })
}

/// The weights of the second reading, which must be like the first.
fn again(
    reader: Reader,
    config: Bytes,
    weights_bytes: u64,
    what: String,
) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
    stream::try_unfold((reader, weights_bytes), move |(mut reader, mut left)| {
        let (config, what) = (config.clone(), what.clone());
        async move {
            loop {
                match reader.next().await? {
                    Some(Event::Config(bytes)) if bytes == config => {}
                    // It was taken from the first reading, and is checked against the bytes that come now.
                    Some(Event::Signature(_)) => {}
                    Some(Event::Weights(chunk)) if chunk.len() as u64 <= left => {
                        left -= chunk.len() as u64;
                        return Ok(Some((chunk, (reader, left))));
                    }
                    None if left == 0 => return Ok(None),
                    _ => return Err(Error::Changed { what }),
                }
            }
        }
    })
}
