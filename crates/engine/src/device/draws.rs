//! Tokens chosen on the device: memory for it, the tables of a step, the launches.
//!
//! Three launches follow the head: counts of seen tokens are made anew for the draws that penalise, then a block for each draw, then the few draws
//! that keep more candidates than a block has room for. In a captured graph they are there whether rows draw or not; how many do, and how, lies in
//! the step's tables, and blocks beyond that end at once. Masks and seen tokens are copied up only for the draws that have them.

use super::step::Step;
use crate::error::Problem;
use crate::plan::Plan;
use crate::sampling::{Draw, SamplingParams};
use crate::{Error, SeqStep};
use std::ops::Range;
use weft_cuda_device::{Access, Argument, Buffer, Counts, Device, Launch, Pinned, Stream};
use weft_cuda_kernels::sampling::{self, Alternative, Outcome, Row, Settings, Start, WORKSPACE_BYTES_PER_TOKEN};

/// Most of the most probable tokens that a draw may report.
pub const TOP_LOGPROBS_MAX: usize = 32;
/// Draws with many candidates that are worked on at a time: each takes [`WORKSPACE_BYTES_PER_TOKEN`] for each token of the vocabulary.
const LARGE_SLOTS: usize = 8;
const WORD: usize = size_of::<u32>();

/// Memory for one draw of each sequence.
pub(crate) struct Memory {
    vocabulary: usize,
    /// Words of a mask, and of marks.
    words: usize,
    /// Most occurrences of seen tokens.
    seen_max: usize,
    /// Masks and seen tokens of a step, one behind the other.
    given: Buffer,
    staging: Pinned,
    /// `[sequences]` of counts for each token, and marks.
    states: Buffer,
    pending: Buffer,
    workspace: Buffer,
    large_slots: usize,
    /// [`Outcome`]s `[sequences]`, then [`Alternative`]s `[sequences, TOP_LOGPROBS_MAX]`.
    results: Buffer,
    outcomes_bytes: usize,
}

/// Bytes of one draw's alternatives.
const TOP_BYTES: usize = TOP_LOGPROBS_MAX * size_of::<Alternative>();

impl Memory {
    /// For a vocabulary that the kernels take.
    pub(crate) fn new(device: &Device, vocabulary: usize, context: usize, sequences: usize) -> Result<Self, Error> {
        let words = vocabulary.div_ceil(32);
        let large_slots = sequences.min(LARGE_SLOTS);
        let given = given_bytes(vocabulary, context, sequences);
        Ok(Self {
            vocabulary,
            words,
            seen_max: context,
            given: device.allocate(given)?,
            staging: device.allocate_pinned(given)?,
            states: device.allocate(sequences * (vocabulary + words) * WORD)?,
            pending: device.allocate(sequences * WORD)?,
            workspace: device.allocate(large_slots * vocabulary * WORKSPACE_BYTES_PER_TOKEN)?,
            large_slots,
            results: device.allocate(results_bytes(sequences))?,
            outcomes_bytes: sequences * size_of::<Outcome>(),
        })
    }

    /// Pinned memory for all that goes up and comes back.
    pub(crate) fn pinned_bytes(vocabulary: usize, context: usize, sequences: usize) -> usize {
        given_bytes(vocabulary, context, sequences) + results_bytes(sequences)
    }

    /// Of all draws.
    pub(crate) fn results(&self) -> &Buffer {
        &self.results
    }

    /// Bytes of these draws' outcomes and alternatives among the results.
    pub(crate) fn results_of(&self, draws: &Range<usize>) -> [Range<usize>; 2] {
        let bytes = |from: usize, each: usize| from + draws.start * each..from + draws.end * each;
        [bytes(0, size_of::<Outcome>()), bytes(self.outcomes_bytes, TOP_BYTES)]
    }

    /// Addresses of a draw's counts and of its marks.
    fn state(&self, number: usize) -> (u64, u64) {
        let counts = self.states.address() + (number * (self.vocabulary + self.words) * WORD) as u64;
        (counts, counts + (self.vocabulary * WORD) as u64)
    }

