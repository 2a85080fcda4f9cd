//! `scale_columns.cu` in the shim, against the multiplications that it stands for; `join_columns.cu`, against where columns belong.

use half::{bf16, f16};
use proptest::prelude::*;
use weft_cuda_kernels::arguments;
use weft_cuda_kernels::columns::{self, Factors, Item};
use weft_cuda_kernels::host::{Launch, Order};
use weft_cuda_kernels::on_host::Element;
use weft_kernels::conformance::Random;

/// Memory at a multiple of 16 bytes, as slots are.
#[repr(align(16))]
#[derive(Clone, Copy)]
struct Four([f32; 4]);

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Several adapters with several ranges of columns each, at any column; blocks beyond the count do nothing.
    #[test]
    fn factors_meet_their_columns_of_their_rows_and_nothing_else(
        seed: u64,
        runs in prop::collection::vec((0usize..3, 1usize..40), 1..4),
        parts in prop::collection::vec((0usize..9, prop_oneof![3 => 1usize..70, 1 => 2040usize..2060]), 1..4),
        spare in 0usize..3,
        order in prop_oneof![Just(Order::FORWARDS), Just(Order::BACKWARDS)],
    ) {
        is_right::<f32>(seed, &runs, &parts, spare, order);
        is_right::<bf16>(seed, &runs, &parts, spare, order);
        is_right::<f16>(seed, &runs, &parts, spare, order);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any number of columns of the last part; `out` may begin anywhere.
    #[test]
    fn parts_of_rows_lie_side_by_side(
        rows in 1usize..9,
        parts in 1usize..6,
        eights in prop_oneof![3 => 1usize..9, 1 => 250usize..300],
        missing in 0usize..300,
        shift in 0usize..3,
        order in prop_oneof![Just(Order::FORWARDS), Just(Order::BACKWARDS)],
    ) {
        let each = columns::JOINED_MULTIPLE * eights;
        let width = parts * each - missing % each;
        let value = |row: usize, column: usize| (row * 100_000 + column) as f32;
        let of_part = |part: usize| (0..rows).flat_map(move |row| (0..each).map(move |at| value(row, part * each + at)));
        let from: Vec<f32> = (0..parts).flat_map(of_part).collect();
        let mut out = vec![-1.0f32; shift + rows * width + 1];
        let launch = Launch {
            kernel: "weft_join_columns_f32",
            grid: columns::join_grid(rows, width),
            threads: columns::THREADS,
            shared_bytes: 0,
            order,
        };
        let (from, part_width, to, width_is) = (from.as_ptr(), each as i32, out[shift..].as_mut_ptr(), width as i32);
        // SAFETY: the parameters of join_columns.cu, with the shapes that it asks for.
        unsafe { launch.run(&mut arguments![from, part_width, to, width_is]) }.unwrap();
        let expected = (0..rows).flat_map(|row| (0..width).map(move |column| value(row, column)));
        prop_assert!(out[shift..shift + rows * width].iter().copied().eq(expected));
        prop_assert!(out[..shift].iter().chain(&out[shift + rows * width..]).all(|value| *value == -1.0));
    }
}

fn is_right<X: Element>(seed: u64, runs: &[(usize, usize)], parts: &[(usize, usize)], spare: usize, order: Order) {
    let random = &mut Random::new(seed);
    let stride = parts.iter().map(|(gap, columns)| gap + columns).sum::<usize>() + 3;
    let rows = runs.iter().map(|(gap, rows)| gap + rows).sum::<usize>() + 1;
    let mut out: Vec<X> = (0..rows * stride).map(|_| X::from_f32(random.normal())).collect();
    let mut expected: Vec<f32> = out.iter().map(|value| value.to_f32()).collect();
    let (mut items, mut memory) = (Vec::<Item>::new(), Vec::<Vec<Four>>::new());
    let mut first_row = 0;
    for &(gap, rows) in runs {
        first_row += gap;
        let mut column = 0;
        let mut factors = Vec::new();
        for &(gap, columns) in parts {
            column += gap;
            let values: Vec<Four> = (0..columns.div_ceil(4)).map(|_| Four([(); 4].map(|()| random.normal()))).collect();
            for row in first_row..first_row + rows {
                for (at, factor) in values.iter().flat_map(|four| four.0).take(columns).enumerate() {
                    let to = &mut expected[row * stride + column + at];
                    *to = X::from_f32(*to * factor).to_f32();
                }
            }
            let (out_offset, out_features) = (column as u32, columns as u32);
            factors.push(Factors { at: values.as_ptr() as u64, out_offset, out_features });
            memory.push(values);
            column += columns;
        }
        items.extend(columns::items(first_row..first_row + rows, &factors));
        first_row += rows;
    }
    let count = items.len() as u32;
    let grid = columns::grid(items.len() + spare, stride);
    let kernel = format!("weft_scale_columns_{}", X::SUFFIX);
    let launch = Launch { kernel: &kernel, grid, threads: columns::THREADS, shared_bytes: 0, order };
    let (to, stride, at, count): (*mut X, i32, *const Item, *const u32) =
        (out.as_mut_ptr(), stride as i32, items.as_ptr(), &raw const count);
    // SAFETY: the parameters of scale_columns.cu; items name rows and columns of `out`, and factors that are there.
    unsafe { launch.run(&mut arguments![to, stride, at, count]) }.unwrap();
    for (found, expected) in out.iter().zip(&expected) {
        assert_eq!(found.to_f32().to_bits(), expected.to_bits());
    }
}
