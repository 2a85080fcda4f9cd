//! The text that names where a package is.
//!
//! ```text
//! hf://owner/name             a repository of the hub, its main branch
//! hf://owner/name@v1.2        a branch, tag or commit of it
//! s3://bucket/some/prefix     two objects under some/prefix/
//! file:///srv/adapters/mine   a folder, or a file that ends with .tar or .tar.gz
//! ```
//!
//! These are not URLs: there is no user, port, query or fragment, and nothing is percent-decoded, so that one text names one place.
//! Letters that would mean more elsewhere (`%`, `?`, `#`, `\`) are refused instead of escaped.

use crate::Error;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Longest text of a source, in bytes.
const TEXT_BYTES_MAX: usize = 1024;
const NAME_BYTES_MAX: usize = 96;
const REVISION_BYTES_MAX: usize = 128;
/// S3's limits for names of buckets.
const BUCKET_BYTES: std::ops::RangeInclusive<usize> = 3..=63;

/// Where a package is. Made from its text, at most 1,024 bytes, which its display gives back; whether it may be read is
/// [`crate::Access`]'s to say.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Source {
    /// `hf://owner/name[@revision]`.
    Hub(HubModel),
    /// `s3://bucket/prefix`.
    S3(S3Folder),
    /// `file:///path`: absolute, without `.`, `..` or empty names, in UTF-8.
    File(PathBuf),
}

/// A repository of the hub and a state of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HubModel {
    owner: Option<String>,
    name: String,
    revision: Option<String>,
}

impl HubModel {
    /// The user or organisation; none for the hub's oldest repositories.
    #[must_use]
    pub fn owner(&self) -> Option<&str> {
        self.owner.as_deref()
    }

    /// `owner/name`, or `name` alone.
    #[must_use]
    pub fn id(&self) -> String {
        match &self.owner {
            Some(owner) => format!("{owner}/{}", self.name),
            None => self.name.clone(),
        }
    }

    /// The branch, tag or commit; none: the main branch.
    #[must_use]
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// From `owner/name` or `name`, as a hub writes it too.
    pub(crate) fn parse_id(id: &str) -> Result<Self, String> {
        let (owner, name) = match id.split_once('/') {
            Some((owner, name)) => (Some(owner), name),
            None => (None, id),
        };
        for part in owner.iter().copied().chain([name]) {
            check_name(part)?;
        }
        Ok(Self { owner: owner.map(str::to_owned), name: name.to_owned(), revision: None })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let (id, revision) = match text.split_once('@') {
            Some((id, revision)) => (id, Some(revision)),
            None => (text, None),
        };
        let mut model = Self::parse_id(id)?;
        if let Some(revision) = revision {
            check_revision(revision)?;
            model.revision = Some(revision.to_owned());
        }
        Ok(model)
    }
}

/// A prefix of the keys in a bucket.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct S3Folder {
    bucket: String,
    prefix: String,
}

impl S3Folder {
    /// The bucket.
    #[must_use]
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// What stands before `/adapter_config.json` in the key; begins and ends without a slash, never empty.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    fn parse(text: &str) -> Result<Self, String> {
        let Some((bucket, prefix)) = text.split_once('/') else {
            return Err("s3:// needs a bucket and a prefix, s3://bucket/prefix".to_owned());
        };
        check_bucket(bucket)?;
        check_path("prefix", prefix)?;
        Ok(Self { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }
}

impl FromStr for Source {
    type Err = Error;

    /// # Errors
    /// [`Error::Source`] with what is wrong.
    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).map_err(|problem| Error::source(text, problem))
    }
}

fn parse(text: &str) -> Result<Source, String> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(format!("has {} bytes, the limit is {TEXT_BYTES_MAX}", text.len()));
    }
    if let Some(wrong) = text.chars().find(|c| c.is_control() || matches!(c, '%' | '?' | '#' | '\\')) {
        return Err(format!("{wrong:?} is not allowed: there are no queries, fragments or escapes"));
    }
    if let Some(rest) = text.strip_prefix("hf://") {
        return HubModel::parse(rest).map(Source::Hub);
    }
    if let Some(rest) = text.strip_prefix("s3://") {
        return S3Folder::parse(rest).map(Source::S3);
    }
    if let Some(rest) = text.strip_prefix("file://") {
        let Some(relative) = rest.strip_prefix('/') else {
            return Err("file:// needs an absolute path and no host, file:///path".to_owned());
        };
        check_path("path", relative)?;
        return Ok(Source::File(PathBuf::from(rest)));
    }
    Err("must begin with hf://, s3:// or file://".to_owned())
}

/// A name of the hub: its own rule, which leaves nothing to escape.
fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("a repository is owner/name or name, and neither may be empty".to_owned());
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(format!("name {name:?} has {} bytes, the limit is {NAME_BYTES_MAX}", name.len()));
    }
    if let Some(wrong) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        return Err(format!("name {name:?} has {wrong:?}, allowed are letters, digits, '.', '_' and '-'"));
    }
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(format!("name {name:?} must begin with a letter or digit"));
    }
    Ok(())
}

/// What git allows in a name of a branch or tag, as far as it could mean something else in a URL.
fn check_revision(revision: &str) -> Result<(), String> {
    if revision.is_empty() || revision.len() > REVISION_BYTES_MAX {
        return Err(format!("the revision has {} bytes, allowed are 1 to {REVISION_BYTES_MAX}", revision.len()));
    }
    if revision.contains("..") {
        return Err(format!("revision {revision:?} has \"..\", which no branch, tag or commit has"));
    }
    if let Some(wrong) = revision.chars().find(|c| c.is_whitespace() || matches!(c, '~' | '^' | ':' | '*' | '[' | '@'))
    {
        return Err(format!("revision {revision:?} has {wrong:?}, which no branch, tag or commit has"));
    }
    check_path("revision", revision)
}

fn check_bucket(bucket: &str) -> Result<(), String> {
    if !BUCKET_BYTES.contains(&bucket.len()) {
        return Err(format!("bucket {bucket:?} has {} bytes, allowed are 3 to 63", bucket.len()));
    }
    let is_edge = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if let Some(wrong) = bucket.chars().find(|c| !(is_edge(*c) || matches!(c, '.' | '-'))) {
        return Err(format!("bucket {bucket:?} has {wrong:?}, allowed are a to z, digits, '.' and '-'"));
    }
    if !bucket.starts_with(is_edge) || !bucket.ends_with(is_edge) {
        return Err(format!("bucket {bucket:?} must begin and end with a to z or a digit"));
    }
    Ok(())
}

/// Names between slashes, none of which leads elsewhere.
fn check_path(what: &str, path: &str) -> Result<(), String> {
    for name in path.split('/') {
        if matches!(name, "" | "." | "..") {
            return Err(format!("{what} {path:?} has an empty name, \".\" or \"..\" between its slashes or at an end"));
        }
    }
    Ok(())
}

impl fmt::Display for HubModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf://{}", self.id())?;
        match &self.revision {
            Some(revision) => write!(f, "@{revision}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for S3Folder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hub(model) => model.fmt(f),
            Self::S3(folder) => folder.fmt(f),
            Self::File(path) => f.write_str(&file_text(path)),
        }
    }
}

/// `file://` and the path.
pub(crate) fn file_text(path: &Path) -> String {
    format!("file://{}", path.display())
}

impl From<Source> for String {
    fn from(source: Source) -> Self {
        source.to_string()
    }
}

impl TryFrom<String> for Source {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}
