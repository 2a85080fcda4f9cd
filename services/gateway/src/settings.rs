//! What an operator can set.

use std::path::PathBuf;
use std::time::Duration;
use weft_service_kit::settings::{Loaded, SettingsError};
use weft_service_kit::transport::{Address, AddressError};
use weft_types::LimitKind;

weft_bus::mesh_settings! {
    /// How the gateway listens, whom it asks and what it allows.
    pub struct Settings {
        /// Where tenants' requests come in: `host:port`, port 0 picks a free one, or `unix:/path`.
        pub listen: String = "127.0.0.1:8080".to_owned(),
        /// Replaces the host of `listen` (LoRAX's name).
        pub hostname: Option<String> = None,
        /// Replaces the port of `listen` (LoRAX's name).
        pub port: Option<u16> = None,
        /// Where operators' requests come in. Keep it off public networks.
        pub admin_listen: String = "127.0.0.1:8081".to_owned(),
        /// Address of the adapter registry.
        pub registry: String = "127.0.0.1:7001".to_owned(),
        /// Addresses of workers, beside those that are heard of on NATS. With `nats_url` the default is none.
        pub workers: Vec<String> = vec!["127.0.0.1:7003".to_owned()],

        /// The admin key named `admin`.
        secret pub admin_key: Option<String> = None,
        /// A file whose first line is the admin key named `admin`.
        pub admin_key_file: Option<PathBuf> = None,
        /// More admin keys, each `name=key`, so that history can say who.
        secret pub admin_keys: Vec<String> = Vec::new(),

        /// Generations at once, all tenants together; more are answered with 429.
        pub max_concurrent_requests: usize = 1024,
        /// Answers that one request may ask for: `n` times the prompts of a completion.
        pub max_choices: usize = 32,
        /// Largest `best_of` on LoRAX routes.
        pub max_best_of: usize = 2,
        /// Stop sequences in one request.
        pub max_stop_sequences: usize = 4,
        /// Seconds from the arrival of a request to the end of its answer.
        pub request_timeout_s: u64 = 600,
        /// Other workers tried when one fails before its first token.
        pub retries_max: usize = 2,
        /// Times that one answer goes on at another worker when its own is lost or drains after the first token.
        pub continuations_max: usize = 8,
        /// Milliseconds that such an answer waits for a worker that goes on with it.
        pub continuation_wait_ms: u64 = 10_000,
        /// Tries after failures that one request adds to the retry budget, all requests together: what keeps a mesh that fails
        /// from being asked ever more. Moving away from a worker that drains is free.
        pub retry_share: f64 = 0.2,
        /// Tries that the retry budget saves up: as many as one lost worker may have had requests.
        pub retries_saved_max: u32 = 256,
        /// Milliseconds that a request waits for an adapter that is merged or imported for it; then it is told to come back, and the making goes on.
        pub make_wait_ms: u64 = 30_000,
        /// Milliseconds for which a worker may say nothing about a request before it is asked whether it is there, and in which it
        /// must then answer.
        pub worker_silence_ms: u64 = 3000,

        /// Connections at once on each listener; more are answered with 503 and closed.
        pub connections_max: usize = 4096,
        /// Bytes of one request's headers (at least 8192); more are answered with 431.
        pub header_bytes_max: usize = 64 << 10,
        /// Seconds in which the headers of a request must arrive.
        pub header_timeout_s: u64 = 15,
        /// Bytes of one request body; more are answered with 413.
        pub body_bytes_max: usize = 4 << 20,
        /// Bytes of all request bodies in memory; more are answered with 429.
        pub body_bytes_in_flight_max: usize = 256 << 20,
        /// Seconds in which a request body must arrive; in an upload, seconds between two pieces.
        pub body_timeout_s: u64 = 30,
        /// Seconds that a client may leave its answer unread before the connection is closed.
        pub write_stall_s: u64 = 60,

        /// Bytes of `adapter_config.json` in an upload.
        pub package_config_bytes_max: usize = 1 << 20,
        /// Bytes of `adapter_model.safetensors` in an upload.
        pub package_weights_bytes_max: u64 = 1 << 30,
        /// Uploads at once; more are answered with 429.
        pub uploads_max: usize = 8,

        /// Seconds for which the last directory is good while the registry is away.
        pub directory_age_max_s: u64 = 3600,
        /// Milliseconds that the registry may take for the answer to an admin call, and to take the next piece of an upload.
        pub registry_timeout_ms: u64 = 30_000,
        /// Milliseconds that an import may take in the registry, which reads the package itself: its `upload_timeout_ms`, and some minutes more
        /// to judge and store it.
        pub import_timeout_ms: u64 = 2_100_000,
        /// Milliseconds that an admin write waits until this gateway's directory shows it.
        pub admin_visible_ms: u64 = 2000,
        /// Folder of the usage log, this gateway's alone, on a disk that outlives the process. None: answers are not accounted for.
        pub usage_dir: Option<PathBuf> = None,
        /// Milliseconds between two passes that bring the usage log to the registry, 100 to 3,600,000.
        pub usage_ship_ms: u64 = 5_000,
        /// Milliseconds between two reports of what was observed in experiments, 100 or more. Feedback is told at once.
        pub experiment_report_ms: u64 = 5_000,
        /// Requests of experiments that are mirrored at once; more are not mirrored.
        pub experiment_shadows_max: usize = 16,
        /// Milliseconds that an alias waits with its move until its new version is in slots where the old one is. 0: it does not wait.
        pub prewarm_ms: u64 = 10_000,
        /// Milliseconds between two looks over gRPC at a worker whose heartbeats do not come.
        pub worker_poll_ms: u64 = 1000,
        /// Milliseconds between two looks over gRPC at a worker whose heartbeats do come.
        pub worker_relist_ms: u64 = 15_000,
        /// Intervals without a heartbeat after which a worker gets no requests, unless a look shows that it answers. 2 or more.
        pub heartbeats_missed_max: u32 = 3,
        /// Seconds without a word after which a worker that no setting names is forgotten.
        pub worker_forget_s: u64 = 60,
        /// Workers known at once; heartbeats of more are left out.
        pub workers_max: usize = 4096,

        /// Redis that keeps what all gateways' tenants use: `redis://[user:password@]host:port[/database]`, `rediss://` with TLS. None: the limits are
        /// this gateway's alone.
        secret pub redis_url: Option<String> = None,
        /// PEM file with the authorities of Redis' certificate. None: those of the system.
        pub redis_ca_file: Option<PathBuf> = None,
        /// PEM file with the certificate that Redis is shown, if it asks for one.
        pub redis_cert_file: Option<PathBuf> = None,
        /// Key of `redis_cert_file`.
        pub redis_key_file: Option<PathBuf> = None,
        /// Milliseconds that Redis may take for an answer before the gateway goes on alone.
        pub redis_timeout_ms: u64 = 100,
        /// Percent of each limit that a gateway may hold in advance, 0 to 50: fewer calls of Redis, and as much more may be used when it is lost.
        pub limits_slice_percent: f64 = 2.0,
        /// Gateways that share the limits while Redis is away, if more than were last heard of.
        pub limits_gateways: u64 = 1,
        /// Tokens to reserve for an answer whose request sets no maximum; what it really has is settled.
        pub limits_output_tokens: u64 = 256,
        /// Requests in a minute, for tenants without a limit of their own. None: no limit.
        pub default_requests_per_minute: Option<u64> = None,
        /// Tokens of prompts and answers in a minute, likewise.
        pub default_tokens_per_minute: Option<u64> = None,
        /// Tokens of prompts and answers in 24 hours, likewise.
        pub default_tokens_per_day: Option<u64> = None,
        /// Answers of a tenant being made at once, likewise.
        pub default_concurrent_requests: Option<u64> = None,
        /// Answers of a tenant that wait for their first token at once, likewise.
        pub default_queue_length: Option<u64> = None,
        /// Requests in a second from one address (of IPv6: one /64), whoever sends them; more are answered with 429. 0: no limit.
        pub address_requests_per_second: u32 = 1000,
        /// Requests that an address may send at once.
        pub address_burst: u32 = 2000,
        /// Loopback addresses have the same limit. In `weft up`: false.
        pub address_limit_loopback: bool = true,
        /// Networks or addresses of proxies whose `x-forwarded-for` is believed: its right-most entry that is none of theirs counts as the address.
        pub trusted_proxies: Vec<String> = Vec::new(),

        /// Origins that browsers may call from; `*` for any. Empty: none.
        pub cors_allow_origins: Vec<String> = Vec::new(),
        /// Tell each answer's steps and how many adapters shared them, in `x-weft-*-step*` headers. It shows tenants how busy others are.
        pub step_headers: bool = false,
        /// Milliseconds of answering 503 on `/readyz` before the listeners close, so that balancers turn away first. Connections that
        /// are open then stay for as long again, but no more than a second, if nothing is asked over them.
        pub drain_delay_ms: u64 = 0,
        /// Seconds that running answers get to finish at shutdown.
        pub shutdown_grace_s: u64 = 30,
    }
    aliases {
        "max-concurrent-requests" => max_concurrent_requests,
        "max-best-of" => max_best_of,
        "max-stop-sequences" => max_stop_sequences,
        "cors-allow-origin" => cors_allow_origins,
        "hostname" => hostname,
        "port" => port,
        "p" => port,
    }
}

