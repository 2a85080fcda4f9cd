//! How NATS is reached.

use crate::Error;
use async_nats::{ConnectOptions, ServerAddr};
use std::path::PathBuf;

/// How NATS is reached; services fill it from settings of the same names with `nats_` before them.
#[derive(Clone, Default)]
pub struct NatsSettings {
    /// `nats://[user:password@]host:port` or `tls://…` (`token@` for a token), several with commas. Empty: no NATS.
    pub url: String,
    /// File with a user's JWT and seed, as `nsc` writes it.
    pub credentials_file: Option<PathBuf>,
    /// Certificates (PEM) that may have signed the server's, beside those of the system.
    pub ca_file: Option<PathBuf>,
    /// Our certificate (PEM) and its key, for servers that verify clients; both or none.
    pub cert_file: Option<PathBuf>,
    /// See `cert_file`.
    pub key_file: Option<PathBuf>,
    /// First words of every subject, so that several meshes can share a server.
    pub subject_prefix: String,
    /// Who connects, for the server's log and its monitoring.
    pub client_name: String,
}

/// The settings of a service that others meet: [`weft_service_kit::settings!`] with those of NATS behind the others, and with `nats`, which
/// makes [`NatsSettings`] of them; then those of TLS, as [`weft_service_kit::settings_with_tls!`] has them; and with `peers`, which checks both.
#[macro_export]
macro_rules! mesh_settings {
    (
        $(#[doc = $doc:literal])*
        pub struct $name:ident { $($fields:tt)* }
        $($aliases:tt)*
    ) => {
        ::weft_service_kit::settings_with_tls! {
            $(#[doc = $doc])*
            pub struct $name {
                $($fields)*
                /// NATS, where the services of a mesh hear of each other: `nats://[user:password@]host:port` or `tls://…`, several with commas. Empty: none.
                secret pub nats_url: String = String::new(),
                /// File with a NATS user's JWT and seed.
                pub nats_credentials_file: Option<::std::path::PathBuf> = None,
                /// Certificates (PEM) that may have signed that of NATS, beside the system's.
                pub nats_ca_file: Option<::std::path::PathBuf> = None,
                /// Our certificate (PEM) for NATS; with `nats_key_file`.
                pub nats_cert_file: Option<::std::path::PathBuf> = None,
                /// Key of `nats_cert_file`.
                pub nats_key_file: Option<::std::path::PathBuf> = None,
                /// First words of every NATS subject: the mesh's name on a server that several share.
                pub nats_subject_prefix: String = "weft".to_owned(),
            }
            $($aliases)*
        }

        impl $name {
            /// How NATS is reached, for [`weft_bus::connect`], by a client of this name.
            #[must_use]
            pub fn nats(&self, client_name: impl Into<String>) -> $crate::NatsSettings {
                $crate::NatsSettings {
                    url: self.nats_url.clone(),
                    credentials_file: self.nats_credentials_file.clone(),
                    ca_file: self.nats_ca_file.clone(),
                    cert_file: self.nats_cert_file.clone(),
                    key_file: self.nats_key_file.clone(),
                    subject_prefix: self.nats_subject_prefix.clone(),
                    client_name: client_name.into(),
                }
            }

            /// How the service that we are meets the others, if its settings of NATS and TLS hold. Opens the files that they name and no connection.
            ///
            /// # Errors
            /// The first setting that is wrong.
            pub fn peers(
                &self,
                us: ::weft_service_kit::transport::Service,
                metrics: &::prometheus::Registry,
            ) -> ::std::result::Result<::weft_service_kit::transport::Peers, ::weft_service_kit::transport::WrongSetting> {
                let wrong = |setting, problem| ::weft_service_kit::transport::WrongSetting { setting, problem };
                self.nats("").validate().map_err(|error| wrong("nats_url", error.to_string()))?;
                ::weft_service_kit::transport::Peers::new(us, self.tls(), metrics).map_err(|problem| wrong("tls", problem))
            }
        }
    };
}

/// Settings as sessions use them.
pub(super) struct Checked {
    pub(super) servers: Vec<ServerAddr>,
    pub(super) prefix: String,
    settings: NatsSettings,
}

impl NatsSettings {
    /// Whether [`crate::connect`] would take them. Nothing is connected; files are opened.
    ///
    /// # Errors
    /// [`Error::Setting`] with the first value that cannot be used.
    pub fn validate(&self) -> Result<(), Error> {
        if self.url.is_empty() { Ok(()) } else { self.clone().check().map(drop) }
    }

    /// Turns raw into checked.
    pub(super) fn check(self) -> Result<Checked, Error> {
        let wrong = |name, problem: String| Error::Setting { name, problem };
        let mut servers = Vec::new();
        for url in self.url.split(',').map(str::trim).filter(|url| !url.is_empty()) {
            let server: ServerAddr =
                url.parse().map_err(|error: std::io::Error| wrong("nats_url", error.to_string()))?;
            if server.is_websocket() {
                return Err(wrong("nats_url", format!("{} is not nats:// or tls://", shown(&server))));
            }
            servers.push(server);
        }
        if servers.is_empty() {
            return Err(wrong("nats_url", "names no server".to_owned()));
        }
        let prefix = self.subject_prefix.clone();
        let is_word = |word: &str| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        };
        if prefix.len() > 128 || !prefix.split('.').all(is_word) {
            let problem = format!("{prefix:?} is not words of A-Za-z0-9_- joined by dots, at most 128 bytes");
            return Err(wrong("nats_subject_prefix", problem));
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Err(wrong("nats_cert_file", "and nats_key_file go together".to_owned()));
        }
        let files = [
            ("nats_credentials_file", &self.credentials_file),
            ("nats_ca_file", &self.ca_file),
            ("nats_cert_file", &self.cert_file),
            ("nats_key_file", &self.key_file),
        ];
        for (name, file) in files {
            let Some(path) = file else { continue };
            // Read at each connect, so that files may be replaced while we run; a missing one is better known now.
            std::fs::File::open(path).map_err(|error| wrong(name, format!("{}: {error}", path.display())))?;
        }
        Ok(Checked { servers, prefix, settings: self })
    }
}

impl Checked {
    /// The servers, for people.
    pub(super) fn shown(&self) -> String {
        self.servers.iter().map(shown).collect::<Vec<_>>().join(", ")
    }

    /// Login and certificates for this server, read now.
    pub(super) async fn options(&self, server: &ServerAddr) -> Result<ConnectOptions, String> {
        let settings = &self.settings;
        let mut options = ConnectOptions::new().name(&settings.client_name);
        // The client leaves these to its caller. A user alone is a token, as everywhere in NATS.
        options = match (server.username().map(decoded), server.password().map(decoded)) {
            (Some(user), Some(password)) => options.user_and_password(user, password),
            (Some(token), None) => options.token(token),
            (None, _) => options,
        };
        if let Some(path) = &settings.credentials_file {
            let problem = |error| format!("nats_credentials_file {}: {error}", path.display());
            options = options.credentials_file(path).await.map_err(problem)?;
        }
        if let Some(path) = &settings.ca_file {
            options = options.add_root_certificates(path.clone());
        }
        if let (Some(cert), Some(key)) = (&settings.cert_file, &settings.key_file) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
        Ok(options)
    }
}

/// A part of a URL as its writer meant it.
fn decoded(part: &str) -> String {
    percent_encoding::percent_decode_str(part).decode_utf8_lossy().into_owned()
}

/// Host and port, without user and password.
pub(super) fn shown(server: &ServerAddr) -> String {
    format!("{}:{}", server.host(), server.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(settings: NatsSettings) -> String {
        settings.check().err().map_or_else(String::new, |error| error.to_string())
    }

    fn good() -> NatsSettings {
        let url = "nats://u:secret@a:1, tls://b".to_owned();
        NatsSettings { url, subject_prefix: "weft.prod-1".to_owned(), ..NatsSettings::default() }
    }

    #[test]
    fn several_servers_are_shown_without_secrets() {
        assert_eq!(good().check().unwrap().shown(), "a:1, b:4222");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let with = |change: fn(&mut NatsSettings)| {
            let mut settings = good();
            change(&mut settings);
            problem(settings)
        };
        assert!(with(|s| s.url = "http://a:1".into()).contains("nats_url"));
        assert!(with(|s| s.url = "ws://a:1".into()).contains("nats_url"));
        assert!(with(|s| s.url = " , ".into()).contains("names no server"));
        for prefix in ["", "a..b", "a.*", "a b", ">"] {
            let settings = NatsSettings { subject_prefix: prefix.to_owned(), ..good() };
            assert!(problem(settings).contains("nats_subject_prefix"), "{prefix:?}");
        }
        assert!(with(|s| s.key_file = Some("k".into())).contains("go together"));
        let missing = with(|s| s.credentials_file = Some("/nowhere/x.creds".into()));
        assert!(missing.contains("nats_credentials_file") && missing.contains("/nowhere/x.creds"), "{missing}");
    }
}
