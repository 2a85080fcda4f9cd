//! Paged causal attention with grouped heads, for prefill chunks and decode rows in one region.
//!
//! A unit is a few rows of one sequence and one key head, with all query heads that read it: keys and values
//! come from memory once per unit. Two passes: the scores of all positions seen, then softmax, then the weighted sum of
//! values. Each score is one chain over the head, each output one chain over positions from 0 on, and the sum of
//! exponentials runs in lanes by position; so a row's result depends on its position and not on the cut into steps.

use super::Cpu;
use super::micro::{Ahead, LINE_BYTES, Tile, fetch_line};
use crate::kv::{KvData, KvShape};
use crate::packed::{PANEL, round_bf16};
use crate::share::{OutPtr, with_scratch};
use crate::{AttentionSeq, KvLayer};
use std::ops::Range;

/// Query vectors of a unit: two tiles of rows that share the keys in the first-level cache.
const QUERIES_PER_UNIT: usize = 12;
/// Multiplications below which a second thread costs more than it brings.
const INLINE_BELOW: usize = 1 << 16;
/// Blocks whose keys or values are asked for before they are needed: a tile of panels.
const BLOCKS_AHEAD: usize = 4;
/// Sequences whose keys are asked for before they are written.
const SEQS_AHEAD: usize = 4;
/// Positions up to which all keys and values of the next unit are asked for while one is at work.
const WHOLE_BELOW: usize = 1024;
/// Values below which writing stays on one thread.
const INLINE_WRITE_BELOW: usize = 8 << 10;

pub(super) fn write_kv(cpu: &Cpu, k: &[f32], v: &[f32], seqs: &[AttentionSeq<'_>], kv: &mut KvLayer) {
    let shape = kv.shape;
    match &mut kv.data {
        KvData::F32 { k: keys, v: values } => {
            let (keys, values) = (OutPtr::new(keys), OutPtr::new(values));
            store(cpu, k, v, seqs, shape, &keys, &values, |x| x);
        }
        KvData::Bf16 { k: keys, v: values } => {
            let (keys, values) = (OutPtr::new(keys), OutPtr::new(values));
            store(cpu, k, v, seqs, shape, &keys, &values, round_bf16);
        }
    }
}

/// One thread per half of a key head at a time: halves never share memory, whatever blocks the sequences name.
fn store<W: Send>(
    cpu: &Cpu,
    k: &[f32],
    v: &[f32],
    seqs: &[AttentionSeq<'_>],
    shape: KvShape,
    keys: &OutPtr<'_, W>,
    values: &OutPtr<'_, W>,
    convert: impl Fn(f32) -> W + Sync,
) {
    let KvShape { block_size, kv_heads, head_dim, .. } = shape;
    let (slots, dims) = (shape.slot_stride(), shape.dim_stride());
    // The first half ends with a vector of features, so that halves of a value share no cache line.
    let middle = (head_dim / 2).next_multiple_of(PANEL).min(head_dim);
    let one = |head: usize, part: Range<usize>, position: usize, row: usize, seq: &AttentionSeq<'_>| {
        let (block, slot) = (seq.blocks[position / block_size] as usize, position % block_size);
        let from = (row * kv_heads + head) * head_dim;
        let (k, v) = (&k[from..from + head_dim][part.clone()], &v[from..from + head_dim][part.clone()]);
        // SAFETY: these features of this block and head, which only the thread of this half touches.
        unsafe {
            let key = keys.slice(shape.k_start(block, head) + part.start * slots, part.len() * slots);
            for (lanes, &x) in key.chunks_exact_mut(slots).zip(k) {
                lanes[slot] = convert(x);
            }
            let value = values.slice(shape.v_start(block, head) + slot * dims + part.start, part.len());
            for (to, &x) in value.iter_mut().zip(v) {
                *to = convert(x);
            }
        }
    };
    // Keys of a new position lie on many cache lines, which nobody has asked for yet.
    let fetch_key = |head: usize, part: &Range<usize>, seq: &AttentionSeq<'_>| {
        if let Some(&block) = seq.blocks.get(seq.start / block_size) {
            let start = shape.k_start(block as usize, head) + part.start * slots;
            let lines = (part.len() * slots * size_of::<W>()).div_ceil(LINE_BYTES);
            for line in 0..lines {
                fetch_line(keys.hint(start).cast::<u8>().wrapping_add(line * LINE_BYTES));
            }
        }
    };
    let body = |range: Range<usize>| {
        for half in range {
            let (head, part) = (half / 2, if half % 2 == 0 { 0..middle } else { middle..head_dim });
            for (index, seq) in seqs.iter().enumerate() {
                if let Some(next) = seqs.get(index + SEQS_AHEAD) {
                    fetch_key(head, &part, next);
                }
                for (position, row) in (seq.start..).zip(seq.rows.clone()) {
                    one(head, part.clone(), position, row, seq);
                }
            }
        }
    };
    let halves = 2 * kv_heads;
    if k.len() < INLINE_WRITE_BELOW { body(0..halves) } else { cpu.pool.run(halves, 1, &body) }
}

