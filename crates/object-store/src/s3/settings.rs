//! Which endpoint, bucket and keys.

use crate::Error;
use http::Uri;
use std::fmt;

/// Where the objects are and who asks for them.
#[derive(Clone)]
pub struct S3Settings {
    /// `http://host:port` or `https://host`; `None`: AWS.
    pub endpoint: Option<String>,
    /// The bucket.
    pub bucket: String,
    /// Put before every key, e.g. `weft/`; may be empty.
    pub prefix: String,
    /// The region that requests are signed for.
    pub region: String,
    /// Both keys or neither. With neither, and only without `endpoint`, AWS' own chain is asked (environment, profile,
    /// web identity, container, instance): a custom endpoint never waits for an instance metadata service.
    pub access_key_id: Option<String>,
    /// See `access_key_id`.
    pub secret_access_key: Option<String>,
    /// Bucket in the path instead of the host name; most servers other than AWS need it.
    pub path_style: bool,
}

impl fmt::Debug for S3Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Settings")
            .field("endpoint", &self.endpoint)
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .field("region", &self.region)
            .field("access_key_id", &self.access_key_id)
            .field("path_style", &self.path_style)
            .finish_non_exhaustive()
    }
}

/// Where the credentials come from.
pub(super) enum Keys {
    Given { id: String, secret: String },
    AwsChain,
}

impl S3Settings {
    /// Whether the endpoint speaks plain HTTP; then no certificates are loaded.
    pub(super) fn is_plain_http(&self) -> bool {
        self.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"))
    }

    /// Checks the values, without asking anybody.
    ///
    /// # Errors
    /// [`Error::Settings`] with the first that is wrong.
    pub fn validate(&self) -> Result<(), Error> {
        self.check().map(drop)
    }

    pub(super) fn check(&self) -> Result<Keys, Error> {
        let wrong = |field, problem: &str| Err(Error::Settings { field, problem: problem.to_owned() });
        if self.bucket.is_empty() {
            return wrong("bucket", "must not be empty");
        }
        if self.region.is_empty() {
            return wrong("region", "must not be empty; use us-east-1 where the endpoint has none");
        }
        if self.prefix.starts_with('/') {
            return wrong("prefix", "must not begin with /");
        }
        if let Some(endpoint) = &self.endpoint {
            let scheme = endpoint.parse::<Uri>().ok().and_then(|uri| {
                uri.authority()?;
                uri.scheme_str().map(str::to_owned)
            });
            if !matches!(scheme.as_deref(), Some("http" | "https")) {
                return wrong("endpoint", &format!("{endpoint:?} must be http://host:port or https://host"));
            }
        }
        match (&self.access_key_id, &self.secret_access_key) {
            (Some(id), Some(secret)) if id.is_empty() || secret.is_empty() => {
                wrong("access_key_id", "must not be empty, nor must secret_access_key")
            }
            (Some(id), Some(secret)) => Ok(Keys::Given { id: id.clone(), secret: secret.clone() }),
            (None, None) if self.endpoint.is_none() => Ok(Keys::AwsChain),
            (None, None) => wrong("access_key_id", "is required with an endpoint, and so is secret_access_key"),
            _ => wrong("access_key_id", "must be given together with secret_access_key"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> S3Settings {
        S3Settings {
            endpoint: Some("http://127.0.0.1:9000".to_owned()),
            bucket: "weft".to_owned(),
            prefix: String::new(),
            region: "us-east-1".to_owned(),
            access_key_id: Some("id".to_owned()),
            secret_access_key: Some("secret".to_owned()),
            path_style: true,
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused_by_name() {
        assert!(settings().check().is_ok());
        assert!(matches!(
            S3Settings { endpoint: None, access_key_id: None, secret_access_key: None, ..settings() }.check(),
            Ok(Keys::AwsChain)
        ));
        for (settings, field) in [
            (S3Settings { bucket: String::new(), ..settings() }, "bucket"),
            (S3Settings { region: String::new(), ..settings() }, "region"),
            (S3Settings { prefix: "/x".to_owned(), ..settings() }, "prefix"),
            (S3Settings { endpoint: Some("127.0.0.1:9000".to_owned()), ..settings() }, "endpoint"),
            (S3Settings { endpoint: Some("ftp://host".to_owned()), ..settings() }, "endpoint"),
            (S3Settings { secret_access_key: None, ..settings() }, "together"),
            (S3Settings { access_key_id: None, secret_access_key: None, ..settings() }, "required with an endpoint"),
        ] {
            let Err(error) = settings.check() else { panic!("accepted {settings:?}") };
            assert!(error.to_string().contains(field), "{error}");
        }
    }

    #[test]
    fn the_secret_is_not_printed() {
        assert!(!format!("{:?}", settings()).contains("secret"));
    }
}
