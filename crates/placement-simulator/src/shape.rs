//! The mesh that is simulated.

/// Microseconds of simulated time.
pub(crate) type Micros = u64;

/// Sizes and speeds. The defaults are a small pool of GPU workers: what matters is their ratios.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Workers.
    pub workers: usize,
    /// Gateways, each with its own view.
    pub gateways: usize,
    /// Adapters, not counting those that a scenario brings.
    pub adapters: usize,
    /// The n-th most popular adapter has weight 1 / (n + this); 0: Zipf with exponent 1. Flattens the head only.
    pub popularity_offset: u32,
    /// Slots of a worker.
    pub slots: usize,
    /// Further adapters in a worker's memory.
    pub memory: usize,
    /// Further adapters on a worker's disk.
    pub disk: usize,
    /// Sequences that a worker decodes at once.
    pub seats: usize,
    /// Prompt tokens a millisecond.
    pub prefill_tokens_per_ms: f64,
    /// Milliseconds of a decode step.
    pub step_ms: f64,
    /// Mean length of prompts and answers in tokens, both exponential.
    pub prompt_tokens: f64,
    /// See `prompt_tokens`.
    pub output_tokens: f64,
    /// Bytes of an adapter for each rank.
    pub rank_bytes: u64,
    /// Bytes a millisecond from memory to a slot, from disk to memory, from elsewhere to disk.
    pub bandwidth: [f64; 3],
    /// What a load from elsewhere takes besides.
    pub remote_ms: f64,
    /// Time between heartbeats of a worker.
    pub heartbeat_ms: u64,
    /// Time between two epochs.
    pub epoch_ms: u64,
    /// Simulated time of a run.
    pub seconds: u64,
    /// The start, which is not measured.
    pub warm_up_seconds: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            workers: 16,
            gateways: 4,
            adapters: 4000,
            popularity_offset: 0,
            slots: 32,
            memory: 64,
            disk: 256,
            seats: 32,
            prefill_tokens_per_ms: 16.0,
            step_ms: 20.0,
            prompt_tokens: 400.0,
            output_tokens: 100.0,
            rank_bytes: 640 << 10,
            bandwidth: [10e6, 1e6, 125e3],
            remote_ms: 30.0,
            heartbeat_ms: 1000,
            epoch_ms: 3000,
            seconds: 900,
            warm_up_seconds: 300,
        }
    }
}

impl Shape {
    /// Requests a second that the seats of all workers can take.
    #[must_use]
    pub fn capacity_per_s(&self) -> f64 {
        let hold_ms = self.prompt_tokens / self.prefill_tokens_per_ms + self.output_tokens * self.step_ms;
        // Ranks make work dearer by 6 % in the mean.
        self.workers as f64 * self.seats as f64 * 1000.0 / (hold_ms * 1.06)
    }

    /// Rank of an adapter: 8 to 64, by its number.
    pub(crate) fn rank(adapter: u32) -> u32 {
        8 << (adapter.wrapping_mul(0x9e37_79b9) >> 30)
    }

    pub(crate) fn bytes(&self, adapter: u32) -> u64 {
        u64::from(Self::rank(adapter)) * self.rank_bytes
    }

    /// Time in the prompt queue and time of a seat besides, in milliseconds.
    pub(crate) fn work_ms(&self, arrival: &crate::Arrival) -> (f64, f64) {
        let dearer = 1.0 + f64::from(Self::rank(arrival.adapter)) / 512.0;
        let prefill = f64::from(arrival.prompt_tokens) / self.prefill_tokens_per_ms;
        (prefill * dearer, f64::from(arrival.output_tokens) * self.step_ms * dearer)
    }

    /// Time to bring an adapter into a slot from memory (1), disk (2) or elsewhere (3).
    pub(crate) fn load_ms(&self, adapter: u32, tier: u8) -> f64 {
        let bytes = self.bytes(adapter) as f64;
        let transfers: f64 = self.bandwidth.iter().take(usize::from(tier)).map(|bandwidth| bytes / bandwidth).sum();
        transfers + if tier == 3 { self.remote_ms } else { 0.0 }
    }
}
