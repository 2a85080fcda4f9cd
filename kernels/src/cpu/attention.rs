//! Paged causal attention with grouped heads, for prefill chunks and decode rows in one region.
//!
//! A unit is a few rows of one sequence and one key head, with all query heads that read it: keys and values
//! come from memory once per unit. Two passes: the scores of all positions seen, then softmax, then the weighted sum of
//! values. Each score is one chain over the head, each output one chain over positions from 0 on, and the sum of
//! exponentials runs in lanes by position; so a row's result depends on its position and not on the cut into steps.
//!
//! Where the processor multiplies pairs of bf16, queries and the weights of positions are rounded to bf16 as well.

use super::Cpu;
use super::micro::{Ahead, LINE_BYTES, Tile, fetch_line};
use crate::kv::{KvData, KvShape};
use crate::packed::{PANEL, round_bf16};
use crate::share::{OutPtr, with_scratch};
use crate::{AttentionSeq, KvLayer};
use bytemuck::{Pod, Zeroable};
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

/// Stops pages of another implementation before they are misread.
fn expect_pairs(shape: KvShape, pair: usize) {
    assert!(shape.pair == pair, "kv layer: made by another implementation: pairs of {}, not {pair}", shape.pair);
}

pub(super) fn write_kv(cpu: &Cpu, k: &[f32], v: &[f32], seqs: &[AttentionSeq<'_>], kv: &mut KvLayer) {
    let shape = kv.shape;
    match &mut kv.data {
        KvData::F32 { k: keys, v: values } => {
            let (keys, values) = (OutPtr::new(keys), OutPtr::new(values));
            store::<_, 1>(cpu, k, v, seqs, shape, &keys, &values, |x| x);
        }
        KvData::Bf16 { k: keys, v: values } => {
            let (keys, values) = (OutPtr::new(keys), OutPtr::new(values));
            match cpu.micro.pairs {
                None => {
                    expect_pairs(shape, 1);
                    store::<_, 1>(cpu, k, v, seqs, shape, &keys, &values, round_bf16);
                }
                Some(_) => {
                    expect_pairs(shape, 2);
                    store::<_, 2>(cpu, k, v, seqs, shape, &keys, &values, round_bf16);
                }
            }
        }
        KvData::Elsewhere { .. } => KvLayer::refuse_elsewhere(shape),
    }
}

/// One thread per half of a key head at a time: halves never share memory, whatever blocks the sequences name.
fn store<W: Send + Zeroable, const PAIR: usize>(
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
            let key_len = part.len().next_multiple_of(PAIR) * slots;
            let key = keys.slice(shape.k_start(block, head) + part.start * slots, key_len);
            for (lanes, x) in key.chunks_exact_mut(slots * PAIR).zip(k.chunks(PAIR)) {
                for (to, &x) in lanes[slot * PAIR..].iter_mut().zip(x) {
                    *to = convert(x);
                }
            }
            let from = (slot / PAIR * dims + part.start) * PAIR;
            let value = values.slice(shape.v_start(block, head) + from, part.len() * PAIR);
            for (to, &x) in value.chunks_exact_mut(PAIR).zip(v) {
                to[slot % PAIR] = convert(x);
                // The next position's place gets the weight zero until it is written: what was there may not be finite.
                to[slot % PAIR + 1..].fill_with(W::zeroed);
            }
        }
    };
    // Keys of a new position lie on many cache lines, which nobody has asked for yet.
    let fetch_key = |head: usize, part: &Range<usize>, seq: &AttentionSeq<'_>| {
        if let Some(&block) = seq.blocks.get(seq.start / block_size) {
            let start = shape.k_start(block as usize, head) + part.start * slots;
            fetch(keys.hint(start), part.len() * slots);
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

/// Blocks that are asked for while others are at work, a few at a time: a burst would fill the queues of the cache.
struct Stream<'a> {
    memory: Memory<'a>,
    /// Of its keys, then of its values.
    done: usize,
    each: usize,
}

/// Rounds to bf16. The processor has the instruction set.
type Narrow = unsafe fn(&[f32], &mut [u16]);

