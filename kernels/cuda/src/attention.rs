//! From the sequences of a step to the device tables of attention, and the shapes of its launches. No IO, no device.

use crate::pack::Format;
use std::collections::BTreeMap;
use std::ops::Range;
use weft_kernels::AttentionSeq;

/// Threads of a block; as in `attention.cuh`.
pub const THREADS: u32 = 128;
/// Warps of a block.
const WARPS: usize = 4;
/// Widest head: 32 lanes with 8 features each.
pub const HEAD_DIM_MAX: usize = 256;
/// Query heads of one key head that a decoding block takes; more of them take several blocks, which read the keys again, from L2.
pub const DECODE_HEADS: usize = 8;
/// Rows of a block on tensor cores: 16 of each warp.
pub const TENSOR_ROWS: usize = 64;
/// Positions of the smallest split of a context.
pub const SPLIT_POSITIONS: usize = 256;
/// Splits of a context until they grow.
pub const SPLITS: usize = 128;
/// Most positions of a sequence: sums of positions stay below 2^31.
pub const POSITIONS_MAX: usize = 1 << 30;
/// Largest y and z of a grid.
const GRID_MAX: usize = 65_535;

/// What attention is not launched with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A number out of its range.
    #[error("attention: {field} is {value}, not within {least} to {most}")]
    Range {
        /// Which.
        field: &'static str,
        /// What it is.
        value: usize,
        /// Least that it may be.
        least: usize,
        /// Most that it may be.
        most: usize,
    },
    /// Query heads do not share key heads evenly.
    #[error("attention: heads is {heads}, not a multiple of kv_heads {kv_heads}")]
    Group {
        /// Query heads.
        heads: usize,
        /// Key heads.
        kv_heads: usize,
    },
    /// A factor that is not a finite number, or a soft cap or e4m3 scale that is not above zero.
    #[error("attention: {field} is {value}")]
    Factor {
        /// Which.
        field: &'static str,
        /// What it is.
        value: f32,
    },
    /// A slice of another length than its shape says.
    #[error("attention: {field} has {len} values, not {needed}")]
    Length {
        /// Which.
        field: &'static str,
        /// What it has.
        len: usize,
        /// What it must have.
        needed: usize,
    },
    /// Rows that would overlap, or that 32 bits do not reach.
    #[error("attention: rows of {field} are {stride} apart, not within {width} to {most}")]
    Stride {
        /// Whose.
        field: &'static str,
        /// Elements between them.
        stride: usize,
        /// Elements of each.
        width: usize,
        /// Most that may be between them.
        most: usize,
    },
    /// Rows of a sequence beyond those of the step, or those of another.
    #[error("attention: rows {start}..{end} overlap others, or the end of {rows} rows")]
    Rows {
        /// First row.
        start: usize,
        /// Row after the last.
        end: usize,
        /// Rows of the step.
        rows: usize,
    },
    /// A block table ends too early.
    #[error("attention: {blocks} blocks of {block_size} do not cover {positions} positions")]
    Coverage {
        /// Blocks of the sequence.
        blocks: usize,
        /// Positions of each.
        block_size: usize,
        /// Positions after the step.
        positions: usize,
    },
    /// The launch itself.
    #[cfg(feature = "shim")]
    #[error(transparent)]
    Launch(#[from] crate::host::Error),
}

fn within(field: &'static str, value: usize, range: std::ops::RangeInclusive<usize>) -> Result<(), Error> {
    let (least, most) = (*range.start(), *range.end());
    if range.contains(&value) { Ok(()) } else { Err(Error::Range { field, value, least, most }) }
}

/// `Ok` if a slice has as many values as its shape says.
///
/// # Errors
///
/// [`Error::Length`].
pub fn length(field: &'static str, len: usize, needed: usize) -> Result<(), Error> {
    if len == needed { Ok(()) } else { Err(Error::Length { field, len, needed }) }
}

/// `Ok` if rows of `width` elements may begin `stride` apart. `field`: what has them.
///
/// # Errors
///
/// [`Error::Stride`].
pub fn stride(field: &'static str, stride: usize, width: usize) -> Result<(), Error> {
    let most = i32::MAX as usize;
    if (width..=most).contains(&stride) { Ok(()) } else { Err(Error::Stride { field, stride, width, most }) }
}

