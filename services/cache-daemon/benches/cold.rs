//! The cold path of the daemon, by stages, beside its floors: object store → leased file.
//!
//! Over loopback: the server's and the client's work count, no network does. `get` reads the object whole and throws it away, `sha256`
//! hashes it, `write` writes and syncs it: the least that a fetch consists of, measured alone. `leased` is from the acquire to the grant
//! through the daemon's gRPC face. A fetch that overlaps its parts takes about as long as the slowest of them.

use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use weft_cache_daemon::{App, Settings};
use weft_object_store::{EmbeddedS3, ObjectStore, S3Store, keys};
use weft_proto::cache::v1::cache_daemon_client::CacheDaemonClient;
use weft_proto::cache::v1::lease_request::Request as Asks;
use weft_proto::cache::v1::lease_response::Response as Answer;
use weft_proto::cache::v1::{Acquire, Hello, LeaseRequest};
use weft_service_kit::shutdown::Shutdown;
use weft_service_kit::transport::Listener;
use weft_types::Digest;

/// Bytes of a blob, and how many of that size are fetched.
const SIZES: [(usize, usize); 3] = [(1_000_000, 40), (10_000_000, 20), (100_000_000, 8)];

fn blob(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..bytes.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(bytes).collect()
}

/// Median and the highest of a hundred, in milliseconds.
fn p50_p99(times: &mut [Duration]) -> (f64, f64) {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)].as_secs_f64() * 1e3;
    (at(50), at(99))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (objects, dir) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let server = EmbeddedS3::start(objects.path(), "127.0.0.1:0".parse()?).await?;
    let store = S3Store::connect(&server.settings("weft")).await?;
    store.ensure_bucket().await?;
    let settings = Settings { dir: dir.path().join("cache"), disk_bytes_max: 8 << 30, ..Settings::default() };
    let app = App::build(settings, std::sync::Arc::new(store.clone()), &prometheus::Registry::new())?;
    let (listener, channel) = Listener::memory();
    let shutdown = Shutdown::new();
    let running = tokio::spawn(app.run(listener, shutdown.clone()));
    let (asks, outbound) = mpsc::channel(16);
    let hello = Asks::Hello(Hello { holder: "bench".to_owned() });
    asks.send(LeaseRequest { request: Some(hello) }).await?;
    let mut answers = CacheDaemonClient::new(channel).lease(ReceiverStream::new(outbound)).await?.into_inner();

    println!("{:>12} {:>8} {:>10} {:>10} {:>12}", "bytes", "stage", "p50 ms", "p99 ms", "MB/s at p50");
    let mut lease_id = 0;
    for (bytes, rounds) in SIZES {
        let (mut get, mut sha256, mut write, mut leased) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            lease_id += 1;
            let content = bytes::Bytes::from(blob(lease_id, bytes));
            let began = Instant::now();
            let digest = Digest::of(&content);
            sha256.push(began.elapsed());
            store.put(&keys::blob(&digest), content.clone()).await?;

            let began = Instant::now();
            let mut stream = store.get_stream(&keys::blob(&digest)).await?.ok_or("just put")?.stream;
            while let Some(piece) = stream.next().await {
                std::hint::black_box(piece?);
            }
            get.push(began.elapsed());

            let path = dir.path().join("floor");
            let began = Instant::now();
            tokio::task::spawn_blocking(move || -> std::io::Result<()> {
                let mut file = std::fs::File::create(&path)?;
                std::io::Write::write_all(&mut file, &content)?;
                file.sync_all()
            })
            .await??;
            write.push(began.elapsed());

            let began = Instant::now();
            let acquire = Acquire { lease_id, digest: digest.to_vec().into(), reassert: false };
            asks.send(LeaseRequest { request: Some(Asks::Acquire(acquire)) }).await?;
            let answer = answers.message().await?.and_then(|answer| answer.response);
            let Some(Answer::Granted(_)) = answer else { return Err(format!("{answer:?}").into()) };
            leased.push(began.elapsed());
        }
        let stages = [("get", &mut get), ("sha256", &mut sha256), ("write", &mut write), ("leased", &mut leased)];
        for (stage, times) in stages {
            let (p50, p99) = p50_p99(times);
            println!("{bytes:>12} {stage:>8} {p50:>10.2} {p99:>10.2} {:>12.0}", bytes as f64 / 1e3 / p50);
        }
    }
    drop(asks);
    shutdown.trigger();
    running.await??;
    Ok(())
}
