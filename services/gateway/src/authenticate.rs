//! From a bearer key to the tenant or operator behind it. Pure: the directory is a snapshot.

use crate::directory::{Key, Snapshot, Tenant};
use crate::error::Error;
use http::{HeaderMap, header};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// Finds the key that the request carries, and its tenant.
///
/// The key is looked up by its SHA-256, so that the time of the look-up says nothing about keys: to profit from it one
/// would have to invert the hash.
pub(crate) fn tenant(snapshot: &Snapshot, headers: &HeaderMap) -> Result<(Arc<Key>, Arc<Tenant>), Error> {
    let secret = bearer(headers).ok_or(Error::NoCredentials)?;
    let hash: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
    snapshot.key(&hash).ok_or(Error::WrongKey)
}

/// The token of `authorization: Bearer TOKEN`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

/// Named admin keys; only hashes are kept.
#[derive(Clone, Default)]
pub(crate) struct AdminKeys(Vec<(String, [u8; 32])>);

impl AdminKeys {
    pub(crate) fn add(&mut self, name: &str, key: &str) {
        self.0.push((name.to_owned(), Sha256::digest(key.as_bytes()).into()));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name of the key that the request carries. Every key is compared, each in constant time.
    pub(crate) fn operator(&self, headers: &HeaderMap) -> Result<String, Error> {
        let secret = bearer(headers).ok_or(Error::NoCredentials)?;
        if self.is_empty() {
            return Err(Error::NoAdminKeys);
        }
        let hash: [u8; 32] = Sha256::digest(secret.as_bytes()).into();
        let mut found = None;
        for (name, known) in &self.0 {
            if bool::from(known.ct_eq(&hash)) {
                found = Some(name);
            }
        }
        found.cloned().ok_or(Error::WrongKey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn with_authorization(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))])
    }

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        assert_eq!(bearer(&with_authorization("Bearer abc")), Some("abc"));
        assert_eq!(bearer(&with_authorization("bearer  abc ")), Some("abc"));
        for wrong in ["Basic abc", "abc", "Bearer ", "Bearer"] {
            assert_eq!(bearer(&with_authorization(wrong)), None, "{wrong}");
        }
    }

    #[test]
    fn an_operator_is_known_by_the_name_of_the_key() {
        let mut keys = AdminKeys::default();
        keys.add("ada", "one");
        keys.add("grace", "two");
        assert_eq!(keys.operator(&with_authorization("Bearer two")).unwrap(), "grace");
        assert!(matches!(keys.operator(&with_authorization("Bearer three")), Err(Error::WrongKey)));
        assert!(matches!(keys.operator(&HeaderMap::new()), Err(Error::NoCredentials)));
    }
}
