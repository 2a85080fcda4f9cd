//! Promises about `linear`.

use super::{Random, abs, assert_bits, assert_close, tolerance};
use crate::quant::GROUP;
use crate::{Kernels, WeightFormat, reference};

/// Widths that meet every edge: nothing, one, below, at and above a vector, a panel, a tile, odd ones.
const WIDTHS: [usize; 14] = [0, 1, 2, 3, 15, 16, 17, 31, 33, 64, 65, 96, 129, 200];
const ROWS: [usize; 12] = [0, 1, 2, 3, 5, 6, 7, 8, 13, 32, 49, 101];

/// Shapes: the edges, some model-like ones, one deep enough to be cut for the cache.
fn shapes(random: &mut Random) -> Vec<(usize, usize, usize)> {
    let mut shapes: Vec<_> =
        (0..60).map(|_| (random.pick(&ROWS), random.pick(&WIDTHS), random.pick(&WIDTHS))).collect();
    shapes.extend([(1, 576, 960), (7, 576, 577), (64, 576, 192), (50, 65, 1000), (13, 5001, 70)]);
    shapes
}

/// `linear` computes the product within the tolerance of the format and overwrites all of its output.
pub fn linear_matches_the_reference(kernels: &dyn Kernels, format: WeightFormat, seed: u64) {
    let random = &mut Random::new(seed);
    let reference = reference();
    for (rows, inputs, outputs) in shapes(random) {
        let (x, w) = (random.normals(rows * inputs), random.normals(outputs * inputs));
        let what = format!("linear {rows}x{inputs}x{outputs} {format:?} seed {seed}");
        let packed = kernels.pack_linear(&w, outputs, inputs, format);
        assert_eq!((packed.in_features(), packed.out_features()), (inputs, outputs), "{what}");
        assert_eq!(packed.format(), format, "{what}");
        let mut got = vec![f32::NAN; rows * outputs];
        kernels.linear(&x, &packed, &mut got);

        let mut want = vec![0.0; rows * outputs];
        reference.linear(&x, &reference.pack_linear(&w, outputs, inputs, format), &mut want);
        let mut magnitude = vec![0.0; rows * outputs];
        let sizes = if format == WeightFormat::Q4 { largest_of_groups(&w, inputs) } else { abs(&w) };
        let sizes = reference.pack_linear(&sizes, outputs, inputs, WeightFormat::F32);
        reference.linear(&abs(&x), &sizes, &mut magnitude);
        assert_close(&what, &got, &want, &magnitude, tolerance(format, inputs, 1));
    }
}

/// For each weight the largest absolute value of its group: where weights have a minimum, a small one is the difference of two
/// terms of that size.
fn largest_of_groups(w: &[f32], inputs: usize) -> Vec<f32> {
    let groups = w.chunks(inputs.max(1)).flat_map(|row| row.chunks(GROUP));
    let largest = |group: &[f32]| group.iter().fold(0.0f32, |largest, w| largest.max(w.abs()));
    groups.flat_map(|group| vec![largest(group); group.len()]).collect()
}

/// A row gives the same bits alone and at any place of any batch, whatever the other rows hold.
pub fn linear_row_alone_and_in_a_batch_is_bit_equal(kernels: &dyn Kernels, format: WeightFormat, seed: u64) {
    let random = &mut Random::new(seed);
    for (inputs, outputs) in [(576, 960), (1536, 576), (131, 77), (5000, 40)] {
        let packed = kernels.pack_linear(&random.normals(outputs * inputs), outputs, inputs, format);
        let row = random.normals(inputs);
        let mut alone = vec![0.0; outputs];
        kernels.linear(&row, &packed, &mut alone);
        for rows in [2, 3, 6, 7, 8, 32, 48, 97] {
            let mut x = random.normals(rows * inputs);
            let at = random.below(rows);
            if at != 0 {
                x[0] = f32::NAN;
            }
            x[at * inputs..(at + 1) * inputs].copy_from_slice(&row);
            let mut out = vec![0.0; rows * outputs];
            kernels.linear(&x, &packed, &mut out);
            let what = format!("linear row {at} of {rows}, {inputs}x{outputs} {format:?} seed {seed}");
            assert_bits(&what, &out[at * outputs..(at + 1) * outputs], &alone);
        }
    }
}
