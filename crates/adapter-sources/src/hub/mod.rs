//! Repositories of a model hub, over the HTTP interface of the Hugging Face Hub.
//!
//! 1. [`info`]: a revision to its commit and its files, `GET /api/models/{id}/revision/{revision}?blobs=true`.
//! 2. [`download`]: a file of that commit, `GET /{id}/resolve/{commit}/{file}`, continued where it broke off.
//! 3. [`client`]: one answer, through the redirects that [`hosts`] allows.
//! 4. [`resolver`] and [`address`]: what a name may resolve to.
//! 5. [`tries`]: what is worth another try, and when.

mod address;
mod client;
mod download;
mod hosts;
mod info;
mod resolver;
mod tries;

pub(crate) use client::Client;
pub(crate) use hosts::host_problem;

use crate::opened::{in_chunks, no_weights, other_files};
use crate::patience::Patience;
use crate::source::HubModel;
use crate::{Access, CONFIG, CONFIG_BYTES_MAX, Error, Opened, PICKLE, SIGNATURE, SIGNATURE_BYTES_MAX, WEIGHTS};
use client::Token;
use download::{Download, Wanted};
use info::Info;
use std::sync::Arc;
use url::Url;

const WEIGHTS_SETTING: &str = "weights_bytes_max";

/// Finds the repository's commit, reads the config and begins the weights.
pub(crate) async fn open(
    client: &Arc<Client>,
    access: &Access,
    model: &HubModel,
    patience: Patience,
) -> Result<Opened, Error> {
    check_owner(access, model)?;
    let token = Token::read(access).await?;
    let info = info::read(client, access, model, token.as_ref(), patience).await?;
    // A repository that was given away is found under its old name too.
    check_owner(access, &info.model)?;
    let place = format!("hf://{}@{}", info.model.id(), info.commit);
    let wanted = |file: &'static str, bytes_max, setting| {
        let Some(found) = info.files.get(file) else { return Ok(None) };
        if found.bytes.is_some_and(|bytes| bytes > bytes_max) {
            return Err(Error::TooLarge { part: file, bytes_max, setting });
        }
        let url = file_url(client, &info, file);
        let what = format!("{place}/{file}");
        Ok(Some(Wanted { what, url, bytes: found.bytes, sha256: found.sha256.clone(), token: token.clone() }))
    };
    let Some(config) = wanted(CONFIG, CONFIG_BYTES_MAX, "adapter sources")? else {
        return Err(Error::Missing { place, file: CONFIG });
    };
    let Some(weights) = wanted(WEIGHTS, access.weights_bytes_max, WEIGHTS_SETTING)? else {
        return Err(no_weights(place, info.files.contains_key(PICKLE)));
    };
    let config = Download::start(client.clone(), access, config, patience).await?.whole(CONFIG_BYTES_MAX).await?;
    if config.is_empty() {
        return Err(Error::Empty { place, file: CONFIG });
    }
    let signature = match wanted(SIGNATURE, SIGNATURE_BYTES_MAX, "adapter sources")? {
        Some(wanted) => {
            let found = Download::start(client.clone(), access, wanted, patience).await?;
            Some(found.whole(SIGNATURE_BYTES_MAX).await?)
        }
        None => None,
    };
    let weights = Download::start(client.clone(), access, weights, patience).await?;
    let weights_bytes = weights.bytes();
    if weights_bytes == Some(0) {
        return Err(Error::Empty { place, file: WEIGHTS });
    }
    if weights_bytes.is_some_and(|bytes| bytes > access.weights_bytes_max) {
        return Err(Error::TooLarge { part: WEIGHTS, bytes_max: access.weights_bytes_max, setting: WEIGHTS_SETTING });
    }
    Ok(Opened {
        config,
        signature,
        weights: in_chunks(weights.into_stream(), access.weights_bytes_max, WEIGHTS_SETTING),
        weights_bytes,
        origin: place,
        other_files: other_files(info.files.into_keys().collect()),
    })
}

fn check_owner(access: &Access, model: &HubModel) -> Result<(), Error> {
    let is_listed = |listed: &String| listed == "*" || model.owner() == Some(listed.as_str());
    if access.hub_owners.iter().any(is_listed) {
        return Ok(());
    }
    let what = format!("the owner of hf://{}", model.id());
    Err(Error::NotAllowed { what, setting: "hub_owners" })
}

fn file_url(client: &Client, info: &Info, file: &str) -> Url {
    let id = info.model.id();
    client.url(id.split('/').chain(["resolve", info.commit.as_str(), file]))
}
