//! The public face: a real directory, a real S3 server, and processes that are killed. One file a behaviour, one binary for
//! all: it links the whole S3 client.

mod appending;
mod child;
mod compacting;
mod exporting;
mod kill;
mod rate;
mod reading;
mod shipping;
mod slow_store;
mod support;
