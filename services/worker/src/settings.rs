//! How a worker runs. Checked once, by [`Settings::check`]; sizes that depend on the model are settled in `model.rs`.

use std::path::PathBuf;

use weft_batching::Pace;
use weft_engine::device::{RANK_MAX, ROWS_MAX};
use weft_service_kit::transport::{self, Address, Peers, Service};

use crate::Error;
use crate::compute::Compute;
use crate::error::chain;

/// More than any machine has cores; each thread takes memory for its stack, and a system has few thousands of them.
const THREADS_MAX: usize = 1024;
/// What others take as a name.
const NAME_BYTES_MAX: usize = 256;

weft_bus::mesh_settings! {
    /// How a worker runs.
    pub struct Settings {
        /// Where the worker listens: host:port or unix:/path.
        pub listen: String = "127.0.0.1:7003".to_owned(),
        /// Where `/metrics`, `/livez` and `/readyz` answer over HTTP: host:port. Empty: nowhere. `weft up` has them on its
        /// admin listener and refuses this.
        pub metrics_listen: String = String::new(),
        /// Name of this worker, in answers and logs.
        pub name: String = "worker-1".to_owned(),
        /// The base model: a GGUF file or a Hugging Face folder.
        pub model: String = String::new(),
        /// Name under which the base is served; default: the model's own name.
        pub served_model_name: Option<String> = None,
        /// Where the base's digest is cached if its own folder cannot be written.
        pub digest_cache_dir: Option<PathBuf> = None,
        /// What computes: cpu, or cuda or cuda:N for a GPU, or cuda:N,N and so on for several that share the base (docs/gpu.md), in a build that has the
        /// feature cuda. Memory in other settings is that of all of them together.
        pub device: String = "cpu".to_owned(),
        /// The file of kernels that scripts/build-cuda.sh makes. Empty: weft.fatbin beside the program.
        pub device_kernels: String = String::new(),
        /// Part of a device's free memory that is taken at the start, above 0 and below 1. What it leaves is for the driver: kernels, graphs.
        pub device_memory_fraction: f64 = 0.9,
        /// Largest rank of an adapter on a device, up to 768. Steps with adapters take shared memory for it.
        pub device_rank_max: usize = 256,
        /// Whether a device's decoding steps are replayed as graphs.
        pub device_graphs: bool = true,
        /// What the base is stored and computed in: auto, f32, bf16, int8 or q4. See docs/performance.md for what each costs
        /// in accuracy. auto: the fastest whose greedy answers keep to those of f32: with AVX2, AVX-512 VNNI or
        /// NEON's dot product q4 where the file has Q4_1 and int8 elsewhere, else bf16, f32 on plain processors. On a device: auto (bf16), f32, bf16, int8, q4
        /// or fp8.
        pub dtype: String = "auto".to_owned(),
        /// What keys and values are stored in: auto (beside a base in f32 f32, else bf16), or, on a device whose dtype is not f32, fp8.
        pub kv_dtype: String = "auto".to_owned(),
        /// What adapters are stored in: auto, f32, bf16 or int8; on a device fp8, too. auto: f32 beside a base in f32, else bf16.
        pub adapter_dtype: String = "auto".to_owned(),
        /// Milliseconds between two reports of what adapters took of this worker, for the usage ledger. 0: none are made.
        pub residency_report_ms: u64 = 60_000,
        /// Bit-equal output whatever shares the batch. The kernels for processors give that always, at no cost; the setting
        /// binds kernels that would trade it for speed. On a device it needs a dtype of int8, q4 or fp8.
        pub batch_invariant: bool = false,
        /// Threads that compute, up to 1024. 0: one for each core.
        pub threads: usize = 0,
        /// Instruction set: auto, portable, avx2, avx512, avx512-vnni, avx512-bf16, neon or neon-dot.
        pub isa: String = "auto".to_owned(),
        /// Where the cache daemon is reached.
        pub cache: String = "127.0.0.1:7002".to_owned(),
        /// Where the adapter registry is reached; empty: the base is announced to nobody.
        pub registry: String = "127.0.0.1:7001".to_owned(),
        /// Seconds between two announcements of the base.
        pub announce_interval_s: u64 = 10,
        /// Where gateways reach this worker, as heartbeats say. Empty: at `listen`.
        pub advertise: String = String::new(),
        /// Milliseconds between two heartbeats, 10 to 60000.
        pub heartbeat_interval_ms: u64 = 1000,
        /// Memory for keys and values, in bytes. 0: 1 GiB; on a device all that base, adapters and steps leave.
        pub kv_memory_bytes: u64 = 0,
        /// Tokens in the KV memory; 0: as many as kv_memory_bytes hold. The smaller of the two counts.
        pub kv_tokens_max: usize = 0,
        /// Whether what was computed for a prompt is used again for prompts of the same tenant that begin alike.
        pub prefix_cache: bool = true,
        /// Memory for resident adapters, in bytes: of the device, where there is one, and as much pinned memory besides.
        pub adapter_memory_bytes: u64 = 1 << 30,
        /// Memory for resident adapters as a fraction of the machine's memory, or of what is taken of the device's, instead of
        /// adapter_memory_bytes.
        pub adapter_memory_fraction: Option<f64> = None,
        /// Memory for adapters that lost their slot and stay packed, in bytes: they come back by moving a pointer, or by a copy to the
        /// device, where it is pinned memory. Where slots are main memory too, busy slots may borrow from it. 0: none.
        pub adapter_prepared_bytes: u64 = 512 << 20,
        /// Most bytes that a step copies to each device for adapters that found no room there and run from pinned memory, layer by layer, until they
        /// do; no more than adapter_memory_bytes. They take a few layers' part of it on the device. 0: they wait for room.
        pub adapter_stream_bytes: u64 = 256 << 20,
        /// Adapters that are packed, or packed and waiting for a slot, at the same time.
        pub adapter_loads_max: usize = 4,
        /// Adapters that are leased or waited for at the same time; for later ones the cache daemon gets a hint.
        pub adapter_leases_max: usize = 64,
        /// Most of adapter_memory_bytes that pinned adapters may take.
        pub adapter_pinned_fraction_max: f64 = 0.5,
        /// Seconds until a lease is given up.
        pub adapter_load_timeout_s: u64 = 30,
        /// Most tokens of one step, prompts and outputs together.
        pub step_tokens_max: usize = 256,
        /// Seconds that one turn of the step loop may take before the worker counts as stuck: it is not ready, takes no requests, and
        /// what runs goes on at other workers.
        pub step_stall_s: u64 = 120,
        /// A step with decodes may take so many times as long as one in which everybody who is here decodes: bounds what
        /// long prompts do to the time between others' tokens. 1 or more; 0: no bound.
        pub step_stretch_max: f64 = 1.8,
        /// Prompt tokens of a step with decodes that are computed whatever they cost, so that prompts get on.
        pub step_prompt_tokens_min: usize = 8,
        /// What a tenant is charged for 1 MiB of adapter that is loaded for it, in prompt tokens.
        pub adapter_load_tokens_per_mib: u64 = 16,
        /// Adapters that are on their way or resident for a tenant without having served it yet, while others wait too.
        pub adapter_loads_ahead_max: usize = 8,
        /// How far a class of priority goes before the next: until so many tokens were charged to whoever goes first.
        pub priority_tokens: u64 = 4096,
        /// Most requests that run at once.
        pub running_requests_max: usize = 64,
        /// Most requests that wait.
        pub queue_requests_max: usize = 512,
        /// Most tokens of a prompt. 0: as many as the context allows.
        pub prompt_tokens_max: usize = 0,
        /// Most tokens of prompt and output. 0: as many as the model and the KV memory allow.
        pub context_tokens_max: usize = 0,
        /// Most bytes of a prompt before it is tokenized.
        pub prompt_bytes_max: usize = 4 << 20,
        /// Prompts that are rendered and tokenized at the same time.
        pub tokenize_concurrency: usize = 2,
        /// Most stop strings of one request.
        pub stop_strings_max: usize = 16,
        /// Most bytes of one stop string.
        pub stop_bytes_max: usize = 512,
        /// Most bytes of a JSON schema, a regular expression or a grammar.
        pub grammar_bytes_max: usize = 64 << 10,
        /// Most lexer states that the answers of one grammar may visit; 1 to 2 KB each.
        pub grammar_states_max: usize = 20_000,
        /// Compiled grammars that are kept, each for one tenant.
        pub grammar_cache_entries: usize = 256,
        /// Memory for compiled grammars, in bytes.
        pub grammar_cache_bytes: u64 = 256 << 20,
        /// Grammars that are compiled at the same time, tenants in turn.
        pub grammar_compile_concurrency: usize = 2,
        /// Threads that compute token masks while a step runs. 0: the step loop computes them itself.
        pub mask_threads: usize = 1,
        /// Seconds that running requests get to finish after SIGTERM.
        pub shutdown_grace_s: u64 = 30,
    }
    aliases {
        "model-id" => model,
        "max-input-length" => prompt_tokens_max,
        "max-total-tokens" => context_tokens_max,
        "max-batch-total-tokens" => kv_tokens_max,
        "max-batch-prefill-tokens" => step_tokens_max,
        "max-stop-sequences" => stop_strings_max,
        "adapter-memory-fraction" => adapter_memory_fraction,
        "validation-workers" => tokenize_concurrency,
        "quantize" => dtype,
        "batch-invariant" => batch_invariant,
    }
}

