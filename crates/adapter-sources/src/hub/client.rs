//! One answer of the hub, through its redirects.

use super::hosts::{Hosts, shown};
use super::resolver::{AddressRefused, Resolver};
use crate::error::cut;
use crate::patience::Patience;
use crate::{Access, Error};
use bytes::Bytes;
use reqwest::header::{
    AUTHORIZATION, ETAG, HeaderMap, HeaderName, HeaderValue, IF_RANGE, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{Certificate, ClientBuilder, Response, StatusCode, redirect};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use url::Url;

const REDIRECTS_MAX: usize = 5;
const TOKEN_BYTES_MAX: u64 = 4096;
const CA_BYTES_MAX: u64 = 1 << 20;
/// Of an answer that tells why it refuses.
const MESSAGE_BYTES_MAX: usize = 256;
/// The digest of a large file in quotes, and its length, both told by the hub itself before it redirects.
const LINKED_ETAG: HeaderName = HeaderName::from_static("x-linked-etag");
const LINKED_SIZE: HeaderName = HeaderName::from_static("x-linked-size");
/// Why the hub refuses, for people.
const ERROR_MESSAGE: HeaderName = HeaderName::from_static("x-error-message");

/// An HTTP client that goes nowhere but to the hub and where the hub may send it.
pub(crate) struct Client {
    http: reqwest::Client,
    hosts: Arc<Hosts>,
}

/// What proves to the hub who we are.
#[derive(Clone)]
pub(super) struct Token(HeaderValue);

/// Which bytes of a file are wanted.
#[derive(Clone, Debug, Default)]
pub(super) struct Part {
    /// The first byte. 0: all of them.
    pub(super) first: u64,
    /// Only of the state with this strong ETag; of another one, all bytes.
    pub(super) if_etag: Option<HeaderValue>,
}

/// A successful answer, its body still to come.
pub(super) struct Answer {
    pub(super) response: Response,
    /// What the hub itself said of the file, if it redirected.
    pub(super) linked_etag: Option<String>,
    pub(super) linked_bytes: Option<u64>,
}

impl Token {
    /// From the operator's file, if there is one.
    pub(super) async fn read(access: &Access) -> Result<Option<Self>, Error> {
        let Some(path) = &access.hub_token_file else { return Ok(None) };
        // Where the file is, is in the log: whoever asks for an import need not know.
        let wrong = |problem: &str| {
            tracing::error!(path = %path.display(), problem, "the hub's token cannot be used");
            Error::Settings { problems: vec![format!("hub_token_file {problem}")] }
        };
        let read = async {
            let mut text = Vec::new();
            let file = tokio::fs::File::open(path).await?;
            AsyncReadExt::take(file, TOKEN_BYTES_MAX + 1).read_to_end(&mut text).await?;
            std::io::Result::Ok(text)
        };
        let text = read.await.map_err(|error| {
            tracing::error!(path = %path.display(), %error, "the hub's token cannot be read");
            Error::io("hub_token_file", error)
        })?;
        if text.len() as u64 > TOKEN_BYTES_MAX {
            return Err(wrong("has more than 4096 bytes"));
        }
        let token = text.trim_ascii();
        if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
            return Err(wrong("must hold a token of letters that can be seen"));
        }
        let Ok(mut header) = HeaderValue::from_bytes(&[b"Bearer ", token].concat()) else {
            return Err(wrong("must hold a token"));
        };
        header.set_sensitive(true);
        Ok(Some(Self(header)))
    }
}

