//! The binary: what it prints and how it ends.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Output, Stdio};

fn gateway(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft-gateway"));
    command
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("WEFT_LOG", "info")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn ended(args: &[&str]) -> Output {
    gateway(args).output().unwrap()
}

#[test]
fn wrong_settings_end_with_status_2_and_say_which() {
    for (args, text) in [
        (&["--no-such-flag", "1"][..], "--no-such-flag"),
        (&["--max-best-of", "many"][..], "many"),
        (&["--workers", "nowhere"][..], "nowhere"),
        (&["--registry", "https://x"][..], "https://x"),
        (&["--header-bytes-max", "10"][..], "header_bytes_max"),
        (&["--admin-keys", "nokey"][..], "admin_keys"),
        (&["--admin-key-file", "/nonexistent/key"][..], "/nonexistent/key"),
    ] {
        let output = ended(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{args:?} {said}");
        assert!(said.contains(text), "{args:?} {said}");
    }
}

#[test]
fn a_port_in_use_ends_with_status_1_and_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = ended(&["--listen", &address, "--admin-listen", "127.0.0.1:0"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&address) && said.contains("cannot listen"), "{said}");
}

#[test]
fn a_signal_ends_it_with_status_0_and_no_secret_is_logged() {
    let mut child =
        gateway(&["--port", "0", "--admin-listen", "127.0.0.1:0", "--admin-key", "very-secret"]).spawn().unwrap();
    let ports: Vec<String> = BufReader::new(child.stdout.take().unwrap()).lines().take(2).map(Result::unwrap).collect();
    assert!(ports[0].starts_with("listening on 127.0.0.1:") && !ports[0].ends_with(":0"), "{ports:?}");
    assert!(ports[1].starts_with("admin listening on 127.0.0.1:"), "{ports:?}");
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = String::new();
    for line in &mut lines {
        let line = line.unwrap();
        said.push_str(&line);
        if line.contains("listening") {
            break;
        }
    }
    terminate(&child);
    said.extend(lines.map(Result::unwrap));
    assert!(child.wait().unwrap().success(), "{said}");
    assert!(said.contains("listening") && !said.contains("very-secret"), "{said}");
}

fn terminate(child: &Child) {
    assert!(Command::new("kill").arg("-TERM").arg(child.id().to_string()).status().unwrap().success());
}