/// Some rows of one sequence and one key head.
struct Unit {
    seq: usize,
    kv_head: usize,
    rows: Range<usize>,
}

/// What a unit reads.
#[derive(Clone, Copy)]
struct Memory<'a> {
    kv_head: usize,
    blocks: &'a [u32],
}

impl Memory<'_> {
    /// Those of the blocks of `range` that there are.
    fn part(&self, range: Range<usize>) -> &[u32] {
        let end = range.end.min(self.blocks.len());
        &self.blocks[range.start.min(end)..end]
    }
}

/// What all units of a call share.
struct Call<'a, W> {
    cpu: &'a Cpu,
    q: &'a [f32],
    /// Query heads per key head.
    group: usize,
    scale: f32,
    seqs: &'a [AttentionSeq<'a>],
    shape: KvShape,
    keys: &'a [W],
    values: &'a [W],
    kernel: unsafe fn(usize, usize, &Tile<f32, W>),
    out: OutPtr<'a, f32>,
}

pub(super) fn attention(
    cpu: &Cpu,
    q: &[f32],
    group: usize,
    scale: f32,
    seqs: &[AttentionSeq<'_>],
    kv: &KvLayer,
    out: &mut [f32],
) {
    let (shape, out) = (kv.shape, OutPtr::new(out));
    match &kv.data {
        KvData::F32 { k: keys, v: values } => {
            let kernel = cpu.micro.tile_f32;
            Call { cpu, q, group, scale, seqs, shape, keys, values, kernel, out }.run();
        }
        KvData::Bf16 { k: keys, v: values } => {
            let kernel = cpu.micro.tile_bf16;
            Call { cpu, q, group, scale, seqs, shape, keys, values, kernel, out }.run();
        }
    }
}

impl<W: Copy + Sync> Call<'_, W> {
    fn run(&self) {
        if self.group == 0 {
            return;
        }
        let rows_each = (QUERIES_PER_UNIT / self.group).max(1);
        let mut units = Vec::new();
        let mut work = 0;
        for (index, seq) in self.seqs.iter().enumerate() {
            work += seq.rows.len() * (seq.start + seq.rows.len());
            for kv_head in 0..self.shape.kv_heads {
                for start in seq.rows.clone().step_by(rows_each) {
                    let rows = start..(start + rows_each).min(seq.rows.end);
                    units.push(Unit { seq: index, kv_head, rows });
                }
            }
        }
        let body = |range: Range<usize>| {
            for index in range.clone() {
                // What follows the range is mostly this thread's next one.
                self.unit(&units[index], units.get(index + 1), index == range.start);
            }
        };
        if work * self.shape.kv_heads * self.group * self.shape.head_dim < INLINE_BELOW {
            body(0..units.len());
        } else {
            self.cpu.pool.run(units.len(), 1, &body);
        }
    }

    /// `first`: nobody has asked for its keys and values yet.
    fn unit(&self, unit: &Unit, next: Option<&Unit>, first: bool) {
        let seq = &self.seqs[unit.seq];
        let (head_dim, slots, dims) = (self.shape.head_dim, self.shape.slot_stride(), self.shape.dim_stride());
        let queries = unit.rows.len() * self.group;
        let seen = seq.start + (unit.rows.end - seq.rows.start);
        let blocks = self.blocks(unit);
        let own = Memory { kv_head: unit.kv_head, blocks };
        let ahead = next.map(|next| Memory { kv_head: next.kv_head, blocks: self.blocks(next) });
        // A long sequence is fetched while it is read, a short one while the unit before it is at work.
        let is_short = |memory: &Memory<'_>| memory.blocks.len() * self.shape.block_size <= WHOLE_BELOW;
        let own = (first || !is_short(&own)).then_some(own);
        let ahead = ahead.filter(is_short);
        // Scores of a block take `slots` places; a cache line more keeps rows out of each other's cache sets.
        let stride = blocks.len() * slots + PANEL;
        with_scratch::<f32, _>(queries * (head_dim + stride + dims + 1), |scratch| {
            let (q, rest) = scratch.split_at_mut(queries * head_dim);
            let (scores, rest) = rest.split_at_mut(queries * stride);
            let (sums, totals) = rest.split_at_mut(queries * dims);
            self.gather(unit, q);
            self.score(unit.kv_head, blocks, [own, ahead], q, scores, stride);
            for (query, (scores, total)) in scores.chunks_exact_mut(stride).zip(&mut *totals).enumerate() {
                let position = seq.start + unit.rows.start - seq.rows.start + query / self.group;
                *total = self.softmax(scores, position + 1, seen);
            }
            self.weigh(unit.kv_head, blocks, [own, ahead], seen, scores, stride, sums);
            self.scatter(unit, sums, totals);
        });
    }

    /// The blocks that a unit reads.
    fn blocks(&self, unit: &Unit) -> &[u32] {
        let seq = &self.seqs[unit.seq];
        let seen = seq.start + (unit.rows.end - seq.rows.start);
        &seq.blocks[..seen.div_ceil(self.shape.block_size)]
    }

    /// Where query `query` of a unit is in `q` and `out`.
    fn place(&self, unit: &Unit, query: usize) -> usize {
        let heads = self.shape.kv_heads * self.group;
        let (row, head) = (unit.rows.start + query / self.group, query % self.group);
        (row * heads + unit.kv_head * self.group + head) * self.shape.head_dim
    }

    /// Copies the queries together, `[queries, head_dim]`, scaled.
    fn gather(&self, unit: &Unit, to: &mut [f32]) {
        let head_dim = self.shape.head_dim;
        for (query, to) in to.chunks_exact_mut(head_dim).enumerate() {
            let from = &self.q[self.place(unit, query)..][..head_dim];
            // SAFETY: the table fits this processor.
            unsafe { (self.cpu.micro.scale)(from, self.scale, to) };
        }
    }

    /// `scores [queries, stride]`: 16 positions are a panel whose depth is the head.
    fn score(
        &self,
        kv_head: usize,
        blocks: &[u32],
        [own, ahead]: [Option<Memory<'_>>; 2],
        q: &[f32],
        scores: &mut [f32],
        stride: usize,
    ) {
        let (slots, head_dim) = (self.shape.slot_stride(), self.shape.head_dim);
        let (panels, per_block) = (blocks.len() * slots / PANEL, slots / PANEL);
        let (queries, shape) = (q.len() / head_dim, self.cpu.micro.shape(q.len() / head_dim));
        let mut panel = 0;
        while panel < panels {
            let count = shape.panels(panels - panel);
            let w = std::array::from_fn(|i| {
                let panel = panel + i.min(count - 1);
                let block = blocks[panel / per_block] as usize;
                let start = self.shape.k_start(block, kv_head);
                let keys = &self.keys[start..start + head_dim * slots];
                keys[panel % per_block * PANEL..].as_ptr()
            });
            let tile = Tile {
                depth: head_dim,
                x: q.as_ptr(),
                x_stride: head_dim,
                w,
                w_step: slots,
                out: scores[panel * PANEL..].as_mut_ptr(),
                out_stride: stride,
                add: false,
                ahead: Ahead::NONE,
            };
            let (from, read) = (panel / per_block, (panel + count).div_ceil(per_block));
            match own {
                Some(own) if read < blocks.len() => self.fetch_keys(own, read..read + BLOCKS_AHEAD),
                Some(own) => self.fetch_values(own, 0..BLOCKS_AHEAD),
                None => {}
            }
            if let Some(ahead) = ahead {
                let end = if read < blocks.len() { read } else { ahead.blocks.len() };
                self.fetch_keys(ahead, from..end);
            }
            // SAFETY: keys were sliced to the whole block, scores have `panels * 16 < stride` columns per query.
            unsafe { self.tiles(queries, shape.rows, count, tile) };
            panel += count;
        }
    }

    /// Asks for keys before they are needed: blocks lie anywhere, which the hardware cannot guess.
    fn fetch_keys(&self, memory: Memory<'_>, range: Range<usize>) {
        let len = self.shape.head_dim * self.shape.slot_stride();
        for &block in memory.part(range) {
            fetch(&self.keys[self.shape.k_start(block as usize, memory.kv_head)..][..len]);
        }
    }

    /// Asks for values before they are needed.
    fn fetch_values(&self, memory: Memory<'_>, range: Range<usize>) {
        let len = self.shape.block_size * self.shape.dim_stride();
        for &block in memory.part(range) {
            fetch(&self.values[self.shape.v_start(block as usize, memory.kv_head)..][..len]);
        }
    }

    /// Turns the scores of the first `visible` positions into weights, those of the rest up to `seen` into zero.
    /// Returns the sum of the weights.
    fn softmax(&self, scores: &mut [f32], visible: usize, seen: usize) -> f32 {
        let (block_size, slots) = (self.shape.block_size, self.shape.slot_stride());
        // Without padding between blocks the whole row is one span.
        let span = if block_size == slots { seen } else { block_size };
        let used = |block: usize| visible.saturating_sub(block * span).min(span);
        let spans = seen.div_ceil(span);
        let step = if block_size == slots { scores.len() } else { slots };
        let mut max = f32::NEG_INFINITY;
        for (block, scores) in scores.chunks(step).take(spans).enumerate() {
            // SAFETY: the table fits this processor.
            max = max.max(unsafe { (self.cpu.micro.max)(&scores[..used(block)]) });
        }
        let mut total = 0.0;
        for (block, scores) in scores.chunks_mut(step).take(spans).enumerate() {
            let (weights, hidden) = scores.split_at_mut(used(block));
            // SAFETY: the table fits this processor.
            total += unsafe { (self.cpu.micro.exp_sum)(weights, max) };
            hidden.fill(0.0);
        }
        total
    }

    /// `sums [queries, dims]`: 16 features are a panel whose depth is the positions of a block.
    fn weigh(
        &self,
        kv_head: usize,
        blocks: &[u32],
        [own, ahead]: [Option<Memory<'_>>; 2],
        seen: usize,
        weights: &[f32],
        stride: usize,
        sums: &mut [f32],
    ) {
        let KvShape { block_size, .. } = self.shape;
        let (slots, dims) = (self.shape.slot_stride(), self.shape.dim_stride());
        let (queries, shape) = (sums.len() / dims, self.cpu.micro.shape(sums.len() / dims));
        for (index, &block) in blocks.iter().enumerate() {
            let depth = block_size.min(seen - index * block_size);
            if let Some(own) = own {
                self.fetch_values(own, index + BLOCKS_AHEAD..index + BLOCKS_AHEAD + 1);
            }
            if let Some(ahead) = ahead {
                let end = if index + 1 < blocks.len() { index + 1 } else { ahead.blocks.len() };
                self.fetch_values(ahead, index..end);
            }
            let start = self.shape.v_start(block as usize, kv_head);
            let values = &self.values[start..start + block_size * dims];
            let mut panel = 0;
            while panel < dims / PANEL {
                let count = shape.panels(dims / PANEL - panel);
                let w = std::array::from_fn(|i| values[(panel + i.min(count - 1)) * PANEL..].as_ptr());
                let tile = Tile {
                    depth,
                    x: weights[index * slots..].as_ptr(),
                    x_stride: stride,
                    w,
                    w_step: dims,
                    out: sums[panel * PANEL..].as_mut_ptr(),
                    out_stride: dims,
                    add: index > 0,
                    ahead: Ahead::NONE,
                };
                // SAFETY: values were sliced to the whole block, weights have `slots` columns per block and query.
                unsafe { self.tiles(queries, shape.rows, count, tile) };
                panel += count;
            }
        }
    }

    /// The tile for all of `rows`, `each` at a time.
    ///
    /// # Safety
    ///
    /// The block of `rows` and `panels` that `tile` describes is valid, its output this thread's own.
    unsafe fn tiles(&self, rows: usize, each: usize, panels: usize, mut tile: Tile<f32, W>) {
        for row in (0..rows).step_by(each) {
            // SAFETY: the caller's duty; the table fits this processor.
            unsafe { (self.kernel)(each.min(rows - row), panels, &tile) };
            tile.x = tile.x.wrapping_add(each * tile.x_stride);
            tile.out = tile.out.wrapping_add(each * tile.out_stride);
        }
    }

    /// Divides by the totals, into the output.
    fn scatter(&self, unit: &Unit, sums: &[f32], totals: &[f32]) {
        let (head_dim, dims) = (self.shape.head_dim, self.shape.dim_stride());
        for (query, (sums, total)) in sums.chunks_exact(dims).zip(totals).enumerate() {
            // SAFETY: rows of sequences are disjoint, heads of a row differ between units; the table fits.
            unsafe {
                let to = self.out.slice(self.place(unit, query), head_dim);
                (self.cpu.micro.scale)(&sums[..head_dim], 1.0 / total, to);
            }
        }
    }
}

fn fetch<W>(values: &[W]) {
    for line in values.chunks(64 / size_of::<W>()) {
        fetch_line(line.as_ptr());
    }
}
