//! What several tests use.

pub(crate) mod hub;

use bytes::Bytes;
use futures::StreamExt;
use weft_adapter_sources::{Error, Opened};

/// Bytes that do not repeat soon, so that a piece at the wrong place shows.
pub(crate) fn bytes(count: usize) -> Vec<u8> {
    (0..count as u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).take(count).collect()
}

/// The weights whole, or the error that ended them; checks what every stream promises.
pub(crate) async fn weights(opened: Opened) -> Result<Vec<u8>, Error> {
    let Opened { mut weights, weights_bytes, .. } = opened;
    let mut whole = Vec::new();
    while let Some(chunk) = weights.next().await {
        let chunk: Bytes = match chunk {
            Ok(chunk) => chunk,
            Err(error) => {
                assert!(weights.next().await.is_none(), "the stream goes on after an error");
                return Err(error);
            }
        };
        assert!((1..=1 << 20).contains(&chunk.len()), "a chunk of {} bytes", chunk.len());
        whole.extend_from_slice(&chunk);
    }
    assert!(weights_bytes.is_none_or(|bytes| bytes == whole.len() as u64));
    Ok(whole)
}
