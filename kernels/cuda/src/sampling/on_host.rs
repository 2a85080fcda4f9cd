//! The sampling kernels in the shim, over slices.

use super::{
    Alternative, BAD_LOGITS, Bias, CANDIDATES, Error, Outcome, Row, Settings, Start, THREADS,
    WORKSPACE_BYTES_PER_TOKEN, biases, check,
};
use crate::arguments;
use crate::host::Launch;
use crate::on_host::{Device, Element};

/// Blocks of `weft_sample_large`, so that rows share them.
const SLOTS: usize = 2;

/// What penalties and biases of a sequence need between steps: memory of the device.
#[derive(Clone, Debug, PartialEq)]
pub struct Sequence {
    counts: Vec<u32>,
    marked: Vec<u32>,
    biases: Vec<Bias>,
}

impl Sequence {
    /// What the device knows of a token: 0, or 1 + how often it occurs in the output.
    #[must_use]
    pub fn count(&self, token: u32) -> u32 {
        self.counts.get(token as usize).copied().unwrap_or(0)
    }
}

/// A row to sample.
#[derive(Debug)]
pub struct Request<'a> {
    /// How.
    pub settings: Settings,
    /// In the whole sequence.
    pub position: u64,
    /// Bit `id % 32` of word `id / 32`: allowed.
    pub mask: Option<&'a [u32]>,
    /// Made by [`Device::begin_sequence`] for these settings; the token is recorded in it.
    pub sequence: Option<&'a mut Sequence>,
    /// Most probable tokens to report.
    pub alternatives: usize,
    /// Whether to report the log-probability of the token, as alternatives do.
    pub wants_logprob: bool,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// Its id.
    pub token: u32,
    /// Natural logarithm of its probability under the model's own distribution; 0 if it was not wanted.
    pub logprob: f32,
    /// The most probable tokens with their log-probabilities, best first.
    pub top: Vec<(u32, f32)>,
}

impl Device {
    /// `weft_sample_begin`: counts and marks of a sequence from its tokens and biases.
    ///
    /// # Errors
    ///
    /// [`Error`]: the vocabulary, a bias, or a launch that fails.
    pub fn begin_sequence(
        &self,
        settings: &Settings,
        vocabulary: usize,
        prompt: &[u32],
        output: &[u32],
        logit_bias: &[(u32, f32)],
    ) -> Result<Sequence, Error> {
        check(vocabulary, vocabulary, 1, 0)?;
        let biases = biases(logit_bias, vocabulary)?;
        // Left over from another sequence.
        let counts = if settings.penalises() { vec![7; vocabulary] } else { Vec::new() };
        let mut sequence = Sequence { counts, marked: vec![u32::MAX; vocabulary.div_ceil(32)], biases };
        let tokens = [prompt, output].concat();
        let start = Start {
            counts: if sequence.counts.is_empty() { 0 } else { sequence.counts.as_mut_ptr() as u64 },
            marked: sequence.marked.as_mut_ptr() as u64,
            tokens: tokens.as_ptr() as u64,
            biases: sequence.biases.as_ptr() as u64,
            prompt_tokens: prompt.len() as u32,
            all_tokens: tokens.len() as u32,
            bias_count: sequence.biases.len() as u32,
            padding: 0,
        };
        let (count, vocabulary) = (1u32, vocabulary as i32);
        let (starts, count): (*const Start, *const u32) = (&raw const start, &raw const count);
        let mut arguments = arguments![starts, count, vocabulary];
        // SAFETY: the parameters of sampling.cu; counts and marks have the vocabulary's size, and all of it outlives the call.
        unsafe { self.sampling_launch("weft_sample_begin", 2).run(&mut arguments) }?;
        Ok(sequence)
    }

