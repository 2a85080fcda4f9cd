//! A file of a commit, continued where it broke off.
//!
//! A try that breaks off is followed by one that asks the hub anew (what it redirects to is signed for a short time) for the bytes from
//! there, RFC 9110 section 14. Whoever answers with all bytes again has the first ones skipped. Whether the pieces belong to one
//! file is judged by the SHA-256 that the hub has of large files; without one, by a strong ETag, and without both nothing is continued.

use super::client::{self, Answer, Client, Part, Token};
use super::info::linked_sha256;
use super::tries::Tries;
use crate::patience::Patience;
use crate::{Access, CONFIG, Error};
use bytes::{Buf, Bytes};
use futures::stream::{self, Stream};
use reqwest::header::{CONTENT_RANGE, HeaderValue};
use reqwest::{Response, StatusCode};
use sha2::{Digest, Sha256};
use std::sync::Arc;
use url::Url;

/// A file to be brought.
pub(super) struct Wanted {
    /// For messages.
    pub(super) what: String,
    pub(super) url: Url,
    /// Its length, if the hub told it.
    pub(super) bytes: Option<u64>,
    /// Its digest in hexadecimal, if the hub told it.
    pub(super) sha256: Option<String>,
    pub(super) token: Option<Token>,
}

/// A file on its way.
pub(super) struct Download {
    client: Arc<Client>,
    wanted: Wanted,
    patience: Patience,
    tries: Tries,
    hasher: Sha256,
    /// Bytes that were handed on.
    received: u64,
    /// Bytes of this answer that were handed on before.
    skip: u64,
    etag: Option<HeaderValue>,
    response: Option<Response>,
}

impl Download {
    /// Asks for the file, so that what is refused is refused here. Its bytes are not read yet.
    pub(super) async fn start(
        client: Arc<Client>,
        access: &Access,
        wanted: Wanted,
        patience: Patience,
    ) -> Result<Self, Error> {
        let tries = Tries::new(access);
        let hasher = Sha256::new();
        let mut download =
            Self { client, wanted, patience, tries, hasher, received: 0, skip: 0, etag: None, response: None };
        while let Err(error) = download.ask().await {
            download.tries.wait_after(error, &download.wanted.what, &patience).await?;
        }
        Ok(download)
    }

    /// The file's length, if anybody told it.
    pub(super) fn bytes(&self) -> Option<u64> {
        self.wanted.bytes
    }

    /// The whole file, for one that is small.
    pub(super) async fn whole(mut self, bytes_max: u64) -> Result<Bytes, Error> {
        let mut whole = Vec::new();
        while let Some(piece) = self.next().await? {
            if (whole.len() + piece.len()) as u64 > bytes_max {
                return Err(Error::TooLarge { part: CONFIG, bytes_max, setting: "adapter sources" });
            }
            whole.extend_from_slice(&piece);
        }
        Ok(whole.into())
    }

