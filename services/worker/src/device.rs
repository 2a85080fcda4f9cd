//! A worker's engine on a device, or on several: how their memory is shared out.
//!
//! One pool is taken of each device at the start, a part of what is free then. In it lie, in this order, the base, what a step needs, and in all that is left,
//! unless a setting says how much, blocks that keys, values and adapters share. A warm-up runs the largest steps before anybody is served: what is too large is
//! known at the start. Several devices have equal pools, of which the fullest decides, and equal parts of all that settings give out.

use weft_base_model::BaseModel;
use weft_cuda_device::{Device, Group, Options, Usage};
use weft_engine::Engine;
use weft_engine::device::{DeviceEngine, DeviceOptions, PoolBlocks, ShardedEngine, StepRoom, block_bytes};

use crate::Error;
use crate::compute::{Formats, Which};
use crate::drivers;
use crate::error::chain;
use crate::model::{self, BLOCK_SIZE};
use crate::settings::{Checked, machine_memory_bytes};

/// Device memory is given out in multiples of it: a page of 8 ranks of an adapter for 4096 columns.
const POOL_BLOCK_BYTES: usize = 64 << 10;
/// Pinned memory is given out in multiples of it, as slots are.
const PINNED_BLOCK_BYTES: usize = 4 << 10;
/// Rows of logits that there is room for at least, where a step has as many: each takes a row of the vocabulary.
const LOGITS_ROWS: usize = 64;
/// Pinned memory for loads that run, as a part of that for slots.
const LOADS_PART: u64 = 4;
/// Pinned memory while the base is copied, and what rounding to blocks takes.
const PINNED_SLACK_BYTES: u64 = 4 << 20;

/// An engine on a device, and what the worker should know of it.
pub(crate) struct Opened {
    pub(crate) engine: Engine,
    /// Compute capability, how many if not one, and as its driver calls it: gateways tell clients by its beginning that it is a GPU.
    pub(crate) name: String,
    /// Most memory for adapters, of all devices together: whole blocks.
    pub(crate) slot_bytes: u64,
    /// Of all devices together.
    pub(crate) block_bytes: u64,
    /// Blocks of the pool that adapters never take.
    pub(crate) kv_blocks: usize,
}