impl Settings {
    /// The settings of this section. `hostname` and `port` replace parts of `listen` (a field of the section
    /// `listen_section`) unless `listen` was given more explicitly: a `PORT` that a platform sets does not beat
    /// `--listen`.
    ///
    /// # Errors
    /// A value of the file has the wrong type.
    pub fn of(loaded: &Loaded, section: &'static str, listen_section: &'static str) -> Result<Self, SettingsError> {
        let mut settings: Self = loaded.get(section)?;
        let listen = loaded.source(listen_section, "listen");
        if listen > loaded.source(section, "hostname") {
            settings.hostname = None;
        }
        if listen > loaded.source(section, "port") {
            settings.port = None;
        }
        if !settings.nats_url.is_empty() && loaded.given(section, "workers").is_empty() {
            settings.workers.clear();
        }
        Ok(settings)
    }

    /// Where to listen for tenants, with `hostname` and `port` taken into account.
    ///
    /// # Errors
    /// The result is no address.
    pub fn data_address(&self) -> Result<Address, AddressError> {
        let address: Address = self.listen.parse()?;
        let Address::Tcp(host_port) = &address else { return Ok(address) };
        let (host, port) = host_port.rsplit_once(':').unwrap_or((host_port, "0"));
        let host = self.hostname.as_deref().unwrap_or(host);
        let port = self.port.map_or_else(|| port.to_owned(), |port| port.to_string());
        format!("{host}:{port}").parse()
    }

