//! How a registry runs.

use crate::Error;
use std::path::PathBuf;
use weft_adapter_sources::{Access, S3Access};
use weft_object_store::S3Settings;

weft_bus::mesh_settings! {
    /// How a registry runs.
    pub struct Settings {
        /// Where it listens: `host:port` or `unix:/path`.
        pub listen: String = "127.0.0.1:7001".to_owned(),
        /// Where `/metrics`, `/livez` and `/readyz` answer over HTTP: host:port. Empty: nowhere. `weft up` has them on its
        /// admin listener and refuses this.
        pub metrics_listen: String = String::new(),
        /// Largest `adapter_model.safetensors` in bytes.
        pub package_bytes_max: u64 = 1 << 30,
        /// Largest rank of an adapter.
        pub rank_max: usize = 256,
        /// Merges made at request time that a tenant's policy lets it keep at once where it says nothing, at most 10,000. 0: none are made.
        pub request_merges_max: u32 = 16,
        /// Most uploads at once; one more is told to come back later.
        pub publishes_max: usize = 8,
        /// Most packages checked at once, and merges made and stored. A merge takes about the size of all its packages in memory.
        pub checks_max: usize = 2,
        /// An upload that brings nothing for so long is given up.
        pub upload_idle_timeout_ms: u64 = 30_000,
        /// An upload that takes longer than this is given up.
        pub upload_timeout_ms: u64 = 1_800_000,
        /// Most bytes of weights of uploads under way in memory, of all together; an upload that finds no more room goes to a file. Not counted:
        /// those of 64 KiB or less. The process keeps this memory until the system needs it.
        pub upload_memory_bytes_max: u64 = 256 << 20,
        /// Folder for uploads under way that do not fit in memory. None: the system's temporary folder.
        pub spool_dir: Option<PathBuf> = None,
        /// How often the objects are listed to see what other registries wrote, and the directory is sent again.
        pub directory_refresh_ms: u64 = 5_000,
        /// Most directory streams at once.
        pub watchers_max: usize = 256,
        /// Most reads of usage at once; one more is told to come back later. Each may hold 16 bytes of every id of a day (`docs/usage.md`).
        pub usage_reads_max: usize = 2,
        /// Stands for the office of the authority for placement. In `weft up`: false, for there is one worker.
        pub placement: bool = true,
        /// Milliseconds between two plans of the authority, 100 to 3,600,000.
        pub placement_epoch_ms: u64 = 3_000,
        /// Milliseconds without a sign of life after which another registry takes the office, 300 to 3,600,000. All registries must
        /// have the same.
        pub placement_silence_ms: u64 = 10_000,
        /// Milliseconds between two looks at running experiments, whether a guardrail stops an arm or one has ended.
        pub experiment_evaluate_ms: u64 = 5_000,
        /// Seconds between two turns of clean-up. 0: only when it is asked for.
        pub gc_every_s: u64 = 0,
        /// Newest versions of an adapter that clean-up keeps.
        pub gc_keep_versions: usize = 10,
        /// Seconds for which clean-up keeps a new version.
        pub gc_age_min_s: u64 = 7 * 86_400,
        /// Seconds for which clean-up keeps what an alias meant, so that it can be rolled back.
        pub gc_rollback_s: u64 = 30 * 86_400,
        /// Seconds between a version's leaving the directory and the end of its bytes. Longer than any gateway serves from an old
        /// directory (`directory_age_max_s`) and any request runs.
        pub gc_grace_s: u64 = 7_200,
        /// Files with public keys in PEM (ECDSA on P-256, P-384 or P-521), one each, whose signatures of packages count. Empty: none.
        pub signature_key_files: Vec<String> = Vec::new(),
        /// Files with certificates in PEM: whoever they certify for signing may sign packages. Empty: nobody.
        pub signature_authority_files: Vec<String> = Vec::new(),
        /// Folders beneath which `file://` sources may lie. Empty: there are none.
        pub source_file_roots: Vec<String> = Vec::new(),
        /// Buckets that `s3://` sources may name. Empty: none. Never the mesh's own: it holds what all tenants have.
        pub source_s3_buckets: Vec<String> = Vec::new(),
        /// S3 endpoint of these buckets. None: AWS.
        pub source_s3_endpoint: Option<String> = None,
        /// Region that requests to these buckets are signed for.
        pub source_s3_region: String = "us-east-1".to_owned(),
        /// Access key for these buckets.
        pub source_s3_access_key_id: Option<String> = None,
        /// Secret of that access key.
        secret pub source_s3_secret_access_key: Option<String> = None,
        /// Owners whose repositories `hf://` sources may name; `*`: all. Empty: none.
        pub source_hub_owners: Vec<String> = Vec::new(),
        /// The hub: `https://host`, or `http://host` for a mirror inside a network that is trusted.
        pub source_hub_endpoint: String = "https://huggingface.co".to_owned(),
        /// File with the hub's token. None: public repositories only.
        pub source_hub_token_file: Option<PathBuf> = None,
        /// File with certificates in PEM that vouch for the hub beside the system's.
        pub source_hub_ca_file: Option<PathBuf> = None,
        /// Hosts that the hub may redirect downloads to; `*.domain` for those below one, by https and at public addresses only.
        pub source_hub_redirect_hosts: Vec<String> = vec!["*.huggingface.co".to_owned(), "*.hf.co".to_owned()],
        /// How long a start waits for the object store.
        pub store_wait_ms: u64 = 60_000,
        /// Milliseconds of being "not serving" before no new call is taken, so that balancers turn away first.
        pub drain_delay_ms: u64 = 0,
        /// How long running calls may take to end at shutdown.
        pub shutdown_grace_ms: u64 = 10_000,
        /// S3 endpoint, `http://host:port` or `https://host`. None: AWS.
        pub s3_endpoint: Option<String> = None,
        /// Bucket of the mesh; made if it is not there.
        pub s3_bucket: String = "weft".to_owned(),
        /// Put before every key.
        pub s3_prefix: String = String::new(),
        /// Region that requests are signed for.
        pub s3_region: String = "us-east-1".to_owned(),
        /// Access key. Without keys and endpoint, AWS' own chain is asked.
        pub s3_access_key_id: Option<String> = None,
        /// Secret of the access key.
        secret pub s3_secret_access_key: Option<String> = None,
        /// Bucket in the path instead of the host name; most servers other than AWS need it.
        pub s3_path_style: bool = true,
    }
}

