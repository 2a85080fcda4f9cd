//! Sources over real servers, files and archives. One program: each links the whole S3 client.

mod access;
mod archive;
mod file;
mod hub;
mod hub_downloads;
mod hub_redirects;
mod hub_tls;
mod s3;
mod source;
mod support;
