//! The port over the real client and the real server. One file a behaviour, one binary for all: each links the whole
//! S3 client.

mod contract;
mod disk_full;
mod kill;
mod races;
mod support;
mod unruly;