/// The attention of one layer of a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Layer {
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Their width, up to [`HEAD_DIM_MAX`].
    pub head_dim: usize,
    /// Positions of a page.
    pub block_size: usize,
    /// Rows of pages, of [`page_stride`] elements each, between a block and the next, where other things lie between; none: `kv_heads * block_size`.
    pub block_rows: Option<usize>,
    /// Positions that a row sees, its own included.
    pub window: Option<usize>,
    /// Multiplies scores.
    pub scale: f32,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
}

/// `AttentionShape` of `attention.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::NoUninit)]
pub struct Shape {
    heads: i32,
    kv_heads: i32,
    head_dim: i32,
    block_size: i32,
    block_rows: i32,
    table_stride: i32,
    q_stride: i32,
    out_stride: i32,
    window: i32,
    scale: f32,
    soft_cap: f32,
}

impl Layer {
    /// # Errors
    ///
    /// [`Error`] names the field that is out of its range.
    pub fn check(&self) -> Result<(), Error> {
        within("kv_heads", self.kv_heads, 1..=GRID_MAX)?;
        within("heads", self.heads, 1..=GRID_MAX)?;
        within("head_dim", self.head_dim, 1..=HEAD_DIM_MAX)?;
        within("block_size", self.block_size, 1..=POSITIONS_MAX)?;
        within("window", self.window.unwrap_or(1), 1..=POSITIONS_MAX)?;
        within("block_rows", self.rows_of_block(), self.own_rows()..=i32::MAX as usize)?;
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::Group { heads: self.heads, kv_heads: self.kv_heads });
        }
        if !self.scale.is_finite() {
            return Err(Error::Factor { field: "scale", value: self.scale });
        }
        match self.soft_cap {
            Some(cap) if !(cap.is_finite() && cap > 0.0) => Err(Error::Factor { field: "soft_cap", value: cap }),
            _ => Ok(()),
        }
    }

    /// Query heads for each key head.
    #[must_use]
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Of keys, or of values, in a block.
    fn own_rows(&self) -> usize {
        self.kv_heads.saturating_mul(self.block_size)
    }

    /// From one block to the next.
    pub(crate) fn rows_of_block(&self) -> usize {
        self.block_rows.unwrap_or(self.own_rows())
    }

    /// What a launch is told. `strides`: elements between rows of q, and of out.
    ///
    /// # Errors
    ///
    /// When a stride is less than a row, or too large.
    pub fn shape(&self, table_stride: usize, [q_stride, out_stride]: [usize; 2]) -> Result<Shape, Error> {
        self.check()?;
        stride("q", q_stride, self.heads * self.head_dim)?;
        stride("out", out_stride, self.heads * self.head_dim)?;
        within("table_stride", table_stride, 0..=POSITIONS_MAX)?;
        Ok(Shape {
            heads: self.heads as i32,
            kv_heads: self.kv_heads as i32,
            head_dim: self.head_dim as i32,
            block_size: self.block_size as i32,
            block_rows: self.rows_of_block() as i32,
            table_stride: table_stride as i32,
            q_stride: q_stride as i32,
            out_stride: out_stride as i32,
            window: self.window.unwrap_or(0) as i32,
            scale: self.scale,
            soft_cap: self.soft_cap.unwrap_or(0.0),
        })
    }

    /// Elements from the first to the last of all pages, keys or values: `[blocks, block_rows, page_stride]`.
    ///
    /// # Errors
    ///
    /// When there are more positions of heads than 32 bits count.
    pub fn page_elements(&self, blocks: usize, kv_bytes: usize) -> Result<usize, Error> {
        self.check()?;
        let each = self.rows_of_block();
        // The number after the last means that there is nothing.
        within("blocks", blocks, 0..=(u32::MAX as usize - 1) / each)?;
        Ok(blocks * each * page_stride(self.head_dim, kv_bytes))
    }

    /// Tokens of an item of a prompt: as many as fill the rows of a block.
    #[must_use]
    pub fn tokens_per_item(&self, path: Path) -> usize {
        let rows = match path {
            Path::Prefill => prefill_rows(self.head_dim),
            Path::Tensor => TENSOR_ROWS,
        };
        (rows / self.group()).max(1)
    }

    /// First position that a row at `position` sees.
    fn lowest(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }
}