    /// The limits of tenants that have none of their own, by setting.
    pub(crate) fn default_limits(&self) -> [(&'static str, LimitKind, Option<u64>); 5] {
        [
            ("default_requests_per_minute", LimitKind::RequestsPerMinute, self.default_requests_per_minute),
            ("default_tokens_per_minute", LimitKind::TokensPerMinute, self.default_tokens_per_minute),
            ("default_tokens_per_day", LimitKind::TokensPerDay, self.default_tokens_per_day),
            ("default_concurrent_requests", LimitKind::ConcurrentRequests, self.default_concurrent_requests),
            ("default_queue_length", LimitKind::QueueLength, self.default_queue_length),
        ]
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        Duration::from_secs(self.request_timeout_s)
    }

    pub(crate) fn registry_timeout(&self) -> Duration {
        Duration::from_millis(self.registry_timeout_ms)
    }

    pub(crate) fn import_timeout(&self) -> Duration {
        Duration::from_millis(self.import_timeout_ms)
    }

    pub(crate) fn write_stall(&self) -> Duration {
        Duration::from_secs(self.write_stall_s)
    }

    pub(crate) fn body_timeout(&self) -> Duration {
        Duration::from_secs(self.body_timeout_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_sound() {
        weft_service_kit::settings::assert_sound::<Settings>();
    }

    #[test]
    fn lorax_names_for_host_and_port_replace_ours() {
        let settings = Settings { hostname: Some("0.0.0.0".into()), port: Some(80), ..Settings::default() };
        assert_eq!(settings.data_address(), Ok(Address::Tcp("0.0.0.0:80".into())));
        assert_eq!(Settings::default().data_address(), Ok(Address::Tcp("127.0.0.1:8080".into())));
    }

    #[test]
    fn with_nats_no_worker_is_named_by_default() {
        let workers = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            let loader = weft_service_kit::settings::Loader::new("x", "x").section::<Settings>("");
            let loaded = loader.load(args, std::iter::empty::<(String, String)>()).unwrap();
            Settings::of(&loaded, "", "").unwrap().workers
        };
        assert_eq!(workers(&[]), ["127.0.0.1:7003"]);
        assert_eq!(workers(&["--nats-url", "nats://n:1"]), [""; 0]);
        assert_eq!(workers(&["--nats-url", "nats://n:1", "--workers", "w:1"]), ["w:1"]);
    }

    #[test]
    fn the_more_explicit_of_listen_and_port_wins() {
        let address = |args: &[&str], variables: &[(&str, &str)]| {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
            let loader = weft_service_kit::settings::Loader::new("x", "x").section::<Settings>("");
            let loaded = loader.load(args, variables).unwrap();
            let Ok(Address::Tcp(address)) = Settings::of(&loaded, "", "").unwrap().data_address() else { panic!() };
            address
        };
        assert_eq!(address(&["--listen", "0.0.0.0:1"], &[("PORT", "2")]), "0.0.0.0:1");
        assert_eq!(address(&["--listen", "0.0.0.0:1"], &[("WEFT_PORT", "2")]), "0.0.0.0:1");
        assert_eq!(address(&[], &[("WEFT_LISTEN", "0.0.0.0:1"), ("PORT", "2")]), "0.0.0.0:1");
        assert_eq!(address(&[], &[("PORT", "2")]), "127.0.0.1:2");
        assert_eq!(address(&["-p", "3"], &[("WEFT_LISTEN", "0.0.0.0:1")]), "0.0.0.0:3");
        assert_eq!(address(&["--listen", "0.0.0.0:1", "--port", "2"], &[]), "0.0.0.0:2");
        assert_eq!(address(&["--listen", "0.0.0.0:1", "--hostname", "10.0.0.9"], &[("PORT", "2")]), "10.0.0.9:1");
    }
}
