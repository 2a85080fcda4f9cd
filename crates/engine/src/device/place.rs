//! Where the matrices of an adapter lie in blocks of the pool.
//!
//! A kernel reads a matrix as one piece of memory, so a piece lies within a *run* of neighbouring blocks. Most fit into one block, and blocks need not be
//! neighbours then: no adapter waits for a long run of memory because single blocks are in its middle.

/// Runs that further pieces may go to. Four lose a twentieth of an adapter's blocks where one would lose a quarter (see the test).
const OPEN_RUNS: usize = 4;

/// A piece's run, and the byte of it at which the piece begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) run: usize,
    pub(super) at: usize,
}

/// Where all pieces lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    /// Blocks of each run.
    pub(super) runs: Vec<usize>,
    /// Of each piece.
    pub(super) places: Vec<Place>,
}

impl Places {
    /// Lays each piece of these bytes behind what lies in one of the last [`OPEN_RUNS`] runs, the first that has room; if none has, it begins a new run, as
    /// short as it may be. Pieces begin at multiples of `alignment`. At least one block, so that every adapter has a place.
    pub(super) fn of(pieces: impl IntoIterator<Item = usize>, block_bytes: usize, alignment: usize) -> Self {
        let mut all = Self::default();
        let mut ends: Vec<usize> = Vec::new();
        for bytes in pieces {
            let begin = |run: usize| usize::next_multiple_of(ends[run], alignment);
            let mut open = all.runs.len().saturating_sub(OPEN_RUNS)..all.runs.len();
            let run = open.find(|&run| begin(run) + bytes <= all.runs[run] * block_bytes).unwrap_or_else(|| {
                all.runs.push(bytes.div_ceil(block_bytes).max(1));
                all.runs.len() - 1
            });
            ends.resize(all.runs.len(), 0);
            let at = usize::next_multiple_of(ends[run], alignment);
            all.places.push(Place { run, at });
            ends[run] = at + bytes;
        }
        if all.runs.is_empty() {
            all.runs.push(1);
        }
        all
    }

    pub(super) fn blocks(&self) -> usize {
        self.runs.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_kernels::conformance::Random;

    #[test]
    fn pieces_overlap_nowhere_and_cross_no_end_of_a_run() {
        let random = &mut Random::new(8);
        for _ in 0..200 {
            let block_bytes = 64 * (1 + random.below(40));
            let pieces: Vec<usize> = (0..random.below(60)).map(|_| 1 + random.below(3 * block_bytes)).collect();
            let all = Places::of(pieces.iter().copied(), block_bytes, 16);
            let mut taken: Vec<(usize, usize, usize)> = Vec::new();
            for (&bytes, &Place { run, at }) in pieces.iter().zip(&all.places) {
                assert!(at.is_multiple_of(16) && at + bytes <= all.runs[run] * block_bytes);
                taken.push((run, at, at + bytes));
            }
            taken.sort_unstable();
            assert!(taken.windows(2).all(|two| two[0].0 < two[1].0 || two[0].2 <= two[1].1), "{taken:?}");
            assert_eq!(all.places.len(), pieces.len());
            // A run is no longer than its longest piece asks for.
            for (run, &blocks) in all.runs.iter().enumerate() {
                let of_run = pieces.iter().zip(&all.places).filter(|(_, place)| place.run == run);
                assert_eq!(of_run.map(|(bytes, _)| bytes.div_ceil(block_bytes)).max().unwrap_or(1), blocks);
            }
        }
        assert_eq!(Places::of([], 64, 16).runs, [1], "an adapter without matrices has a place");
    }

    /// Llama 3 8B: blocks of 16 tokens in bf16 are 2 MiB. Of an adapter's blocks no more than this part is lost to their ends.
    #[test]
    fn little_of_a_block_is_lost() {
        let (block_bytes, [hidden, kv, inter]) = (2 << 20, [4096, 1024, 14_336]);
        let attention = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden)];
        let linears = [&attention[..], &[(hidden, inter), (hidden, inter), (inter, hidden)]].concat();
        for (rank, least) in [(8, 0.99), (16, 0.97), (32, 0.97), (64, 0.94), (128, 0.94), (256, 0.9)] {
            let of_layer = linears.iter().flat_map(|(inputs, outputs)| [2 * rank * inputs, 2 * rank * outputs]);
            let pieces: Vec<usize> = (0..32).flat_map(|_| of_layer.clone()).collect();
            let all = Places::of(pieces.iter().copied(), block_bytes, 16);
            let used = pieces.iter().sum::<usize>() as f64 / (all.blocks() * block_bytes) as f64;
            assert!(used > least, "rank {rank}: {used}");
        }
    }
}
