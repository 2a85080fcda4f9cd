//! The inner two layers: an in-toto statement v1 with the predicate of OMS v1.0.

use crate::error::{Error, listed};
use crate::json;
use crate::name::{CANONICAL, is_canonical};
use crate::verify::{CONFIG, PackageDigests, WEIGHTS};
use serde::Deserialize;
use serde::de::IgnoredAny;
use std::collections::HashSet;
use weft_types::{Digest, DigestHasher};

/// Most resources of a statement.
pub const RESOURCES_MAX: usize = 4096;

const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
/// Of `model-signing` 0.2, which put files in place of subjects.
const PREDICATE_TYPE_OF_0_2: &str = "https://model_signing/Digests/v0.1";

/// A statement that holds together: what it says of its files is what its subject stands for.
#[derive(Debug)]
pub(crate) struct Statement {
    /// The folder's name when it was signed. Says nothing.
    pub(crate) model: String,
    /// SHA-256 over the digests of all files.
    pub(crate) digest: Digest,
    /// In their order.
    resources: Vec<(String, Digest)>,
}

// Unknown fields are skipped, as in-toto wants it of all consumers and OMS 5.2.1 of verifiers.

/// What says how the rest is to be read.
#[derive(Deserialize)]
struct HeadWire {
    #[serde(rename = "_type")]
    statement_type: String,
    #[serde(rename = "predicateType")]
    predicate_type: String,
}

#[derive(Deserialize)]
struct StatementWire {
    subject: Vec<SubjectWire>,
    predicate: PredicateWire,
}

#[derive(Deserialize)]
struct SubjectWire {
    name: String,
    digest: SubjectDigestWire,
}

#[derive(Deserialize)]
struct SubjectDigestWire {
    sha256: String,
}

#[derive(Deserialize)]
struct PredicateWire {
    serialization: SerializationWire,
    resources: Vec<ResourceWire>,
}

#[derive(Deserialize)]
struct SerializationWire {
    method: String,
    hash_type: String,
    /// Says how files were found, not what they hold.
    #[serde(rename = "allow_symlinks")]
    _allow_symlinks: bool,
    shard_size: Option<IgnoredAny>,
    #[serde(default)]
    ignore_paths: Vec<String>,
}

#[derive(Deserialize)]
struct ResourceWire {
    name: String,
    algorithm: String,
    digest: String,
}

impl Statement {
    /// Reads a payload. Its signature was verified before.
    pub(crate) fn parse(payload: &[u8]) -> Result<Self, Error> {
        let head: HeadWire = json::read("payload", payload)?;
        if head.statement_type != STATEMENT_TYPE {
            return Err(Error::text("_type", &head.statement_type, STATEMENT_TYPE));
        }
        if head.predicate_type == PREDICATE_TYPE_OF_0_2 {
            let wanted = format!("{PREDICATE_TYPE}: sign again with model-signing 1.0 or later");
            return Err(Error::text("predicateType", &head.predicate_type, wanted));
        }
        if head.predicate_type != PREDICATE_TYPE {
            return Err(Error::text("predicateType", &head.predicate_type, PREDICATE_TYPE));
        }
        let wire: StatementWire = json::read("payload", payload)?;
        let [subject] = &wire.subject[..] else {
            return Err(Error::field("subject", format!("a list of {}", wire.subject.len()), "a list of one"));
        };
        if subject.name.is_empty() {
            return Err(Error::text("subject[0].name", "", "any name (OMS 6.5.1)"));
        }
        wire.predicate.serialization.check()?;
        let resources = resources(wire.predicate.resources)?;
        let digest = digest_of(&resources);
        let wanted = format!("the SHA-256 over the digests of predicate.resources, {}", digest.hex());
        if subject.digest.sha256 != digest.hex() {
            return Err(Error::text("subject[0].digest.sha256", &subject.digest.sha256, wanted));
        }
        Ok(Self { model: subject.name.clone(), digest, resources })
    }

    /// That both files of a package are among the resources; the names of the other resources.
    pub(crate) fn others_than(self, package: &PackageDigests) -> Result<Vec<String>, Error> {
        for (file, digest) in [(CONFIG, package.config), (WEIGHTS, package.weights)] {
            let Some(index) = self.resources.iter().position(|(name, _)| name == file) else {
                let found = listed(self.resources.iter().map(|(name, _)| name.as_str()));
                return Err(Error::Missing { file, found });
            };
            let signed = self.resources[index].1;
            if signed != digest {
                let field = format!("predicate.resources[{index}].digest");
                return Err(Error::OtherDigest { field, file, signed, package: digest });
            }
        }
        let names = self.resources.into_iter().map(|(name, _)| name);
        Ok(names.filter(|name| name != CONFIG && name != WEIGHTS).collect())
    }
}

impl SerializationWire {
    fn check(&self) -> Result<(), Error> {
        const FIELD: &str = "predicate.serialization";
        if self.method != "files" {
            let wanted = "files: a package's digests are those of whole files";
            return Err(Error::text(format!("{FIELD}.method"), &self.method, wanted));
        }
        if self.shard_size.is_some() {
            return Err(Error::field(format!("{FIELD}.shard_size"), "present", "none with the method files"));
        }
        if self.hash_type != "sha256" {
            let wanted = "sha256: a package's digests are SHA-256";
            return Err(Error::text(format!("{FIELD}.hash_type"), &self.hash_type, wanted));
        }
        for (i, path) in self.ignore_paths.iter().enumerate() {
            let field = || format!("{FIELD}.ignore_paths[{i}]");
            if path == CONFIG || path == WEIGHTS {
                return Err(Error::text(field(), path, "no file of the package"));
            }
            // Also that nothing ignores the whole folder by another spelling.
            if !is_canonical(path) || path.contains(['*', '?', '[']) {
                return Err(Error::text(field(), path, format!("{CANONICAL} and patterns (6.2.1)")));
            }
        }
        Ok(())
    }
}

/// Each with a name of its own. Their order is not checked: `model-signing` sorts by parts of paths, OMS 5.2.1 by code points.
fn resources(wire: Vec<ResourceWire>) -> Result<Vec<(String, Digest)>, Error> {
    const FIELD: &str = "predicate.resources";
    if wire.len() > RESOURCES_MAX {
        return Err(Error::TooLarge { what: "predicate.resources are", value: wire.len(), limit: RESOURCES_MAX });
    }
    let mut names = HashSet::with_capacity(wire.len());
    let mut resources = Vec::with_capacity(wire.len());
    for (i, resource) in wire.iter().enumerate() {
        let ResourceWire { name, algorithm, digest } = resource;
        if !is_canonical(name) {
            return Err(Error::text(format!("{FIELD}[{i}].name"), name, CANONICAL));
        }
        if !names.insert(name) {
            return Err(Error::text(format!("{FIELD}[{i}].name"), name, "a name that no resource before it has"));
        }
        if algorithm != "sha256" {
            return Err(Error::text(format!("{FIELD}[{i}].algorithm"), algorithm, "sha256, which is hash_type"));
        }
        let digest = format!("sha256:{digest}")
            .parse()
            .map_err(|_| Error::text(format!("{FIELD}[{i}].digest"), digest, "64 lower-case hex digits"))?;
        resources.push((name.clone(), digest));
    }
    Ok(resources)
}

/// The root digest (OMS 6.5.1), in the order in which resources stand.
fn digest_of(resources: &[(String, Digest)]) -> Digest {
    let mut hasher = DigestHasher::new();
    for (_, digest) in resources {
        hasher.update(digest.as_bytes());
    }
    hasher.finish()
}