/// Which kernel the rows of prompts take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Path {
    /// The sums of decoding, in f32: a row has the same bits alone and in a prompt.
    #[default]
    Prefill,
    /// Tensor cores.
    Tensor,
}

/// What the choice of a kernel depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Format of the activations; those in f32 have no kernel on tensor cores.
    pub activations: Format,
    /// A row must have the same bits whatever shares the step. Tensor cores add in an order of their own, and a row meets them or not by
    /// whether the step has more rows of its sequence: they are not used then.
    pub batch_invariant: bool,
}

impl Path {
    /// For rows of prompts, whatever their heads are.
    #[must_use]
    pub fn of(choice: Choice) -> Self {
        let has_tensor_cores = matches!(choice.activations, Format::Bf16 | Format::F16);
        if has_tensor_cores && !choice.batch_invariant { Self::Tensor } else { Self::Prefill }
    }

    /// The kernel's name. `suffix`: the types of activations and pages, as in `bf16_e4m3`.
    #[must_use]
    pub fn kernel(self, layer: &Layer, suffix: &str) -> String {
        match self {
            Self::Prefill => format!("weft_attention_prefill_{suffix}"),
            Self::Tensor => format!("weft_attention_tensor_{}_{suffix}", tensor_width(layer.head_dim)),
        }
    }
}

/// Features that the kernel for a head has: there is one for each of three widths.
fn tensor_width(head_dim: usize) -> usize {
    head_dim.next_power_of_two().clamp(64, HEAD_DIM_MAX)
}

/// Positions of a tile; as in `attention_tensor.cu`.
fn tensor_positions(head_dim: usize) -> usize {
    if tensor_width(head_dim) > 128 { 16 } else { 64 }
}

/// Elements between neighbouring positions of a page: whole pieces of 16 bytes.
#[must_use]
pub fn page_stride(head_dim: usize, kv_bytes: usize) -> usize {
    head_dim.next_multiple_of(16 / kv_bytes)
}

/// Positions of a split of a row that sees `seen`. The order of additions follows from it, so it depends on nothing else.
#[must_use]
pub fn split_positions(seen: usize) -> usize {
    let mut size = SPLIT_POSITIONS;
    while size * SPLITS < seen {
        size *= 2;
    }
    size
}

/// Splits of a row at `position`.
#[must_use]
pub fn splits(position: usize, window: Option<usize>) -> usize {
    let low = window.map_or(0, |window| (position + 1).saturating_sub(window));
    let size = split_positions(position + 1 - low);
    position / size - low / size + 1
}

/// Most results of splits that `items` rows at up to `positions` positions leave in memory, whatever their lengths.
#[must_use]
pub fn partials_max(items: usize, positions: usize, window: Option<usize>) -> usize {
    // A window may begin within a split.
    let seen = window.map_or(positions, |window| window.min(positions));
    items * (seen.div_ceil(SPLIT_POSITIONS).min(SPLITS) + usize::from(window.is_some()))
}

/// Neighbouring rows of one sequence. The layout of `AttentionItem` on the device, 20 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::NoUninit)]
pub struct Item {
    /// The first of them.
    pub first_row: u32,
    /// How many.
    pub rows: u32,
    /// Which block table.
    pub sequence: u32,
    /// Position of the first row.
    pub start: u32,
    /// Where results of its splits begin; zero but for decoding.
    pub first_partial: u32,
}

/// The device tables of a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// What `prefill` was cut for.
    pub path: Path,
    /// Rows of prompts, those that see most first, so that the last blocks to run are short.
    pub prefill: Vec<Item>,
    /// Single rows.
    pub decode: Vec<Item>,
    /// `[sequences, table_stride]`.
    pub block_tables: Vec<u32>,
    /// Blocks of the longest sequence.
    pub table_stride: usize,
    /// Results of splits that `decode` needs room for.
    pub partials: usize,
}

