//! Promises about `write_kv` and `attention`.

use super::{Random, assert_bits, assert_close};
use crate::{AttentionSeq, Kernels, KvFormat, KvLayer, reference};
use std::ops::Range;

/// Scores of inputs with variance 1 are below about 30; their error, times that of the exponential, moves a weight by less than
/// this share. With bf16 pages what is stored is equal, but queries and weights may be rounded: a score is then off by half a unit
/// of 8 bits of the products that it adds up, and so, relatively, is its weight.
fn share(format: KvFormat) -> f32 {
    match format {
        KvFormat::F32 => 2e-5,
        KvFormat::Bf16 => 1.0 / 64.0,
    }
}

/// Sequences of a step over one layer, with the keys and values of *all* their positions.
struct Case {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_size: usize,
    blocks: usize,
    /// Per sequence: positions, its blocks, queries, keys, values of every position.
    seqs: Vec<Plain>,
}

struct Plain {
    len: usize,
    blocks: Vec<u32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Case {
    fn draw(random: &mut Random) -> Self {
        let kv_heads = 1 + random.below(3);
        let heads = kv_heads * random.pick(&[1, 2, 3, 4, 7]);
        let head_dim = random.pick(&[1, 3, 16, 20, 32, 64, 72]);
        let block_size = random.pick(&[1, 3, 4, 16, 16, 16, 20, 32]);
        let lens: Vec<usize> = (0..1 + random.below(4)).map(|_| random.pick(&[1, 2, 5, 15, 16, 17, 40, 90])).collect();
        Self::new(random, [heads, kv_heads, head_dim, block_size], &lens)
    }

    /// Random values, shuffled blocks, a few blocks unused.
    fn new(random: &mut Random, [heads, kv_heads, head_dim, block_size]: [usize; 4], lens: &[usize]) -> Self {
        let used: usize = lens.iter().map(|len| len.div_ceil(block_size)).sum();
        let blocks = used + random.below(5);
        let mut free: Vec<u32> = (0..blocks as u32).collect();
        for i in (1..blocks).rev() {
            free.swap(i, random.below(i + 1));
        }
        let seqs = lens
            .iter()
            .map(|&len| Plain {
                len,
                blocks: free.split_off(free.len() - len.div_ceil(block_size)),
                q: random.normals(len * heads * head_dim),
                k: random.normals(len * kv_heads * head_dim),
                v: random.normals(len * kv_heads * head_dim),
            })
            .collect();
        Self { heads, kv_heads, head_dim, block_size, blocks, seqs }
    }

    fn layer(&self, kernels: &dyn Kernels, format: KvFormat) -> KvLayer {
        kernels.new_kv(self.blocks, self.block_size, self.kv_heads, self.head_dim, format)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn name(&self, format: KvFormat, seed: u64) -> String {
        let Self { heads, kv_heads, head_dim, block_size, .. } = self;
        let lens: Vec<usize> = self.seqs.iter().map(|seq| seq.len).collect();
        format!("attention {heads}/{kv_heads}x{head_dim} blocks of {block_size} {lens:?} {format:?} seed {seed}")
    }

    /// Runs one step over `parts[i]` of every sequence's positions; returns the outputs per sequence.
    fn step(&self, kernels: &dyn Kernels, parts: &[Range<usize>], kv: &mut KvLayer) -> Vec<Vec<f32>> {
        let (q_width, kv_width) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let (mut q, mut k, mut v, mut seqs) = (vec![], vec![], vec![], vec![]);
        let mut row = 0;
        for (seq, part) in self.seqs.iter().zip(parts) {
            q.extend_from_slice(&seq.q[part.start * q_width..part.end * q_width]);
            k.extend_from_slice(&seq.k[part.start * kv_width..part.end * kv_width]);
            v.extend_from_slice(&seq.v[part.start * kv_width..part.end * kv_width]);
            let rows = row..row + part.len();
            row = rows.end;
            seqs.push(AttentionSeq { rows, start: part.start, blocks: &seq.blocks });
        }
        let mut out = vec![f32::NAN; q.len()];
        kernels.write_kv(&k, &v, &seqs, kv);
        kernels.attention(&q, self.heads, self.scale(), &seqs, kv, &mut out);
        seqs.iter().map(|seq| out[seq.rows.start * q_width..seq.rows.end * q_width].to_vec()).collect()
    }

    fn whole(&self) -> Vec<Range<usize>> {
        self.seqs.iter().map(|seq| 0..seq.len).collect()
    }
}

/// Prefill of several sequences at once, grouped heads, any block size, shuffled blocks.
pub fn attention_matches_the_reference(kernels: &dyn Kernels, format: KvFormat, seed: u64) {
    let random = &mut Random::new(seed);
    let reference = reference();
    let mut cases: Vec<Case> = (0..60).map(|_| Case::draw(random)).collect();
    cases.push(Case::new(random, [6, 2, 64, 16], &[700, 33]));
    for case in cases {
        let got = case.step(kernels, &case.whole(), &mut case.layer(kernels, format));
        let want = case.step(&*reference, &case.whole(), &mut case.layer(&*reference, format));
        for ((got, want), seq) in got.iter().zip(&want).zip(&case.seqs) {
            let most = seq.v.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            assert_close(&case.name(format, seed), got, want, &vec![most; want.len()], share(format));
        }
    }
}

/// The same bits whether a sequence is computed in one step or in any others, alone or beside any other.
pub fn attention_does_not_depend_on_the_cut_into_steps(kernels: &dyn Kernels, format: KvFormat, seed: u64) {
    let random = &mut Random::new(seed);
    for _ in 0..40 {
        let case = Case::draw(random);
        let whole = case.step(kernels, &case.whole(), &mut case.layer(kernels, format));
        let mut kv = case.layer(kernels, format);
        let mut done = vec![0; case.seqs.len()];
        let mut parts: Vec<Vec<f32>> = vec![vec![]; case.seqs.len()];
        while done.iter().zip(&case.seqs).any(|(done, seq)| *done < seq.len) {
            let cut: Vec<Range<usize>> = done
                .iter()
                .zip(&case.seqs)
                .map(|(&done, seq)| {
                    let len = random.pick(&[0, 1, 1, 2, 7, 30]);
                    done..(done + len).min(seq.len)
                })
                .collect();
            let outs = case.step(kernels, &cut, &mut kv);
            for (i, out) in outs.into_iter().enumerate() {
                parts[i].extend(out);
                done[i] = cut[i].end;
            }
        }
        for (part, whole) in parts.iter().zip(&whole) {
            assert_bits(&case.name(format, seed), part, whole);
        }
    }
}

/// What blocks held before, later positions and other sequences leave no trace, not even as NaN; rows without a
/// sequence keep what they had; block numbers beyond the positions of the step are not looked at.
pub fn attention_ignores_what_it_must_not_see(kernels: &dyn Kernels, format: KvFormat, seed: u64) {
    let random = &mut Random::new(seed);
    for _ in 0..20 {
        let mut case = Case::draw(random);
        for seq in &mut case.seqs {
            seq.blocks.push(u32::MAX);
        }
        let clean = case.step(kernels, &case.whole(), &mut case.layer(kernels, format));
        let mut dirty = case.layer(kernels, format);
        let all: Vec<u32> = (0..case.blocks as u32).collect();
        let nan = vec![f32::NAN; case.blocks * case.block_size * case.kv_heads * case.head_dim];
        let everything = AttentionSeq { rows: 0..case.blocks * case.block_size, start: 0, blocks: &all };
        kernels.write_kv(&nan, &nan, &[everything], &mut dirty);
        let got = case.step(kernels, &case.whole(), &mut dirty);
        for (got, clean) in got.iter().zip(&clean) {
            assert_bits(&case.name(format, seed), got, clean);
        }

        let seq = &case.seqs[0];
        let width = case.heads * case.head_dim;
        let q = [&vec![1.0; width][..], &seq.q[..width], &vec![1.0; width][..]].concat();
        let mut out = vec![7.0; 3 * width];
        let seqs = [AttentionSeq { rows: 1..2, start: 0, blocks: &seq.blocks }];
        kernels.attention(&q, case.heads, case.scale(), &seqs, &dirty, &mut out);
        assert_bits(&case.name(format, seed), &out[..width], &vec![7.0; width]);
        assert_bits(&case.name(format, seed), &out[width..2 * width], &clean[0][..width]);
        assert_bits(&case.name(format, seed), &out[2 * width..], &vec![7.0; width]);
    }
}
