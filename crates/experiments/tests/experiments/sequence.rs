//! Confidence sequences against values computed apart (Python, from the equations named in the modules), and their
//! properties.

use proptest::prelude::*;
use weft_experiments::asymptotic::{Estimate, TUNED_OBSERVATIONS, estimate, rho_squared};
use weft_experiments::sequence::{
    BET_MAX, BET_RATIO, BETS, Contrast, NUISANCE_SHARE, Stratum, evidence_ln, mean_interval, psi,
};
use weft_experiments::{Interval, Sample, split_evidence_ln};

fn assert_near(value: f64, expected: f64) {
    assert!((value - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{value} is not {expected}");
}

/// So many ones among so many.
fn ones(count: f64, sum: f64) -> Sample {
    Sample { count, sum, squares: sum }
}

fn stratum(control: (f64, f64), arm: (f64, f64), arm_share: f64) -> Stratum {
    Stratum { control: ones(control.0, control.1), arm: ones(arm.0, arm.1), arm_share }
}

#[test]
fn psi_and_the_average_over_bets_are_as_written() {
    // ψ(1/2) = ln 2 - 1/2; ψ(1/10) = -ln(9/10) - 1/10.
    assert_near(psi(0.5), 2f64.ln() - 0.5);
    assert_near(psi(0.1), 0.005_360_515_657_826_276);
    // ln of the average of exp(λ·sum - ψ(λ)·squares) over λ = 0.5 / 1.6^k, k = 0..11, with weights that go as 0.85^k.
    assert_near(evidence_ln(20.0, 30.0), 3.360_749_350_040_254);
    assert_near(evidence_ln(0.0, 50.0), -0.609_880_409_128_747_3);
    assert_near(evidence_ln(-5.0, 10.0), -0.722_204_685_659_157);
    assert_near(evidence_ln(0.0, 0.0), 0.0);
}

/// What validity rests on, at every λ that is used: exp(λy - ψ(λ)y²) ≤ 1 + λy for y ≥ -1, and λ > 2ψ(λ).
#[test]
fn the_bets_keep_their_inequalities() {
    for bet in 0..BETS {
        let lambda = BET_MAX / BET_RATIO.powi(bet as i32);
        assert!(lambda > 2.0 * psi(lambda));
        for step in -1000..=3000 {
            let y = f64::from(step) / 1000.0;
            assert!((lambda * y - psi(lambda) * y * y).exp() <= 1.0 + lambda * y + 1e-15, "λ {lambda}, y {y}");
        }
    }
}

#[test]
fn the_sequence_of_a_mean_is_the_golden_one() {
    for (count, sum, low, high) in [
        (100.0, 60.0, 0.396_904_990_829_561_1, 0.803_095_009_170_439),
        (1_000.0, 600.0, 0.545_826_929_658_157_4, 0.654_173_070_341_842_6),
        (10_000.0, 6_000.0, 0.583_203_204_269_214_1, 0.616_796_795_730_785_8),
    ] {
        let interval = mean_interval(&ones(count, sum), 0.05);
        assert_near(interval.low, low);
        assert_near(interval.high, high);
    }
    assert_eq!(mean_interval(&Sample::default(), 0.05), Interval { low: 0.0, high: 1.0 });
}

#[test]
fn the_sequence_of_a_difference_is_the_golden_one() {
    let thousand = Contrast::new(&[stratum((1_000.0, 500.0), (1_000.0, 600.0), 0.5)]);
    let interval = thousand.interval(0.0225, 0.005);
    assert_near(interval.low, 0.019_671_848_240_723_544);
    assert_near(interval.high, 0.180_328_151_759_094_56);
    assert_near(thousand.p_value(0.0, 0.005), 0.008_175_356_088_570_48);
    let few = Contrast::new(&[stratum((500.0, 250.0), (500.0, 300.0), 0.5)]);
    assert_near(few.p_value(0.0, 0.005), 0.160_239_916_375_780_78);
    let unequal = Contrast::new(&[stratum((900.0, 450.0), (100.0, 70.0), 0.1)]);
    assert_near(unequal.p_value(0.0, 0.005), 0.086_808_540_007_613_2);
}

/// Theorem 2.2 of Waudby-Smith and others, with t = 5,000, α = 0.05: ρ² = (-2 ln α + ln(-2 ln α) + 1) / t.
#[test]
fn the_asymptotic_sequence_is_the_golden_one() {
    assert_near(rho_squared(0.05, TUNED_OBSERVATIONS), 0.001_756_360_085_606_575);
    let estimate = Estimate { difference: 0.1, variance: 0.0004, count: 5_000.0, least: 2_500.0 };
    assert_near(estimate.interval(0.05).low, 0.1 - 0.060_708_927_932_718_62);
    assert_near(estimate.interval(0.05).high, 0.1 + 0.060_708_927_932_718_62);
    assert_near(estimate.p_value(0.0, 0.05), 4.183_175_324_529_272e-5);
    let early = Estimate { least: 199.0, ..estimate };
    assert_eq!((early.interval(0.05), early.p_value(0.0, 0.05)), (Interval { low: -1.0, high: 1.0 }, 1.0));
}

/// By hand: three units, all to the first of two equal arms. Pólya's urn with 50 and 50 gives 50/100 · 51/101 ·
/// 52/102; the plan (1/2)³.
#[test]
fn the_evidence_against_a_split_is_the_golden_one() {
    let by_hand = 50.0 / 100.0 * 51.0 / 101.0 * 52.0 / 102.0 * 8.0f64;
    assert_near(split_evidence_ln(&[3, 0], &[1, 1]), by_hand.ln());
    assert_near(split_evidence_ln(&[60, 40], &[1, 1]), 0.658_891_818_046_527_1);
    assert_near(split_evidence_ln(&[600, 400], &[1, 1]), 17.098_940_416_450_66);
    assert_eq!(split_evidence_ln(&[5, 9, 0], &[1, 0, 0]), 0.0);
    assert_eq!(split_evidence_ln(&[], &[]), 0.0);
}

#[test]
fn an_estimate_weighs_phases_and_is_not_deceived_by_a_drift() {
    // The arm is as good as the control in both phases; weights and times changed together, so the plain means differ
    // (Simpson).
    let strata = [stratum((900.0, 90.0), (100.0, 10.0), 0.1), stratum((100.0, 50.0), (900.0, 450.0), 0.9)];
    assert_near(estimate(&strata).unwrap().difference, 0.0);
    assert_eq!(estimate(&[stratum((10.0, 5.0), (0.0, 0.0), 0.5)]), None);
}

/// What the cells are for: no mean of the control that its sequence allows makes the evidence smaller than the
/// p-value says, also where the real split is far from the planned one and the evidence is not monotone.
#[test]
fn nothing_between_cells_is_missed() {
    for (control, arm, arm_share) in [((21.0, 5.0), (7.0, 5.0), 0.93), ((400.0, 10.0), (40.0, 12.0), 0.5)] {
        let contrast = Contrast::new(&[stratum(control, arm, arm_share)]);
        let interval = contrast.interval(0.0225, 0.005);
        let range = mean_interval(&ones(control.0, control.1), 0.005);
        for step in 0..=10_000 {
            let mean = range.low + range.width() * f64::from(step) / 10_000.0;
            for difference in [interval.low - 1e-6, interval.high + 1e-6] {
                let other = mean + difference;
                if (0.0..=1.0).contains(&other) {
                    // The evidence by hand, from the module's formulas.
                    let weights = [1.0 - arm_share, arm_share].map(|weight| weight / arm_share.max(1.0 - arm_share));
                    let sum = weights[0] * (arm.1 - arm.0 * other) - weights[1] * (control.1 - control.0 * mean);
                    let squares = |count: f64, sum: f64, mean: f64| sum - 2.0 * mean * sum + count * mean * mean;
                    let squares = weights[0] * weights[0] * squares(arm.0, arm.1, other)
                        + weights[1] * weights[1] * squares(control.0, control.1, mean);
                    let signed = if difference < interval.low { sum } else { -sum };
                    assert!(evidence_ln(signed, squares) >= -(0.0225f64).ln() - 1e-9, "{mean} and {difference}");
                }
            }
        }
    }
}

#[test]
fn the_interval_narrows_as_fast_as_a_normal_one() {
    // In standard errors; a 95 % interval for one look has 1.96, and no sequence can stay below the iterated
    // logarithm's growth.
    for (count, most) in [(1_000.0, 3.75), (10_000.0, 3.56), (100_000.0, 3.6), (1_000_000.0, 3.7)] {
        let half = count / 2.0;
        let contrast = Contrast::new(&[stratum((half, half / 2.0), (half, half / 2.0), 0.5)]);
        let errors = contrast.interval(0.0225, 0.005).width() / 2.0 / (1.0 / count).sqrt();
        assert!(errors < most, "{errors} standard errors at {count}");
    }
}

fn samples() -> impl Strategy<Value = Sample> {
    prop::collection::vec(0.0f64..=1.0, 0..40).prop_map(|values| {
        let mut sample = Sample::default();
        values.into_iter().for_each(|value| sample.add(value));
        sample
    })
}

proptest! {
    /// Whatever the data: p-value and interval say the same, a smaller α gives a wider interval.
    #[test]
    fn interval_and_p_value_agree(
        control in samples(),
        arm in samples(),
        times in 1.0f64..50.0,
        arm_share in 0.05f64..0.95,
        difference in -1.0f64..1.0,
    ) {
        let scale = |sample: Sample| Sample {
            count: sample.count * times.floor(),
            sum: sample.sum * times.floor(),
            squares: sample.squares * times.floor(),
        };
        let contrast = Contrast::new(&[Stratum { control: scale(control), arm: scale(arm), arm_share }]);
        let interval = contrast.interval(0.0225, 0.05 * NUISANCE_SHARE);
        prop_assert!(!interval.is_empty() && interval.low >= -1.0 && interval.high <= 1.0);
        let p_value = contrast.p_value(difference, 0.05 * NUISANCE_SHARE);
        prop_assert!((0.0..=1.0).contains(&p_value));
        prop_assert_eq!(p_value <= 0.05, contrast.excludes(difference, 0.05));
        let is_at_an_end = (difference - interval.low).abs() < 1e-9 || (difference - interval.high).abs() < 1e-9;
        if !is_at_an_end {
            prop_assert_eq!(p_value > 0.05, interval.contains(difference));
        }
        // A wider sequence of the control's mean has wider cells: by less than one of these.
        let wider = contrast.interval(0.01, 0.001);
        let cell = 1.0 / 128.0;
        prop_assert!(wider.low <= interval.low + cell && wider.high >= interval.high - cell);
    }

    #[test]
    fn the_interval_of_a_mean_has_the_mean_in_it(sample in samples(), alpha in 0.0001f64..0.2) {
        let interval = mean_interval(&sample, alpha);
        prop_assert!(interval.contains(sample.mean()));
        prop_assert!((0.0..=1.0).contains(&interval.low) && (0.0..=1.0).contains(&interval.high));
    }

    /// Phases, and values within a phase, may be put together in any order.
    #[test]
    fn order_does_not_matter(samples in prop::collection::vec((samples(), samples(), 0.05f64..0.95), 1..5)) {
        let stratum = |(control, arm, arm_share)| Stratum { control, arm, arm_share };
        let strata: Vec<_> = samples.into_iter().map(stratum).collect();
        let reversed: Vec<_> = strata.iter().rev().copied().collect();
        let [ours, theirs] = [&strata, &reversed].map(|strata| Contrast::new(strata).interval(0.0225, 0.005));
        prop_assert!((ours.low - theirs.low).abs() < 1e-9 && (ours.high - theirs.high).abs() < 1e-9);
    }

    /// The intersection over looks never gets wider, and holds only what every look holds.
    #[test]
    fn the_running_intersection_is_monotone(values in prop::collection::vec(0.0f64..=1.0, 1..60)) {
        let mut sample = Sample::default();
        let mut running = Interval { low: 0.0, high: 1.0 };
        for value in values {
            sample.add(value);
            let now = mean_interval(&sample, 0.05);
            let next = running.intersected(now);
            prop_assert!(next.low >= running.low && next.high <= running.high && next.width() <= running.width());
            prop_assert!(next.low >= now.low && next.high <= now.high);
            running = next;
        }
    }
}
