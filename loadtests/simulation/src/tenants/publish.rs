//! Publishes versions of one adapter, each until it is acknowledged.

use super::{Client, path_of};
use crate::checks::Rule;
use crate::http::{Broken, open};
use crate::ledger::{Adapter, Version};
use crate::machine;
use crate::package::Package;
use crate::world::{ADMIN_KEY, ADMIN_PORT};
use bytes::Bytes;
use rand::Rng;
use serde_json::Value;

const BOUNDARY: &str = "the-boundary-of-the-simulation";
/// Packages of one adapter have numbers from here on, so that no two adapters share one.
const PACKAGES_OF_ADAPTER: u64 = 1000;

/// Until the faults are over.
pub(super) async fn run(mut client: Client, adapter: Adapter) {
    let index = super::ADAPTERS.iter().position(|other| *other == adapter).unwrap_or_default() as u64;
    let mut package = index * PACKAGES_OF_ADAPTER + 100;
    while !client.is_over() {
        client.pause(3000, 15_000).await;
        // Some publish the same bytes again: that is the version that it was.
        if client.random.random_bool(0.8) {
            package += 1;
        }
        until_acked(&mut client, adapter, package).await;
    }
}

/// Publishes the package of this number until a gateway says that it is a version, at least once after the faults.
pub(super) async fn until_acked(client: &mut Client, adapter: Adapter, number: u64) {
    let package = Package::number(number);
    let mut moved = None;
    loop {
        let gateway = client.gateway();
        let was_over = client.is_over();
        if moved.is_none() || client.random.random_bool(0.5) {
            moved = Some(client.world.ledger().moves(adapter, "live", package.digest, machine::elapsed()));
        }
        if let Some(number) = publish(client, gateway, adapter, &package).await {
            let now = machine::elapsed();
            let mut ledger = client.world.ledger();
            ledger.published(adapter, Version { number, digest: package.digest, acked: now });
            // Again with an older package changes nothing: the alias goes forward only.
            let is_newest = ledger.versions(adapter).iter().all(|version| version.number <= number);
            if let (Some(moved), true) = (moved, is_newest) {
                ledger.moved(adapter, "live", moved, now);
            }
            return;
        }
        if was_over {
            // Recovery is looked at elsewhere.
            client.pause(1000, 2000).await;
        }
        client.pause(200, 1500).await;
    }
}

/// One try. None: it was refused, or nobody knows.
async fn publish(client: &Client, gateway: &'static str, adapter: Adapter, package: &Package) -> Option<u64> {
    let began = machine::elapsed();
    let mut body = Vec::new();
    for (name, content) in [("config", package.config.as_bytes()), ("weights", package.weights.as_slice())] {
        let head = format!(
            "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\ncontent-type: application/octet-stream\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    let path = format!("/admin/v1{}/versions", path_of(adapter));
    let request = http::Request::post(path)
        .header("authorization", format!("Bearer {ADMIN_KEY}"))
        .header("content-type", format!("multipart/form-data; boundary={BOUNDARY}"));
    let answer = async { open(gateway, ADMIN_PORT, request, Bytes::from(body)).await?.whole().await };
    let what = format!("publish {adapter:?} {}", &package.digest.to_string()[..15]);
    let answer = match answer.await {
        Ok(answer) => answer,
        // The registry may take minutes over a package while S3 hangs.
        Err(Broken::Silence) => {
            client.say(format!("{what} at {gateway}: out of patience"));
            return None;
        }
        Err(broken) => {
            client.say(format!("{what} at {gateway}: {broken:?}"));
            client.broke(gateway, began, broken, &what);
            return None;
        }
    };
    client.say(format!("{what} at {gateway}: {} {}", answer.status, answer.json["version"]));
    if !matches!(answer.status, 200 | 201) {
        client.refused(&answer, &what);
        return None;
    }
    client.world.record.count("versions published");
    let number = answer.json["version"].as_u64().unwrap_or_default();
    let digest = package.digest.to_string();
    if answer.json["digest"] != digest.as_str() {
        client.violated(Rule::VersionsImmutable, format!("{what}: the answer has {}", answer.json));
    }
    if let Some(problem) = client.world.ledger().saw(adapter, number, package.digest) {
        client.violated(Rule::VersionsImmutable, problem);
    }
    // Past every cache and fault: it must be in S3 now, both its record and its bytes.
    let record =
        format!("registry/tenants/{}/adapters/{}/versions/{number:012}.json", adapter.0, adapter.1.replace('/', "!"));
    let stored = client.world.objects.peek(&record).and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    if stored.is_none_or(|stored| stored["digest"] != digest.as_str()) {
        client.violated(Rule::NothingLost, format!("{what}: {record} does not have it"));
    }
    let blob = weft_object_store::keys::blob(&package.digest);
    if client.world.objects.peek(&blob).is_none_or(|bytes| weft_types::Digest::of(&bytes) != package.digest) {
        client.violated(Rule::NothingLost, format!("{what}: {blob} is not its bytes"));
    }
    Some(number)
}
