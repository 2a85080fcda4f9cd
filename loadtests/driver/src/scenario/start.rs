//! How long from the start of the process until it serves, and how much memory does it hold then?

use super::{Findings, Setup, Stage, Verdict};
use crate::stats::median;
use crate::weft::{Memory, attention_lora};
use anyhow::{Context, Result};
use serde_json::json;

/// How often.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Starts; the median counts
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Adapters that are resident when memory is read
    #[arg(long, default_value_t = 32)]
    pub adapters: usize,
    /// Bytes of the keys and values, given to the mesh so that they are known
    #[arg(long, default_value_t = 64 << 20)]
    pub kv_bytes: u64,
}

const TENANT: &str = "start";

/// Bytes of a weight of the layers and of the output matrix, which keeps 8 bits under 4-bit layers. A scale (4 bits: and a
/// minimum) comes with every 32 weights.
fn bytes_of(dtype: &str) -> Option<(f64, f64)> {
    match dtype {
        "f32" => Some((4.0, 4.0)),
        "bf16" => Some((2.0, 2.0)),
        "int8" => Some((1.125, 1.125)),
        "q4" => Some((0.625, 1.125)),
        _ => None,
    }
}

/// Measures it. Memory only of a mesh in a process of its own.
///
/// # Errors
/// The mesh fails.
pub async fn run(setup: &Setup, options: &Options) -> Result<Findings> {
    let model = setup.launcher.model().await?;
    let settings = ["--worker-kv-memory-bytes".to_owned(), options.kv_bytes.to_string()];
    let mut starts = Vec::new();
    for _ in 0..options.rounds.max(1) {
        let weft = setup.launcher.up(&settings).await?;
        starts.push(weft.started().as_secs_f64());
        weft.stop().await?;
    }
    let stage = Stage::set(setup, &settings, &[TENANT], model.vocab_size).await?;
    let names = stage.weft.publish(TENANT, "start", &attention_lora(&model, 8), options.adapters).await?;
    stage.touch(TENANT, &names).await?;
    let dtype = stage.weft.dtype().await?;
    let (layer_bytes, head_bytes) = bytes_of(&dtype).with_context(|| format!("unknown dtype {dtype}"))?;
    let slots = stage.weft.metric("worker_slot_bytes_used").await?;
    let memory = stage.weft.memory();
    stage.weft.stop().await?;
    let layers: usize = model.linears().iter().map(|linear| linear.in_features * linear.out_features).sum();
    let embeddings = model.vocab_size * model.hidden_size;
    let weights = (layers * model.layers) as f64 * layer_bytes + embeddings as f64 * head_bytes;
    let needed = weights + options.kv_bytes as f64 + slots;
    let seconds = median(&starts);
    let held = |memory: Memory| (memory.now_bytes - memory.file_bytes) as f64;
    let ratio = memory.map_or(f64::NAN, |memory| held(memory) / needed);
    let mb = |bytes: f64| bytes / 1e6;
    let mut table = format!(
        "process start to serving: {seconds:.2} s (median of {}, {:.2} to {:.2})\n",
        starts.len(),
        starts.iter().copied().fold(f64::INFINITY, f64::min),
        starts.iter().copied().fold(0.0, f64::max)
    );
    if let Some(memory) = memory {
        table.push_str(&format!(
            "memory: {:.0} MB held, {:.0} MB of mapped files; floor: {dtype} weights {:.0} + KV {:.0} + slots {:.0} = {:.0} MB; x floor {ratio:.2}\n",
            mb(held(memory)), mb(memory.file_bytes as f64), mb(weights), mb(options.kv_bytes as f64), mb(slots), mb(needed)
        ));
    }
    let mut verdicts = vec![Verdict::at_most("seconds from process start to serving", seconds, 1.5)];
    if memory.is_some() {
        verdicts.push(Verdict::at_most("memory held ÷ weights, KV and slots", ratio, 1.3));
    }
    Ok(Findings {
        name: "start",
        table,
        figures: json!({
            "seconds": starts, "memory": memory, "weight_bytes": weights, "kv_bytes": options.kv_bytes,
            "slot_bytes": slots, "ratio": ratio, "dtype": dtype,
        }),
        charts: Vec::new(),
        verdicts,
    })
}