    /// The file in pieces. Ends with an error unless length and digest are right.
    pub(super) fn into_stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
        stream::try_unfold(
            self,
            |mut download| async move { Ok(download.next().await?.map(|piece| (piece, download))) },
        )
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            match self.try_next().await {
                Ok(Some(piece)) => {
                    self.hasher.update(&piece);
                    self.received += piece.len() as u64;
                    return Ok(Some(piece));
                }
                Ok(None) => return self.check_digest().map(|()| None),
                Err(error) if !self.can_continue() => return Err(error),
                Err(error) => {
                    self.response = None;
                    self.tries.wait_after(error, &self.wanted.what, &self.patience).await?;
                }
            }
        }
    }

    /// The next piece that was not handed on before, or `None` behind the last one.
    async fn try_next(&mut self) -> Result<Option<Bytes>, Error> {
        if self.response.is_none() {
            self.ask().await?;
        }
        let what = &self.wanted.what;
        let response = self.response.as_mut().expect("ask leaves a response");
        loop {
            let Some(mut piece) = client::piece(what, response, &self.patience).await? else {
                return match self.wanted.bytes {
                    Some(bytes) if self.received < bytes => {
                        Err(Error::unavailable(what, format!("it broke off after {} of {bytes} bytes", self.received)))
                    }
                    _ if self.skip > 0 => Err(Error::Changed { what: what.clone() }),
                    _ => Ok(None),
                };
            };
            let skipped = self.skip.min(piece.len() as u64);
            self.skip -= skipped;
            piece.advance(skipped as usize);
            if let Some(bytes) =
                self.wanted.bytes.filter(|bytes| piece.len() as u64 > bytes.saturating_sub(self.received))
            {
                return Err(Error::answer(what, format!("it has more than the {bytes} bytes that were announced")));
            }
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }

    /// Asks for what is still to come.
    async fn ask(&mut self) -> Result<(), Error> {
        let if_etag = self.etag.clone().filter(|etag| self.received > 0 && is_strong(etag));
        let part = Part { first: self.received, if_etag };
        let Wanted { what, url, token, .. } = &self.wanted;
        let answer = self.client.get(what, url, token.as_ref(), &part, &self.patience).await?;
        self.note_announced(&answer)?;
        let etag = client::etag(&answer.response).cloned();
        let is_same = self.etag.as_ref().is_some_and(|before| is_strong(before) && etag.as_ref() == Some(before));
        if self.received > 0 && !is_same && self.wanted.sha256.is_none() {
            return Err(Error::Changed { what: self.wanted.what.clone() });
        }
        self.skip = match answer.response.status() {
            StatusCode::PARTIAL_CONTENT => {
                self.check_range(&answer.response)?;
                0
            }
            _ => self.received,
        };
        self.etag = etag;
        self.response = Some(answer.response);
        Ok(())
    }

    /// Keeps the length and the digest that an answer announces; a length that differs from what is known is an error.
    fn note_announced(&mut self, answer: &Answer) -> Result<(), Error> {
        if self.wanted.sha256.is_none() {
            self.wanted.sha256 = answer.linked_etag.as_deref().and_then(linked_sha256);
        }
        let is_whole = answer.response.status() == StatusCode::OK;
        let lengths = [answer.linked_bytes, answer.response.content_length().filter(|_| is_whole)];
        for bytes in lengths.into_iter().flatten() {
            let known = *self.wanted.bytes.get_or_insert(bytes);
            if known != bytes {
                let problem = format!("it has {bytes} bytes, announced were {known}");
                return Err(Error::answer(&self.wanted.what, problem));
            }
        }
        Ok(())
    }

    /// Whether a partial answer begins where the last one broke off, and is of a file of the same length.
    fn check_range(&self, response: &Response) -> Result<(), Error> {
        let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok()).unwrap_or_default();
        let parts = range.strip_prefix("bytes ").and_then(|range| {
            let (part, whole) = range.split_once('/')?;
            Some((part.split_once('-')?.0.parse::<u64>().ok()?, whole.parse::<u64>().ok()))
        });
        match (parts, self.wanted.bytes) {
            (Some((first, _)), _) if first != self.received => {}
            (Some((_, Some(whole))), Some(bytes)) if whole != bytes => {}
            (Some(_), _) => return Ok(()),
            (None, _) => {}
        }
        let problem = format!("asked for the bytes from {} on, it has the range {range:?}", self.received);
        Err(Error::answer(&self.wanted.what, problem))
    }

    /// Whether pieces of two answers can be told to belong together.
    fn can_continue(&self) -> bool {
        self.received == 0 || self.wanted.sha256.is_some() || self.etag.as_ref().is_some_and(is_strong)
    }

    fn check_digest(&mut self) -> Result<(), Error> {
        let received = hex::encode(self.hasher.finalize_reset());
        match &self.wanted.sha256 {
            Some(expected) if *expected != received => {
                let (what, expected) = (self.wanted.what.clone(), expected.clone());
                Err(Error::Digest { what, expected, received })
            }
            _ => Ok(()),
        }
    }
}

/// A weak ETag is the same for states that differ in their bytes, RFC 9110 section 8.8.1.
fn is_strong(etag: &HeaderValue) -> bool {
    !etag.as_bytes().starts_with(b"W/")
}