impl Step {
    /// Cuts sequences into items. A sequence without rows makes none; blocks beyond its positions are not looked at.
    ///
    /// # Errors
    ///
    /// When rows overlap or exceed `rows`, blocks do not cover their positions, or a block is not among `blocks`.
    pub fn new(
        layer: &Layer,
        path: Path,
        rows: usize,
        blocks: usize,
        seqs: &[AttentionSeq<'_>],
    ) -> Result<Self, Error> {
        layer.check()?;
        within("rows", rows, 0..=i32::MAX as usize)?;
        disjoint(rows, seqs.iter().map(|seq| &seq.rows))?;
        let used = |seq: &AttentionSeq<'_>| (seq.start + seq.rows.len()).div_ceil(layer.block_size);
        for seq in seqs.iter().filter(|seq| !seq.rows.is_empty()) {
            let positions = seq.start.saturating_add(seq.rows.len());
            within("positions", positions, 1..=POSITIONS_MAX)?;
            let covered = seq.blocks.len().saturating_mul(layer.block_size);
            if covered < positions {
                let (blocks, block_size) = (seq.blocks.len(), layer.block_size);
                return Err(Error::Coverage { blocks, block_size, positions });
            }
            for &block in &seq.blocks[..used(seq)] {
                if block as usize >= blocks {
                    return Err(Error::Range {
                        field: "block",
                        value: block as usize,
                        least: 0,
                        most: blocks.saturating_sub(1),
                    });
                }
            }
        }
        let mut step = Self { path, ..Self::default() };
        let live = || seqs.iter().filter(|seq| !seq.rows.is_empty());
        step.table_stride = live().map(used).max().unwrap_or(0);
        for (sequence, seq) in live().enumerate() {
            step.block_tables.extend_from_slice(&seq.blocks[..used(seq)]);
            step.block_tables.resize((sequence + 1) * step.table_stride, u32::MAX);
            step.push(layer, sequence, seq);
        }
        step.prefill.sort_by_key(|item| std::cmp::Reverse(item.start + item.rows));
        within("items of prompts", step.prefill.len(), 0..=GRID_MAX)?;
        within("items to decode", step.decode.len(), 0..=GRID_MAX)?;
        within("splits", step.partials, 0..=u32::MAX as usize)?;
        Ok(step)
    }

    fn push(&mut self, layer: &Layer, sequence: usize, seq: &AttentionSeq<'_>) {
        let item = |row: usize, rows: usize, first_partial: usize| Item {
            first_row: row as u32,
            rows: rows as u32,
            sequence: sequence as u32,
            start: (seq.start + row - seq.rows.start) as u32,
            first_partial: first_partial as u32,
        };
        if seq.rows.len() == 1 {
            self.decode.push(item(seq.rows.start, 1, self.partials));
            let splits = splits(seq.start, layer.window);
            // One split is done by the block that adds it up.
            self.partials += if splits > 1 { splits } else { 0 };
            return;
        }
        let tokens = layer.tokens_per_item(self.path);
        for row in seq.rows.clone().step_by(tokens) {
            self.prefill.push(item(row, tokens.min(seq.rows.end - row), 0));
        }
    }

    /// What the rows of prompts cost in one layer. Bytes of an element: of activations, of pages.
    #[must_use]
    pub fn prefill_work(&self, layer: &Layer, [x_bytes, kv_bytes]: [usize; 2]) -> Work {
        let row = layer.heads * layer.head_dim;
        let position = 2 * layer.kv_heads * page_stride(layer.head_dim, kv_bytes) * kv_bytes;
        let mut work = Work::default();
        // Of each sequence that has a prompt, what its rows see.
        let mut seen: BTreeMap<u32, Range<usize>> = BTreeMap::new();
        for item in &self.prefill {
            let positions = item.start as usize..(item.start + item.rows) as usize;
            let lowest = layer.lowest(positions.start);
            let of_sequence = seen.entry(item.sequence).or_insert(lowest..positions.end);
            *of_sequence = of_sequence.start.min(lowest)..of_sequence.end.max(positions.end);
            work.read_bytes += positions.len() * row * x_bytes;
            work.written_bytes += positions.len() * row * x_bytes;
            let pairs: usize = positions.clone().map(|at| at + 1 - layer.lowest(at)).sum();
            work.operations += 4 * row * pairs;
            if self.path == Path::Tensor {
                let tile = tensor_positions(layer.head_dim);
                let tiles = positions.end.div_ceil(tile) - lowest / tile;
                let rows = (positions.len() * layer.group()).next_multiple_of(16);
                work.products += 4 * layer.kv_heads * rows * tensor_width(layer.head_dim) * tiles * tile;
            }
        }
        work.read_bytes += seen.values().map(ExactSizeIterator::len).sum::<usize>() * position;
        work
    }
}

/// What a launch costs. Tables, and scales of e4m3, are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Queries, and each key and value that a row sees once.
    pub read_bytes: usize,
    /// Results.
    pub written_bytes: usize,
    /// Multiplications and additions that the result needs: four for each feature of a pair of a row and a position that it sees.
    pub operations: usize,
    /// Those that tensor cores do for it: rows of a block are rounded up to 16, positions to tiles, features to the kernel's width.
    pub products: usize,
}

