//! Real processes on a machine whose clock jumps: back and forth, by an hour and by a day. `faketime` lies to them about the wall
//! clock only, as a jump does.

use crate::support::apart::{Apart, Part, Plan};
use crate::support::{tiny_adapter, tiny_model};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// The library that Debian's package `faketime` brings.
fn library() -> PathBuf {
    let folders = ["/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime", "/usr/lib/faketime"];
    let paths = folders.map(|folder| Path::new(folder).join("libfaketimeMT.so.1"));
    paths.into_iter().find(|path| path.exists()).expect("libfaketimeMT.so.1 is there: apt-get install faketime")
}

/// All processes read it each time that they look at the clock.
fn set(clock: &Path, offset: &str) {
    let next = clock.with_extension("next");
    std::fs::write(&next, offset).unwrap();
    std::fs::rename(next, clock).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_costs_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let clock = dir.path().join("clock");
    set(&clock, "+0");
    let environment = [
        ("LD_PRELOAD", library().display().to_string()),
        ("FAKETIME_TIMESTAMP_FILE", clock.display().to_string()),
        ("FAKETIME_NO_CACHE", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let mut apart = Apart::start(&tiny_model(), Plan { workers: 2, environment, ..Plan::default() }).await;
    let secret = apart.secret("harbour").await;
    apart.publish("harbour", "rank8", &tiny_adapter("rank8")).await;
    let ask = async |apart: &Apart, model: &str| -> Value {
        let body = json!({ "model": model, "prompt": [65, 66], "max_tokens": 8, "temperature": 0 });
        let reply = apart.ask(&secret, "/v1/completions", &body).await;
        assert_eq!(reply.status, 200, "{}", reply.text);
        reply.json()
    };
    let before = ask(&apart, "rank8").await;

    for offset in ["+3600", "-3600", "+86400", "-86400", "+0"] {
        set(&clock, offset);
        for _ in 0..5 {
            let after = ask(&apart, "rank8").await;
            assert_eq!(after["choices"], before["choices"], "{offset}");
            ask(&apart, "base").await;
        }
        // The clock is seen: answers are dated by it.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
        let shift = ask(&apart, "base").await["created"].as_i64().unwrap() - now;
        assert!((shift - offset.parse::<i64>().unwrap()).abs() < 300, "{offset}: {shift}");
        // A process that starts in another time than the others finds them.
        apart.kill(Part::Worker(0));
        apart.launch(Part::Worker(0));
        apart.until_ready().await;
    }
    apart.stop().await;
}