/// Settings as the worker uses them.
#[derive(Clone, Debug)]
pub(crate) struct Checked {
    pub(crate) model: PathBuf,
    pub(crate) compute: Compute,
    pub(crate) adapter_memory: AdapterMemory,
    pub(crate) settings: Settings,
}

impl Checked {
    /// Why the base is not served.
    pub(crate) fn failed(&self, error: &dyn std::error::Error) -> Error {
        Error::Start { model: self.model.clone(), problem: chain(error) }
    }
}

/// Memory for resident adapters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdapterMemory {
    bytes: u64,
    fraction: Option<f64>,
}

impl AdapterMemory {
    /// Of memory of this size. Unknown: the number of bytes stands.
    pub(crate) fn bytes(self, of: Option<u64>) -> u64 {
        match (self.fraction, of) {
            (Some(fraction), Some(of)) => (of as f64 * fraction) as u64,
            _ => self.bytes,
        }
    }
}

impl Settings {
    /// How prompts are paced beside decodes.
    pub(crate) fn pace(&self) -> Pace {
        let stretch_max = if self.step_stretch_max == 0.0 { f64::INFINITY } else { self.step_stretch_max };
        Pace { stretch_max, prompt_tokens_min: self.step_prompt_tokens_min }
    }

    /// The address to listen on.
    ///
    /// # Errors
    /// The text is no address.
    pub fn listen_address(&self) -> Result<Address, Error> {
        self.listen.parse().map_err(|error| Error::setting("listen", error))
    }

