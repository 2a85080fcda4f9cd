//! The embedded S3 server as a process of its own: for a mesh of several processes on one machine, and for tests that
//! kill it.

use clap::Parser;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use weft_object_store::embedded::Credentials;
use weft_object_store::{EmbeddedS3, Error};

/// An S3 server over a local folder, for development and single machines.
#[derive(Parser)]
#[command(name = "weft-embedded-s3", version)]
struct Arguments {
    /// The folder that holds the buckets; this process must be the only one that uses it.
    #[arg(long)]
    dir: PathBuf,
    /// Where to listen; port 0 picks a free one.
    #[arg(long, default_value = "127.0.0.1:9000")]
    listen: SocketAddr,
    /// Access key; without one, a random key and secret are made and printed.
    #[arg(long, env = "WEFT_S3_ACCESS_KEY_ID", requires = "secret_access_key")]
    access_key_id: Option<String>,
    /// Secret of the access key.
    #[arg(long, env = "WEFT_S3_SECRET_ACCESS_KEY", hide_env_values = true, requires = "access_key_id")]
    secret_access_key: Option<String>,
}

/// Prints `endpoint`, and random credentials if there are any, one `name=value` a line, then serves until a signal.
#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let given = arguments.access_key_id.zip(arguments.secret_access_key);
    let is_random = given.is_none();
    let credentials = given.map_or_else(Credentials::random, |(access_key_id, secret_access_key)| Credentials {
        access_key_id,
        secret_access_key,
    });
    match serve(&arguments.dir, arguments.listen, credentials, is_random).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", weft_fault::Fault::from(error));
            ExitCode::FAILURE
        }
    }
}

async fn serve(dir: &std::path::Path, listen: SocketAddr, credentials: Credentials, show: bool) -> Result<(), Error> {
    use tokio::signal::unix::{SignalKind, signal};
    let io = |source| Error::Io { what: "signals".to_owned(), source };
    let mut terminate = signal(SignalKind::terminate()).map_err(io)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io)?;
    let server = EmbeddedS3::start_with(dir, listen, credentials.clone()).await?;
    if show {
        println!("access_key_id={}", credentials.access_key_id);
        println!("secret_access_key={}", credentials.secret_access_key);
    }
    println!("endpoint=http://{}", server.address());
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    server.stop().await;
    Ok(())
}
