//! The maps match the territory: every path that a document names exists.

mod support;

use std::path::Path;

const DOCUMENTS: &[&str] =
    &["README.md", "ARCHITECTURE.md", "docs/dependencies.md", "docs/settings.md", "docs/performance.md"];
const ROOTS: &[&str] =
    &["cli/", "crates/", "services/", "kernels/", "proto/", "loadtests/", "examples/", "scripts/", "docs/", "tests/"];

#[test]
fn every_path_a_document_names_exists() {
    let root = support::root();
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

/// Targets of Markdown links.
fn links(text: &str) -> impl Iterator<Item = &str> {
    text.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

#[test]
fn every_dependency_has_its_reason() {
    let root = support::root();
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let reasons = std::fs::read_to_string(root.join("docs/dependencies.md")).unwrap();
    let section = manifest.split("[workspace.dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let names = section.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name.trim());
    let missing: Vec<_> =
        names.filter(|name| !name.starts_with("weft-") && !reasons.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "docs/dependencies.md does not mention {missing:?}");
}
