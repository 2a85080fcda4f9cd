//! The settings by which a service shows who it is.

use std::path::PathBuf;

use super::certificates::Files;

/// How services show each other who they are; filled from the settings that
/// [`settings_with_tls!`](crate::settings_with_tls!) declares.
#[derive(Clone, Debug, Default)]
pub struct TlsSettings {
    /// Our certificate (PEM), with intermediate ones behind it; goes with the other two files, all or none.
    pub cert_file: Option<PathBuf>,
    /// Its key (PEM).
    pub key_file: Option<PathBuf>,
    /// Certificates (PEM) of the authorities of the mesh.
    pub ca_file: Option<PathBuf>,
    /// Speak in the clear beyond this machine.
    pub insecure_network: bool,
}

impl TlsSettings {
    /// The files; none: no TLS.
    pub(super) fn files(self) -> Result<Option<Files>, String> {
        let Self { cert_file, key_file, ca_file, insecure_network } = self;
        let all = [("tls_cert_file", &cert_file), ("tls_key_file", &key_file), ("tls_ca_file", &ca_file)];
        let missing: Vec<&str> = all.iter().filter(|(_, file)| file.is_none()).map(|(name, _)| *name).collect();
        match (cert_file, key_file, ca_file) {
            (None, None, None) => Ok(None),
            (Some(_), Some(_), Some(_)) if insecure_network => {
                Err("insecure_network is true, but tls_cert_file is set: use one of them".to_owned())
            }
            (Some(cert), Some(key), Some(ca)) => Ok(Some(Files { cert, key, ca })),
            _ => {
                Err(format!("tls_cert_file, tls_key_file and tls_ca_file go together; not set: {}", missing.join(", ")))
            }
        }
    }
}

/// [`settings!`](crate::settings!) with the settings of TLS between services behind the others, and with `tls`, which makes
/// [`TlsSettings`] of them.
#[macro_export]
macro_rules! settings_with_tls {
    (
        $(#[doc = $doc:literal])*
        pub struct $name:ident { $($fields:tt)* }
        $($aliases:tt)*
    ) => {
        $crate::settings! {
            $(#[doc = $doc])*
            pub struct $name {
                $($fields)*
                /// Our certificate (PEM) for gRPC with other services, its chain behind it; it names `spiffe://TRUST-DOMAIN/weft/SERVICE[/INSTANCE]`. With
                /// `tls_key_file` and `tls_ca_file`: all TCP between services is TLS on both sides. Read again when it changes.
                pub tls_cert_file: Option<::std::path::PathBuf> = None,
                /// Key (PEM) of `tls_cert_file`.
                pub tls_key_file: Option<::std::path::PathBuf> = None,
                /// Certificates (PEM) of the authorities that sign those of other services.
                pub tls_ca_file: Option<::std::path::PathBuf> = None,
                /// Without TLS, speak gRPC in the clear beyond this machine too: anybody in between reads prompts and keys.
                pub insecure_network: bool = false,
            }
            $($aliases)*
        }

        impl $name {
            /// How this service shows others who it is, for [`weft_service_kit::transport::Peers`].
            #[must_use]
            pub fn tls(&self) -> $crate::transport::TlsSettings {
                $crate::transport::TlsSettings {
                    cert_file: self.tls_cert_file.clone(),
                    key_file: self.tls_key_file.clone(),
                    ca_file: self.tls_ca_file.clone(),
                    insecure_network: self.insecure_network,
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_go_together_and_exclude_an_insecure_network() {
        assert!(TlsSettings { insecure_network: true, ..TlsSettings::default() }.files().unwrap().is_none());
        let file = || Some(PathBuf::from("x"));
        let all = TlsSettings { cert_file: file(), key_file: file(), ca_file: file(), insecure_network: false };
        assert!(all.clone().files().unwrap().is_some());
        let both = TlsSettings { insecure_network: true, ..all.clone() }.files().unwrap_err();
        assert!(both.contains("insecure_network"), "{both}");
        for (part, missing) in [
            (TlsSettings { cert_file: None, ..all.clone() }, "tls_cert_file"),
            (TlsSettings { key_file: None, ..all.clone() }, "tls_key_file"),
            (TlsSettings { ca_file: None, ..all.clone() }, "tls_ca_file"),
        ] {
            let problem = part.files().unwrap_err();
            assert!(problem.ends_with(&format!("not set: {missing}")), "{problem}");
        }
    }
}
