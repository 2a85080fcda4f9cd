//! Clean-up: versions that nobody can still need, and blobs of no version.
//!
//! Two phases, far apart:
//!
//! 1. *Condemn* ([`judge`], [`sweep`]): a version that nothing holds gets a mark in its record and leaves the directory. Its bytes stay.
//! 2. *Collect* ([`collect`]): a version that was condemned `gc_grace_s` ago loses its blob, unless another version has the same.
//!
//! What races with it is settled by order. Whoever makes a hold (an alias, an experiment, a pin) writes it, *then* reads the version's record and takes the
//! mark away ([`revive`]); who condemns writes the mark, *then* looks for holds again. One of the two sees the other. The grace is longer than any
//! gateway serves from an old directory and any request runs, so that bytes are there for whoever resolved the version before.
//!
//! A blob is deleted under a marker, `gc/<digest>.json`, that is written before the versions are listed. Who publishes writes the version first,
//! then waits for a marker to go, then looks whether the blob is there. So either the collector sees the version, or the publisher
//! sees the marker or the missing blob.
//!
//! Each step can be taken again: whoever dies leaves a mark or a marker that the next turn goes on from.

mod collect;
mod judge;
mod revive;
mod sweep;

pub(crate) use judge::Rules;
pub(crate) use sweep::{Found, Stage, keep_clean};
