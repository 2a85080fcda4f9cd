//! The daemon through its gRPC face, in process, over a real embedded S3 server. One file per behaviour, one program,
//! because linking costs more than running.

mod bad_blobs;
mod budget;
mod disk_full;
mod exactly_once;
mod leases;
mod memory;
mod neighbour_processes;
mod neighbours;
mod prefetch;
mod process;
mod remote_trouble;
mod restart;
mod s3_proxy;
mod support;
mod tell;
