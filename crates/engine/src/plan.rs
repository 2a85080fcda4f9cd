//! Checks a batch and orders its rows.
//!
//! Words: a *row* is one token of one sequence in this step. Sequences are computed in order of their slot (the base
//! first, ties as in the batch), so that the rows of one adapter are one run.

use crate::engine::{LogitsWanted, SeqStep};
use crate::error::Problem;
use crate::shape::Shape;
use crate::slots::Table;
use crate::{Error, SlotId};
use std::ops::Range;
use std::sync::Arc;
use weft_kernels::AttentionSeq;

/// What a slot holds, as far as checks look at it.
pub(crate) trait Entry {
    /// Of the engine that it was prepared for.
    fn shape(&self) -> &Arc<Shape>;
}

/// Consecutive rows of one adapter.
pub(crate) struct Run<'a, R> {
    pub(crate) rows: Range<usize>,
    pub(crate) adapter: &'a R,
}

/// A checked batch, in the order of computation.
pub(crate) struct Plan<'a, R> {
    /// Position in the batch of each computed sequence.
    pub(crate) order: Vec<usize>,
    /// Slot entry of each computed sequence.
    pub(crate) adapters: Vec<Option<&'a R>>,
    /// `[rows]`.
    pub(crate) tokens: Vec<u32>,
    /// `[rows]`.
    pub(crate) positions: Vec<u32>,
    pub(crate) seqs: Vec<AttentionSeq<'a>>,
    pub(crate) runs: Vec<Run<'a, R>>,
    /// Rows whose logits are wanted, by the caller or by a draw, ascending.
    pub(crate) wanted: Vec<u32>,
    /// The runs again, counted in wanted rows.
    pub(crate) wanted_runs: Vec<Run<'a, R>>,
    /// Part of `wanted` that belongs to each computed sequence.
    pub(crate) wanted_of: Vec<Range<usize>>,
}

/// What the checks compare with.
pub(crate) struct Limits<'a, R> {
    pub(crate) shape: &'a Arc<Shape>,
    pub(crate) slots: &'a Table<R>,
    pub(crate) kv_blocks: usize,
    pub(crate) block_size: usize,
    /// By block: whether an adapter lies there. Blocks beyond have none.
    pub(crate) taken: &'a [bool],
}

impl<'a, R: Entry> Plan<'a, R> {
    /// # Errors
    /// [`Error::Sequence`] for the first sequence that cannot be computed. Nothing has been written then.
    pub(crate) fn new(seqs: &'a [SeqStep], limits: &Limits<'a, R>, owners: &mut BlockOwners) -> Result<Self, Error> {
        let mut adapters = Vec::with_capacity(seqs.len());
        for (sequence, seq) in seqs.iter().enumerate() {
            let checked = check_sequence(seq, limits);
            adapters.push(checked.map_err(|problem| Error::Sequence { sequence, problem })?);
        }
        owners.check(seqs, limits)?;

        let mut order: Vec<usize> = (0..seqs.len()).collect();
        order.sort_by_key(|&at| seqs[at].slot);
        let rows = seqs.iter().map(|seq| seq.tokens.len()).sum();
        let mut plan = Self {
            tokens: Vec::with_capacity(rows),
            positions: Vec::with_capacity(rows),
            seqs: Vec::with_capacity(seqs.len()),
            runs: Vec::new(),
            wanted: Vec::new(),
            wanted_runs: Vec::new(),
            wanted_of: Vec::with_capacity(seqs.len()),
            adapters: order.iter().map(|&at| adapters[at]).collect(),
            order,
        };
        let mut last_slot: Option<SlotId> = None;
        for at in 0..plan.order.len() {
            let seq = &seqs[plan.order[at]];
            let (rows, wanted) = plan.push(seq);
            let Some(adapter) = plan.adapters[at] else { continue };
            let joins = last_slot == seq.slot;
            extend(&mut plan.runs, rows, adapter, joins);
            extend(&mut plan.wanted_runs, wanted, adapter, joins);
            last_slot = seq.slot;
        }
        plan.wanted_runs.retain(|run| !run.rows.is_empty());
        Ok(plan)
    }