/// Ranges within `rows` that share no row.
fn disjoint<'a>(rows: usize, ranges: impl Iterator<Item = &'a Range<usize>>) -> Result<(), Error> {
    let mut used: Vec<(usize, usize)> =
        ranges.filter(|range| !range.is_empty()).map(|range| (range.start, range.end)).collect();
    used.sort_unstable();
    let mut free_from = 0;
    for (start, end) in used {
        if start < free_from || end > rows {
            return Err(Error::Rows { start, end, rows });
        }
        free_from = end;
    }
    Ok(())
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks.
    pub grid: [u32; 3],
    /// Dynamic shared memory.
    pub shared_bytes: usize,
}

/// Rows of a block of a prompt; as in `attention_prefill.cu`.
fn prefill_rows(head_dim: usize) -> usize {
    if head_dim <= 128 { 32 } else { 16 }
}

/// As `lay_out` of `attention.cuh`: what rows see, their queries and weights, and `tiles` of keys and values.
fn shared_bytes(rows: usize, head_dim: usize, kv_bytes: usize, tiles: usize) -> usize {
    let positions = if head_dim * kv_bytes > 512 { 16 } else { 32 };
    let dims = head_dim.next_multiple_of(if kv_bytes == 1 { 16 } else { 8 });
    let stride = ((dims * kv_bytes / 16) | 1) * 16;
    rows * (16 + 4 * dims + 4 * 36) + tiles * positions * stride
}

/// Writing keys and values: one block for each item.
#[must_use]
pub fn write_grid(items: usize) -> Grid {
    Grid { grid: [items as u32, 1, 1], shared_bytes: 0 }
}

/// As in `attention_tensor.cu`: what all know, places of two tiles, a tile of keys and one of values, and half a tile for codes.
fn tensor_shared_bytes(head_dim: usize, kv_bytes: usize) -> usize {
    let positions = tensor_positions(head_dim);
    let tile = positions * tensor_width(head_dim) * 2;
    48 + 2 * 4 * positions + 2 * tile + if kv_bytes == 1 { tile / 2 } else { 0 }
}

/// Prompts. `items` may be the most that a captured graph shall hold.
#[must_use]
pub fn prefill_grid(layer: &Layer, path: Path, items: usize, kv_bytes: usize) -> Grid {
    let (of_head, shared_bytes) = match path {
        Path::Prefill => (1, shared_bytes(prefill_rows(layer.head_dim), layer.head_dim, kv_bytes, 1)),
        // A larger group takes several blocks for its one token.
        Path::Tensor => (layer.group().div_ceil(TENSOR_ROWS), tensor_shared_bytes(layer.head_dim, kv_bytes)),
    };
    Grid { grid: [(layer.kv_heads * of_head) as u32, items as u32, 1], shared_bytes }
}

/// Query heads of a decoding block: those of a key head, up to [`DECODE_HEADS`].
#[must_use]
pub fn decode_block_heads(layer: &Layer) -> usize {
    layer.group().min(DECODE_HEADS)
}

