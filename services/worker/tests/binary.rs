//! The binary's ends: what it prints and with which status it leaves.

mod support;

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};

use support::golden;

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