/// What all units of a call share.
struct Call<'a, X, W> {
    cpu: &'a Cpu,
    q: &'a [f32],
    /// Query heads per key head.
    group: usize,
    scale: f32,
    seqs: &'a [AttentionSeq<'a>],
    shape: KvShape,
    keys: &'a [W],
    values: &'a [W],
    kernel: unsafe fn(usize, usize, &Tile<X, W>),
    /// Rounds to bf16, where `X` is a pair of them; else `X` is `f32`.
    narrow: Option<Narrow>,
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
    match (&kv.data, cpu.micro.pairs) {
        (KvData::F32 { k: keys, v: values }, _) => {
            let (kernel, narrow) = (cpu.micro.tile_f32, None);
            Call { cpu, q, group, scale, seqs, shape, keys, values, kernel, narrow, out }.run();
        }
        (KvData::Bf16 { k: keys, v: values }, None) => {
            expect_pairs(shape, 1);
            let (kernel, narrow) = (cpu.micro.tile_bf16, None);
            Call { cpu, q, group, scale, seqs, shape, keys, values, kernel, narrow, out }.run();
        }
        (KvData::Bf16 { k: keys, v: values }, Some(pairs)) => {
            expect_pairs(shape, 2);
            let (kernel, narrow) = (pairs.tile, Some(pairs.round));
            Call { cpu, q, group, scale, seqs, shape, keys, values, kernel, narrow, out }.run();
        }
        (KvData::Elsewhere { .. }, _) => KvLayer::refuse_elsewhere(shape),
    }
}

