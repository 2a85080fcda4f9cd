//! A step on a device: the operations of `forward` as launches on one stream.

use super::activations::{Activations, Buffers};
use super::draws::{Memory, Piece};
use super::kv::KvFormat;
use super::pool::Pool;
use super::precision::Precision;
use super::products::Workspace;
use super::ranks::Together;
use super::shard::Shard;
use super::slots::Resident;
use super::streamed::Streaming;
use super::tables::{Layout, SiteTable, site_number};
use super::weights::Weights;
use crate::Error;
use crate::forward::{Backend, Norm};
use crate::shape::{Shape, Site};
use weft_cuda_device::{Access, Argument, Buffer, Counts, Device, Event, Launch, Stream, View};
use weft_cuda_kernels::attention::{self, Grid};
use weft_cuda_kernels::pack::Format;
use weft_cuda_kernels::table::{self, Path};

/// Threads of a block; as in the `.cu` files.
const ROW_THREADS: u32 = 256;
const ROPE_THREADS: u32 = 128;
/// Columns of a block of `silu_mul.cu`.
const SILU_COLUMNS: usize = 2048;

/// How the adapters of a site are launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoraLaunch {
    pub(crate) path: Path,
    /// The most that the launch shall hold.
    pub(crate) items: usize,
    pub(crate) rank_max: usize,
    /// The most of DoRA's items; zero: no launch for them.
    pub(crate) scaled: usize,
}

/// One step, or the capture of one.
pub(crate) struct Step<'a> {
    pub(crate) shape: &'a Shape,
    pub(crate) precision: Precision,
    pub(crate) device: &'a Device,
    pub(crate) stream: &'a Stream,
    pub(crate) weights: &'a Weights,
    pub(crate) products: &'a Workspace,
    pub(crate) pool: &'a Pool,
    pub(crate) kv_format: KvFormat,
    /// Of adapters.
    pub(crate) adapters: Format,
    pub(crate) buffers: &'a Buffers,
    pub(crate) tables: &'a Buffer,
    pub(crate) layout: Layout,
    pub(crate) attention: attention::Layer,
    /// How rows of prompts are launched, and what they cost in a layer.
    pub(crate) prefill: (attention::Path, attention::Work),
    /// Longest context that it serves.
    pub(crate) positions: usize,
    /// By [`site_number`]; none: no adapter touches the site. Empty: the step has none.
    pub(crate) lora: Vec<Option<LoraLaunch>>,
    /// Of the adapters that are on their way: events of their layers.
    pub(crate) coming: Vec<&'a [Event]>,
    /// Where matrices of adapters lie.
    pub(crate) adapter_memory: Vec<Access<'a>>,
    /// Adapters without blocks; none: there are no such.
    pub(crate) streaming: Option<Streaming<'a>>,
    pub(crate) sampling: &'a Memory,
    /// The first one's logits and tokens belong to the forward pass.
    pub(crate) pieces: Vec<Piece>,
    /// None: the device has the whole base.
    pub(crate) together: Option<Together<'a>>,
}

/// The launches for these tables.
pub(crate) fn lora_launches(sites: &[SiteTable]) -> Vec<Option<LoraLaunch>> {
    let launch = |site: &SiteTable| {
        let (items, scaled) = (site.items.len(), site.scaled.len());
        site.path.map(|path| LoraLaunch { path, items, rank_max: site.rank_max(), scaled })
    };
    sites.iter().map(launch).collect()
}

/// Events of those adapters that are not all there.
pub(crate) fn coming<'a>(adapters: impl Iterator<Item = &'a Resident>) -> Vec<&'a [Event]> {
    adapters.map(|adapter| &adapter.coming[..]).filter(|events| !events.is_empty()).collect()
}

