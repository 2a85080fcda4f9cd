//! What a merge lost.

use serde::Serialize;

/// The error of a merge: what cutting to the target rank took away. Rounding to the output's dtype comes on top, and is
/// at most 2^-24 of each element of a factor in F32, 2^-9 in BF16.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Relative Frobenius error over all modules: the root of the sum of squares lost, over that of all squares.
    pub error: f64,
    /// By layer and then by module.
    pub modules: Vec<ModuleReport>,
}

/// The error of one module.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModuleReport {
    /// Full name, e.g. `model.layers.0.mlp.up_proj`.
    pub module: String,
    /// Rank of the result.
    pub rank: usize,
    /// Frobenius norm of the merged delta before it was cut.
    pub norm: f64,
    /// Norm of what was cut off, relative to `norm`; 0 if nothing was.
    pub error: f64,
}

impl ModuleReport {
    /// From the squares of the norms.
    pub(crate) fn new(module: String, rank: usize, norm2: f64, lost2: f64) -> Self {
        Self { module, rank, norm: norm2.sqrt(), error: ratio(lost2, norm2) }
    }
}

impl Report {
    pub(crate) fn new(modules: Vec<ModuleReport>) -> Self {
        let (mut lost2, mut norm2) = (0.0, 0.0);
        for module in &modules {
            let lost = module.error * module.norm;
            lost2 += lost * lost;
            norm2 += module.norm * module.norm;
        }
        Self { error: ratio(lost2, norm2), modules }
    }
}

fn ratio(lost2: f64, norm2: f64) -> f64 {
    if norm2 > 0.0 { (lost2 / norm2).sqrt() } else { 0.0 }
}
