//! How a cache daemon runs.

use crate::Error;
use std::path::PathBuf;
use weft_object_store::S3Settings;
use weft_service_kit::transport::{Address, check_advertise};

/// Less would be more headers than bytes.
const RANGE_BYTES_MIN: u64 = 4 << 10;

weft_bus::mesh_settings! {
    /// How a cache daemon runs.
    pub struct Settings {
        /// Where it listens: `host:port` or `unix:/path`.
        pub listen: String = "127.0.0.1:7002".to_owned(),
        /// Where `/metrics`, `/livez` and `/readyz` answer over HTTP: host:port. Empty: nowhere. `weft up` has them on its
        /// admin listener and refuses this.
        pub metrics_listen: String = String::new(),
        /// Name of this daemon, in messages and logs.
        pub name: String = "cache-1".to_owned(),
        /// Where neighbour daemons read from this one: `host:port`, with nothing else served there. Empty: at `listen`, if that is one.
        pub neighbours_listen: String = String::new(),
        /// Where neighbours reach this daemon, as those messages say. Empty: at `neighbours_listen`, else at `listen`; a daemon that
        /// listens on a Unix socket alone tells no address, and is asked by nobody.
        pub advertise: String = String::new(),
        /// Milliseconds between two messages about what it holds, 10 to 60000.
        pub residency_interval_ms: u64 = 2_000,
        /// Folder of the disk tier. One process owns it.
        pub dir: PathBuf = PathBuf::from("weft-cache"),
        /// Budget of the disk tier in bytes.
        pub disk_bytes_max: u64 = 20 << 30,
        /// Folder of the memory tier, on a tmpfs. Needed only with a memory budget.
        pub memory_dir: Option<PathBuf> = None,
        /// Budget of the memory tier in bytes. 0: no memory tier.
        pub memory_bytes_max: u64 = 0,
        /// After a restart nothing is evicted for so long, so that holders can re-assert their leases.
        pub grace_after_restart_ms: u64 = 5_000,
        /// How long an acquire waits for leases of others to end, when they fill the disk budget.
        pub room_wait_ms: u64 = 10_000,
        /// Most fetches from the object store at once.
        pub fetches_max: usize = 8,
        /// Bytes of a blob that are read from the object store in one request. A fetch keeps fetch_ranges_max of them in memory.
        pub fetch_range_bytes: u64 = 4 << 20,
        /// Most requests of one fetch at once.
        pub fetch_ranges_max: usize = 4,
        /// Tries in a row that bring nothing before the acquire is refused. A read that broke goes on where it was.
        pub fetch_attempts_max: u32 = 4,
        /// A read that brings no byte for so long has failed.
        pub fetch_stall_timeout_ms: u64 = 30_000,
        /// A fetch that is not done after so long has failed, however it gets on. Waiting for its turn and for room is not counted.
        pub fetch_timeout_ms: u64 = 600_000,
        /// Most bytes a second that all fetches together read of the object store; what is prefetched takes what others leave. 0: no limit.
        pub fetch_bytes_per_second_max: u64 = 0,
        /// Most neighbour daemons known at once, from what the bus tells. 0: none is asked.
        pub neighbours_max: usize = 64,
        /// A neighbour that sends nothing for so long is not waited for.
        pub neighbour_first_byte_timeout_ms: u64 = 500,
        /// A neighbour that falls silent for so long is left; the next source goes on.
        pub neighbour_stall_timeout_ms: u64 = 2_000,
        /// Most neighbour daemons that read from this one at once. 0: none.
        pub serves_max: usize = 8,
        /// Most bytes a second that neighbours read from this one. 0: no limit.
        pub serve_bytes_per_second_max: u64 = 0,
        /// Most files hashed at once after a restart.
        pub verifications_max: usize = 2,
        /// Most holders connected at once.
        pub streams_max: usize = 256,
        /// Most leases of one holder.
        pub leases_per_stream_max: usize = 4_096,
        /// Most acquires of one holder that are not answered yet. Re-asserted leases do not count.
        pub acquires_per_stream_max: usize = 256,
        /// Most digests waiting to be prefetched.
        pub prefetch_queue_max: usize = 1_024,
        /// Most prefetches at once, of `fetches_max`.
        pub prefetches_max: usize = 2,
        /// Milliseconds of being "not serving" before no new call is taken, so that balancers turn away first.
        pub drain_delay_ms: u64 = 0,
        /// How long running streams may take to end at shutdown.
        pub shutdown_grace_ms: u64 = 5_000,
        /// S3 endpoint, `http://host:port` or `https://host`. None: AWS.
        pub s3_endpoint: Option<String> = None,
        /// Bucket with the blobs.
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
    /// Where the blobs are, for [`weft_object_store::S3Store::connect`].
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

    /// Checks what single values cannot tell.
    ///
    /// # Errors
    /// [`Error::Settings`] with every problem at once.
    pub fn check(&self) -> Result<(), Error> {
        let mut problems = Vec::new();
        let at_least_one = [
            ("fetches_max", self.fetches_max as u64),
            ("fetch_attempts_max", u64::from(self.fetch_attempts_max)),
            ("fetch_ranges_max", self.fetch_ranges_max as u64),
            ("fetch_stall_timeout_ms", self.fetch_stall_timeout_ms),
            ("fetch_timeout_ms", self.fetch_timeout_ms),
            ("neighbour_first_byte_timeout_ms", self.neighbour_first_byte_timeout_ms),
            ("neighbour_stall_timeout_ms", self.neighbour_stall_timeout_ms),
            ("verifications_max", self.verifications_max as u64),
            ("streams_max", self.streams_max as u64),
            ("leases_per_stream_max", self.leases_per_stream_max as u64),
            ("acquires_per_stream_max", self.acquires_per_stream_max as u64),
            ("prefetch_queue_max", self.prefetch_queue_max as u64),
            ("prefetches_max", self.prefetches_max as u64),
            ("disk_bytes_max", self.disk_bytes_max),
        ];
        for (name, value) in at_least_one {
            if value == 0 {
                problems.push(format!("{name} must be at least 1"));
            }
        }
        if self.fetch_range_bytes < RANGE_BYTES_MIN {
            problems.push(format!("fetch_range_bytes is {}, at least {RANGE_BYTES_MIN}", self.fetch_range_bytes));
        }
        if self.memory_bytes_max > 0 && self.memory_dir.is_none() {
            problems.push(format!("memory_bytes_max is {} but memory_dir is not set", self.memory_bytes_max));
        }
        if self.memory_dir.as_ref() == Some(&self.dir) {
            problems.push(format!("memory_dir and dir are both {}", self.dir.display()));
        }
        problems.extend(weft_service_kit::operations::check_listen(&self.metrics_listen).err());
        problems.extend(self.check_neighbours().err());
        if !(10..=60_000).contains(&self.residency_interval_ms) {
            problems.push(format!("residency_interval_ms is {}, allowed is 10 to 60000", self.residency_interval_ms));
        }
        if let Err(weft_object_store::Error::Settings { field, problem }) = self.s3().validate() {
            problems.push(format!("s3_{field}: {problem}"));
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Settings { problems }) }
    }

    /// Whether neighbours find this daemon where it says that it is.
    fn check_neighbours(&self) -> Result<(), String> {
        let Self { listen, neighbours_listen, advertise, .. } = self;
        if !neighbours_listen.is_empty() {
            let address =
                neighbours_listen.parse::<Address>().map_err(|error| format!("neighbours_listen: {error}"))?;
            if let Address::Unix(_) = address {
                return Err(format!("neighbours_listen is {address}, a socket of this machine alone: use host:port"));
            }
            if !neighbours_listen.ends_with(":0") && listen.parse() == Ok(address) {
                return Err(format!("neighbours_listen and listen are both {listen}: neighbours can use listen too"));
            }
        }
        if self.nats_url.is_empty() {
            return Ok(());
        }
        let (setting, place) =
            if neighbours_listen.is_empty() { ("listen", listen) } else { ("neighbours_listen", neighbours_listen) };
        check_advertise(advertise, setting, place)?;
        let is_socket = |place: &str| matches!(place.parse(), Ok(Address::Unix(_)));
        if !advertise.is_empty() && is_socket(advertise) != is_socket(place) {
            return Err(format!("advertise is {advertise}, but {setting} is {place}: nobody would answer there"));
        }
        Ok(())
    }
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
    fn every_problem_is_named_at_once() {
        let wrong = Settings { fetches_max: 0, memory_bytes_max: 5, ..Settings::default() };
        let text = wrong.check().unwrap_err().to_string();
        assert!(text.contains("fetches_max") && text.contains("memory_dir is not set"), "{text}");
    }

    #[test]
    fn neighbours_are_told_an_address_at_which_they_are_served() {
        let problem = |listen: &str, neighbours_listen: &str, advertise: &str| {
            let [listen, neighbours_listen, advertise] = [listen, neighbours_listen, advertise].map(str::to_owned);
            let nats_url = "nats://nats:4222".to_owned();
            let settings = Settings { listen, neighbours_listen, advertise, nats_url, ..Settings::default() };
            settings.check().err().map_or_else(String::new, |error| error.to_string())
        };
        for (listen, neighbours_listen, advertise) in [
            ("unix:/a", "", ""),
            ("unix:/a", "", "unix:/a"),
            ("unix:/a", "10.0.0.1:7002", ""),
            ("unix:/a", "0.0.0.0:7002", "10.0.0.1:7002"),
            ("10.0.0.1:7002", "10.0.0.1:7004", ""),
            ("127.0.0.1:0", "127.0.0.1:0", ""),
            ("0.0.0.0:7002", "", "node-1:7002"),
        ] {
            assert_eq!(problem(listen, neighbours_listen, advertise), "", "{listen} {neighbours_listen} {advertise}");
        }
        for (listen, neighbours_listen, advertise, named) in [
            ("unix:/a", "nowhere", "", "neighbours_listen: address \"nowhere\""),
            ("unix:/a", "unix:/b", "", "neighbours_listen is unix:/b"),
            ("10.0.0.1:7002", "http://10.0.0.1:7002/", "", "neighbours_listen and listen are both 10.0.0.1:7002"),
            ("unix:/a", "0.0.0.0:7002", "", "neighbours_listen is 0.0.0.0:7002, every interface"),
            ("0.0.0.0:7002", "", "", "listen is 0.0.0.0:7002, every interface"),
            ("unix:/a", "0.0.0.0:7002", "0.0.0.0:7002", "advertise is 0.0.0.0:7002"),
            ("unix:/a", "0.0.0.0:7002", "unix:/a", "advertise is unix:/a, but neighbours_listen is 0.0.0.0:7002"),
            ("unix:/a", "", "10.0.0.1:7002", "advertise is 10.0.0.1:7002, but listen is unix:/a"),
        ] {
            let said = problem(listen, neighbours_listen, advertise);
            assert!(said.contains(named), "{listen} {neighbours_listen} {advertise}: {said}");
        }
    }
}
