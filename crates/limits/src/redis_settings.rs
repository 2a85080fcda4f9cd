//! Where Redis is and how to reach it.

use redis::{Client, ClientTlsConfig, ConnectionAddr, IntoConnectionInfo, TlsCertificates};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where Redis is. No `Debug`: the URL may hold a password.
#[derive(Clone, Default)]
pub struct RedisSettings {
    /// `redis://[user:password@]host:port[/database]`, `rediss://` for TLS, or `unix:///path`.
    pub url: String,
    /// Authorities of its certificate, PEM; without it the system's. Only with `rediss://`, as the next two.
    pub ca_file: Option<PathBuf>,
    /// Our certificate, PEM, if Redis asks for one.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// Bounds each call.
    pub timeout: Duration,
}

/// A setting cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{name} {problem}")]
pub struct RedisSettingError {
    /// `redis_url` or another one, as a gateway's settings have it.
    pub name: &'static str,
    /// What is wrong with it. Tells no password.
    pub problem: String,
}

fn wrong(name: &'static str, problem: impl Into<String>) -> RedisSettingError {
    RedisSettingError { name, problem: problem.into() }
}

impl RedisSettings {
    /// A client with the certificates as they are now: files may be replaced between two connections.
    ///
    /// # Errors
    /// A setting that cannot be used.
    pub(crate) fn client(&self) -> Result<Client, RedisSettingError> {
        // The error's own text may repeat the URL, which may hold a password.
        let info = self.url.as_str().into_connection_info().map_err(|error| {
            let form = "must be redis[s]://[user:password@]host:port[/database] or unix:///path";
            wrong("redis_url", format!("{form}: {:?}", error.kind()))
        })?;
        let files = [("redis_ca_file", &self.ca_file), ("redis_cert_file", &self.cert_file)];
        let given = files.into_iter().find(|(_, file)| file.is_some());
        let refused = |error: redis::RedisError| wrong("redis_url", error.to_string());
        match (info.addr(), given) {
            (ConnectionAddr::TcpTls { insecure: true, .. }, _) => {
                return Err(wrong("redis_url", "asks for TLS without checks; name an authority in redis_ca_file"));
            }
            (ConnectionAddr::TcpTls { .. }, Some(_)) => {}
            (_, Some((name, _))) => return Err(wrong(name, "is of use only with a redis_url of rediss://")),
            (_, None) => return Client::open(info).map_err(refused),
        }
        let client_tls = match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => Some(ClientTlsConfig {
                client_cert: read("redis_cert_file", cert)?,
                client_key: read("redis_key_file", key)?,
            }),
            (None, None) => None,
            _ => return Err(wrong("redis_cert_file", "and redis_key_file go together")),
        };
        let root_cert = self.ca_file.as_deref().map(|path| read("redis_ca_file", path)).transpose()?;
        let certificates = TlsCertificates { client_tls, root_cert };
        Client::build_with_tls(info, certificates).map_err(|error| wrong("redis_ca_file", error.to_string()))
    }
}

fn read(name: &'static str, path: &Path) -> Result<Vec<u8>, RedisSettingError> {
    std::fs::read(path).map_err(|error| wrong(name, format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_used_is_named_without_a_password() {
        let folder = tempfile::tempdir().unwrap();
        let there = folder.path().join("there.pem");
        std::fs::write(&there, "no certificate").unwrap();
        let (there, missing) = (Some(there), Some(folder.path().join("missing.pem")));
        let settings = |url: &str, [ca_file, cert_file, key_file]: [&Option<PathBuf>; 3]| RedisSettings {
            url: url.to_owned(),
            ca_file: ca_file.clone(),
            cert_file: cert_file.clone(),
            key_file: key_file.clone(),
            timeout: Duration::from_secs(1),
        };
        let none = &None;
        for (settings, name) in [
            (settings("http://u:secret@x", [none; 3]), "redis_url"),
            (settings("redis://u:secret@x:port", [none; 3]), "redis_url"),
            (settings("rediss://u:secret@x/#insecure", [none; 3]), "redis_url"),
            (settings("redis://u:secret@x", [&there, none, none]), "redis_ca_file"),
            (settings("redis://u:secret@x", [none, &there, &there]), "redis_cert_file"),
            (settings("rediss://u:secret@x", [&missing, none, none]), "redis_ca_file"),
            (settings("rediss://u:secret@x", [none, &there, none]), "redis_cert_file"),
            (settings("rediss://u:secret@x", [none, &there, &missing]), "redis_key_file"),
        ] {
            let Err(error) = settings.client() else { panic!("{} is taken", settings.url) };
            assert_eq!(error.name, name, "{error}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
        assert!(settings("rediss://u:secret@x", [none; 3]).client().is_ok());
    }
}