    /// Where the cache daemon is.
    ///
    /// # Errors
    /// The text is no address.
    pub fn cache_address(&self) -> Result<Address, Error> {
        self.cache.parse().map_err(|error| Error::setting("cache", error))
    }

    /// Where the registry is, if there is one to announce to.
    ///
    /// # Errors
    /// The text is no address.
    pub fn registry_address(&self) -> Result<Option<Address>, Error> {
        if self.registry.is_empty() {
            return Ok(None);
        }
        self.registry.parse().map(Some).map_err(|error| Error::setting("registry", error))
    }

    /// Whether a worker would start with them, as far as that can be told without the model.
    ///
    /// # Errors
    /// [`Error::Settings`] with every problem.
    pub fn validate(&self) -> Result<(), Error> {
        let addresses = [self.listen_address().err(), self.cache_address().err(), self.registry_address().err()];
        let nats = self.nats("").validate().map_err(|error| Error::Settings(vec![error.to_string()]));
        let found = addresses.into_iter().flatten().chain(nats.err()).chain(self.check().err());
        let mut problems: Vec<String> = found.map(|error| error.to_string()).collect();
        match Peers::new(Service::Worker, self.tls(), &prometheus::Registry::new()) {
            Err(problem) => problems.push(problem),
            Ok(peers) => {
                let places = [("listen", &self.listen), ("cache", &self.cache), ("registry", &self.registry)];
                for (name, address) in places.map(|(name, text)| (name, text.parse::<Address>())) {
                    let refused = address.ok().and_then(|address| peers.check(&address).err());
                    problems.extend(refused.map(|refused| format!("{name}: {refused}")));
                }
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(Error::Settings(problems)) }
    }

    /// Turns raw into checked; all problems at once.
    pub(crate) fn check(&self) -> Result<Checked, Error> {
        let mut problems = Vec::new();
        if self.model.is_empty() {
            problems.push("model is not set: give a GGUF file or a Hugging Face folder".to_owned());
        }
        let compute = Compute::check(self, &mut problems);
        for (name, value) in [
            ("step_tokens_max", self.step_tokens_max),
            ("running_requests_max", self.running_requests_max),
            ("queue_requests_max", self.queue_requests_max),
            ("adapter_loads_max", self.adapter_loads_max),
            ("adapter_leases_max", self.adapter_leases_max),
            ("adapter_loads_ahead_max", self.adapter_loads_ahead_max),
            ("step_prompt_tokens_min", self.step_prompt_tokens_min),
            ("tokenize_concurrency", self.tokenize_concurrency),
            ("grammar_compile_concurrency", self.grammar_compile_concurrency),
            ("prompt_bytes_max", self.prompt_bytes_max),
        ] {
            if value == 0 {
                problems.push(format!("{name} is 0, allowed is 1 or more"));
            }
        }
        for (name, value) in [("threads", self.threads), ("mask_threads", self.mask_threads)] {
            if value > THREADS_MAX {
                problems.push(format!("{name} is {value}, allowed is up to {THREADS_MAX}"));
            }
        }
        for (name, value) in [
            ("announce_interval_s", self.announce_interval_s),
            ("adapter_load_timeout_s", self.adapter_load_timeout_s),
            ("step_stall_s", self.step_stall_s),
        ] {
            if value == 0 {
                problems.push(format!("{name} is 0, allowed is 1 or more"));
            }
        }
        if self.step_stretch_max != 0.0 && !(1.0..f64::INFINITY).contains(&self.step_stretch_max) {
            problems.push(format!("step_stretch_max is {}, allowed is 1 or more, or 0", self.step_stretch_max));
        }
        problems.extend(weft_service_kit::operations::check_listen(&self.metrics_listen).err());
        if !self.nats_url.is_empty() {
            problems.extend(transport::check_advertise(&self.advertise, "listen", &self.listen).err());
        }
        if !(1..=NAME_BYTES_MAX).contains(&self.name.len()) {
            problems.push(format!("name has {} bytes, allowed are 1 to {NAME_BYTES_MAX}", self.name.len()));
        }
        if !(10..=60_000).contains(&self.heartbeat_interval_ms) {
            problems.push(format!("heartbeat_interval_ms is {}, allowed is 10 to 60000", self.heartbeat_interval_ms));
        }
        if !(0.0..=1.0).contains(&self.adapter_pinned_fraction_max) {
            let value = self.adapter_pinned_fraction_max;
            problems.push(format!("adapter_pinned_fraction_max is {value}, allowed is 0 to 1"));
        }
        for (name, fraction) in [
            ("adapter_memory_fraction", self.adapter_memory_fraction),
            ("device_memory_fraction", Some(self.device_memory_fraction)),
        ] {
            if let Some(fraction) = fraction
                && !(fraction > 0.0 && fraction < 1.0)
            {
                problems.push(format!("{name} is {fraction}, allowed is above 0 and below 1"));
            }
        }
        if matches!(compute, Compute::Device { .. }) {
            for (name, value, most) in [
                ("device_rank_max", self.device_rank_max, RANK_MAX),
                ("step_tokens_max", self.step_tokens_max, ROWS_MAX),
                ("running_requests_max", self.running_requests_max, ROWS_MAX),
            ] {
                if !(1..=most).contains(&value) {
                    problems.push(format!("{name} is {value}, allowed on a device is 1 to {most}"));
                }
            }
        }
        let adapter_memory = AdapterMemory { bytes: self.adapter_memory_bytes, fraction: self.adapter_memory_fraction };
        if problems.is_empty() {
            Ok(Checked { model: self.model.clone().into(), compute, adapter_memory, settings: self.clone() })
        } else {
            Err(Error::Settings(problems))
        }
    }
}

/// All memory of the machine, where the system tells it.
pub(crate) fn machine_memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declaration_is_sound() {
        weft_service_kit::settings::assert_sound::<Settings>();
    }

