//! What must hold for every merge, over random adapters, weights and methods.

mod support;

use proptest::prelude::*;
use std::num::NonZeroUsize;
use support::{Dense, base, blob_of, deltas, difference, even_blobs, llama, merge_blobs, mixed_blobs, recipe};
use weft_adapter_merge::{Limits, MajoritySign, Method, OutputDtype, Parent, Recipe, Space, merge};
use weft_types::Digest;

fn any_method() -> impl Strategy<Value = (Method, Option<u32>)> {
    let density = 0.05..=1.0;
    let sign = prop_oneof![Just(MajoritySign::Total), Just(MajoritySign::Frequency)];
    let method = (0..5, density, any::<u64>(), sign).prop_map(|(kind, density, seed, majority_sign)| match kind {
        0 => Method::Linear {},
        1 => Method::Svd {},
        2 => Method::Ties { density, majority_sign },
        3 => Method::DareLinear { density, seed },
        _ => Method::DareTies { density, seed, majority_sign },
    });
    (method, 1u32..=12).prop_map(|(method, rank)| (method, (method != Method::Linear {}).then_some(rank)))
}

fn weight() -> impl Strategy<Value = f64> {
    prop_oneof![-2.0..2.0, Just(1.0), Just(0.5)].prop_filter("not nearly zero", |weight: &f64| weight.abs() > 0.01)
}

fn scaled(delta: &Dense, factor: f64) -> Dense {
    Dense { values: delta.values.iter().map(|value| value * factor).collect(), ..*delta }
}

