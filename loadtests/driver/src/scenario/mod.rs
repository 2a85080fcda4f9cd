//! Questions about many adapters, each answered by runs side by side against a mesh of its own.
//!
//! A scenario starts the mesh, publishes synthetic adapters, plays workloads and compares them. What it promises is in
//! its verdicts: a figure, a bound and where the bound is from.

pub mod cliff;
pub mod cold;
pub mod fairness;
pub mod long_prompt;
pub mod many;
pub mod start;

use crate::chart::Chart;
use crate::client::Client;
use crate::dispatch;
use crate::event::Api;
use crate::outcome::Outcome;
use crate::report::{Report, Slo};
use crate::target::Target;
use crate::trace::Trace;
use crate::weft::{Launcher, Weft};
use crate::workload::Workload;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

/// An answer that takes longer has failed.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(300);

/// What every scenario needs.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How to start a mesh.
    pub launcher: Launcher,
    /// Of the traces.
    pub seed: u64,
}

/// A promise and whether it holds.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// What is measured.
    pub what: String,
    /// The figure.
    pub value: f64,
    /// The bound it must keep.
    pub bound: f64,
    /// Whether the bound is the least (true) or the most allowed (false).
    pub at_least: bool,
    /// Whether it keeps it.
    pub holds: bool,
}

/// What a scenario found.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// Its name, also that of its files.
    pub name: &'static str,
    /// For people.
    #[serde(skip)]
    pub table: String,
    /// For machines.
    pub figures: Value,
    /// Charts and what distinguishes the names of their files.
    #[serde(skip)]
    pub charts: Vec<(&'static str, Chart)>,
    /// Promises.
    pub verdicts: Vec<Verdict>,
}

impl Verdict {
    /// The figure must not be below the bound.
    #[must_use]
    pub fn at_least(what: &str, value: f64, bound: f64) -> Self {
        Self { what: what.to_owned(), value, bound, at_least: true, holds: value >= bound }
    }

    /// The figure must not be above the bound.
    #[must_use]
    pub fn at_most(what: &str, value: f64, bound: f64) -> Self {
        Self { what: what.to_owned(), value, bound, at_least: false, holds: value <= bound }
    }

    /// One line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let (word, sign) = (if self.holds { "holds" } else { "FAILS" }, if self.at_least { "≥" } else { "≤" });
        format!("{word}  {}: {:.3} (wanted {sign} {})", self.what, self.value, self.bound)
    }
}

impl Findings {
    /// Prints the table and the verdicts, and writes `scenario-NAME.json` and the charts into the folder.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn publish(&self, folder: &Path) -> Result<()> {
        println!("\n{}", self.table.trim_end());
        for verdict in &self.verdicts {
            println!("{}", verdict.line());
        }
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(format!("scenario-{}.json", self.name));
        std::fs::write(&path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        for (part, chart) in &self.charts {
            let dash = if part.is_empty() { "" } else { "-" };
            chart.save(&folder.join(format!("scenario-{}{dash}{part}.svg", self.name)))?;
        }
        Ok(())
    }

    /// Whether every promise holds.
    #[must_use]
    pub fn hold(&self) -> bool {
        self.verdicts.iter().all(|verdict| verdict.holds)
    }
}

/// A mesh under test with the keys of its tenants.
pub(crate) struct Stage {
    pub(crate) weft: Weft,
    target: Target,
    seed: u64,
}

impl Stage {
    /// A mesh with these tenants, with prompts of token ids.
    pub(crate) async fn set(setup: &Setup, settings: &[String], tenants: &[&str], vocabulary: usize) -> Result<Self> {
        let weft = setup.launcher.up(settings).await?;
        let mut keys = HashMap::new();
        for tenant in tenants {
            keys.insert((*tenant).to_owned(), weft.tenant(tenant).await?);
        }
        let client = Client::new(weft.url(), Api::Completions, ANSWER_TIMEOUT);
        let target = Target { client, keys, vocabulary: u32::try_from(vocabulary).ok() };
        Ok(Self { weft, target, seed: setup.seed })
    }

    /// Plays a workload. Run `round` of a scenario has a trace of its own; equal rounds have equal traces, but never
    /// equal prompts.
    pub(crate) async fn play(&self, workload: Workload, round: u64) -> Result<Vec<Outcome>> {
        let trace = Trace::generate(workload, self.seed.wrapping_add(round))?;
        let outcomes = dispatch::run(&trace, &self.target, dispatch::Options::default()).await;
        let report = Report::of(&outcomes, Slo::default());
        if report.all.completed == 0 {
            bail!("no request of {} was answered: {:?}", outcomes.len(), report.errors);
        }
        Ok(outcomes)
    }

    /// Asks each of these models once, so that its adapter has been resident.
    pub(crate) async fn touch(&self, tenant: &str, models: &[String]) -> Result<()> {
        for model in models {
            let prompt = crate::prompt::ids(4, self.target.vocabulary.unwrap_or(2), 0, rand::random());
            let key = self.target.keys.get(tenant).map(String::as_str);
            let ask = crate::client::Ask { model, key, prompt: &prompt, output_tokens: 1 };
            if let Err((_, reason)) = self.target.client.ask(ask).await {
                bail!("{tenant}'s {model} does not answer: {reason}");
            }
        }
        Ok(())
    }
}

/// A figure of a table; one that there is not is a dash.
pub(crate) fn shown(value: f64, digits: usize) -> String {
    if value.is_nan() { "-".to_owned() } else { format!("{value:.digits$}") }
}

/// Failed and dropped requests, which no scenario expects: a figure without them would flatter.
pub(crate) fn unanswered(outcomes: &[Outcome]) -> f64 {
    outcomes.iter().filter(|outcome| !outcome.completed()).count() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_know_their_side() {
        assert!(Verdict::at_least("x", 0.97, 0.97).holds && !Verdict::at_least("x", 0.96, 0.97).holds);
        assert!(Verdict::at_most("x", 2.0, 2.0).holds && !Verdict::at_most("x", 2.1, 2.0).holds);
        assert!(!Verdict::at_most("x", f64::NAN, 2.0).holds);
        assert_eq!(Verdict::at_most("p99", 2.5, 2.0).line(), "FAILS  p99: 2.500 (wanted ≤ 2)");
    }

    #[test]
    fn findings_go_to_files_of_their_name() {
        let dir = tempfile::tempdir().unwrap();
        let curves = vec![("c".to_owned(), vec![(1.0, 1.0), (2.0, 3.0)])];
        let findings = Findings {
            name: "x",
            table: "a table\n".to_owned(),
            figures: serde_json::json!({ "a": 1 }),
            charts: vec![
                ("", Chart { curves: curves.clone(), ..Chart::default() }),
                ("b", Chart { curves, ..Chart::default() }),
            ],
            verdicts: vec![Verdict::at_least("y", 1.0, 2.0)],
        };
        findings.publish(&dir.path().join("deep")).unwrap();
        let json: Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("deep/scenario-x.json")).unwrap()).unwrap();
        assert_eq!((&json["figures"]["a"], &json["verdicts"][0]["holds"]), (&1.into(), &false.into()));
        assert!(dir.path().join("deep/scenario-x.svg").exists() && dir.path().join("deep/scenario-x-b.svg").exists());
        assert!(!findings.hold());
    }
}
