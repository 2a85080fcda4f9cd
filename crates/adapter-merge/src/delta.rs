//! The merge of one linear on its deltas.

use crate::algebra::{Factored, Matrix, Panels, WIDTH, combine, dot, rows_product};
use crate::algebra::{truncate_dense, truncate_factors, workspace_bytes};
use crate::chance::Draws;
use crate::elements::{Join, Merger, Sieve};
use crate::error::Error;
use crate::recipe::Method;
use weft_adapter_format::{LinearShape, ModuleDelta};
use weft_types::Digest;

/// One parent's part in a linear.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'p> {
    pub(crate) digest: Digest,
    pub(crate) weight: f64,
    pub(crate) delta: ModuleDelta<'p>,
}

impl Part<'_> {
    /// What the product of the factors is multiplied by.
    fn factor(&self) -> f64 {
        self.weight * self.delta.scale
    }
}

/// How a linear is merged, and what that takes; known before any tensor is touched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    /// The rank of the result.
    pub(crate) rank: usize,
    /// Bytes of memory while it is computed, results included.
    pub(crate) work_bytes: u64,
}

/// The sum of the ranks of the parts that count. For exact sums.
fn joined_rank(parts: &[Part<'_>]) -> usize {
    parts.iter().filter(|part| part.factor() != 0.0).map(|part| part.delta.rank).sum()
}

/// Plans a merge of these parts; a rank of 0 means that nothing is left to compute.
pub(crate) fn plan(method: Method, target_rank: usize, parts: &[Part<'_>], linear: &LinearShape) -> Plan {
    let (rows, columns) = (linear.out_features, linear.in_features);
    let joined = joined_rank(parts);
    let sides = (rows + columns) as u64;
    // Factors in double precision, B once more by rows, both in the output's dtype.
    let result_bytes = |rank: usize| 24 * rank as u64 * sides;
    // Factors in double precision, a copy of them packed for products, one of them turned.
    let joined_bytes = 24 * joined as u64 * sides;
    let exact = |rank| Plan { rank, work_bytes: joined_bytes + result_bytes(rank) };
    match method {
        Method::Linear {} => exact(joined),
        Method::Svd {} if joined <= target_rank => exact(joined),
        Method::Svd {} => {
            let rank = target_rank.min(rows).min(columns);
            let squares = 8 * 6 * (joined * joined) as u64;
            Plan { rank, work_bytes: joined_bytes + squares + result_bytes(rank) }
        }
        Method::Ties { .. } | Method::DareLinear { .. } | Method::DareTies { .. } => {
            let rank = target_rank.min(rows).min(columns);
            let ranks: u64 = parts.iter().map(|part| part.delta.rank as u64).sum();
            let dense = 4 * rows as u64 * columns as u64;
            let lines = 12 * (WIDTH * (parts.len() + 1) * columns) as u64;
            let merging = 16 * ranks * sides + lines;
            let cutting = workspace_bytes(rows, columns, rank) + result_bytes(rank);
            Plan { rank, work_bytes: dense + merging.max(cutting) }
        }
    }
}

/// Merges as planned. `name` is the module's full name.
///
/// # Errors
/// [`Error::Overflow`] if an element of the merged delta is too large for single precision.
pub(crate) fn merge(
    method: Method,
    plan: Plan,
    name: &str,
    parts: &[Part<'_>],
    linear: &LinearShape,
) -> Result<Factored, Error> {
    match method {
        Method::Linear {} => Ok(exact(parts, linear)),
        Method::Svd {} if joined_rank(parts) == plan.rank => Ok(exact(parts, linear)),
        Method::Svd {} => {
            let Factored { left, right, .. } = joined(parts, linear);
            Ok(truncate_factors(left, right, plan.rank))
        }
        Method::Ties { .. } | Method::DareLinear { .. } | Method::DareTies { .. } => {
            let dense = Dense { method, name, parts, rows: linear.out_features, columns: linear.in_features };
            let merged = dense.merged();
            if merged.iter().any(|value| !value.is_finite()) {
                return Err(Error::Overflow { tensor: format!("the delta of {name}"), dtype: "F32" });
            }
            Ok(truncate_dense(&merged, dense.rows, dense.columns, plan.rank))
        }
    }
}

/// The parents' factors one below the other: their product is the weighted sum of the deltas.
fn joined(parts: &[Part<'_>], linear: &LinearShape) -> Factored {
    let rank = joined_rank(parts);
    let mut left = Matrix { rows: rank, columns: linear.out_features, data: Vec::new() };
    let mut right = Matrix { rows: rank, columns: linear.in_features, data: Vec::new() };
    for part in parts.iter().filter(|part| part.factor() != 0.0) {
        let scaled = part.delta.b.to_f32().into_iter().map(|value| f64::from(value) * part.factor());
        let b = Matrix { rows: linear.out_features, columns: part.delta.rank, data: scaled.collect() };
        left.data.extend(b.transposed().data);
        right.data.extend(part.delta.a.to_f32().into_iter().map(f64::from));
    }
    Factored { left, right, norm2: 0.0, lost2: 0.0 }
}

/// [`joined`] with its norm: nothing is lost.
fn exact(parts: &[Part<'_>], linear: &LinearShape) -> Factored {
    let joined = joined(parts, linear);
    // The square of the norm of a sum of outer products is the sum of the products of the inner products.
    let left = combine(&joined.left, &joined.left.transposed());
    let right = combine(&joined.right, &joined.right.transposed());
    Factored { norm2: dot(&left.data, &right.data).max(0.0), ..joined }
}

/// A linear whose merged delta has to be written out.
struct Dense<'p> {
    method: Method,
    name: &'p str,
    parts: &'p [Part<'p>],
    rows: usize,
    columns: usize,
}

impl Dense<'_> {
    /// The merged delta, row-major, rounded to single precision. Four rows of each parent are in memory at a time.
    fn merged(&self) -> Vec<f32> {
        let mut merged = vec![0.0; self.rows * self.columns];
        let sieves: Vec<(f64, Sieve)> =
            self.parts.iter().map(|part| (part.weight, self.sieve(part, &mut merged))).collect();
        let mut merger = Merger::new(sieves, Join::of(self.method));
        let sources: Vec<DeltaRows> = self.parts.iter().map(|part| DeltaRows::new(part, self.columns)).collect();
        let mut lines = vec![vec![0.0; WIDTH * self.columns]; sources.len()];
        let mut line = vec![0.0; self.columns];
        for (block, out) in merged.chunks_mut(WIDTH * self.columns).enumerate() {
            for (source, lines) in sources.iter().zip(&mut lines) {
                source.read(block * WIDTH, &mut lines[..out.len()]);
            }
            for (row, out) in out.chunks_exact_mut(self.columns).enumerate() {
                for (index, lines) in lines.iter().enumerate() {
                    merger.take(index, &lines[row * self.columns..][..self.columns]);
                }
                merger.merged(&mut line);
                out.iter_mut().zip(&line).for_each(|(out, value)| *out = *value as f32);
            }
        }
        merged
    }

    /// What of this parent stays. `room` has one element for each of the delta and is overwritten.
    fn sieve(&self, part: &Part<'_>, room: &mut [f32]) -> Sieve {
        match self.method {
            Method::Linear {} | Method::Svd {} => Sieve::All,
            Method::Ties { density, .. } => {
                let source = DeltaRows::new(part, self.columns);
                for (block, lines) in room.chunks_mut(WIDTH * self.columns).enumerate() {
                    source.read(block * WIDTH, lines);
                }
                Sieve::largest(room, density)
            }
            Method::DareLinear { density, seed } | Method::DareTies { density, seed, .. } => Sieve::Drawn {
                draws: Draws::new(seed, part.digest, &format!("{}.delta", self.name), density),
                factor: 1.0 / density,
            },
        }
    }
}

/// The rows of one parent's delta, `scale · B A`, computed as they are asked for.
struct DeltaRows {
    /// `[rank, rows]`
    b: Matrix,
    a: Panels,
    scale: f64,
}

impl DeltaRows {
    fn new(part: &Part<'_>, columns: usize) -> Self {
        let wide = |values: Vec<f32>| values.into_iter().map(f64::from).collect();
        let ModuleDelta { rank, scale, a, b, .. } = part.delta;
        let a = Matrix { rows: rank, columns, data: wide(a.to_f32()) };
        let b = Matrix { rows: b.shape[0], columns: rank, data: wide(b.to_f32()) };
        Self { b: b.transposed(), a: Panels::of_rows(&a), scale }
    }

    /// Rows from `first` on, as many as `out` holds and at most four, in single precision as PEFT has them.
    fn read(&self, first: usize, out: &mut [f32]) {
        let mut lines = vec![0.0; out.len()];
        let columns = self.a.width();
        let kept = out.len() / columns;
        let mut panel = vec![[0.0; WIDTH]; self.b.rows];
        for (depth, lanes) in panel.iter_mut().enumerate() {
            lanes[..kept].copy_from_slice(&self.b.row(depth)[first..first + kept]);
        }
        rows_product(&panel, &self.a, &mut lines);
        out.iter_mut().zip(&lines).for_each(|(out, value)| *out = (value * self.scale) as f32);
    }
}
