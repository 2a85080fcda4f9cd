//! What comes back of a step: logits of the rows that are wanted, tokens of those that were drawn, nothing else.

use super::activations::Buffers;
use super::draws::{Draws, Memory, Piece, TOP_LOGPROBS_MAX};
use crate::plan::Plan;
use crate::sampling::{NoToken, Sampled};
use crate::{Error, SeqOutput, SeqStep};
use std::ops::Range;
use weft_cuda_device::{Device, Pinned, Stream};
use weft_cuda_kernels::sampling::{Alternative, BAD_LOGITS, Outcome};

/// Pinned memory for a piece of the logits, and for all results of draws.
pub(crate) struct Host {
    logits: Pinned,
    results: Pinned,
    row_bytes: usize,
}

/// A step whose results are fetched.
pub(crate) struct Answers<'a, R> {
    pub(crate) host: &'a Host,
    pub(crate) stream: &'a Stream,
    pub(crate) buffers: &'a Buffers,
    pub(crate) memory: &'a Memory,
    pub(crate) plan: &'a Plan<'a, R>,
    pub(crate) seqs: &'a [SeqStep],
    pub(crate) draws: &'a Draws,
}

impl Host {
    pub(crate) fn new(device: &Device, logits_rows: usize, vocabulary: usize, memory: &Memory) -> Result<Self, Error> {
        let row_bytes = vocabulary * size_of::<f32>();
        let logits = device.allocate_pinned(logits_rows * row_bytes)?;
        Ok(Self { logits, results: device.allocate_pinned(memory.results().bytes())?, row_bytes })
    }
}

impl<R> Answers<'_, R> {
    /// Each sequence's wanted rows within a piece, counted from its beginning, with the position in the batch: those whose logits are returned.
    fn returned(&self, piece: &Piece) -> impl Iterator<Item = (usize, Range<usize>)> {
        let of_piece = piece.rows.clone();
        self.plan.order.iter().zip(&self.plan.wanted_of).filter_map(move |(&at, rows)| {
            let rows = rows.start.max(of_piece.start)..rows.end.min(of_piece.end);
            let is_returned = !rows.is_empty() && self.seqs[at].returns_logits();
            is_returned.then(|| (at, rows.start - of_piece.start..rows.end - of_piece.start))
        })
    }

    /// Begins to copy what a piece gave: neighbouring rows at once, alternatives only if some draw asks for them.
    pub(crate) fn download(&self, piece: &Piece) -> Result<(), Error> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for (_, rows) in self.returned(piece) {
            match runs.last_mut() {
                Some(run) if run.end == rows.start => run.end = rows.end,
                _ => runs.push(rows),
            }
        }
        let logits = self.buffers.logits(piece.rows.len())?;
        for run in runs {
            let bytes = run.start * self.host.row_bytes..run.end * self.host.row_bytes;
            self.stream.download(logits.part(bytes.clone())?, &self.host.logits, bytes)?;
        }
        let [outcomes, alternatives] = self.memory.results_of(&piece.draws);
        self.download_results(outcomes)?;
        if self.draws.rows[piece.draws.clone()].iter().any(|row| row.alternatives > 0) {
            self.download_results(alternatives)?;
        }
        Ok(())
    }

    fn download_results(&self, bytes: Range<usize>) -> Result<(), Error> {
        Ok(self.stream.download(self.memory.results().part(bytes.clone())?, &self.host.results, bytes)?)
    }

    /// Appends what a piece gave to the outputs, once it was copied.
    pub(crate) fn read(&self, piece: &Piece, outputs: &mut [SeqOutput]) -> Result<(), Error> {
        for (at, rows) in self.returned(piece) {
            let logits = &mut outputs[at].logits;
            let before = logits.len();
            logits.resize(before + rows.len() * self.host.row_bytes / size_of::<f32>(), 0.0);
            self.host.logits.read(rows.start * self.host.row_bytes, &mut logits[before..])?;
        }
        for draw in piece.draws.clone() {
            outputs[self.draws.of[draw]].drawn = Some(self.drawn(draw)?);
        }
        Ok(())
    }

    fn drawn(&self, draw: usize) -> Result<Result<Sampled, NoToken>, Error> {
        let [outcome_at, top_at] = self.memory.results_of(&(draw..draw + 1));
        let mut outcome = [Outcome::default()];
        self.host.results.read(outcome_at.start, &mut outcome)?;
        let [Outcome { token, status, logprob, alternatives }] = outcome;
        if status == BAD_LOGITS {
            return Ok(Err(NoToken));
        }
        let mut top = [Alternative::default(); TOP_LOGPROBS_MAX];
        let top = &mut top[..TOP_LOGPROBS_MAX.min(alternatives as usize)];
        self.host.results.read(top_at.start, top)?;
        Ok(Ok(Sampled { token, logprob, top: top.iter().map(|top| (top.id, top.logprob)).collect() }))
    }
}
