//! Receiving a package: a start, then config, weights and what comes with them, whichever comes first, each part in order and under its cap.
//!
//! Weights are gathered by `spool.rs`: in memory as far as there is room, else on disk.

use super::spool::{Spool, Spools};
use crate::{Error, Settings};
use bytes::Bytes;
use futures::StreamExt;
use std::time::Duration;
use tokio::time::Instant;
use weft_adapter_sources::Opened;
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::publish_request::Part;
use weft_types::{Digest, DigestHasher};

/// Largest `adapter_config.json`.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Largest chunk of a part.
const CHUNK_BYTES_MAX: usize = 1 << 20;
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";
const SIGNATURE: &str = "model.sig";
/// Names of what lies beside a package.
const OTHER_FILES_MAX: usize = 256;

/// Most bytes of weights, and what says so.
pub(crate) type Cap = (u64, &'static str);

/// A complete upload.
pub(crate) struct Upload {
    pub(crate) config: Vec<u8>,
    pub(crate) config_sha256: Digest,
    pub(crate) weights_sha256: Digest,
    /// `model.sig`, if it came.
    pub(crate) signature: Option<Vec<u8>>,
    /// Names of what lies beside the files that came.
    pub(crate) others: Vec<String>,
    /// In memory, or a file that is mapped.
    pub(crate) weights: Bytes,
}

impl Upload {
    pub(crate) fn bytes(&self) -> u64 {
        (self.config.len() + self.weights.len()) as u64
    }
}

/// Reads a package from elsewhere. Returns what it was, too.
pub(crate) async fn import(mut opened: Opened, spools: &Spools, cap: Cap) -> Result<Upload, Error> {
    let config = opened.config.to_vec();
    check_cap(CONFIG, config.len() as u64, CONFIG_BYTES_MAX, "the registry")?;
    let mut spool = spools.begin();
    while let Some(chunk) = opened.weights.next().await {
        let chunk = chunk?;
        check_cap(WEIGHTS, spool.bytes() + chunk.len() as u64, cap.0, cap.1)?;
        spool.write(chunk).await?;
    }
    if spool.bytes() == 0 {
        return Err(Error::invalid("source", format!("{WEIGHTS} is empty")));
    }
    let config_sha256 = Digest::of(&config);
    let (weights, weights_sha256) = spool.finish().await?;
    let others = opened.other_files;
    let signature = opened.signature.map(|bundle| bundle.to_vec());
    Ok(Upload { config, config_sha256, weights_sha256, signature, others, weights })
}

/// The parts of an upload that are still to come.
pub(crate) struct Parts<'a> {
    stream: tonic::Streaming<pb::PublishRequest>,
    settings: &'a Settings,
    deadline: Instant,
}

/// Takes the first message, which says what is published.
pub(crate) async fn start(
    stream: tonic::Streaming<pb::PublishRequest>,
    settings: &Settings,
) -> Result<(pb::PublishStart, Parts<'_>), Error> {
    let deadline = Instant::now() + Duration::from_millis(settings.upload_timeout_ms);
    let mut parts = Parts { stream, settings, deadline };
    match parts.next().await? {
        Some(Part::Start(start)) => Ok((start, parts)),
        Some(_) => Err(Error::invalid("part", "the first part must be the start")),
        None => Err(Error::invalid("part", "the upload is empty")),
    }
}

impl Parts<'_> {
    /// The next part, in time.
    async fn next(&mut self) -> Result<Option<Part>, Error> {
        let idle_ms = self.settings.upload_idle_timeout_ms;
        let idle = Instant::now() + Duration::from_millis(idle_ms);
        let message = match tokio::time::timeout_at(idle.min(self.deadline), self.stream.message()).await {
            Ok(Ok(message)) => message,
            Ok(Err(status)) => return Err(Error::UploadBroke(status.message().to_owned())),
            Err(_) if idle < self.deadline => return Err(Error::UploadIdle(idle_ms)),
            Err(_) => return Err(Error::UploadSlow(self.settings.upload_timeout_ms)),
        };
        match message {
            Some(pb::PublishRequest { part: Some(part) }) => Ok(Some(part)),
            Some(pb::PublishRequest { part: None }) => {
                Err(Error::invalid("part", "a message has no part that is known"))
            }
            None => Ok(None),
        }
    }

    /// The rest of the upload.
    pub(crate) async fn receive(mut self, spools: &Spools, cap: Cap) -> Result<Upload, Error> {
        let (mut config, mut config_hasher) = (Vec::new(), DigestHasher::new());
        let mut spool: Option<Spool> = None;
        let (mut signature, mut others) = (None, Vec::new());
        while let Some(part) = self.next().await? {
            match part {
                Part::Config(chunk) => {
                    check_chunk(CONFIG, &chunk)?;
                    check_cap(CONFIG, (config.len() + chunk.len()) as u64, CONFIG_BYTES_MAX, "the registry")?;
                    config_hasher.update(&chunk);
                    config.extend_from_slice(&chunk);
                }
                Part::Weights(chunk) => {
                    check_chunk(WEIGHTS, &chunk)?;
                    let spool = spool.get_or_insert_with(|| spools.begin());
                    check_cap(WEIGHTS, spool.bytes() + chunk.len() as u64, cap.0, cap.1)?;
                    spool.write(chunk).await?;
                }
                Part::Signature(bundle) => {
                    check_chunk(SIGNATURE, &bundle)?;
                    if signature.replace(bundle.to_vec()).is_some() {
                        return Err(Error::invalid("part", format!("a second {SIGNATURE} came")));
                    }
                }
                Part::Others(found) => {
                    others.extend(found.names);
                    if others.len() > OTHER_FILES_MAX {
                        let message =
                            format!("{} names of other files came, the limit is {OTHER_FILES_MAX}", others.len());
                        return Err(Error::invalid("part", message));
                    }
                }
                Part::Start(_) => return Err(Error::invalid("part", "a second start came")),
            }
        }
        if config.is_empty() {
            return Err(Error::invalid("config", format!("{CONFIG} is missing or empty")));
        }
        let Some(spool) = spool.filter(|spool| spool.bytes() > 0) else {
            return Err(Error::invalid("weights", format!("{WEIGHTS} is missing or empty")));
        };
        let (weights, weights_sha256) = spool.finish().await?;
        let config_sha256 = config_hasher.finish();
        Ok(Upload { config, config_sha256, weights_sha256, signature, others, weights })
    }
}

fn check_chunk(part: &str, chunk: &[u8]) -> Result<(), Error> {
    if chunk.len() > CHUNK_BYTES_MAX {
        let message = format!("a chunk of {part} has {} bytes, the limit is {CHUNK_BYTES_MAX}", chunk.len());
        return Err(Error::invalid("part", message));
    }
    Ok(())
}

fn check_cap(part: &'static str, bytes: u64, bytes_max: u64, setting: &'static str) -> Result<(), Error> {
    if bytes > bytes_max { Err(Error::TooLarge { part, bytes_max, setting }) } else { Ok(()) }
}
