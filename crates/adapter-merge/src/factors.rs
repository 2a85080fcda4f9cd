//! The merge of one linear as LoRAX does it: A and B apart.
//!
//! Facts from LoRAX at a7394ba3, `server/lorax_server/utils/merges`: all A's of a module are merged as if they were the
//! deltas, then all B's, with the same weights; the product is scaled by the first adapter's `lora_alpha / r`; ranks
//! must be equal. Its DARE computes the rescaled tensor and throws it away, so nothing is rescaled. Two things are ours:
//! the draws follow from a seed (LoRAX draws anew at each load), and the arithmetic is in double precision.

use crate::algebra::{Factored, Matrix, combine, dot};
use crate::chance::Draws;
use crate::delta::{Part, Plan};
use crate::elements::{Join, Merger, Sieve};
use crate::recipe::Method;
use weft_adapter_format::{LinearShape, ModuleDelta, TensorView};

/// Merges the factors of these parts, which have one rank. `scale` is the first parent's and goes into B.
pub(crate) fn merge<'p>(method: Method, name: &str, parts: &[Part<'p>], scale: f64, linear: &LinearShape) -> Factored {
    let rank = parts[0].delta.rank;
    let merged = |which: &str, of: fn(&ModuleDelta<'p>) -> TensorView<'p>| {
        let mut tensors: Vec<Vec<f32>> = parts.iter().map(|part| of(&part.delta).to_f32()).collect();
        let sieves = tensors.iter().zip(parts).map(|(tensor, part)| {
            let sieve = sieve(method, part, &format!("{name}.{which}"), tensor);
            (part.weight, sieve)
        });
        let mut merger = Merger::new(sieves.collect(), Join::of(method));
        for (index, tensor) in tensors.iter_mut().enumerate() {
            merger.take(index, tensor);
        }
        let mut merged = vec![0.0; tensors[0].len()];
        merger.merged(&mut merged);
        merged
    };
    let a = Matrix { rows: rank, columns: linear.in_features, data: merged("lora_A", |delta| delta.a) };
    let mut b = Matrix { rows: linear.out_features, columns: rank, data: merged("lora_B", |delta| delta.b) };
    b.data.iter_mut().for_each(|element| *element *= scale);
    let left = b.transposed();
    let norm2 = dot(&combine(&left, &b).data, &combine(&a, &a.transposed()).data).max(0.0);
    Factored { left, right: a, norm2, lost2: 0.0 }
}

fn sieve(method: Method, part: &Part<'_>, tensor: &str, values: &[f32]) -> Sieve {
    match method {
        Method::Linear {} | Method::Svd {} => Sieve::All,
        Method::Ties { density, .. } => Sieve::largest(&mut values.to_vec(), density),
        Method::DareLinear { density, seed } | Method::DareTies { density, seed, .. } => {
            Sieve::Drawn { draws: Draws::new(seed, part.digest, tensor, density), factor: 1.0 }
        }
    }
}

/// The rank is the parents'; memory is for the tensors of every parent, single and double, and the result.
pub(crate) fn plan(parts: &[Part<'_>], linear: &LinearShape) -> Plan {
    let rank = parts[0].delta.rank;
    let sides = (linear.in_features + linear.out_features) as u64;
    Plan { rank, work_bytes: (16 * parts.len() as u64 + 32) * rank as u64 * sides }
}
