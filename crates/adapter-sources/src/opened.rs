//! A package that can be read, and the names in it.

use crate::Error;
use bytes::Bytes;
use futures::stream::{BoxStream, Stream, StreamExt};
use std::fmt;

/// The file that says what the adapter is.
pub const CONFIG: &str = "adapter_config.json";
/// The file with the tensors.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// The file that older tools keep the tensors in. Never read.
pub const PICKLE: &str = "adapter_model.bin";
/// The file with a signature of the two, if there is one.
pub const SIGNATURE: &str = "model.sig";
/// Largest `adapter_config.json` in bytes, from whatever source.
pub const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Largest `model.sig` in bytes, from whatever source.
pub const SIGNATURE_BYTES_MAX: u64 = 1 << 20;

/// Largest chunk of weights in bytes.
pub(crate) const CHUNK_BYTES_MAX: usize = 1 << 20;
/// Most names in `other_files`.
pub(crate) const OTHER_FILES_MAX: usize = 64;
/// Longest name in `other_files`, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 256;
/// Files that change what an adapter does beside its two own. Named first, so that no limit hides them.
pub(crate) const TELLING: [&str; 8] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    PICKLE,
];

/// The weights in order, in chunks of 1 byte to 1 MiB.
///
/// Only a stream that ended without an error was complete and had the right digest: what is made of the chunks must not be used before.
/// Dropping it gives the connection or file back.
pub type WeightsStream = BoxStream<'static, Result<Bytes, Error>>;

/// A package, found and begun.
pub struct Opened {
    /// `adapter_config.json`, 1 byte to 1 MiB.
    pub config: Bytes,
    /// `model.sig`, 1 byte to 1 MiB, if there is one. Nobody has looked at it.
    pub signature: Option<Bytes>,
    /// `adapter_model.safetensors`.
    pub weights: WeightsStream,
    /// Length of the weights in bytes, if the source says it. The stream then brings just as many or an error.
    pub weights_bytes: Option<u64>,
    /// What was opened, so exactly that it can be found again: `hf://owner/name@<commit>` with the 40 digits of the commit,
    /// `s3://bucket/prefix#<ETag of the config>,<ETag of the weights>` without quotes, `file:///path` without links.
    pub origin: String,
    /// Names of files that lie beside the two, those that change what an adapter does first (tokenizers, chat templates, pickles).
    /// At most 64, each at most 256 bytes; what lies in folders below is not looked at. From S3 only such files are named, for their names
    /// are asked for one by one.
    pub other_files: Vec<String>,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened")
            .field("config_bytes", &self.config.len())
            .field("weights_bytes", &self.weights_bytes)
            .field("origin", &self.origin)
            .field("other_files", &self.other_files)
            .finish_non_exhaustive()
    }
}

/// The names worth telling of all that were seen, within the limits of [`Opened::other_files`].
pub(crate) fn other_files(mut names: Vec<String>) -> Vec<String> {
    names.retain(|name| name != CONFIG && name != WEIGHTS && name != SIGNATURE && name.len() <= NAME_BYTES_MAX);
    names.sort_unstable_by(|a, b| (!TELLING.contains(&a.as_str()), a).cmp(&(!TELLING.contains(&b.as_str()), b)));
    names.dedup();
    names.truncate(OTHER_FILES_MAX);
    names
}

/// What is missing of a package whose weights are not there.
pub(crate) fn no_weights(place: impl fmt::Display, has_pickle: bool) -> Error {
    let place = place.to_string();
    if has_pickle { Error::PickleOnly { place } } else { Error::Missing { place, file: WEIGHTS } }
}

/// The same bytes in chunks of 1 byte to 1 MiB; more than `bytes_max` in all are an error. Ends after an error, and drops `pieces` then.
pub(crate) fn in_chunks(
    pieces: impl Stream<Item = Result<Bytes, Error>> + Send + 'static,
    bytes_max: u64,
    setting: &'static str,
) -> WeightsStream {
    let start = Some((pieces.boxed(), Bytes::new(), 0u64));
    let chunks = futures::stream::unfold(start, move |state| async move {
        let (mut pieces, mut piece, mut received) = state?;
        while piece.is_empty() {
            piece = match pieces.next().await? {
                Ok(piece) => piece,
                Err(error) => return Some((Err(error), None)),
            };
            received += piece.len() as u64;
            if received > bytes_max {
                return Some((Err(Error::TooLarge { part: WEIGHTS, bytes_max, setting }), None));
            }
        }
        let chunk = piece.split_to(piece.len().min(CHUNK_BYTES_MAX));
        Some((Ok(chunk), Some((pieces, piece, received))))
    });
    chunks.boxed()
}
