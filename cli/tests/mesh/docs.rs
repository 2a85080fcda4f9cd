//! The maps match the territory: every path that a document names exists.

use std::path::Path;

const DOCUMENTS: &[&str] = &[
    "README.md",
    "ARCHITECTURE.md",
    "docs/adapters.md",
    "docs/dependencies.md",
    "docs/settings.md",
    "docs/performance.md",
    "docs/fairness.md",
    "docs/limits.md",
    "docs/merging.md",
    "docs/mesh.md",
    "docs/security.md",
    "docs/failures.md",
    "docs/placement.md",
    "docs/deployment.md",
    "docs/experiments.md",
    "docs/gpu.md",
    "docs/releases.md",
    "docs/usage.md",
    "charts/weft/README.md",
];
const ROOTS: &[&str] = &[
    "charts/",
    "sky/",
    "cli/",
    "crates/",
    "services/",
    "kernels/",
    "proto/",
    "loadtests/",
    "examples/",
    "scripts/",
    "docs/",
    "tests/",
];

#[test]
fn every_path_a_document_names_exists() {
    let root = crate::support::root();
    let mut missing = Vec::new();
    for document in DOCUMENTS {
        let text = std::fs::read_to_string(root.join(document)).unwrap_or_else(|error| panic!("{document}: {error}"));
        for name in text.split('`').skip(1).step_by(2).chain(links(&text)) {
            let path = name.trim_end_matches('/');
            let is_path = ROOTS.iter().any(|root| name.starts_with(root)) && !name.contains([' ', '*', '{', '<']);
            if is_path && !root.join(Path::new(path)).exists() {
                missing.push(format!("{document} names {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// `make test` runs no examples of comments: the compiler would read every crate once more for them.
#[test]
fn examples_in_comments_are_text_and_what_runs_is_a_test() {
    let mut wrong = Vec::new();
    for room in ["cli", "crates", "kernels", "loadtests", "proto", "services"] {
        let mut text = String::new();
        sources(&crate::support::root().join(room), &mut text);
        let mut is_open = false;
        for line in text.lines().map(str::trim_start) {
            let comment = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
            let Some(language) = comment.and_then(|comment| comment.trim_start().strip_prefix("```")) else { continue };
            if !is_open && language != "text" {
                wrong.push(line.to_owned());
            }
            is_open = !is_open;
        }
    }
    assert!(wrong.is_empty(), "comments with an example that nothing runs: {wrong:?}");
}

/// Everything that services count, by the name that their source gives it.
fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_metric_a_document_names_is_counted() {
    let root = crate::support::root();
    let mut source = String::new();
    ["services", "crates"].iter().for_each(|room| sources(&root.join(room), &mut source));
    let (mut missing, mut checked) = (Vec::new(), 0);
    for document in DOCUMENTS {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        for name in text.split('`').skip(1).step_by(2) {
            let name = name.split('{').next().unwrap_or_default();
            let is_metric =
                ["gateway_", "worker_", "registry_", "cache_daemon_", "bus_"].iter().any(|of| name.starts_with(of))
                    && ["_total", "_seconds", "_ready", "_known", "_shared", "_connected"]
                        .iter()
                        .any(|end| name.ends_with(end));
            if is_metric {
                checked += 1;
                if !source.contains(&format!("\"{name}\"")) {
                    missing.push(format!("{document} names {name}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert!(checked > 20, "metrics are found: {checked}");
}

/// Targets of Markdown links.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

#[test]
fn every_dependency_has_its_reason() {
    let root = crate::support::root();
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let reasons = std::fs::read_to_string(root.join("docs/dependencies.md")).unwrap();
    let section = manifest.split("[workspace.dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let names = section.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name.trim());
    let missing: Vec<_> =
        names.filter(|name| !name.starts_with("weft-") && !reasons.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "docs/dependencies.md does not mention {missing:?}");
}

/// Commands of the shell blocks: the program's name and its words.
fn commands(text: &str) -> Vec<(String, Vec<String>)> {
    let mut commands = Vec::new();
    for block in text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()) {
        for line in block.replace("\\\n", " ").lines() {
            let line = line.split(" #").next().unwrap_or_default();
            // What a pipe or a substitution hides begins a command too.
            for piece in line.split(['|', '(', '&', ';', ')']) {
                // Without variables before it, and without what is handed on behind `--`.
                let is_variable = |word: &&str| word.split_once('=').is_some_and(|(name, _)| !name.starts_with('-'));
                let words = piece.split_whitespace().skip_while(is_variable).take_while(|word| *word != "--");
                let mut words = words.map(str::to_owned);
                let Some(first) = words.next() else { continue };
                let program = first.rsplit('/').next().unwrap_or_default();
                if program == "weft" || program.starts_with("weft-") {
                    commands.push((program.to_owned(), words.collect()));
                }
            }
        }
    }
    commands
}

#[test]
fn every_flag_of_a_documented_command_exists() {
    let mut checked = 0;
    for document in DOCUMENTS {
        let text = std::fs::read_to_string(crate::support::root().join(document)).unwrap();
        for (program, words) in commands(&text) {
            let path = Path::new(env!("CARGO_BIN_EXE_weft")).with_file_name(&program);
            assert!(path.exists(), "{document} runs {program}, which is not built: cargo build --release --workspace");
            let groups = ["tenant", "key", "model", "experiment"];
            let depth = match words.first() {
                _ if program != "weft" => 0,
                Some(group) if groups.contains(&group.as_str()) => 2,
                _ => 1,
            };
            let mut help = std::process::Command::new(path);
            help.args(&words[..depth.min(words.len())]).arg("--help");
            let output = help.output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(output.status.success(), "{document}: {program} {words:?}");
            for flag in words.iter().filter(|word| word.starts_with("--")) {
                let name = flag.split('=').next().unwrap_or(flag);
                let known = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).any(|word| word == name);
                assert!(known, "{document}: {program} has no {name}");
                checked += 1;
            }
        }
    }
    assert!(checked > 15, "the README's commands are found: {checked}");
}
