//! How fast versions are published and read through a registry, against the S3 server's own `PUT` and `GET` of the same bytes in the same run.
//!
//! A publish is a `PUT` of the blob and two conditional ones of records (version and alias), each durable before the next: that is its floor, which
//! is measured too. The registry adds the way of the bytes through it, the check of the package, and a look at the store between the writes. A resolve and the read of a blob is one `GET` and a call that the registry answers from memory.

use crate::package::Package;
use crate::world::{Client, Cpu, TENANT, World};
use anyhow::{Result, bail};
use bytes::Bytes;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use weft_object_store::{ObjectStore, S3Store, keys};
use weft_proto::registry::v1 as pb;
use weft_proto::registry::v1::publish_request::Part;
use weft_proto::registry::v1::publish_response::Result as Published;
use weft_types::Digest;

const CHUNK_BYTES: usize = 1 << 20;
/// As a version's record has.
const RECORD_BYTES: usize = 800;

/// What one kind of call came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    /// Calls.
    pub calls: usize,
    /// How long all of them took.
    pub took: Duration,
    /// Processor time of all of them, whoever spent it.
    pub cpu: Cpu,
}

impl Rate {
    /// Calls a second.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        self.calls as f64 / self.took.as_secs_f64()
    }

    /// Milliseconds of processor time of each call: of this process, the S3 server and the registry.
    #[must_use]
    pub fn cpu_ms(&self) -> [f64; 3] {
        [self.cpu.client, self.cpu.s3, self.cpu.registry].map(|cpu| cpu.as_secs_f64() * 1e3 / self.calls as f64)
    }
}

/// Rates of the calls that are held against each other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rates {
    /// `PUT`s of S3.
    pub put: Rate,
    /// The same `PUT`s, each with two conditional ones of records after it.
    pub floor: Rate,
    /// Publishes.
    pub publish: Rate,
    /// `GET`s of S3.
    pub get: Rate,
    /// Resolves, each with the `GET` of the blob that it names.
    pub resolve: Rate,
}

/// Measures with so many objects, so many at once; rounds of both sides take turns.
///
/// # Errors
/// A call fails.
pub async fn measure(world: &World, bytes: usize, objects: usize, at_once: usize, rounds: usize) -> Result<Rates> {
    let (client, store) = (world.client(0)?, std::sync::Arc::new(world.store().await?));
    let mut rates = Rates::default();
    let name = format!("rates-{bytes}");
    for round in 0..rounds {
        let packages: Vec<Package> =
            (0..objects).map(|n| Package::of(bytes, (round * objects + n + 1) as u64)).collect::<Result<_>>()?;
        timed(world, &mut rates.put, at_once, objects, |n| {
            let (store, body) = (store.clone(), Bytes::from(packages[n].weights.clone()));
            async move { store.put(&format!("rates/{bytes}/{round}-{n}"), body).await.map(drop).map_err(Into::into) }
        })
        .await?;
        timed(world, &mut rates.floor, at_once, objects, |n| {
            let (store, body) = (store.clone(), Bytes::from(packages[n].weights.clone()));
            async move {
                let key = format!("rates/{bytes}/floor-{round}-{n}");
                store.put(&key, body).await?;
                for record in ["version", "alias"] {
                    store.put_if_absent(&format!("{key}-{record}"), vec![b' '; RECORD_BYTES].into()).await?;
                }
                Ok(())
            }
        })
        .await?;
        // Each of its own adapter: what those who publish at once nearly always do.
        let adapter = |n: usize| format!("{name}-{n}");
        timed(world, &mut rates.publish, at_once, objects, |n| {
            publish_one(client.clone(), adapter(n), packages[n].clone())
        })
        .await?;
        drop(packages);
        timed(world, &mut rates.get, at_once, objects, |n| {
            let (store, key) = (store.clone(), format!("rates/{bytes}/{round}-{n}"));
            async move { read(&store, &key).await }
        })
        .await?;
        timed(world, &mut rates.resolve, at_once, objects, |n| {
            let (store, client, name) = (store.clone(), client.clone(), adapter(n));
            async move { resolve_one(client, &store, &name, round as u64 + 1).await }
        })
        .await?;
    }
    Ok(rates)
}

/// Adds so many calls to a rate.
async fn timed<F>(
    world: &World,
    rate: &mut Rate,
    at_once: usize,
    objects: usize,
    work: impl Fn(usize) -> F,
) -> Result<()>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let (began, cpu) = (Instant::now(), world.cpu()?);
    let mut running = JoinSet::new();
    for n in 0..objects {
        if running.len() >= at_once
            && let Some(done) = running.join_next().await
        {
            done??;
        }
        running.spawn(work(n));
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    rate.calls += objects;
    rate.took += began.elapsed();
    rate.cpu += world.cpu()? - cpu;
    Ok(())
}

async fn publish_one(mut client: Client, adapter: String, package: Package) -> Result<()> {
    let start = pb::PublishStart { tenant: TENANT.to_owned(), adapter, alias: "live".to_owned(), ..Default::default() };
    let weights = Bytes::from(package.weights);
    let pieces = (0..weights.len()).step_by(CHUNK_BYTES);
    let pieces = pieces.map(|at| Part::Weights(weights.slice(at..weights.len().min(at + CHUNK_BYTES))));
    let parts: Vec<_> = [Part::Start(start), Part::Config(package.config.into())].into_iter().chain(pieces).collect();
    let parts = parts.into_iter().map(|part| pb::PublishRequest { part: Some(part) });
    match client.publish(tokio_stream::iter(parts)).await?.into_inner().result {
        Some(Published::Published(_)) => Ok(()),
        other => bail!("a package that is made here is refused: {other:?}"),
    }
}

async fn resolve_one(mut client: Client, store: &S3Store, adapter: &str, version: u64) -> Result<()> {
    let request =
        pb::ResolveRequest { tenant: TENANT.to_owned(), adapter: adapter.to_owned(), selector: version.to_string() };
    let Some(version) = client.resolve(request).await?.into_inner().version else { bail!("no version") };
    read(store, &keys::blob(&Digest::try_from(version.digest.as_ref())?)).await
}

async fn read(store: &S3Store, key: &str) -> Result<()> {
    match store.get(key).await? {
        Some(_) => Ok(()),
        None => bail!("{key} is not there"),
    }
}