impl Settings {
    /// Where the objects are, for [`weft_object_store::S3Store::connect`].
    #[must_use]
    pub fn s3(&self) -> S3Settings {
        S3Settings {
            endpoint: self.s3_endpoint.clone(),
            bucket: self.s3_bucket.clone(),
            prefix: self.s3_prefix.clone(),
            region: self.s3_region.clone(),
            access_key_id: self.s3_access_key_id.clone(),
            secret_access_key: self.s3_secret_access_key.clone(),
            path_style: self.s3_path_style,
        }
    }

    /// Where packages may be imported from.
    #[must_use]
    pub fn sources(&self) -> Access {
        Access {
            file_roots: self.source_file_roots.iter().map(PathBuf::from).collect(),
            s3_buckets: self.source_s3_buckets.clone(),
            s3: S3Access {
                endpoint: self.source_s3_endpoint.clone(),
                region: self.source_s3_region.clone(),
                access_key_id: self.source_s3_access_key_id.clone(),
                secret_access_key: self.source_s3_secret_access_key.clone(),
                path_style: true,
            },
            hub_endpoint: self.source_hub_endpoint.clone(),
            hub_owners: self.source_hub_owners.clone(),
            hub_token_file: self.source_hub_token_file.clone(),
            hub_ca_file: self.source_hub_ca_file.clone(),
            hub_redirect_hosts: self.source_hub_redirect_hosts.clone(),
            weights_bytes_max: self.package_bytes_max,
            idle_timeout_ms: self.upload_idle_timeout_ms,
            whole_timeout_ms: self.upload_timeout_ms,
            ..Access::default()
        }
    }