    fn check(&self, draw: &Draw) -> Result<(), Problem> {
        let occurrences = draw.seen.iter().fold(0, |sum: usize, &(_, count)| sum.saturating_add(count.max(1) as usize));
        for (what, value, limit) in [
            ("top log-probabilities", draw.top_logprobs, TOP_LOGPROBS_MAX),
            ("occurrences of tokens", occurrences, self.seen_max),
        ] {
            if value > limit {
                return Err(Problem::Draw { what, value, limit });
            }
        }
        Ok(())
    }
}

/// Of a mask and seen tokens for each sequence.
fn given_bytes(vocabulary: usize, context: usize, sequences: usize) -> usize {
    sequences * (vocabulary.div_ceil(32) + context) * WORD
}

fn results_bytes(sequences: usize) -> usize {
    sequences * (size_of::<Outcome>() + TOP_BYTES)
}

/// Wanted rows whose logits are computed at a time, and the draws among them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Piece {
    pub(crate) rows: Range<usize>,
    pub(crate) draws: Range<usize>,
}

/// The draws of a step as the kernels read them.
#[derive(Debug)]
pub(crate) struct Draws {
    /// In order of their rows.
    pub(crate) rows: Vec<Row>,
    pub(crate) starts: Vec<Start>,
    /// One, unless more logits are wanted than there is room for; none if none are.
    pub(crate) pieces: Vec<Piece>,
    /// Position in the batch of each.
    pub(crate) of: Vec<usize>,
    /// Bytes of masks and seen tokens.
    given: usize,
}

impl Draws {
    /// Writes masks and seen tokens into pinned memory, whose last copy must be over.
    ///
    /// # Errors
    /// [`Error::Sequence`] for a draw that there is no room for.
    pub(crate) fn new<R>(
        plan: &Plan<'_, R>,
        seqs: &[SeqStep],
        memory: &Memory,
        piece_rows: usize,
    ) -> Result<Self, Error> {
        let wanted = plan.wanted.len();
        let piece = |start| Piece { rows: start..wanted.min(start + piece_rows), draws: 0..0 };
        let pieces = (0..wanted).step_by(piece_rows).map(piece).collect();
        let mut draws = Self { rows: Vec::new(), starts: Vec::new(), pieces, of: Vec::new(), given: 0 };
        for (rows, &sequence) in plan.wanted_of.iter().zip(&plan.order) {
            let Some(draw) = &seqs[sequence].draw else { continue };
            memory.check(draw).map_err(|problem| Error::Sequence { sequence, problem })?;
            let mut row = Row::new(&settings(&draw.params), draw.position);
            row.alternatives = draw.top_logprobs as u32;
            row.wants_logprob = 1;
            let last = rows.end - 1;
            row.logits_row = (last % piece_rows) as u32;
            if let Some(allowed) = &draw.allowed {
                let words = &allowed[..allowed.len().min(memory.words)];
                (row.mask, row.mask_words) = (draws.give(memory, words)?, words.len() as u32);
            }
            if !draw.seen.is_empty() {
                let start = draws.start(memory, draw)?;
                (row.counts, row.marked) = (start.counts, start.marked);
                draws.starts.push(start);
            }
            draws.rows.push(row);
            draws.of.push(sequence);
            draws.pieces[last / piece_rows].draws.end = draws.rows.len();
        }
        let mut before = 0;
        for piece in &mut draws.pieces {
            piece.draws = before..piece.draws.end.max(before);
            before = piece.draws.end;
        }
        Ok(draws)
    }

    /// Puts words behind those that are there; returns their address on the device.
    fn give(&mut self, memory: &Memory, words: &[u32]) -> Result<u64, Error> {
        let at = self.given;
        memory.staging.write(at, words)?;
        self.given += size_of_val(words);
        Ok(memory.given.address() + at as u64)
    }

    /// Tokens that the output lacks come once, the others as often as it has them.
    fn start(&mut self, memory: &Memory, draw: &Draw) -> Result<Start, Error> {
        let absent = draw.seen.iter().filter(|&&(_, count)| count == 0).map(|&(token, _)| token);
        let mut tokens: Vec<u32> = absent.collect();
        let prompt_tokens = tokens.len() as u32;
        tokens.extend(draw.seen.iter().flat_map(|&(token, count)| std::iter::repeat_n(token, count as usize)));
        let (counts, marked) = memory.state(self.starts.len());
        Ok(Start {
            counts,
            marked,
            tokens: self.give(memory, &tokens)?,
            biases: 0,
            prompt_tokens,
            all_tokens: tokens.len() as u32,
            bias_count: 0,
            padding: 0,
        })
    }