impl Client {
    /// Makes a client from settings that were checked. Reads the system's certificates and the operator's.
    pub(crate) fn new(access: &Access) -> Result<Self, Error> {
        let settings = |problem: String| Error::Settings { problems: vec![problem] };
        let hosts = Arc::new(Hosts::new(access.endpoint().map_err(settings)?, &access.hub_redirect_hosts));
        let mut builder = reqwest::Client::builder();
        if let Some(path) = &access.hub_ca_file {
            let certificates = certificates(path);
            let certificates =
                certificates.map_err(|problem| settings(format!("hub_ca_file {} {problem}", path.display())))?;
            builder = certificates.into_iter().fold(builder, ClientBuilder::add_root_certificate);
        }
        let http = builder
            .user_agent(concat!("weft/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(Duration::from_millis(access.connect_timeout_ms))
            .redirect(redirect::Policy::none())
            .referer(false)
            // A proxy would resolve names in our place.
            .no_proxy()
            .dns_resolver(Arc::new(Resolver(hosts.clone())))
            .build()
            .map_err(|error| settings(format!("the hub's client cannot be made: {}", innermost(&error))))?;
        Ok(Self { http, hosts })
    }

    /// The hub's address with these names behind it, each escaped.
    pub(super) fn url<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Url {
        let mut url = self.hosts.endpoint().clone();
        url.path_segments_mut().expect("an http URL has a path").pop_if_empty().extend(names);
        url
    }

    /// Asks once, following redirects. The token goes to the hub alone.
    pub(super) async fn get(
        &self,
        what: &str,
        start: &Url,
        token: Option<&Token>,
        part: &Part,
        patience: &Patience,
    ) -> Result<Answer, Error> {
        let (mut url, mut linked_etag, mut linked_bytes) = (start.clone(), None, None);
        for _ in 0..=REDIRECTS_MAX {
            let is_hub = self.hosts.is_endpoint(&url);
            let mut request = self.http.get(url.clone());
            if let Some(Token(header)) = token.filter(|_| is_hub) {
                request = request.header(AUTHORIZATION, header.clone());
            }
            if part.first > 0 {
                request = request.header(RANGE, format!("bytes={}-", part.first));
            }
            if let Some(etag) = &part.if_etag {
                request = request.header(IF_RANGE, etag.clone());
            }
            let response = patience.wait(what, request.send()).await?.map_err(|error| failed(what, error))?;
            let (status, headers) = (response.status(), response.headers());
            if is_hub && linked_etag.is_none() {
                linked_etag = text(headers, &LINKED_ETAG);
                linked_bytes = text(headers, &LINKED_SIZE).and_then(|bytes| bytes.parse().ok());
            }
            if status.is_success() {
                return Ok(Answer { response, linked_etag, linked_bytes });
            }
            if !is_redirect(status) {
                return Err(refusal(what, &response, is_hub));
            }
            let Some(to) = text(headers, &LOCATION).and_then(|to| url.join(&to).ok()) else {
                return Err(Error::answer(what, format!("status {} leads nowhere", status.as_u16())));
            };
            self.hosts.check(&to)?;
            url = to;
        }
        Err(Error::Redirect { to: shown(&url), problem: format!("{REDIRECTS_MAX} redirects for {what} are the limit") })
    }
}

fn certificates(path: &Path) -> Result<Vec<Certificate>, String> {
    let read = || {
        let mut text = Vec::new();
        File::open(path)?.take(CA_BYTES_MAX + 1).read_to_end(&mut text)?;
        std::io::Result::Ok(text)
    };
    let text = read().map_err(|error| format!("cannot be read: {error}"))?;
    if text.len() as u64 > CA_BYTES_MAX {
        return Err(format!("has more than {CA_BYTES_MAX} bytes"));
    }
    match Certificate::from_pem_bundle(&text) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err("has no certificate in PEM".to_owned()),
        Err(error) => Err(format!("has no certificates in PEM: {}", innermost(&error))),
    }
}

/// The next piece of a body.
pub(super) async fn piece(what: &str, response: &mut Response, patience: &Patience) -> Result<Option<Bytes>, Error> {
    patience.wait(what, response.chunk()).await?.map_err(|error| failed(what, error))
}

/// The state that an answer's bytes belong to.
pub(super) fn etag(response: &Response) -> Option<&HeaderValue> {
    response.headers().get(ETAG)
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// What a status other than success means. What another host than the hub refuses was signed by the hub for a short time: a new try gets
/// a new signature.
fn refusal(what: &str, response: &Response, is_hub: bool) -> Error {
    let what = what.to_owned();
    match response.status().as_u16() {
        401 if is_hub => Error::Unauthenticated { what },
        403 if is_hub => {
            let message = text(response.headers(), &ERROR_MESSAGE);
            let message =
                message.map_or_else(|| "access denied".to_owned(), |message| cut(&message, MESSAGE_BYTES_MAX));
            Error::Forbidden { what, message }
        }
        404 | 410 if is_hub => Error::NotFound { what },
        429 => {
            let seconds = text(response.headers(), &RETRY_AFTER).and_then(|text| text.parse::<u64>().ok());
            Error::RateLimited { what, retry_after_ms: seconds.map(|seconds| seconds.saturating_mul(1000)) }
        }
        408 | 500..=599 => Error::unavailable(what, format!("status {}", response.status().as_u16())),
        401 | 403 | 404 if !is_hub => {
            Error::unavailable(what, format!("status {} behind a redirect", response.status().as_u16()))
        }
        status => Error::answer(what, format!("status {status}")),
    }
}

/// What a request that got no answer, or half of one, means. Its URL may hold a signature and is not told.
fn failed(what: &str, error: reqwest::Error) -> Error {
    let error = error.without_url();
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(at) = cause {
        if let Some(AddressRefused { host, address, class }) = at.downcast_ref() {
            tracing::warn!(host, %address, class, "a host of the hub has an address inside the network");
            return Error::Address { host: format!("host {}", cut(host, 256)), class };
        }
        cause = at.source();
    }
    Error::Unavailable { what: what.to_owned(), problem: innermost(&error), source: Some(Box::new(error)) }
}

fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut at = error;
    while let Some(cause) = at.source() {
        at = cause;
    }
    at.to_string()
}