    /// `weft_sample` and, for what that leaves, `weft_sample_large`: a token for each request, whose row of `logits [rows, stride]` is
    /// the one with its number. None for a row of bad logits.
    ///
    /// # Errors
    ///
    /// [`Error`]: sizes that no launch takes, or a launch that fails.
    ///
    /// # Panics
    ///
    /// When `logits` is shorter than the rows, or a sequence was made for another vocabulary.
    pub fn sample<X: Element>(
        &self,
        logits: &[X],
        vocabulary: usize,
        stride: usize,
        requests: &mut [Request<'_>],
    ) -> Result<Vec<Option<Sampled>>, Error> {
        let most = requests.iter().map(|request| request.alternatives).max().unwrap_or(0);
        check(vocabulary, stride, requests.len(), most)?;
        assert!(requests.is_empty() || logits.len() >= (requests.len() - 1) * stride + vocabulary);
        let row =
            |(at, request): (usize, &mut Request<'_>)| Row { logits_row: at as u32, ..row_of(request, vocabulary) };
        let rows: Vec<Row> = requests.iter_mut().enumerate().map(row).collect();
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let mut outcomes = vec![Outcome::default(); rows.len()];
        let mut alternatives = vec![Alternative::default(); rows.len() * most];
        let mut pending = vec![u32::MAX; rows.len()];
        let mut workspace = vec![u64::MAX; SLOTS * vocabulary * (WORKSPACE_BYTES_PER_TOKEN / 8)];
        let count = rows.len() as u32;
        let (logits, vocabulary, stride): (*const X, i32, i32) = (logits.as_ptr(), vocabulary as i32, stride as i32);
        let (table, count): (*const Row, *const u32) = (rows.as_ptr(), &raw const count);
        let (results, top, top_stride): (*mut Outcome, *mut Alternative, u32) =
            (outcomes.as_mut_ptr(), alternatives.as_mut_ptr(), most as u32);
        let (left, memory): (*mut u32, *mut u64) = (pending.as_mut_ptr(), workspace.as_mut_ptr());
        let kernel = format!("weft_sample_{}", X::SUFFIX);
        let mut arguments = arguments![logits, vocabulary, stride, table, count, results, top, top_stride, left];
        // One block more than there are rows, as in a graph that was captured for a larger batch.
        let launch = self.sampling_launch(&kernel, rows.len() + 1);
        // SAFETY: the parameters of sampling.cu; the slices have the shapes that were checked above and outlive the call.
        unsafe { launch.run(&mut arguments) }?;
        let kernel = format!("weft_sample_large_{}", X::SUFFIX);
        let mut arguments = arguments![logits, vocabulary, stride, table, count, results, top_stride, left, memory];
        // SAFETY: as above; the workspace has four vocabularies of 8 bytes for each block.
        unsafe { self.sampling_launch(&kernel, SLOTS).run(&mut arguments) }?;
        let of_row = |(row, outcome): (usize, &Outcome)| {
            let top = &alternatives[row * most..][..outcome.alternatives as usize];
            (outcome.status != BAD_LOGITS).then(|| Sampled {
                token: outcome.token,
                logprob: outcome.logprob,
                top: top.iter().map(|top| (top.id, top.logprob)).collect(),
            })
        };
        Ok(outcomes.iter().enumerate().map(of_row).collect())
    }

    fn sampling_launch<'a>(&self, kernel: &'a str, blocks: usize) -> Launch<'a> {
        Launch { kernel, grid: [blocks as u32, 1, 1], threads: THREADS, shared_bytes: 0, order: self.order }
    }
}

fn row_of(request: &mut Request<'_>, vocabulary: usize) -> Row {
    let mut row = Row::new(&request.settings, request.position);
    if let Some(mask) = request.mask {
        row.mask = mask.as_ptr() as u64;
        row.mask_words = mask.len() as u32;
    }
    if let Some(sequence) = &mut request.sequence {
        assert!(sequence.marked.len() == vocabulary.div_ceil(32), "a sequence of another vocabulary");
        row.marked = sequence.marked.as_mut_ptr() as u64;
        row.biases = sequence.biases.as_ptr() as u64;
        row.bias_count = sequence.biases.len() as u32;
        if !sequence.counts.is_empty() {
            row.counts = sequence.counts.as_mut_ptr() as u64;
        }
    }
    row.alternatives = request.alternatives as u32;
    row.wants_logprob = u32::from(request.wants_logprob || request.alternatives > 0);
    row
}

const _: () = assert!(super::ALTERNATIVES_MAX <= CANDIDATES);
