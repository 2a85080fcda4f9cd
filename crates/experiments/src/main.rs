//! `weft-experiments-simulator`: false alarms, power and detection times, as tables.

use clap::Parser;
use weft_experiments::simulation::{
    Detection, Outcome, Test, binomial_limit, coverage, detection, fixed_horizon, split_false_alarms,
};
use weft_experiments::{ASYMPTOTIC_OBSERVATIONS_MIN, SPLIT_ALPHA};

/// How often the tests of experiments are wrong under continuous peeking, and how long they take to be right.
#[derive(Parser)]
struct Args {
    /// Runs of each row on false alarms.
    #[arg(long, default_value_t = 10_000)]
    runs: u32,
    /// Observations of each run on false alarms, of both arms together; asymptotic tests get four times as many as
    /// come before their first look, if that is more.
    #[arg(long, default_value_t = 1_000)]
    length: u32,
    /// Runs of each row on detection.
    #[arg(long, default_value_t = 1_000)]
    detection_runs: u32,
    /// Observations after which a run on detection gives up.
    #[arg(long, default_value_t = 40_000)]
    horizon: u32,
    /// α of the confidence sequences; the z-test's is 0.05.
    #[arg(long, default_value_t = 0.05)]
    alpha: f64,
    /// Everything is a function of it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// False alarms alone.
    #[arg(long)]
    false_alarms: bool,
    /// Detection alone.
    #[arg(long)]
    detection: bool,
}

const ALLOCATIONS: [(&str, f64); 2] = [("50/50", 0.5), ("90/10", 0.1)];
const EXACT: &[Test] = &[Test::Exact, Test::FixedHorizon];
const ASYMPTOTIC: &[Test] = &[Test::Asymptotic, Test::FixedHorizon];

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    let mut is_kept = true;
    if !args.detection || args.false_alarms {
        is_kept = print_false_alarms(&args);
    }
    if !args.false_alarms || args.detection {
        print_detection(&args);
    }
    std::process::ExitCode::from(u8::from(!is_kept))
}

/// Whether all rates are within α, but for chance.
fn print_false_alarms(args: &Args) -> bool {
    println!("False alarms in {} runs, looked at after each observation.\n", args.runs);
    println!("| metric | allocation | observations | test | false alarms | z-test, peeking |");
    println!("|---|---|---|---|---|---|");
    let mut worst = 0;
    let rows: [(Outcome, Outcome, &[Test]); 8] = [
        (Outcome::Binary(0.5), Outcome::Binary(0.5), EXACT),
        (Outcome::Binary(0.02), Outcome::Binary(0.02), EXACT),
        (Outcome::Binary(0.95), Outcome::Binary(0.95), EXACT),
        (Outcome::Stars(0.0), Outcome::Stars(0.0), EXACT),
        (Outcome::Latency(1.0), Outcome::Latency(1.0), EXACT),
        (Outcome::LatencyFarBound(1.0), Outcome::LatencyFarBound(1.0), ASYMPTOTIC),
        (Outcome::Binary(0.3), Outcome::Binary(0.4), EXACT),
        (Outcome::Stars(0.0), Outcome::Stars(0.08), EXACT),
    ];
    for (control, arm, tests) in rows {
        for (allocation, share) in ALLOCATIONS {
            let first_look = if tests == ASYMPTOTIC { ASYMPTOTIC_OBSERVATIONS_MIN / share } else { 0.0 };
            let length = args.length.max(4 * first_look as u32);
            let alarms = coverage(control, arm, share, length, args.runs, args.alpha, tests, args.seed);
            let (ours, theirs) = (alarms.of(tests[0]), alarms.of(tests[1]));
            worst = worst.max(ours);
            let name =
                if control == arm { control.name() } else { format!("{} against {}", arm.name(), control.name()) };
            println!(
                "| {name} | {allocation} | {length} | {} | {} | {} |",
                tests[0].name(),
                percent(f64::from(ours) / f64::from(args.runs)),
                percent(f64::from(theirs) / f64::from(args.runs)),
            );
        }
    }
    println!("\n| units split as planned | flagged as broken at {SPLIT_ALPHA} |");
    println!("|---|---|");
    let mut worst_split = 0;
    for weights in [&[50, 50][..], &[90, 10], &[70, 10, 10, 10]] {
        let flagged = split_false_alarms(weights, args.length, args.runs, SPLIT_ALPHA, args.seed);
        worst_split = worst_split.max(flagged);
        println!("| {weights:?} | {} |", percent(f64::from(flagged) / f64::from(args.runs)));
    }
    let rate = f64::from(worst) / f64::from(args.runs);
    println!("\nfalse_alarm_rate {rate:.4} (the worst row; α is {})", args.alpha);
    worst <= binomial_limit(args.runs, args.alpha) && worst_split <= binomial_limit(args.runs, SPLIT_ALPHA)
}

fn print_detection(args: &Args) {
    println!("\nDetection in {} runs, at most {} observations of both arms.\n", args.detection_runs, args.horizon);
    println!(
        "| control | arm | allocation | test | power | wrong side | median | p90 | one look: 50 % power | 90 % power |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    let rows = [
        (Outcome::Binary(0.5), Outcome::Binary(0.6), Test::Exact),
        (Outcome::Binary(0.5), Outcome::Binary(0.55), Test::Exact),
        (Outcome::Binary(0.02), Outcome::Binary(0.04), Test::Exact),
        (Outcome::Binary(0.02), Outcome::Binary(0.10), Test::Exact),
        (Outcome::Stars(0.0), Outcome::Stars(0.05), Test::Exact),
        (Outcome::Latency(1.0), Outcome::Latency(1.2), Test::Exact),
        (Outcome::Latency(1.0), Outcome::Latency(1.2), Test::Asymptotic),
        (Outcome::Latency(1.0), Outcome::Latency(1.1), Test::Asymptotic),
        (Outcome::LatencyFarBound(1.0), Outcome::LatencyFarBound(1.2), Test::Exact),
        (Outcome::LatencyFarBound(1.0), Outcome::LatencyFarBound(1.2), Test::Asymptotic),
    ];
    for (control, arm, test) in rows {
        for (allocation, share) in ALLOCATIONS {
            let Detection { power, wrong_side, median, p90 } =
                detection(control, arm, share, args.horizon, args.detection_runs, args.alpha, test, args.seed);
            let time = |time: Option<u32>| time.map_or("—".to_owned(), |time| time.to_string());
            println!(
                "| {} | {} | {allocation} | {} | {} | {} | {} | {} | {} | {} |",
                control.name(),
                arm.name(),
                test.name(),
                percent(power),
                percent(wrong_side),
                time(median),
                time(p90),
                fixed_horizon(control, arm, share, 0.5),
                fixed_horizon(control, arm, share, 0.9),
            );
        }
    }
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}
