//! A revision of a repository: its commit and its files.

use super::client::{self, Client, Part, Token};
use super::tries::Tries;
use crate::error::cut;
use crate::patience::Patience;
use crate::source::HubModel;
use crate::{Access, Error};
use serde::Deserialize;
use std::collections::HashMap;

/// Most bytes of the hub's answer: about 20,000 files.
const ANSWER_BYTES_MAX: usize = 4 << 20;
const COMMIT_DIGITS: usize = 40;
const SHA256_DIGITS: usize = 64;

/// A commit of a repository.
#[derive(Debug)]
pub(super) struct Info {
    /// As the hub writes it, without a revision.
    pub(super) model: HubModel,
    /// 40 hexadecimal digits.
    pub(super) commit: String,
    /// The files outside folders, by name.
    pub(super) files: HashMap<String, FileInfo>,
}

/// A file of a commit.
#[derive(Debug)]
pub(super) struct FileInfo {
    pub(super) bytes: Option<u64>,
    /// 64 hexadecimal digits in lower case; for large files only.
    pub(super) sha256: Option<String>,
}

/// The hub's answer, as far as it is used.
#[derive(Deserialize)]
struct Wire {
    id: Option<String>,
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<WireFile>,
}

#[derive(Deserialize)]
struct WireFile {
    rfilename: String,
    size: Option<u64>,
    lfs: Option<WireLfs>,
}

#[derive(Deserialize)]
struct WireLfs {
    sha256: Option<String>,
    size: Option<u64>,
}

/// Asks the hub for the state of a revision.
pub(super) async fn read(
    client: &Client,
    access: &Access,
    model: &HubModel,
    token: Option<&Token>,
    patience: Patience,
) -> Result<Info, Error> {
    let what = model.to_string();
    let id = model.id();
    let revision = ["revision", model.revision().unwrap_or("main")];
    let mut url = client.url(["api", "models"].into_iter().chain(id.split('/')).chain(revision));
    url.set_query(Some("blobs=true"));
    let mut tries = Tries::new(access);
    let body = loop {
        match body(client, &what, &url, token, &patience).await {
            Ok(body) => break body,
            Err(error) => tries.wait_after(error, &what, &patience).await?,
        }
    };
    let wire: Wire = serde_json::from_slice(&body).map_err(|error| Error::answer(&what, error.to_string()))?;
    check(wire, model).map_err(|problem| Error::answer(&what, problem))
}

async fn body(
    client: &Client,
    what: &str,
    url: &url::Url,
    token: Option<&Token>,
    patience: &Patience,
) -> Result<Vec<u8>, Error> {
    let mut response = client.get(what, url, token, &Part::default(), patience).await?.response;
    let mut body = Vec::new();
    while let Some(piece) = client::piece(what, &mut response, patience).await? {
        if body.len() + piece.len() > ANSWER_BYTES_MAX {
            return Err(Error::answer(what, format!("has more than {ANSWER_BYTES_MAX} bytes")));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

fn check(wire: Wire, asked: &HubModel) -> Result<Info, String> {
    let id = wire.id.unwrap_or_else(|| asked.id());
    let model = HubModel::parse_id(&id).map_err(|problem| format!("id: {problem}"))?;
    let commit = wire.sha.ok_or("sha is missing")?;
    if !is_hex(&commit, COMMIT_DIGITS) {
        return Err(format!("sha {:?} must have 40 hexadecimal digits", cut(&commit, 64)));
    }
    let mut files = HashMap::new();
    for file in wire.siblings.into_iter().filter(|file| !file.rfilename.contains('/')) {
        let (lfs_sha256, lfs_bytes) = file.lfs.map_or((None, None), |lfs| (lfs.sha256, lfs.size));
        let sha256 =
            lfs_sha256.filter(|digits| is_hex(digits, SHA256_DIGITS)).map(|digits| digits.to_ascii_lowercase());
        files.insert(file.rfilename, FileInfo { bytes: lfs_bytes.or(file.size), sha256 });
    }
    Ok(Info { model, commit: commit.to_ascii_lowercase(), files })
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// The digest in a linked ETag, which is that of a large file.
pub(super) fn linked_sha256(etag: &str) -> Option<String> {
    let digits = etag.trim_start_matches("W/").trim_matches('"');
    is_hex(digits, SHA256_DIGITS).then(|| digits.to_ascii_lowercase())
}
