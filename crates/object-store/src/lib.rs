//! Objects with conditional writes: the system of record of the mesh.
//!
//! This room knows keys, bytes and ETags. It must not know adapters, tenants or versions; what a key means is
//! decided by the services, except for [`keys::blob`], which the registry writes and the cache daemon reads.
//!
//! 1. [`ObjectStore`]: the port. Everything that must not be lost goes through its conditional writes.
//! 2. [`S3Store`]: the port over any S3 endpoint, with `aws-sdk-s3`. [`S3Store::probe`] refuses an endpoint that
//!    ignores conditions.
//! 3. [`EmbeddedS3`]: an S3 server over a local folder, for one machine without S3. `weft-embedded-s3` is the same
//!    as a process of its own.
//!
//! # Why the embedded server is not `s3s-fs`
//!
//! The protocol (parsing, signatures, XML) is `s3s`; the folder behind it is ours. `s3s-fs` 0.14 keeps an object in
//! three files (data, attributes, ETag) that are renamed one after the other: a kill in between leaves new data under
//! an old ETag, so that a compare-and-swap with the old ETag succeeds and a write is lost. It verifies a body's
//! checksum after the old object is gone, checks conditions without a lock, never calls fsync, and cannot hold both
//! `a` and `a/b`. A wrapper around its `S3` trait can add the lock and the fsync, but cannot make three renames one:
//! that is decided inside its `put_object`. So [`embedded`] implements `s3s::S3` itself, with one file an object.

mod content;
pub mod embedded;
mod error;
pub mod keys;
mod probe;
mod s3;
mod store;

pub use content::Content;
pub use embedded::EmbeddedS3;
pub use error::Error;
pub use probe::probe;
pub use s3::{S3Settings, S3Store};
pub use store::{ETag, Object, ObjectMeta, ObjectPart, ObjectStore, ObjectStream, PutOutcome};
