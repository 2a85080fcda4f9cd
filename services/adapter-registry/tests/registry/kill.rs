//! The registry as a process: `kill -9` at random points loses nothing acknowledged, and a retry completes the rest.

use crate::support::{BUCKET, Client, Package, TENANT, World, client, publish, smollm2};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use weft_proto::registry::v1 as pb;
use weft_service_kit::transport::{Address, connect};

const ROUNDS: u64 = 8;
const PUBLISHERS: u64 = 4;

async fn start(world: &World) -> (Child, Client) {
    let s3 = world.s3.settings(BUCKET);
    let mut child = Command::new(env!("CARGO_BIN_EXE_weft-adapter-registry"))
        .args(["--listen", "127.0.0.1:0"])
        .env("WEFT_S3_ENDPOINT", s3.endpoint.unwrap())
        .env("WEFT_S3_BUCKET", s3.bucket)
        .env("WEFT_S3_ACCESS_KEY_ID", s3.access_key_id.unwrap())
        .env("WEFT_S3_SECRET_ACCESS_KEY", s3.secret_access_key.unwrap())
        .env("WEFT_LOG", "error")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().expect("the registry says where it listens");
    let address: Address = line.strip_prefix("listening on ").unwrap().parse().unwrap();
    (child, client(connect(&address)))
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_loses_no_acknowledged_version_and_a_retry_makes_no_second_one() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let world = World::new().await;
    // Seed of the package -> digest, for what was acknowledged; and every seed that was tried.
    let acknowledged: Arc<Mutex<BTreeMap<u64, Vec<u8>>>> = Arc::default();
    let mut next_seed = 1;
    let mut tried = Vec::new();
    for _ in 0..ROUNDS {
        let (mut child, mut client) = start(&world).await;
        client.announce_base(smollm2()).await.unwrap();
        let request = pb::CreateTenantRequest { name: TENANT.to_owned(), actor: String::new(), ..Default::default() };
        client.create_tenant(request).await.unwrap();
        let publishers: Vec<_> = (0..PUBLISHERS)
            .map(|publisher| {
                let (client, acknowledged) = (client.clone(), Arc::clone(&acknowledged));
                let seeds: Vec<u64> = (next_seed + publisher * 100..next_seed + (publisher + 1) * 100).collect();
                tried.extend(&seeds);
                tokio::spawn(async move {
                    for seed in seeds {
                        match publish(&client, TENANT, "pirate", "live", &Package::tiny(seed)).await {
                            Ok(published) => acknowledged.lock().unwrap().insert(seed, published.digest.to_vec()),
                            Err(_) => return,
                        };
                    }
                })
            })
            .collect();
        next_seed += PUBLISHERS * 100;
        // In the middle of the work, wherever that is on this machine; when exactly is the point of the test.
        let enough = acknowledged.lock().unwrap().len() + random.random_range(2..12);
        while acknowledged.lock().unwrap().len() < enough {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..20))).await;
        child.start_kill().unwrap();
        child.wait().await.unwrap();
        for publisher in publishers {
            publisher.await.unwrap();
        }
    }

    let registry = world.start().await;
    let acknowledged = acknowledged.lock().unwrap().clone();
    let versions = registry.versions("pirate").await;
    let numbers: Vec<u64> = versions.iter().map(|version| version.number).collect();
    assert_eq!(numbers, (1..=versions.len() as u64).collect::<Vec<_>>(), "numbers have a gap");
    for (seed, digest) in &acknowledged {
        let found = versions.iter().filter(|version| version.digest == *digest).count();
        assert_eq!(found, 1, "the acknowledged package {seed} has {found} versions");
    }
    assert!(acknowledged.len() as u64 > ROUNDS, "only {} publishes were acknowledged", acknowledged.len());

    // Whatever was interrupted: the same publish again ends in one version.
    let interrupted = tried.iter().filter(|seed| !acknowledged.contains_key(seed)).take(40);
    for seed in interrupted.chain(acknowledged.keys().take(5)) {
        registry.publish("pirate", &Package::tiny(*seed)).await;
    }
    let versions = registry.versions("pirate").await;
    let mut digests: Vec<_> = versions.iter().map(|version| version.digest.clone()).collect();
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), versions.len(), "two versions of one package");
}

#[tokio::test]
async fn wrong_settings_end_with_status_2_and_every_problem() {
    let run = Command::new(env!("CARGO_BIN_EXE_weft-adapter-registry"))
        .args(["--publishes-max", "0", "--checks-max", "0"])
        .output()
        .await
        .unwrap();
    let stderr = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("publishes_max") && stderr.contains("checks_max"), "{stderr}");
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let run =
        Command::new(env!("CARGO_BIN_EXE_weft-adapter-registry")).args(["--listen", &address]).output().await.unwrap();
    let stderr = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(&address), "{stderr}");
}