/// Opens the devices and brings the base there.
///
/// # Errors
/// [`Error::Start`] with the driver's words; [`Error::Settings`] if the sizes do not go together.
pub(crate) fn open(base: &BaseModel, checked: &Checked, which: &Which, formats: Formats) -> Result<Opened, Error> {
    let settings = &checked.settings;
    let of_kv = kv_blocks(base, checked, formats)?;
    // What is wrong with the limits is known before the base is read.
    model::token_limits(&base.config, settings, of_kv.most())?;
    let opened = drivers::open(which, &settings.device_kernels).map_err(|error| checked.failed(&error))?;
    let count = opened.len() as u64;
    let properties = opened[0].0.properties().clone();
    let free = opened.iter().map(|(driver, _)| driver.free_bytes()).collect::<Result<Vec<_>, _>>();
    let free = free.map_err(|error| checked.failed(&error))?.into_iter().min().unwrap_or(0) as u64;
    let pool_bytes = (free as f64 * settings.device_memory_fraction) as u64;
    // Heads are divided, so a device has an equal part of each block.
    let block_bytes = block_bytes(&base.config, BLOCK_SIZE, formats.kv, formats.precision) as u64;
    let wanted = checked.adapter_memory.bytes(Some(pool_bytes.saturating_mul(count)));
    let slots_wrong = |less_than: u64| {
        let message = format!(
            "{wanted} bytes, allowed on {count} devices is {block_bytes} (a block) to less than the {less_than} bytes that the base leaves of {} \
             (device_memory_fraction {} of {free} free bytes of each)",
            properties.name, settings.device_memory_fraction
        );
        Error::setting("adapter_memory_bytes", message)
    };
    if wanted < block_bytes || wanted >= pool_bytes.saturating_mul(count) {
        return Err(slots_wrong(pool_bytes.saturating_mul(count)));
    }
    let of_slots = usize::try_from(wanted / block_bytes).unwrap_or(usize::MAX);
    let slot_bytes = of_slots as u64 * block_bytes;
    let blocks = match of_kv {
        PoolBlocks::Exactly(blocks) => PoolBlocks::Exactly(blocks.saturating_add(of_slots)),
        PoolBlocks::UpTo(blocks) => PoolBlocks::UpTo(blocks.saturating_add(of_slots).min(u32::MAX as usize)),
    };
    let room = StepRoom {
        rows_max: settings.step_tokens_max,
        logits_rows_max: settings.step_tokens_max.min(settings.running_requests_max.max(LOGITS_ROWS)),
        sequences_max: settings.running_requests_max,
        block_size: BLOCK_SIZE,
    };
    let of_steps = room.pinned_bytes(&base.config) as u64 + PINNED_SLACK_BYTES;
    let pinned_slots = slot_bytes.saturating_add(slot_bytes / LOADS_PART).div_ceil(count);
    let pinned_bytes =
        pinned_slots.saturating_add(settings.adapter_prepared_bytes.div_ceil(count)).saturating_add(of_steps);
    if let Some(there) = machine_memory_bytes().filter(|there| pinned_bytes.saturating_mul(count) > *there) {
        let message = format!(
            "{} bytes, with {pinned_slots} for what is in slots (adapter_memory_bytes, adapter_memory_fraction) and {of_steps} for steps of each of \
             {count} devices, are more pinned memory than the {there} bytes of this machine",
            settings.adapter_prepared_bytes
        );
        return Err(Error::setting("adapter_prepared_bytes", message));
    }
    let options = Options {
        pool_bytes: usize::try_from(pool_bytes).unwrap_or(usize::MAX),
        pinned_bytes: usize::try_from(pinned_bytes).unwrap_or(usize::MAX),
        block_bytes: POOL_BLOCK_BYTES,
        pinned_block_bytes: PINNED_BLOCK_BYTES,
    };
    let device = |(driver, collective)| Device::new(driver, &options).map(|device| (device, collective));
    let devices = opened.into_iter().map(device).collect::<Result<Vec<_>, _>>();
    let devices = devices.map_err(|error| checked.failed(&error))?;
    let device = devices[0].0.clone();
    let options = DeviceOptions {
        device: device.clone(),
        precision: formats.precision,
        weights: formats.weights,
        kv: formats.kv,
        adapters: formats.adapters,
        batch_invariant: settings.batch_invariant,
        blocks,
        block_size: room.block_size,
        rows_max: room.rows_max,
        logits_rows_max: room.logits_rows_max,
        sequences_max: room.sequences_max,
        adapter_blocks_max: of_slots,
        // Of each device: each has a bus of its own.
        stream_bytes: usize::try_from(settings.adapter_stream_bytes.min(slot_bytes / count)).unwrap_or(usize::MAX),
        rank_max: settings.device_rank_max,
        graphs: settings.device_graphs,
    };
    let groups: Vec<Group> = devices
        .into_iter()
        .filter_map(|(device, collective)| collective.map(|collective| Group::new(&device, collective)))
        .collect();
    let (engine, graphs) = started(base, checked, options, groups)?;
    let Some(kv_blocks) = engine.kv_blocks().checked_sub(of_slots).filter(|blocks| *blocks > 0) else {
        return Err(slots_wrong(engine.kv_blocks() as u64 * block_bytes));
    };
    let Usage { free: free_bytes, .. } = device.usage();
    tracing::info!(
        device = properties.name,
        devices = count,
        pool_bytes,
        free_bytes,
        slot_bytes,
        blocks = engine.kv_blocks(),
        block_bytes,
        graphs,
        pinned_bytes,
        "the base is on the device"
    );
    let (major, minor) = properties.capability;
    let times = if count > 1 { format!("{count} x ") } else { String::new() };
    Ok(Opened {
        engine,
        name: format!("sm_{major}{minor} ({times}{})", properties.name),
        slot_bytes,
        block_bytes,
        kv_blocks,
    })
}

/// An engine that is warm, and how many graphs it has. No groups: on one device.
fn started(
    base: &BaseModel,
    checked: &Checked,
    options: DeviceOptions,
    groups: Vec<Group>,
) -> Result<(Engine, usize), Error> {
    let cold = |error| Error::Start { model: checked.model.clone(), problem: format!("warm-up: {}", chain(&error)) };
    if groups.is_empty() {
        let mut engine = DeviceEngine::new(base, options).map_err(|error| checked.failed(&error))?;
        engine.warm_up().map_err(cold)?;
        let graphs = engine.graphs();
        return Ok((Engine::Device(Box::new(engine)), graphs));
    }
    let mut engine = ShardedEngine::new(base, &options, groups).map_err(|error| checked.failed(&error))?;
    engine.warm_up().map_err(cold)?;
    let graphs = engine.graphs();
    Ok((Engine::Sharded(Box::new(engine)), graphs))
}

/// Blocks that adapters never take, by the settings; without one all that is left.
fn kv_blocks(base: &BaseModel, checked: &Checked, formats: Formats) -> Result<PoolBlocks, Error> {
    let settings = &checked.settings;
    let most = model::kv_blocks_of_tokens(settings);
    if settings.kv_memory_bytes == 0 {
        return Ok(PoolBlocks::UpTo(most));
    }
    let block_bytes = block_bytes(&base.config, BLOCK_SIZE, formats.kv, formats.precision);
    let by_memory = model::blocks_of_memory(settings.kv_memory_bytes, block_bytes)?;
    Ok(PoolBlocks::Exactly(by_memory.min(most)))
}
