//! Choosing tokens.

use super::{Port, reads, writes};
use weft_cuda_device::{Access, Argument, Buffer};
use weft_cuda_kernels::on_host::Element;
use weft_cuda_kernels::sampling::{
    Alternative, BAD_LOGITS, Outcome, Row, Sampled, Settings, Start, THREADS, WORKSPACE_BYTES_PER_TOKEN,
};

/// Blocks of `weft_sample_large`, so that rows share them.
const SLOTS: usize = 2;

/// How a row is sampled.
pub(crate) struct Draw<'a> {
    pub(crate) settings: Settings,
    pub(crate) position: u64,
    /// Bit `id % 32` of word `id / 32`: allowed.
    pub(crate) mask: Option<&'a [u32]>,
    /// Of prompt and output, where the settings penalise.
    pub(crate) tokens: [&'a [u32]; 2],
    pub(crate) alternatives: usize,
}

/// What a row's table names.
struct Reached {
    mask: Option<Buffer>,
    /// Counts and marks.
    sequence: Option<[Buffer; 2]>,
}

impl Port {
    /// A token for each row of `logits [rows, vocabulary]`; none for bad logits.
    pub(crate) fn sample<X: Element + bytemuck::Pod>(
        &self,
        logits: &[X],
        vocabulary: usize,
        draws: &[Draw<'_>],
    ) -> Vec<Option<Sampled>> {
        let most = draws.iter().map(|draw| draw.alternatives).max().unwrap_or(0);
        let reached: Vec<Reached> = draws.iter().map(|draw| self.reached(draw, vocabulary)).collect();
        let rows: Vec<Row> = draws.iter().zip(&reached).enumerate().map(row).collect();
        let (logits, table, count) = (self.put(logits), self.put(&rows), self.put(&[rows.len() as u32]));
        let results = self.room(rows.len() * size_of::<Outcome>());
        let top = self.room(rows.len() * most * size_of::<Alternative>());
        let (left, memory) = (self.room(4 * rows.len()), self.room(SLOTS * vocabulary * WORKSPACE_BYTES_PER_TOKEN));
        let width = Argument::I32(vocabulary as i32);
        let first = [reads(&logits), width, width, reads(&table), reads(&count), writes(&results)];
        let top_stride = Argument::U32(most as u32);
        let arguments = [&first[..], &[writes(&top), top_stride, writes(&left)]].concat();
        let through: Vec<Access<'_>> = reached.iter().flat_map(Reached::accesses).collect();
        // One block more than there are rows, as in a graph that was captured for a larger batch.
        let shape = |blocks: usize| ([blocks as u32, 1, 1], THREADS, 0);
        self.run(&format!("weft_sample_{}", X::SUFFIX), shape(rows.len() + 1), &arguments, &through);
        let arguments = [&first[..], &[top_stride, writes(&left), writes(&memory)]].concat();
        self.run(&format!("weft_sample_large_{}", X::SUFFIX), shape(SLOTS), &arguments, &through);
        let alternatives: Vec<Alternative> = self.get(&top);
        let sampled = |(row, outcome): (usize, Outcome)| {
            let top = &alternatives[row * most..][..outcome.alternatives as usize];
            (outcome.status != BAD_LOGITS).then(|| Sampled {
                token: outcome.token,
                logprob: outcome.logprob,
                top: top.iter().map(|top| (top.id, top.logprob)).collect(),
            })
        };
        self.get::<Outcome>(&results).into_iter().enumerate().map(sampled).collect()
    }

    fn reached(&self, draw: &Draw<'_>, vocabulary: usize) -> Reached {
        let sequence = draw.settings.penalises().then(|| self.begin(draw.tokens, vocabulary));
        Reached { mask: draw.mask.map(|mask| self.put(mask)), sequence }
    }

    /// Counts and marks of a sequence.
    fn begin(&self, [prompt, output]: [&[u32]; 2], vocabulary: usize) -> [Buffer; 2] {
        let (counts, marked) = (self.room(4 * vocabulary), self.room(4 * vocabulary.div_ceil(32)));
        let tokens = self.put(&[prompt, output].concat());
        let start = self.put(&[Start {
            counts: counts.address(),
            marked: marked.address(),
            tokens: tokens.address(),
            biases: 0,
            prompt_tokens: prompt.len() as u32,
            all_tokens: (prompt.len() + output.len()) as u32,
            bias_count: 0,
            padding: 0,
        }]);
        let count = self.put(&[1u32]);
        let arguments = [reads(&start), reads(&count), Argument::I32(vocabulary as i32)];
        let through = [counts.all().writes(), marked.all().writes(), tokens.all().reads()];
        self.run("weft_sample_begin", ([2, 1, 1], THREADS, 0), &arguments, &through);
        [counts, marked]
    }
}

impl Reached {
    fn accesses(&self) -> impl Iterator<Item = Access<'_>> {
        let mask = self.mask.iter().map(|mask| mask.all().reads());
        mask.chain(self.sequence.iter().flatten().map(|part| part.all().writes()))
    }
}

fn row((at, (draw, reached)): (usize, (&Draw<'_>, &Reached))) -> Row {
    let mut row = Row::new(&draw.settings, draw.position);
    row.logits_row = at as u32;
    if let (Some(mask), Some(words)) = (&reached.mask, draw.mask) {
        (row.mask, row.mask_words) = (mask.address(), words.len() as u32);
    }
    if let Some([counts, marked]) = &reached.sequence {
        (row.counts, row.marked) = (counts.address(), marked.address());
    }
    (row.alternatives, row.wants_logprob) = (draw.alternatives as u32, 1);
    row
}
