//! A real Redis that speaks TLS alone and asks for a certificate.

mod support;

use std::path::PathBuf;
use std::time::Duration;
use support::redis::{Redis, free_port};
use support::until;
use weft_certificate_testkit::{Authority, Signed};
use weft_limits::ledger::Error;
use weft_limits::{Ledger, RedisLedger, RedisSettings};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Redis with a certificate of this authority, and its URL.
fn redis(authority: &Authority) -> (Redis, String) {
    let own = authority.sign("redis", &["127.0.0.1"]);
    let port = free_port();
    let path = |path: &PathBuf| path.display().to_string();
    let (tls_port, cert, key, ca) = (port.to_string(), path(&own.cert), path(&own.key), path(&authority.ca()));
    let redis = Redis::start_with(
        port,
        &[
            "--port", "0", "--tls-port", &tls_port, "--tls-cert-file", &cert, "--tls-key-file", &key,
            "--tls-ca-cert-file", &ca, "--tls-auth-clients", "yes",
        ],
    );
    (redis, format!("rediss://127.0.0.1:{port}"))
}

fn settings(url: &str, ca: &Authority, client: Option<&Signed>) -> RedisSettings {
    RedisSettings {
        url: url.to_owned(),
        ca_file: Some(ca.ca()),
        cert_file: client.map(|signed| signed.cert.clone()),
        key_file: client.map(|signed| signed.key.clone()),
        timeout: TIMEOUT,
    }
}

async fn beats(ledger: &RedisLedger) -> bool {
    ledger.beat("gateway", Duration::from_secs(1)).await.is_ok()
}

#[tokio::test]
async fn both_ends_show_certificates_and_new_files_are_used_without_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(&folder.path().join("ours"));
    let (redis, url) = redis(&authority);
    let client = authority.sign("gateway", &["gateway"]);
    let ledger = RedisLedger::new(settings(&url, &authority, Some(&client))).unwrap();
    until("connected", async || beats(&ledger).await).await;

    // The authority and everything it signed is replaced, as when certificates expire.
    redis.kill();
    let authority = Authority::new(&folder.path().join("ours"));
    authority.sign("gateway", &["gateway"]);
    let own = authority.sign("redis", &["127.0.0.1"]);
    let port: u16 = url.rsplit(':').next().unwrap().parse().unwrap();
    let text = |path: &PathBuf| path.display().to_string();
    let _redis = Redis::start_with(
        port,
        &[
            "--port", "0", "--tls-port", &port.to_string(), "--tls-cert-file", &text(&own.cert), "--tls-key-file",
            &text(&own.key), "--tls-ca-cert-file", &text(&authority.ca()), "--tls-auth-clients", "yes",
        ],
    );
    until("connected again", async || beats(&ledger).await).await;
}

#[tokio::test]
async fn who_shows_no_certificate_or_trusts_another_authority_is_alone() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(&folder.path().join("ours"));
    let other = Authority::new(&folder.path().join("other"));
    let (_redis, url) = redis(&authority);
    let client = authority.sign("gateway", &["gateway"]);
    for (settings, word) in [
        (settings(&url, &other, Some(&client)), "certificate"),
        (settings(&url, &authority, None), ""),
        (settings(&url, &authority, Some(&other.sign("stranger", &["gateway"]))), ""),
    ] {
        let ledger = RedisLedger::new(settings).unwrap();
        let why = || async {
            match ledger.beat("gateway", Duration::from_secs(1)).await {
                Err(Error::Away(why)) if why != "not connected yet" => Some(why),
                Err(_) => None,
                Ok(_) => panic!("it was let in"),
            }
        };
        until("refused", async || why().await.is_some()).await;
        let why = why().await.unwrap_or_default().to_lowercase();
        assert!(why.contains(word), "{why}");
    }
}