    /// Begins to copy masks and seen tokens, if there are any.
    pub(crate) fn upload(&self, memory: &Memory, stream: &Stream) -> Result<(), Error> {
        if self.given > 0 {
            stream.upload(&memory.staging, 0..self.given, memory.given.part(0..self.given)?)?;
        }
        Ok(())
    }

    /// How many draws penalise, then how many draws each piece has.
    pub(crate) fn counts(&self) -> Vec<u32> {
        let of_pieces = self.pieces.iter().map(|piece| piece.draws.len() as u32);
        std::iter::once(self.starts.len() as u32).chain(of_pieces).collect()
    }
}

fn settings(params: &SamplingParams) -> Settings {
    let &SamplingParams {
        temperature,
        top_p,
        top_k,
        min_p,
        typical_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        seed,
    } = params;
    Settings {
        temperature,
        top_p,
        top_k,
        min_p,
        typical_p,
        repetition_penalty,
        frequency_penalty,
        presence_penalty,
        seed,
    }
}

impl Step<'_> {
    /// Tokens for the draws of a piece, whose logits were enqueued last.
    pub(crate) fn sample(&self, number: usize) -> Result<(), Error> {
        let (memory, layout) = (self.sampling, &self.layout);
        let Piece { rows, draws } = &self.pieces[number];
        let vocabulary = Argument::I32(memory.vocabulary as i32);
        if number == 0 && layout.caps.starts > 0 {
            let arguments = [
                self.part(layout.starts())?.reads().in_parts().into(),
                self.part(layout.starts_count())?.reads().into(),
                vocabulary,
            ];
            let touched = [memory.given.all().reads().in_parts(), memory.states.all().writes().in_parts()];
            self.launch_sampling("weft_sample_begin", layout.caps.starts, &arguments, &touched, 0)?;
        }
        if draws.is_empty() {
            return Ok(());
        }
        let [outcomes, alternatives] = memory.results_of(draws);
        let outcomes = Argument::from(memory.results.part(outcomes)?.writes().in_parts());
        let alternatives = Argument::from(memory.results.part(alternatives)?.writes().in_parts());
        let pending = memory.pending.part(draws.start * WORD..draws.end * WORD)?;
        let logits = Argument::from(self.buffers.logits(rows.len())?.reads().in_parts());
        let table = Argument::from(self.part(layout.draws(draws))?.reads().in_parts());
        let count = Argument::from(self.part(layout.draws_count(number))?.reads());
        let top = Argument::U32(TOP_LOGPROBS_MAX as u32);
        let touched = [memory.given.all().reads().in_parts(), memory.states.all().writes().in_parts()];
        let is_pending = pending.writes().in_parts().into();
        let arguments = [logits, vocabulary, vocabulary, table, count, outcomes, alternatives, top, is_pending];
        let bytes = (draws.len() * memory.vocabulary * size_of::<f32>()) as u64;
        self.launch_sampling("weft_sample_f32", draws.len(), &arguments, &touched, bytes)?;
        let is_pending = pending.reads().in_parts().into();
        let workspace = memory.workspace.all().writes().in_parts().into();
        let arguments = [logits, vocabulary, vocabulary, table, count, outcomes, top, is_pending, workspace];
        self.launch_sampling("weft_sample_large_f32", memory.large_slots, &arguments, &touched, 0)
    }

    fn launch_sampling(
        &self,
        kernel: &str,
        blocks: usize,
        arguments: &[Argument<'_>],
        through_tables: &[Access<'_>],
        read_bytes: u64,
    ) -> Result<(), Error> {
        self.launch(&Launch {
            kernel,
            grid: [blocks as u32, 1, 1],
            threads: sampling::THREADS,
            shared_bytes: 0,
            arguments,
            through_tables,
            counts: Counts { read_bytes, ..Counts::default() },
        })
    }
}