/// Decoding. `items` is the size of the batch that a captured graph is for, `positions` the longest context it shall serve.
///
/// There are as many blocks for each row as bring four on a multiprocessor, and no more than the longest context has splits. The rest of the
/// splits is done by the same blocks. (Four is an estimate, to be measured on a device.) Nothing in the result depends on it.
#[must_use]
pub fn decode_grid(layer: &Layer, items: usize, positions: usize, kv_bytes: usize, multiprocessors: usize) -> Grid {
    let heads = decode_block_heads(layer);
    let head_blocks = layer.kv_heads * layer.group().div_ceil(heads);
    let most = partials_max(1, positions, layer.window).max(1);
    let splits = (4 * multiprocessors).div_ceil(items.max(1) * head_blocks).clamp(1, most);
    let rows = heads.next_multiple_of(WARPS);
    Grid {
        grid: [splits as u32, head_blocks as u32, items as u32],
        shared_bytes: shared_bytes(rows, layer.head_dim, kv_bytes, 2),
    }
}

/// Adding up splits: a warp for each head of each item.
#[must_use]
pub fn combine_grid(layer: &Layer, items: usize) -> Grid {
    Grid { grid: [layer.heads.div_ceil(WARPS) as u32, items as u32, 1], shared_bytes: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: Layer = Layer {
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        block_size: 16,
        block_rows: None,
        window: None,
        scale: 1.0,
        soft_cap: None,
    };

    #[test]
    fn rows_are_covered_once_and_those_that_see_most_come_first() {
        let blocks: Vec<u32> = (0..20).collect();
        let seqs = [(0..1, 255), (1..1, 7), (2..20, 30), (20..21, 256)].map(|(rows, start)| AttentionSeq {
            rows,
            start,
            blocks: &blocks,
        });
        let step = Step::new(&LAYER, Path::Prefill, 21, 20, &seqs).unwrap();
        let seen = |items: &[Item]| -> Vec<[u32; 5]> {
            items.iter().map(|i| [i.first_row, i.rows, i.sequence, i.start, i.first_partial]).collect()
        };
        assert_eq!(seen(&step.prefill), [[18, 2, 1, 46, 0], [10, 8, 1, 38, 0], [2, 8, 1, 30, 0]]);
        assert_eq!(seen(&step.decode), [[0, 1, 0, 255, 0], [20, 1, 2, 256, 0]]);
        assert_eq!((step.table_stride, step.block_tables.len(), step.partials), (17, 3 * 17, 2));
        let step = Step::new(&LAYER, Path::Tensor, 21, 20, &seqs).unwrap();
        assert_eq!(seen(&step.prefill), [[18, 2, 1, 46, 0], [2, 16, 1, 30, 0]]);
    }

    #[test]
    fn tensor_cores_are_taken_only_where_they_may_and_can() {
        let path = |activations, batch_invariant| Path::of(Choice { activations, batch_invariant });
        assert_eq!([Format::Bf16, Format::F16].map(|format| path(format, false)), [Path::Tensor; 2]);
        assert_eq!([Format::Bf16, Format::F32].map(|format| path(format, true)), [Path::Prefill; 2]);
        assert_eq!(path(Format::F32, false), Path::Prefill);
    }

    #[test]
    fn names_are_those_of_the_kernels_that_exist() {
        let mut exist = crate::host::kernels();
        exist.retain(|name| name.starts_with("weft_attention_tensor_") || name.starts_with("weft_attention_prefill_"));
        exist.sort_unstable();
        let mut named = Vec::new();
        for suffix in ["f32_f32", "f32_bf16", "bf16_bf16", "bf16_e4m3", "f16_f16", "f16_e4m3"] {
            for head_dim in [1, 64, 65, 128, 129, 256] {
                let layer = Layer { head_dim, ..LAYER };
                named.push(Path::Prefill.kernel(&layer, suffix));
                if !suffix.starts_with("f32") {
                    named.push(Path::Tensor.kernel(&layer, suffix));
                }
            }
        }
        named.sort_unstable();
        named.dedup();
        assert_eq!(named, exist);
    }

    #[test]
    fn what_a_prompt_costs_does_not_depend_on_its_cut() {
        let blocks: Vec<u32> = (0..200).collect();
        for window in [None, Some(100)] {
            let layer = Layer { window, ..LAYER };
            let works = [Path::Prefill, Path::Tensor].map(|path| {
                let seqs = [AttentionSeq { rows: 0..1000, start: 37, blocks: &blocks }];
                Step::new(&layer, path, 1000, 200, &seqs).unwrap().prefill_work(&layer, [2, 1])
            });
            let pairs: usize = (37..1037).map(|at: usize| window.map_or(at + 1, |window| window.min(at + 1))).sum();
            for work in works {
                assert_eq!(work.operations, 4 * 32 * 128 * pairs);
                assert_eq!(work.written_bytes, 1000 * 32 * 128 * 2);
                assert_eq!(work.read_bytes, work.written_bytes + 1037 * 2 * 8 * 128);
            }
            let [by_vectors, by_tensors] = works.map(|work| work.products);
            assert_eq!(by_vectors, 0);
            assert!(by_tensors > works[1].operations && by_tensors < 2 * works[1].operations, "{by_tensors}");
        }
    }

    #[test]
    fn splits_follow_from_what_a_row_sees() {
        let of = |position| splits(position, None);
        assert_eq!([0, 255, 256, 32_767, 32_768, 65_535, 65_536].map(of), [1, 1, 2, 128, 65, 128, 65]);
        assert_eq!(splits(1_000_000, Some(300)), 2);
        assert_eq!(splits(1023, Some(256)), 1);
        for (window, position) in [(None, 131_071), (Some(4096), 5000), (Some(100_000), 1_000_000)] {
            assert!(splits(position, window) <= partials_max(1, position + 1, window));
        }
    }

    #[test]
    fn blocks_fill_the_device_and_shared_memory_holds_them() {
        let splits = |items| decode_grid(&LAYER, items, 8192, 2, 132).grid[0];
        assert_eq!([1, 4, 16, 64, 256].map(splits), [32, 17, 5, 2, 1]);
        for head_dim in 1..=HEAD_DIM_MAX {
            for (group, kv_bytes) in [1, 7, 8, 71].into_iter().flat_map(|group| [1, 2, 4].map(|bytes| (group, bytes))) {
                let layer = Layer { heads: group, kv_heads: 1, head_dim, ..LAYER };
                let bytes = prefill_grid(&layer, Path::Prefill, 1, kv_bytes).shared_bytes;
                let bytes = bytes.max(prefill_grid(&layer, Path::Tensor, 1, kv_bytes.min(2)).shared_bytes);
                let bytes = bytes.max(decode_grid(&layer, 1, 8192, kv_bytes, 132).shared_bytes);
                assert!(bytes <= 48 * 1024, "head_dim {head_dim}, {kv_bytes} bytes: {bytes}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let tells = |layer: Layer, message: &str| assert_eq!(layer.check().unwrap_err().to_string(), message);
        tells(Layer { head_dim: 257, ..LAYER }, "attention: head_dim is 257, not within 1 to 256");
        tells(Layer { heads: 12, ..LAYER }, "attention: heads is 12, not a multiple of kv_heads 8");
        tells(Layer { window: Some(0), ..LAYER }, "attention: window is 0, not within 1 to 1073741824");
        tells(Layer { block_rows: Some(127), ..LAYER }, "attention: block_rows is 127, not within 128 to 2147483647");
        tells(Layer { soft_cap: Some(-1.0), ..LAYER }, "attention: soft_cap is -1");
        tells(Layer { scale: f32::NAN, ..LAYER }, "attention: scale is NaN");
        let refuses = |rows: Range<usize>, start, blocks: &[u32], message: &str| {
            let error = Step::new(&LAYER, Path::Tensor, 4, 9, &[AttentionSeq { rows, start, blocks }]).unwrap_err();
            assert_eq!(error.to_string(), message);
        };
        refuses(0..2, 15, &[3], "attention: 1 blocks of 16 do not cover 17 positions");
        refuses(0..1, 15, &[9], "attention: block is 9, not within 0 to 8");
        refuses(3..5, 0, &[3], "attention: rows 3..5 overlap others, or the end of 4 rows");
        refuses(0..1, usize::MAX, &[3], &format!("attention: positions is {}, not within 1 to 1073741824", usize::MAX));
        let error = LAYER.page_elements(1 << 30, 2).unwrap_err().to_string();
        assert_eq!(error, "attention: blocks is 1073741824, not within 0 to 33554431");
        let error = LAYER.shape(1, [4095, 4096]).unwrap_err().to_string();
        assert_eq!(error, "attention: rows of q are 4095 apart, not within 4096 to 2147483647");
    }
}