impl<X: Pod, W: Copy + Sync> Call<'_, X, W> {
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
        // A long sequence is fetched while it is read, a short one while the unit before it is at work.
        let is_short = |memory: &Memory<'_>| memory.blocks.len() * self.shape.block_size <= WHOLE_BELOW;
        let turns = blocks.len().div_ceil(self.cpu.micro.largest.shape(queries).panels) + queries + blocks.len();
        let ahead = next.map(|next| Memory { kv_head: next.kv_head, blocks: self.blocks(next) }).filter(is_short);
        let mut ahead = ahead.map(|memory| Stream { memory, done: 0, each: (2 * memory.blocks.len()).div_ceil(turns) });
        let own = (first || !is_short(&own)).then_some(own);
        // Scores of a block take `slots` places; a cache line more keeps rows out of each other's cache sets.
        let (stride, q_stride) = (blocks.len() * slots + PANEL, head_dim.next_multiple_of(self.shape.pair));
        // Rounded queries, and later weights, take half the room.
        let narrow = if self.narrow.is_some() { queries * q_stride.max(stride) / 2 } else { 0 };
        with_scratch::<f32, _>(queries * (q_stride + stride + dims + 1) + narrow, |scratch| {
            let (narrow, rest) = scratch.split_at_mut(narrow);
            let (q, rest) = rest.split_at_mut(queries * q_stride);
            let (scores, rest) = rest.split_at_mut(queries * stride);
            let (sums, totals) = rest.split_at_mut(queries * dims);
            self.gather(unit, q, q_stride);
            self.score(unit.kv_head, blocks, own, ahead.as_mut(), self.operand(q, narrow), queries, scores, stride);
            for (query, (scores, total)) in scores.chunks_exact_mut(stride).zip(&mut *totals).enumerate() {
                let position = seq.start + unit.rows.start - seq.rows.start + query / self.group;
                *total = self.softmax(scores, position + 1, seen);
                self.fetch_some(ahead.as_mut());
            }
            self.weigh(unit.kv_head, blocks, own, ahead.as_mut(), seen, self.operand(scores, narrow), stride, sums);
            self.scatter(unit, sums, totals);
        });
    }

    /// `values` as the tiles take them.
    fn operand<'s>(&self, values: &'s [f32], narrow: &'s mut [f32]) -> &'s [X] {
        let Some(round) = self.narrow else { return bytemuck::cast_slice(values) };
        let narrow: &mut [u16] = &mut bytemuck::cast_slice_mut(narrow)[..values.len()];
        // SAFETY: the table fits this processor.
        unsafe { round(values, narrow) };
        bytemuck::cast_slice(narrow)
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

    /// Copies the queries together, `[queries, stride]`, scaled, filled up with zeroes.
    fn gather(&self, unit: &Unit, to: &mut [f32], stride: usize) {
        let head_dim = self.shape.head_dim;
        for (query, to) in to.chunks_exact_mut(stride).enumerate() {
            let from = &self.q[self.place(unit, query)..][..head_dim];
            let (to, rest) = to.split_at_mut(head_dim);
            // SAFETY: the table fits this processor.
            unsafe { (self.cpu.micro.scale)(from, self.scale, to) };
            rest.fill(0.0);
        }
    }

    /// `scores [queries, stride]`: 16 positions are a panel whose depth is the head.
    fn score(
        &self,
        kv_head: usize,
        blocks: &[u32],
        own: Option<Memory<'_>>,
        mut ahead: Option<&mut Stream<'_>>,
        q: &[X],
        queries: usize,
        scores: &mut [f32],
        stride: usize,
    ) {
        let KvShape { head_dim, pair, .. } = self.shape;
        let slots = self.shape.slot_stride();
        let (panels, per_block) = (blocks.len() * slots / PANEL, slots / PANEL);
        let (depth, shape) = (head_dim.div_ceil(pair), self.cpu.micro.largest.shape(queries));
        let mut panel = 0;
        while panel < panels {
            let count = shape.panels(panels - panel);
            let w = std::array::from_fn(|i| {
                let panel = panel + i.min(count - 1);
                let block = blocks[panel / per_block] as usize;
                let start = self.shape.k_start(block, kv_head);
                let keys = &self.keys[start..start + self.shape.k_len()];
                keys[panel % per_block * PANEL * pair..].as_ptr()
            });
            let tile = Tile {
                depth,
                x: q.as_ptr(),
                x_stride: depth,
                w,
                w_step: slots * pair,
                out: scores[panel * PANEL..].as_mut_ptr(),
                out_stride: stride,
                add: false,
                ahead: Ahead::NONE,
            };
            let read = (panel + count).div_ceil(per_block);
            match own {
                Some(own) if read < blocks.len() => self.fetch_keys(own, read..read + BLOCKS_AHEAD),
                Some(own) => self.fetch_values(own, 0..BLOCKS_AHEAD),
                None => {}
            }
            self.fetch_some(ahead.as_deref_mut());
            // SAFETY: keys were sliced to the whole block, scores have `panels * 16 < stride` columns per query.
            unsafe { self.tiles(queries, shape.rows, count, tile) };
            panel += count;
        }
    }

    /// Asks for keys before they are needed: blocks lie anywhere, which the hardware cannot guess.
    fn fetch_keys(&self, memory: Memory<'_>, range: Range<usize>) {
        let len = self.shape.k_len();
        for &block in memory.part(range) {
            fetch(self.keys[self.shape.k_start(block as usize, memory.kv_head)..].as_ptr(), len);
        }
    }

    /// The next blocks of what comes after this unit.
    fn fetch_some(&self, stream: Option<&mut Stream<'_>>) {
        let Some(Stream { memory, done, each }) = stream else { return };
        for index in *done..*done + *each {
            let count = memory.blocks.len();
            if index < count {
                self.fetch_keys(*memory, index..index + 1);
            } else {
                self.fetch_values(*memory, index - count..index - count + 1);
            }
        }
        *done += *each;
    }

    /// Asks for values before they are needed.
    fn fetch_values(&self, memory: Memory<'_>, range: Range<usize>) {
        let len = self.shape.v_len();
        for &block in memory.part(range) {
            fetch(self.values[self.shape.v_start(block as usize, memory.kv_head)..].as_ptr(), len);
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
        own: Option<Memory<'_>>,
        mut ahead: Option<&mut Stream<'_>>,
        seen: usize,
        weights: &[X],
        stride: usize,
        sums: &mut [f32],
    ) {
        let KvShape { block_size, pair, .. } = self.shape;
        let (slots, dims) = (self.shape.slot_stride(), self.shape.dim_stride());
        let (queries, shape) = (sums.len() / dims, self.cpu.micro.largest.shape(sums.len() / dims));
        for (index, &block) in blocks.iter().enumerate() {
            let depth = block_size.min(seen - index * block_size).div_ceil(pair);
            if let Some(own) = own {
                self.fetch_values(own, index + BLOCKS_AHEAD..index + BLOCKS_AHEAD + 1);
            }
            self.fetch_some(ahead.as_deref_mut());
            let start = self.shape.v_start(block as usize, kv_head);
            let values = &self.values[start..start + self.shape.v_len()];
            let mut panel = 0;
            while panel < dims / PANEL {
                let count = shape.panels(dims / PANEL - panel);
                let w = std::array::from_fn(|i| values[(panel + i.min(count - 1)) * PANEL * pair..].as_ptr());
                let tile = Tile {
                    depth,
                    x: weights[index * slots / pair..].as_ptr(),
                    x_stride: stride / pair,
                    w,
                    w_step: dims * pair,
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
    unsafe fn tiles(&self, rows: usize, each: usize, panels: usize, mut tile: Tile<X, W>) {
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

/// Asks for the lines of `len` values. Only a hint: others may be writing them.
fn fetch<W>(from: *const W, len: usize) {
    for line in 0..(len * size_of::<W>()).div_ceil(LINE_BYTES) {
        fetch_line(from.cast::<u8>().wrapping_add(line * LINE_BYTES));
    }
}