    /// Checks what single values cannot tell.
    ///
    /// # Errors
    /// [`Error::Settings`] with every problem at once.
    pub fn check(&self) -> Result<(), Error> {
        let at_least_one = [
            ("package_bytes_max", self.package_bytes_max),
            ("rank_max", self.rank_max as u64),
            ("publishes_max", self.publishes_max as u64),
            ("checks_max", self.checks_max as u64),
            ("upload_idle_timeout_ms", self.upload_idle_timeout_ms),
            ("upload_timeout_ms", self.upload_timeout_ms),
            ("directory_refresh_ms", self.directory_refresh_ms),
            ("watchers_max", self.watchers_max as u64),
            ("usage_reads_max", self.usage_reads_max as u64),
            ("experiment_evaluate_ms", self.experiment_evaluate_ms),
        ];
        let zero = at_least_one.iter().filter(|(_, value)| *value == 0);
        let mut problems: Vec<String> = zero.map(|(name, _)| format!("{name} must be at least 1")).collect();
        for (name, value, least) in [
            ("placement_epoch_ms", self.placement_epoch_ms, 100),
            ("placement_silence_ms", self.placement_silence_ms, 300),
        ] {
            if !(least..=3_600_000).contains(&value) {
                problems.push(format!("{name} is {value}, allowed are {least} to 3600000"));
            }
        }
        if self.request_merges_max > crate::policy::REQUEST_MERGES_MAX {
            let max = crate::policy::REQUEST_MERGES_MAX;
            problems.push(format!("request_merges_max is {}, at most {max} is allowed", self.request_merges_max));
        }
        if let Some(dir) = self.spool_dir.as_ref().filter(|dir| !dir.is_dir()) {
            problems.push(format!("spool_dir {} is no folder", dir.display()));
        }
        problems.extend(weft_service_kit::operations::check_listen(&self.metrics_listen).err());
        if let Err(Error::Settings { problems: of_files }) = crate::publish::Signers::read(self) {
            problems.extend(of_files);
        }
        if let Err(error) = self.sources().check() {
            problems.push(format!("source_…: {error}"));
        }
        if let Err(weft_object_store::Error::Settings { field, problem }) = self.s3().validate() {
            problems.push(format!("s3_{field}: {problem}"));
        }
        let is_same_store = store(self.source_s3_endpoint.as_deref()) == store(self.s3_endpoint.as_deref());
        if is_same_store && self.source_s3_buckets.contains(&self.s3_bucket) {
            let bucket = &self.s3_bucket;
            problems
                .push(format!("source_s3_buckets has {bucket}, the mesh's own bucket: it holds what all tenants have"));
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Settings { problems }) }
    }
}

/// What an endpoint is compared by. Buckets of AWS are one space of names, whichever of its endpoints is asked.
fn store(endpoint: Option<&str>) -> String {
    let endpoint = endpoint.unwrap_or("https://s3.amazonaws.com").to_ascii_lowercase();
    let endpoint = endpoint.trim_end_matches('/');
    let (scheme, host) = endpoint.split_once("://").unwrap_or(("", endpoint));
    let host = host.strip_suffix(if scheme == "https" { ":443" } else { ":80" }).unwrap_or(host);
    if host.ends_with(".amazonaws.com") { "aws".to_owned() } else { host.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declaration_is_sound_and_its_defaults_hold() {
        weft_service_kit::settings::assert_sound::<Settings>();
        Settings::default().check().unwrap();
    }

    #[test]
    fn no_source_is_the_meshs_own_bucket() {
        let settings = |own: Option<&str>, source: Option<&str>, bucket: &str| Settings {
            s3_endpoint: own.map(Into::into),
            s3_access_key_id: Some("id".into()),
            s3_secret_access_key: Some("secret".into()),
            source_s3_endpoint: source.map(Into::into),
            source_s3_access_key_id: Some("id".into()),
            source_s3_secret_access_key: Some("secret".into()),
            source_s3_buckets: vec!["adapters".into(), bucket.into()],
            ..Settings::default()
        };
        for (own, source) in [
            (None, None),
            (None, Some("https://s3.eu-central-1.amazonaws.com")),
            (Some("http://minio:9000"), Some("http://MinIO:9000/")),
            (Some("http://minio"), Some("http://minio:80")),
        ] {
            let refused = settings(own, source, "weft").check().unwrap_err().to_string();
            assert!(refused.contains("source_s3_buckets has weft"), "{refused}");
            settings(own, source, "other").check().unwrap();
        }
        settings(Some("http://minio:9000"), Some("http://minio:9001"), "weft").check().unwrap();
        settings(Some("http://minio:9000"), None, "weft").check().unwrap();
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let wrong = Settings {
            publishes_max: 0,
            placement_epoch_ms: 99,
            spool_dir: Some("/nonexistent".into()),
            ..Settings::default()
        };
        let text = wrong.check().unwrap_err().to_string();
        assert!(
            text.contains("publishes_max")
                && text.contains("placement_epoch_ms is 99")
                && text.contains("spool_dir /nonexistent"),
            "{text}"
        );
    }
}
