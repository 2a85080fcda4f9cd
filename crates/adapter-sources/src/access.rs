//! What an operator allows, and how long it may take.

use crate::Error;
use crate::hub::host_problem;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;
use url::Url;
use weft_object_store::S3Settings;

/// Which sources may be read, and within which limits. The default allows none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Access {
    /// Absolute folders beneath which `file://` may read. Empty: `file://` is refused.
    pub file_roots: Vec<PathBuf>,
    /// Buckets that `s3://` may read. Empty: `s3://` is refused. Never the mesh's own bucket: it holds what all tenants have.
    pub s3_buckets: Vec<String>,
    /// Where those buckets are.
    pub s3: S3Access,
    /// The hub: `https://host[:port][/path]`. `http://` for a mirror inside a network that is trusted.
    pub hub_endpoint: String,
    /// Owners whose repositories `hf://` may read; `*`: all. Empty: `hf://` is refused.
    pub hub_owners: Vec<String>,
    /// File with the hub's token, at most 4 KiB; read at each use, so that it can be changed. None: public repositories only.
    pub hub_token_file: Option<PathBuf>,
    /// File with certificates in PEM, at most 1 MiB, that vouch for the hub beside the system's. Read once, at the start.
    pub hub_ca_file: Option<PathBuf>,
    /// Where a download may be redirected beside the hub itself. `host` or `host:port`: this host, wherever its addresses lead, by `http://`
    /// too if the hub itself is. `*.domain`: every host below it, and `*`: every host, by `https://` on port 443 and at public addresses
    /// only.
    pub hub_redirect_hosts: Vec<String>,
    /// Largest `adapter_model.safetensors` in bytes, at least 1.
    pub weights_bytes_max: u64,
    /// Milliseconds in which a connection must stand, at least 1. S3 has its own.
    pub connect_timeout_ms: u64,
    /// A source that brings nothing for so many milliseconds is given up or, at the hub, asked again. At least 1.
    pub idle_timeout_ms: u64,
    /// Milliseconds from the first question to the last byte, the time in which nobody takes the bytes included. At least 1.
    pub whole_timeout_ms: u64,
    /// Most tries for each answer of the hub and each file from it, 1 to 100. A file that breaks off is asked for from there. S3 has its own.
    pub attempts: u32,
}

/// How the buckets of `s3://` are reached.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3Access {
    /// `http://host:port` or `https://host`; none: AWS.
    pub endpoint: Option<String>,
    /// The region that requests are signed for.
    pub region: String,
    /// Both keys or neither; with neither, and only without `endpoint`, AWS' own chain is asked.
    pub access_key_id: Option<String>,
    /// See `access_key_id`. Never printed nor serialized.
    #[serde(skip_serializing)]
    pub secret_access_key: Option<String>,
    /// Bucket in the path instead of the host name; most servers other than AWS need it.
    pub path_style: bool,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            file_roots: Vec::new(),
            s3_buckets: Vec::new(),
            s3: S3Access::default(),
            hub_endpoint: "https://huggingface.co".to_owned(),
            hub_owners: Vec::new(),
            hub_token_file: None,
            hub_ca_file: None,
            hub_redirect_hosts: ["*.huggingface.co", "*.hf.co"].map(str::to_owned).to_vec(),
            weights_bytes_max: 1 << 30,
            connect_timeout_ms: 5_000,
            idle_timeout_ms: 30_000,
            whole_timeout_ms: 1_800_000,
            attempts: 5,
        }
    }
}

impl Default for S3Access {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: "us-east-1".to_owned(),
            access_key_id: None,
            secret_access_key: None,
            path_style: true,
        }
    }
}

impl fmt::Debug for S3Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Access")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("access_key_id", &self.access_key_id)
            .field("path_style", &self.path_style)
            .finish_non_exhaustive()
    }
}

impl S3Access {
    /// What reaches this bucket.
    pub(crate) fn bucket(&self, bucket: &str) -> S3Settings {
        S3Settings {
            endpoint: self.endpoint.clone(),
            bucket: bucket.to_owned(),
            prefix: String::new(),
            region: self.region.clone(),
            access_key_id: self.access_key_id.clone(),
            secret_access_key: self.secret_access_key.clone(),
            path_style: self.path_style,
        }
    }
}

impl Access {
    /// Checks every value, without IO.
    ///
    /// # Errors
    /// [`Error::Settings`] with every problem at once.
    pub fn check(&self) -> Result<(), Error> {
        let at_least_one = [
            ("weights_bytes_max", self.weights_bytes_max),
            ("connect_timeout_ms", self.connect_timeout_ms),
            ("idle_timeout_ms", self.idle_timeout_ms),
            ("whole_timeout_ms", self.whole_timeout_ms),
        ];
        let zero = at_least_one.iter().filter(|(_, value)| *value == 0);
        let mut problems: Vec<String> = zero.map(|(name, _)| format!("{name} must be at least 1")).collect();
        if !(1..=100).contains(&self.attempts) {
            problems.push(format!("attempts is {}, allowed are 1 to 100", self.attempts));
        }
        for root in self.file_roots.iter().filter(|root| !root.is_absolute()) {
            problems.push(format!("file_roots: {} must be absolute", root.display()));
        }
        if self.s3_buckets.iter().any(String::is_empty) {
            problems.push("s3_buckets: a bucket must not be empty".to_owned());
        }
        if let Some(bucket) = self.s3_buckets.first()
            && let Err(weft_object_store::Error::Settings { field, problem }) = self.s3.bucket(bucket).validate()
            && field != "bucket"
        {
            problems.push(format!("s3.{field}: {problem}"));
        }
        problems.extend(self.endpoint().err());
        if self.hub_owners.iter().any(String::is_empty) {
            problems.push("hub_owners: an owner must not be empty; * allows all".to_owned());
        }
        for host in &self.hub_redirect_hosts {
            problems.extend(host_problem(host).map(|problem| format!("hub_redirect_hosts: {host:?} {problem}")));
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Settings { problems }) }
    }

    /// The hub's address, without a slash at its end.
    pub(crate) fn endpoint(&self) -> Result<Url, String> {
        let endpoint = &self.hub_endpoint;
        let wrong = |problem: &str| format!("hub_endpoint {endpoint:?} {problem}");
        let mut url = Url::parse(endpoint).map_err(|error| wrong(&format!("is no URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(wrong("must be https://host or http://host"));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("must have no user, query or fragment"));
        }
        if url.scheme() == "http" && self.hub_token_file.is_some() && !is_loopback(&url) {
            return Err(wrong("must be https:// with hub_token_file, so that the token is not sent in the clear"));
        }
        let path = url.path().trim_end_matches('/').to_owned();
        url.set_path(&path);
        Ok(url)
    }
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    }
}