impl Step<'_> {
    pub(crate) fn part(&self, range: std::ops::Range<usize>) -> Result<View<'_>, Error> {
        Ok(self.tables.part(range)?)
    }

    pub(crate) fn named(&self, kernel: &str) -> String {
        format!("weft_{kernel}_{}", self.precision.suffix())
    }

    pub(crate) fn launch(&self, launch: &Launch<'_>) -> Result<(), Error> {
        // SAFETY: every argument is a view with the shape that the kernel takes, as the launches below make them from one `Shape`; tables were
        // written from a plan that was checked against the pages, the slots and the vocabulary.
        Ok(unsafe { self.stream.launch(launch) }?)
    }

    /// A kernel of plain rows: everything that it touches is an argument.
    pub(crate) fn launch_rows(
        &self,
        kernel: &str,
        (grid, threads): ([u32; 2], u32),
        arguments: &[Argument<'_>],
        [read_bytes, written_bytes]: [u64; 2],
    ) -> Result<(), Error> {
        self.launch(&Launch {
            kernel: &self.named(kernel),
            grid: [grid[0], grid[1], 1],
            threads,
            shared_bytes: 0,
            arguments,
            through_tables: &[],
            counts: Counts { read_bytes, written_bytes, operations: 0 },
        })
    }

    /// A kernel of attention or of its pages.
    fn launch_attention(
        &self,
        kernel: &str,
        grid: Grid,
        arguments: &[Argument<'_>],
        counts: Counts,
    ) -> Result<(), Error> {
        let Grid { grid, shared_bytes } = grid;
        let threads = attention::THREADS;
        self.launch(&Launch { kernel, grid, threads, shared_bytes, arguments, through_tables: &[], counts })
    }

    fn norm_weight(&self, norm: Norm) -> &Buffer {
        match norm {
            Norm::Input(layer) => &self.weights.layers[layer].input_norm,
            Norm::Post(layer) => &self.weights.layers[layer].post_norm,
            Norm::Final => &self.weights.final_norm,
        }
    }

    /// How names of kernels over pages end.
    fn kv_suffix(&self) -> String {
        format!("{}_{}", self.precision.suffix(), self.kv_format.suffix(self.precision))
    }

    /// Scales of a layer's keys and values.
    fn kv_scales(&self, layer: usize) -> [Argument<'_>; 2] {
        let scales = self.weights.kv_scales.get(layer);
        scales.map_or([Argument::Null; 2], |both| both.each_ref().map(|scales| scales.all().reads().in_parts().into()))
    }

    /// Bytes of this many elements.
    pub(crate) fn bytes(&self, elements: usize) -> u64 {
        (elements * self.precision.bytes()) as u64
    }

    /// The logits of a piece, where those of the one before were, and the tokens that are drawn from them. `x`: the wanted rows after the last norm.
    pub(crate) fn answer(&self, x: &Activations, piece: usize) -> Result<(), Error> {
        let rows = &self.pieces[piece].rows;
        let bytes = |rows: usize| rows * self.shape.hidden * self.precision.bytes();
        let x = self.buffers.normed(x)?.part(bytes(rows.start)..bytes(rows.end))?;
        self.logits(x, rows.len())?;
        if self.answers() { self.sample(piece) } else { Ok(()) }
    }

    fn gather(&self, from: View<'_>, numbers: View<'_>, to: View<'_>, rows: usize, width: usize) -> Result<(), Error> {
        let bytes = self.bytes(rows * width);
        self.launch_rows(
            "gather_rows",
            ([rows as u32, 1], ROW_THREADS),
            &[from.reads().in_parts().into(), numbers.reads().into(), to.writes().into(), Argument::I32(width as i32)],
            [bytes + 4 * rows as u64, bytes],
        )
    }

    fn rope(&self, x: View<'_>, heads: usize, rows: usize) -> Result<(), Error> {
        let shape = self.shape;
        let bytes = self.bytes(rows * heads * shape.head_dim);
        self.launch_rows(
            "rope",
            ([rows as u32, 1], ROPE_THREADS),
            &[
                x.writes().in_parts().into(),
                Argument::I32(heads as i32),
                Argument::I32(shape.head_dim as i32),
                Argument::I32(shape.qkv_width() as i32),
                self.part(self.layout.positions())?.reads().into(),
                self.weights.inv_freq.all().reads().into(),
                Argument::F32(shape.attention_factor),
            ],
            [bytes, bytes],
        )
    }

    fn add_adapters(
        &self,
        site: usize,
        x: View<'_>,
        inputs: usize,
        out: View<'_>,
        outputs: usize,
    ) -> Result<(), Error> {
        let Some(LoraLaunch { path, items, rank_max, .. }) = self.lora.get(site).copied().flatten() else {
            return Ok(());
        };
        let multiprocessors = self.device.properties().multiprocessors;
        let shape = table::shape(path, items, rank_max, outputs, multiprocessors)?;
        let [items, targets, count] = self.layout.lora(site);
        self.launch(&Launch {
            kernel: &table::kernel(path, self.precision.format(), self.adapters)?,
            grid: shape.grid,
            threads: table::THREADS,
            shared_bytes: shape.shared_bytes,
            arguments: &[
                x.reads().in_parts().into(),
                Argument::I32(inputs as i32),
                out.writes().in_parts().into(),
                Argument::I32(outputs as i32),
                self.part(items)?.reads().into(),
                self.part(targets)?.reads().into(),
                self.part(count)?.reads().into(),
                Argument::I32(shape.shrunk_stride as i32),
                Argument::I32(shape.columns_per_block as i32),
            ],
            through_tables: &self.adapter_memory,
            counts: Counts::default(),
        })
    }
}

impl Backend for Step<'_> {
    type Rows = Activations;

    fn rows(&mut self) -> Result<Activations, Error> {
        Ok(Activations { rows: self.layout.caps.rows, is_part: false })
    }

    fn embed(&mut self, x: &Activations) -> Result<(), Error> {
        let width = self.shape.hidden;
        let tokens = self.part(self.layout.tokens())?;
        let residual = self.buffers.residual(x)?;
        self.gather(self.weights.embeddings.all(), tokens, residual, x.rows, width)
    }

    fn norm(&mut self, norm: Norm, x: &Activations) -> Result<(), Error> {
        let bytes = self.bytes(x.rows * self.shape.hidden);
        self.launch_rows(
            "rms_norm",
            ([x.rows as u32, 1], ROW_THREADS),
            &[
                self.buffers.residual(x)?.reads().into(),
                self.norm_weight(norm).all().reads().into(),
                Argument::F32(self.shape.rms_eps),
                self.buffers.normed(x)?.writes().into(),
                Argument::I32(self.shape.hidden as i32),
            ],
            [bytes, bytes],
        )
    }

    fn add_norm(&mut self, norm: Norm, x: &Activations) -> Result<(), Error> {
        let bytes = self.bytes(x.rows * self.shape.hidden);
        self.launch_rows(
            "add_rms_norm",
            ([x.rows as u32, 1], ROW_THREADS),
            &[
                self.buffers.residual(x)?.writes().into(),
                self.buffers.delta(x)?.reads().into(),
                self.norm_weight(norm).all().reads().into(),
                Argument::F32(self.shape.rms_eps),
                self.buffers.normed(x)?.writes().into(),
                Argument::I32(self.shape.hidden as i32),
            ],
            [2 * bytes, 2 * bytes],
        )
    }

    fn linear(&mut self, layer: usize, site: Site, x: &Activations) -> Result<(), Error> {
        let shape = self.shape;
        let buffers = self.buffers;
        let (input, inputs, out, outputs) = match site {
            Site::Qkv => (buffers.normed(x)?, shape.hidden, buffers.qkv(x)?, shape.qkv_width()),
            Site::Output => (buffers.attention(x)?, shape.q_width(), buffers.delta(x)?, shape.hidden),
            Site::GateUp => (buffers.normed(x)?, shape.hidden, buffers.gate_up(x)?, 2 * shape.intermediate),
            Site::Down => (buffers.activated(x)?, shape.intermediate, buffers.delta(x)?, shape.hidden),
        };
        let weights = self.weights.layers[layer].site(site);
        self.product(weights, x.rows, [inputs, outputs], input, (out, self.precision.of()))?;
        if site == Site::Qkv {
            // Adapters that are still on their way: the first site of a layer waits for that layer.
            for events in &self.coming {
                self.stream.wait(&events[layer])?;
            }
            if let Some(streaming) = &self.streaming {
                streaming.wait_for(layer, self.stream)?;
            }
        }
        let number = site_number(layer, site, shape.layers, x.is_part);
        self.add_adapters(number, input, inputs, out, outputs)?;
        self.scale_columns(number, out, outputs)?;
        if site == Site::Down
            && let Some(streaming) = &self.streaming
        {
            streaming.passed(layer, self.stream)?;
        }
        // A rank has all of some outputs, or a part of each output's sum: adapters and their factors are in it.
        if Shard::is_by_outputs(site) { Ok(()) } else { self.add_up(out) }
    }

    fn store(&mut self, layer: usize, x: &Activations) -> Result<(), Error> {
        let shape = self.shape;
        let qkv = self.buffers.qkv(x)?;
        let bytes = self.precision.bytes();
        let after = |columns: usize| qkv.part(columns * bytes..qkv.bytes());
        self.rope(qkv, shape.heads, x.rows)?;
        let k = after(shape.q_width())?;
        self.rope(k, shape.kv_heads, x.rows)?;
        let v = after(shape.q_width() + shape.kv_width())?;
        let (suffix, kv_bytes) = (self.kv_suffix(), self.kv_format.bytes(self.precision));
        let [k_scale, v_scale] = self.kv_scales(layer);
        let described = self.attention.shape(self.layout.caps.table_stride, [shape.qkv_width(), shape.q_width()])?;
        let [keys, values] = self.pool.keys_and_values(layer)?;
        for ([items, count], most) in
            [(self.layout.prefill(), self.layout.caps.prefill), (self.layout.decode(), self.layout.caps.decode)]
        {
            if most == 0 {
                continue;
            }
            let grid = attention::write_grid(most);
            let elements = x.rows * shape.kv_width() * 2;
            self.launch_attention(
                &format!("weft_kv_write_{suffix}"),
                grid,
                &[
                    k.reads().in_parts().into(),
                    v.reads().in_parts().into(),
                    Argument::I32(shape.qkv_width() as i32),
                    Argument::I32(shape.qkv_width() as i32),
                    self.part(items)?.reads().into(),
                    self.part(count)?.reads().into(),
                    self.part(self.layout.block_tables())?.reads().into(),
                    Argument::Bytes(bytemuck::bytes_of(&described)),
                    keys.writes().in_parts().into(),
                    values.writes().in_parts().into(),
                    k_scale,
                    v_scale,
                ],
                Counts { read_bytes: self.bytes(elements), written_bytes: (elements * kv_bytes) as u64, operations: 0 },
            )?;
        }
        Ok(())
    }

    fn attend(&mut self, layer: usize, x: &Activations) -> Result<(), Error> {
        let shape = self.shape;
        let (suffix, kv_bytes) = (self.kv_suffix(), self.kv_format.bytes(self.precision));
        let [k_scale, v_scale] = self.kv_scales(layer);
        let described = self.attention.shape(self.layout.caps.table_stride, [shape.qkv_width(), shape.q_width()])?;
        let (q, out) = (self.buffers.qkv(x)?, self.buffers.attention(x)?);
        let [keys, values] = self.pool.keys_and_values(layer)?.map(|pages| pages.reads().in_parts());
        let block_tables = self.part(self.layout.block_tables())?.reads();
        let Layout { caps, .. } = self.layout;
        if caps.prefill > 0 {
            let (path, work) = self.prefill;
            let grid = attention::prefill_grid(&self.attention, path, caps.prefill, kv_bytes);
            let [items, count] = self.layout.prefill();
            self.launch_attention(
                &path.kernel(&self.attention, &suffix),
                grid,
                &[
                    q.reads().in_parts().into(),
                    self.part(items)?.reads().into(),
                    self.part(count)?.reads().into(),
                    block_tables.into(),
                    Argument::Bytes(bytemuck::bytes_of(&described)),
                    keys.into(),
                    values.into(),
                    k_scale,
                    v_scale,
                    out.writes().in_parts().into(),
                ],
                Counts {
                    read_bytes: work.read_bytes as u64,
                    written_bytes: work.written_bytes as u64,
                    operations: work.operations as u64,
                },
            )?;
        }
        if caps.decode == 0 {
            return Ok(());
        }
        let multiprocessors = self.device.properties().multiprocessors;
        let layer = &self.attention;
        let grid = attention::decode_grid(layer, caps.decode, self.positions, kv_bytes, multiprocessors);
        let [items, count] = self.layout.decode();
        let (items, count) = (self.part(items)?.reads(), self.part(count)?.reads());
        let (partials, sums) = (self.buffers.partials.all(), self.buffers.sums.all());
        self.launch_attention(
            &format!("weft_attention_decode_{suffix}"),
            grid,
            &[
                q.reads().in_parts().into(),
                items.into(),
                count.into(),
                block_tables.into(),
                Argument::Bytes(bytemuck::bytes_of(&described)),
                keys.into(),
                values.into(),
                k_scale,
                v_scale,
                Argument::I32(attention::decode_block_heads(layer) as i32),
                partials.writes().in_parts().into(),
                sums.writes().in_parts().into(),
                out.writes().in_parts().into(),
            ],
            Counts::default(),
        )?;
        let grid = attention::combine_grid(layer, caps.decode);
        self.launch_attention(
            &self.named("attention_combine"),
            grid,
            &[
                items.into(),
                count.into(),
                Argument::Bytes(bytemuck::bytes_of(&described)),
                v_scale,
                partials.reads().in_parts().into(),
                sums.reads().in_parts().into(),
                out.writes().in_parts().into(),
            ],
            Counts::default(),
        )
    }

    fn silu_mul(&mut self, x: &Activations) -> Result<(), Error> {
        let inter = self.shape.intermediate;
        let bytes = self.bytes(x.rows * inter);
        self.launch_rows(
            "silu_mul",
            ([inter.div_ceil(SILU_COLUMNS) as u32, x.rows as u32], ROW_THREADS),
            &[
                self.buffers.gate_up(x)?.reads().into(),
                self.buffers.activated(x)?.writes().into(),
                Argument::I32(inter as i32),
            ],
            [2 * bytes, bytes],
        )
    }

    fn wanted(&mut self, x: Activations) -> Result<Activations, Error> {
        let rows = self.layout.caps.wanted;
        if rows == x.rows {
            return Ok(x);
        }
        let part = Activations { rows, is_part: true };
        let numbers = self.part(self.layout.wanted())?;
        let (hidden, q_width) = (self.shape.hidden, self.shape.q_width());
        self.gather(self.buffers.residual(&x)?, numbers, self.buffers.residual(&part)?, rows, hidden)?;
        self.gather(self.buffers.attention(&x)?, numbers, self.buffers.attention(&part)?, rows, q_width)?;
        Ok(part)
    }

    fn head(&mut self, x: &Activations) -> Result<(), Error> {
        self.answer(x, 0)
    }
}
