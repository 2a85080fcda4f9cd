//! The daemon through its gRPC face, in process, over a real embedded S3 server. One file per behaviour, one program,
//! because linking costs more than running.

mod bad_blobs;
mod budget;
mod disk_full;
mod exactly_once;
mod leases;
mod memory;
mod prefetch;
mod process;
mod restart;
mod support;
mod tell;
