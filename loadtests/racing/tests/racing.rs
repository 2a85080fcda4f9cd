//! A short race. `make lifecycle` has the long one.

use std::process::Command;

/// The registry and the S3 server are beside this program when the whole workspace is built.
#[test]
fn three_registries_under_kills_are_linearizable() {
    let mut race = Command::new(env!("CARGO_BIN_EXE_weft-racing"));
    race.args(["run", "--operations", "4000", "--kill-every-s", "0.7"]);
    let done = race.output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    assert!(done.status.success(), "{said}{}", String::from_utf8_lossy(&done.stderr));
    let last = said.lines().last().unwrap();
    let number = |name: &str| -> u64 {
        let rest = last.split(&format!(" {name} ")).nth(1).unwrap_or_else(|| panic!("{last}"));
        rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    assert_eq!(number("wrong"), 0, "{said}");
    for kind in ["publishes", "moves", "reads", "conflicts"] {
        assert!(number(kind) > 100, "{kind}: {last}");
    }
    assert!(number("kills") >= 1, "{last}");
}