    #[test]
    fn more_threads_than_a_system_starts_are_refused_by_name() {
        let settings = Settings { model: "m".into(), threads: 99_999, mask_threads: 1025, ..Settings::default() };
        let problems = settings.check().err().unwrap().to_string();
        assert!(problems.contains("threads is 99999, allowed is up to 1024"), "{problems}");
        assert!(problems.contains("mask_threads is 1025, allowed is up to 1024"), "{problems}");
        assert!(Settings { threads: 1024, mask_threads: 0, ..settings }.check().is_ok());
    }

    #[test]
    fn a_step_may_be_stretched_without_bound() {
        let problem = |stretch: f64| {
            let settings = Settings { step_stretch_max: stretch, ..Settings::default() };
            settings.check().err().is_some_and(|error| error.to_string().contains("step_stretch_max"))
        };
        assert_eq!([0.0, 1.0, 1.8].map(problem), [false; 3]);
        assert_eq!([0.9, -1.0, f64::NAN, f64::INFINITY].map(problem), [true; 4]);
        let stretch_max = |stretch| Settings { step_stretch_max: stretch, ..Settings::default() }.pace().stretch_max;
        assert_eq!((stretch_max(0.0), stretch_max(2.0)), (f64::INFINITY, 2.0));
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let settings = Settings {
            dtype: "q3".into(),
            adapter_dtype: "q4".into(),
            isa: "mmx".into(),
            step_tokens_max: 0,
            step_stretch_max: 0.5,
            adapter_memory_fraction: Some(1.5),
            metrics_listen: "nowhere".into(),
            adapter_pinned_fraction_max: f64::NAN,
            nats_url: "nats://n:1".into(),
            listen: "0.0.0.0:7003".into(),
            name: String::new(),
            heartbeat_interval_ms: 0,
            ..Settings::default()
        };
        let Err(error) = settings.check() else { panic!("accepted") };
        let text = error.to_string();
        for part in [
            "model is not set",
            "dtype is \"q3\"",
            "adapter_dtype is \"q4\"",
            "mmx",
            "step_tokens_max is 0",
            "stretch_max is 0.5",
            "1.5",
            "metrics_listen",
            "advertise is not set",
            "name has 0 bytes",
            "heartbeat_interval_ms is 0",
            "NaN",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn a_fraction_of_the_memory_replaces_the_bytes() {
        let settings = Settings {
            model: "m".into(),
            adapter_memory_fraction: Some(0.5),
            adapter_memory_bytes: 1,
            ..Settings::default()
        };
        let memory = settings.check().unwrap().adapter_memory;
        assert_eq!((memory.bytes(Some(1000)), memory.bytes(None)), (500, 1));
    }
}