#[test]
fn linears_too_large_to_be_decomposed_whole_are_cut_the_same_everywhere() {
    let base = llama(1, 80, 72, 96);
    let blobs = even_blobs(&base, 3, 4);
    let ties = Method::Ties { density: 0.3, majority_sign: MajoritySign::Total };
    let merged = |rank| merge_blobs(recipe(&blobs, &[0.5, 1.0, -0.25], ties, Some(rank)), &blobs, &base);
    let (narrow, wide, whole) = (merged(6), merged(40), merged(80));
    assert!(narrow.report.error > wide.report.error && wide.report.error > 0.0 && whole.report.error == 0.0);
    let (found, wanted) = (deltas(&blob_of(&narrow, &base)), deltas(&blob_of(&whole, &base)));
    for report in &narrow.report.modules {
        let wanted = &wanted[&report.module];
        let lost = found[&report.module].less(wanted).norm() / wanted.norm();
        assert!((report.error - lost).abs() < 1e-6, "{report:?} {lost}");
    }
    // Committed: a merge is known by its recipe's digest, so its bytes may not move.
    let digest = Digest::of(&blob_of(&narrow, &base)).to_string();
    assert_eq!(digest, "sha256:6c0098c273dde3fd8768c8dda8a1273db7ac037c844572c7e9cf855d4a57ff24");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn neither_the_order_of_parents_nor_threads_nor_repetition_move_a_bit(
        (method, rank) in any_method(),
        shares in prop::array::uniform3(weight()),
        order in Just(vec![0usize, 1, 2]).prop_shuffle(),
        threads in 2usize..9,
        bf16 in any::<bool>(),
    ) {
        let blobs = mixed_blobs();
        let dtype = if bf16 { OutputDtype::Bf16 } else { OutputDtype::F32 };
        let first = Recipe { dtype, ..recipe(&blobs, &shares, method, rank) };
        let mut second = first.clone();
        second.parents = order.iter().map(|index| first.parents[*index]).collect();
        let parents: Vec<Parent<'_>> = order.iter().map(|index| Parent::open(&blobs[*index]).unwrap()).collect();
        let threads = NonZeroUsize::new(threads).unwrap();
        let one = merge_blobs(first, &blobs, &base());
        let checked = second.check().unwrap();
        let two = merge(&checked, &parents, &base(), &Limits { threads, ..Limits::default() }).unwrap();
        prop_assert_eq!(one.recipe_digest, two.recipe_digest);
        prop_assert_eq!(&one.recipe, &two.recipe);
        prop_assert!(one.config == two.config && one.weights == two.weights);
        prop_assert_eq!(&one.report, &two.report);
        blob_of(&one, &base());
    }

    #[test]
    fn weights_scale_what_comes_out(
        (method, rank) in any_method(),
        shares in prop::array::uniform3(weight()),
        factor in prop_oneof![Just(2.0), Just(-1.0), 0.1..10.0],
    ) {
        let blobs = mixed_blobs();
        let once = merge_blobs(recipe(&blobs, &shares, method, rank), &blobs, &base());
        let scaled_shares = shares.map(|share| share * factor);
        let other = merge_blobs(recipe(&blobs, &scaled_shares, method, rank), &blobs, &base());
        // Weights have no vote in an election, so this holds for TIES too; a cut keeps the same directions as long as
        // the values behind them differ, which `norm` and `error` do not need.
        for (one, other) in once.report.modules.iter().zip(&other.report.modules) {
            prop_assert!((one.norm * factor.abs() / other.norm.max(1e-30) - 1.0).abs() < 1e-5 || one.norm == 0.0);
            prop_assert!((one.error - other.error).abs() < 1e-4);
        }
        if method == (Method::Linear {}) {
            let one = deltas(&blob_of(&once, &base()));
            let wanted = one.iter().map(|(name, delta)| (name.clone(), scaled(delta, factor))).collect();
            prop_assert!(difference(&deltas(&blob_of(&other, &base())), &wanted) < 1e-5);
        }
    }

    #[test]
    fn linear_merges_add_up(shares in prop::array::uniform3(weight()), more in prop::array::uniform3(weight())) {
        let blobs = mixed_blobs();
        let merged = |shares: [f64; 3]| {
            let merged = merge_blobs(recipe(&blobs, &shares, Method::Linear {}, None), &blobs, &base());
            deltas(&blob_of(&merged, &base()))
        };
        let both: [f64; 3] = std::array::from_fn(|index| shares[index] + more[index]);
        prop_assume!(both.iter().all(|share| share.abs() > 0.05));
        let (one, two, sum) = (merged(shares), merged(more), merged(both));
        for (name, sum) in &sum {
            let (one, two) = (&one[name], &two[name]);
            let wanted = Dense { values: one.values.iter().zip(&two.values).map(|(a, b)| a + b).collect(), ..*one };
            prop_assert!(sum.less(&wanted).norm() < 1e-5 * (one.norm() + two.norm()));
        }
    }

    #[test]
    fn one_parent_of_weight_1_stays_what_it_is(which in 0usize..3, density_1 in 0usize..4, seed in any::<u64>()) {
        let blob = vec![mixed_blobs().swap_remove(which)];
        let majority_sign = MajoritySign::Total;
        let method = [
            Method::Svd {},
            Method::Ties { density: 1.0, majority_sign },
            Method::DareLinear { density: 1.0, seed },
            Method::DareTies { density: 1.0, seed, majority_sign },
        ][density_1];
        let exact = merge_blobs(recipe(&blob, &[1.0], Method::Linear {}, None), &blob, &base());
        prop_assert!(difference(&deltas(&blob_of(&exact, &base())), &deltas(&blob[0])) < 1e-7);
        // The ranks of these parents are 1 to 4.
        let merged = merge_blobs(recipe(&blob, &[1.0], method, Some(4)), &blob, &base());
        prop_assert!(difference(&deltas(&blob_of(&merged, &base())), &deltas(&blob[0])) < 1e-6);
        prop_assert!(merged.report.error < 1e-6);
    }

    #[test]
    fn a_cut_to_half_loses_no_more_than_any_half_of_the_ranks(shares in prop::array::uniform3(weight())) {
        // Eckart and Young: the best approximation is no worse than leaving out one of the parents.
        let blobs = even_blobs(&base(), 3, 2);
        let cut = merge_blobs(recipe(&blobs, &shares, Method::Svd {}, Some(4)), &blobs, &base());
        let whole = merge_blobs(recipe(&blobs, &shares, Method::Linear {}, None), &blobs, &base());
        let whole = deltas(&blob_of(&whole, &base()));
        for (blob, share) in blobs.iter().zip(shares) {
            let lost = deltas(blob);
            for report in &cut.report.modules {
                let lost = lost[&report.module].norm() * share.abs();
                prop_assert!(report.error * whole[&report.module].norm() <= lost * (1.0 + 1e-5));
            }
        }
    }

    #[test]
    fn lorax_merges_are_the_same_whatever_the_threads_and_differ_by_the_first_parent(
        shares in prop::array::uniform2(0.2..2.0),
        kind in 0usize..4,
        density in 0.0..=1.0,
        seed in any::<u64>(),
    ) {
        let majority_sign = MajoritySign::Frequency;
        let method = [
            Method::Linear {},
            Method::Ties { density, majority_sign },
            Method::DareLinear { density, seed },
            Method::DareTies { density, seed, majority_sign },
        ][kind];
        let blobs = even_blobs(&base(), 2, 3);
        let first = Recipe { space: Space::Lorax, ..recipe(&blobs, &shares, method, None) };
        let mut swapped = first.clone();
        swapped.parents.reverse();
        prop_assert_ne!(first.clone().check().unwrap().digest(), swapped.clone().check().unwrap().digest());
        let one = merge_blobs(first, &blobs, &base());
        let other = merge_blobs(swapped, &blobs, &base());
        // Scales are equal here, so only the names differ; sums have two terms.
        prop_assert!(one.weights == other.weights);
        blob_of(&one, &base());
    }
}
