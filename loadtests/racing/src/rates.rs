//! How fast versions are published and read through a registry, against the S3 server's own `PUT` and `GET` of the same bytes in the same run.
//!
//! A publish is a `PUT` of the blob and two conditional ones of records (version and alias), each durable before the next: that is its floor, which
//! is measured too. The registry adds the way of the bytes through it, the check of the package, and a look at the store between the writes. A resolve and the read of a blob is one `GET` and a call that the registry answers from memory.

use crate::package::Package;
use crate::world::{Client, TENANT, World};
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

/// Rates in objects a second.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Bytes of one package's weights.
    pub bytes: usize,
    /// `PUT`s of S3.
    pub put: f64,
    /// The same `PUT`s, each with two conditional ones of records after it.
    pub floor: f64,
    /// Publishes.
    pub publish: f64,
    /// `GET`s of S3.
    pub get: f64,
    /// Resolves, each with the `GET` of the blob that it names.
    pub resolve: f64,
}

/// Measures with so many objects, so many at once; rounds of both sides take turns.
///
/// # Errors
/// A call fails.
pub async fn measure(world: &World, bytes: usize, objects: usize, at_once: usize, rounds: usize) -> Result<Rates> {
    let (client, store) = (world.client(0)?, std::sync::Arc::new(world.store().await?));
    let [mut put, mut floor, mut publish, mut get, mut resolve] = [Duration::ZERO; 5];
    let name = format!("rates-{bytes}");
    for round in 0..rounds {
        let packages: Vec<Package> =
            (0..objects).map(|n| Package::of(bytes, (round * objects + n + 1) as u64)).collect::<Result<_>>()?;
        put += timed(at_once, objects, |n| {
            let (store, body) = (store.clone(), Bytes::from(packages[n].weights.clone()));
            async move { store.put(&format!("rates/{bytes}/{round}-{n}"), body).await.map(drop).map_err(Into::into) }
        })
        .await?;
        floor += timed(at_once, objects, |n| {
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
        publish += timed(at_once, objects, |n| publish_one(client.clone(), adapter(n), packages[n].clone())).await?;
        drop(packages);
        get += timed(at_once, objects, |n| {
            let (store, key) = (store.clone(), format!("rates/{bytes}/{round}-{n}"));
            async move { read(&store, &key).await }
        })
        .await?;
        resolve += timed(at_once, objects, |n| {
            let (store, client, name) = (store.clone(), client.clone(), adapter(n));
            async move { resolve_one(client, &store, &name, round as u64 + 1).await }
        })
        .await?;
    }
    let per_second = |took: Duration| (objects * rounds) as f64 / took.as_secs_f64();
    Ok(Rates {
        bytes,
        put: per_second(put),
        floor: per_second(floor),
        publish: per_second(publish),
        get: per_second(get),
        resolve: per_second(resolve),
    })
}

async fn timed<F>(at_once: usize, objects: usize, work: impl Fn(usize) -> F) -> Result<Duration>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let began = Instant::now();
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
    Ok(began.elapsed())
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