    /// Appends the rows of a sequence; returns them, and their part of `wanted`.
    fn push(&mut self, seq: &'a SeqStep) -> (Range<usize>, Range<usize>) {
        let rows = self.tokens.len()..self.tokens.len() + seq.tokens.len();
        self.tokens.extend_from_slice(&seq.tokens);
        self.positions.extend((seq.start..seq.start + seq.tokens.len()).map(|position| position as u32));
        self.seqs.push(AttentionSeq { rows: rows.clone(), start: seq.start, blocks: &seq.blocks });
        let first = self.wanted.len();
        match seq.logits {
            LogitsWanted::None if seq.draw.is_none() => {}
            LogitsWanted::None | LogitsWanted::Last => self.wanted.push(rows.end as u32 - 1),
            LogitsWanted::All => self.wanted.extend(rows.start as u32..rows.end as u32),
        }
        let wanted = first..self.wanted.len();
        self.wanted_of.push(wanted.clone());
        (rows, wanted)
    }

    pub(crate) fn rows(&self) -> usize {
        self.tokens.len()
    }
}

/// Runs of one slot are neighbours because the sequences are sorted; an empty part (no wanted rows) changes nothing.
fn extend<'a, R>(runs: &mut Vec<Run<'a, R>>, rows: Range<usize>, adapter: &'a R, joins: bool) {
    match runs.last_mut() {
        Some(run) if joins => run.rows.end = rows.end,
        _ => runs.push(Run { rows, adapter }),
    }
}

fn check_sequence<'a, R: Entry>(seq: &SeqStep, limits: &Limits<'a, R>) -> Result<Option<&'a R>, Problem> {
    if seq.tokens.is_empty() {
        return Err(Problem::Empty);
    }
    let vocabulary = limits.shape.vocabulary;
    if let Some(&token) = seq.tokens.iter().find(|&&token| token as usize >= vocabulary) {
        return Err(Problem::Token { token, vocabulary });
    }
    let context = limits.shape.context;
    let end = seq.start.saturating_add(seq.tokens.len());
    if end > context {
        return Err(Problem::Position { position: end - 1, context });
    }
    if seq.blocks.len() < end.div_ceil(limits.block_size) {
        return Err(Problem::BlocksShort { blocks: seq.blocks.len(), tokens: end });
    }
    if let Some(&block) = seq.blocks.iter().find(|&&block| block as usize >= limits.kv_blocks) {
        return Err(Problem::BlockRange { block, pool: limits.kv_blocks });
    }
    if let Some(&block) = seq.blocks.iter().find(|&&block| limits.taken.get(block as usize) == Some(&true)) {
        return Err(Problem::BlockTaken { block });
    }
    let Some(slot) = seq.slot else { return Ok(None) };
    let adapter = limits.slots.get(slot).ok_or(Problem::Slot { slot })?;
    if !Arc::ptr_eq(adapter.shape(), limits.shape) {
        return Err(Problem::ForeignAdapter { slot });
    }
    Ok(Some(adapter))
}

/// Finds a block that one sequence writes while another one uses it: a fault of the block pool that would mix two
/// tenants' keys and values (design invariant 2). Reading a shared block is fine: that is a prefix cache.
///
/// Keeps one entry per physical block between steps, so that a check is one visit per block in use.
#[derive(Default)]
pub(crate) struct BlockOwners {
    /// Step that wrote the entry, and the sequence that writes the block in it.
    writers: Vec<(u64, u32)>,
    step: u64,
}

impl BlockOwners {
    fn check<R>(&mut self, seqs: &[SeqStep], limits: &Limits<'_, R>) -> Result<(), Error> {
        self.writers.resize(limits.kv_blocks, (0, 0));
        self.step += 1;
        for (sequence, seq) in seqs.iter().enumerate() {
            let written = seq.start / limits.block_size..(seq.start + seq.tokens.len()).div_ceil(limits.block_size);
            for &block in &seq.blocks[written] {
                let writer = &mut self.writers[block as usize];
                if writer.0 == self.step {
                    let other = writer.1 as usize;
                    return Err(Error::Sequence { sequence, problem: Problem::BlockShared { block, other } });
                }
                *writer = (self.step, sequence as u32);
            }
        }
        for (sequence, seq) in seqs.iter().enumerate() {
            for &block in &seq.blocks[..(seq.start + seq.tokens.len()).div_ceil(limits.block_size)] {
                let (step, writer) = self.writers[block as usize];
                if step == self.step && writer as usize != sequence {
                    let problem = Problem::BlockShared { block, other: sequence };
                    return Err(Error::Sequence { sequence: writer as usize, problem });
                }
            }
        }
        Ok(())
    }
}
