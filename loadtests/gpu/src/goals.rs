//! What is wanted of a device, and what was found.

use crate::report::Report;
use serde::Serialize;
use std::fmt::Write;

/// A goal. Meeting it decides nothing.
#[derive(Serialize)]
pub(crate) struct Goal {
    name: &'static str,
    /// At least, or at most, as the name says.
    wanted: f64,
    /// None: it was not measured.
    found: Option<f64>,
    met: Option<bool>,
}

fn at_least(name: &'static str, wanted: f64, found: Option<f64>) -> Goal {
    Goal { name, wanted, found, met: found.map(|found| found >= wanted) }
}

fn at_most(name: &'static str, wanted: f64, found: Option<f64>) -> Goal {
    Goal { name, wanted, found, met: found.map(|found| found <= wanted) }
}

pub(crate) fn all(report: &Report) -> Vec<Goal> {
    let of_base = |format: &str, adapters: usize| {
        let mut cases = report.decode.iter().filter(|case| case.graphs && case.format == format && case.ranks == [16]);
        cases.find(|case| (case.adapters, case.loaded) == (adapters, adapters)).map(|case| case.of_base)
    };
    let idle = report.decode.iter().find(|case| case.graphs && case.adapters == 0 && case.loaded > 0);
    let traffic = |registered: usize| {
        report.slots.iter().find(|case| case.registered == registered).map(|case| case.tokens_per_s)
    };
    let of_five = traffic(2000).zip(traffic(5)).map(|(many, few)| many / few);
    let cold = report.cold.iter().find(|case| case.format == "bf16").map(|case| case.penalty_p99_ms);
    vec![
        at_least("1 adapter of rank 16 in bf16, of base, at least", 0.95, of_base("bf16", 1)),
        at_least("32 adapters of rank 16 in bf16, of base, at least", 0.78, of_base("bf16", 32)),
        at_least("64 adapters of rank 16 in bf16, of base, at least", 0.66, of_base("bf16", 64)),
        at_least("32 adapters of rank 16 in int8, of base, at least", 0.85, of_base("int8", 32)),
        at_least("64 adapters of rank 16 in int8, of base, at least", 0.78, of_base("int8", 64)),
        // Nothing at all, but for what two measurements of one thing differ by.
        at_least("adapters in slots that nobody uses, of base, at least", 0.99, idle.map(|case| case.of_base)),
        at_least("2000 registered adapters, tokens/s of those with 5, at least", 0.97, of_five),
        at_most("first token of a cold adapter in bf16, ms beyond a warm one at p99, at most", 10.0, cold),
    ]
}

/// A line each.
pub(crate) fn table(goals: &[Goal]) -> String {
    let widest = goals.iter().map(|goal| goal.name.len()).max().unwrap_or(0);
    let mut table = format!("{:widest$}  wanted   found  met\n", "goal");
    for Goal { name, wanted, found, met } in goals {
        let found = found.map_or("-".to_owned(), |found| format!("{found:.3}"));
        let met = met.map_or("not measured", |met| if met { "yes" } else { "no" });
        writeln!(table, "{name:widest$}  {wanted:>6.2}  {found:>6}  {met}").expect("strings take all");
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_not_met_or_not_measured() {
        let goals = [
            at_least("a", 0.9, Some(0.9)),
            at_least("a longer one", 0.9, Some(0.899)),
            at_most("b", 10.0, Some(-1.5)),
            at_most("c", 10.0, None),
        ];
        let want = "goal          wanted   found  met
a               0.90   0.900  yes
a longer one    0.90   0.899  no
b              10.00  -1.500  yes
c              10.00       -  not measured
";
        assert_eq!(table(&goals), want);
    }
}
