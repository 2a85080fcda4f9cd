//! The binary's ends: what it prints and with which status it leaves.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Output, Stdio};

use crate::support::golden;

fn worker(flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-worker"));
    command.args(flags).env_clear().env("WEFT_LOG", "warn");
    command
}

fn run(flags: &[&str]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = worker(flags).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

#[test]
fn wrong_settings_end_with_status_2_and_every_problem() {
    let (status, said) = run(&["--listen", "127.0.0.1:0", "--dtype", "q3", "--step-tokens-max", "0"]);
    assert_eq!(status, Some(2), "{said}");
    for part in ["error: ", "model is not set", "q3", "step_tokens_max is 0"] {
        assert!(said.contains(part), "{part} in {said}");
    }
    assert_eq!(run(&["--no-such-flag"]).0, Some(2));
}

#[test]
fn a_missing_model_and_a_taken_port_are_named() {
    let (status, said) = run(&["--listen", "127.0.0.1:0", "--model", "/nowhere/base.gguf"]);
    assert_eq!((status, said.contains("/nowhere/base.gguf")), (Some(1), true), "{said}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (status, said) = run(&["--listen", &address, "--model", golden().join("tiny").to_str().unwrap()]);
    assert_eq!((status, said.contains(&address)), (Some(1), true), "{said}");
}

#[test]
fn it_says_where_it_listens_and_leaves_on_sigterm() {
    let model = golden().join("tiny");
    // LoRAX's name for the model; nobody answers at the other two.
    let flags =
        ["--listen", "127.0.0.1:0", "--model-id", model.to_str().unwrap(), "--cache", "127.0.0.1:1", "--registry", ""];
    let mut child = worker(&flags).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("listening on ").unwrap_or_else(|| panic!("said {line:?}"));
    std::net::TcpStream::connect(address).unwrap();
    let killed = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert!(child.wait().unwrap().success());
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "", "nothing else on stdout");
}

/// Status and body of a plain HTTP GET.
fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

#[test]
fn its_metrics_and_its_readiness_can_be_read_over_http() {
    let model = golden().join("tiny");
    let (model, nobody) = (model.to_str().unwrap(), "127.0.0.1:1");
    let flags = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--model", model, "--cache", nobody];
    let mut child =
        worker(&flags).args(["--registry", nobody]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let metrics = lines.next().unwrap();
    let metrics = metrics.strip_prefix("metrics on ").unwrap_or_else(|| panic!("said {metrics:?}"));
    assert_eq!(get(metrics, "/livez").0, 200);
    assert!(lines.next().unwrap().starts_with("listening on "));
    let (status, body) = get(metrics, "/metrics");
    assert!(status == 200 && body.contains("worker_kv_blocks_used"), "{status} {body}");
    let (status, body) = get(metrics, "/readyz");
    assert!(status == 503 && body.contains("announcing the base"), "{status} {body}");
    child.kill().unwrap();
    child.wait().unwrap();
}
