//! Where an adapter package comes from when nobody uploads it: a model hub, an S3 bucket, a folder or an archive.
//!
//! A package is two files, `adapter_config.json` and `adapter_model.safetensors`. This room brings their bytes, within limits in bytes
//! and time, from places that an operator has allowed. It must not know what the bytes mean, which tenant asks, or what is done with them:
//! a package is checked where it is published.
//!
//! 1. [`Source`]: the text that names a place, checked letter by letter before anything is asked.
//! 2. [`Access`]: what an operator allows. By default nothing.
//! 3. [`Sources::open`]: a [`Source`] to an [`Opened`] package: the config whole, the weights as a stream.
//! 4. [`archive`]: a package in a tar or a gzipped tar that somebody sends, as events in the order of the archive.
//!
//! # What is not trusted
//!
//! The text of a source comes from a tenant, the content from anybody. So: owners, buckets and folders are listed by the operator; a
//! redirect goes only to listed hosts and never to an address inside the network ([`Access::hub_redirect_hosts`]); the hub's token goes to
//! the hub alone; files are opened beneath their root without following links; nothing is unpacked to disk; every read is counted.

mod access;
pub mod archive;
mod error;
mod file;
mod hub;
mod opened;
mod patience;
mod s3;
mod source;
mod sources;

pub use access::{Access, S3Access};
pub use error::Error;
pub use opened::{CONFIG, CONFIG_BYTES_MAX, Opened, PICKLE, SIGNATURE, SIGNATURE_BYTES_MAX, WEIGHTS, WeightsStream};
pub use source::{HubModel, S3Folder, Source};
pub use sources::Sources;
