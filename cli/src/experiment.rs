//! `weft experiment`: split tests from the command line.

use crate::client::{Admin, segment};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use std::io::Read;
use std::path::{Path, PathBuf};

/// What is done with a tenant's experiments.
#[derive(Subcommand)]
pub enum Command {
    /// Create an experiment from a description (docs/experiments.md); a draft until it is started
    Create {
        /// JSON file; `-` reads standard input
        description: PathBuf,
        /// Start it at once
        #[arg(long)]
        start: bool,
    },
    /// List the experiments, ended ones too
    List,
    /// Show an experiment and its results as of now
    Show {
        /// The experiment
        id: String,
        /// A table in place of JSON
        #[arg(long)]
        table: bool,
    },
    /// Start a draft: from now on its alias is split
    Start {
        /// The experiment
        id: String,
    },
    /// Give an arm another weight, 0 to 10000
    Weight {
        /// The experiment
        id: String,
        /// Its arm
        arm: String,
        /// 0 to 10000; a control's is 1 or more
        weight: u32,
    },
    /// Move the alias to an arm's version and end the experiment
    Promote {
        /// The experiment
        id: String,
        /// A treatment of it
        arm: String,
    },
    /// End an experiment without a winner
    Stop {
        /// The experiment
        id: String,
    },
    /// Print the exposure log of one day (UTC) as JSON lines
    Exposures {
        /// The experiment
        id: String,
        /// Such as 2026-01-31; today where it is left out
        day: Option<String>,
    },
}

/// What a command has to print.
pub enum Printed {
    /// As JSON.
    Json(Value),
    /// As it is.
    Text(String),
}

/// Runs a command for a tenant.
///
/// # Errors
/// As [`Admin::get`]; or the description cannot be read.
pub async fn run(admin: &Admin, tenant: &str, command: Command) -> Result<Printed> {
    let all = format!("tenants/{}/experiments", segment(tenant));
    let of = |id: &str, what: &str| format!("{all}/{}{what}", segment(id));
    let answer = match command {
        Command::Create { description, start } => {
            let description: Value =
                serde_json::from_str(&read(&description)?).context("the description is no JSON")?;
            admin.post(&format!("{all}?start={start}"), &description).await?
        }
        Command::List => admin.get(&all).await?,
        Command::Show { id, table } => {
            let shown = admin.get(&of(&id, "")).await?;
            if table {
                return Ok(Printed::Text(results(&shown)?));
            }
            shown
        }
        Command::Start { id } => admin.post(&of(&id, "/start"), &json!({})).await?,
        Command::Weight { id, arm, weight } => {
            admin.post(&of(&id, "/weight"), &json!({ "arm": arm, "weight": weight })).await?
        }
        Command::Promote { id, arm } => admin.post(&of(&id, "/promote"), &json!({ "arm": arm })).await?,
        Command::Stop { id } => admin.post(&of(&id, "/stop"), &json!({})).await?,
        Command::Exposures { id, day } => {
            let path = of(
                &id,
                &day.map_or_else(|| "/exposures".to_owned(), |day| format!("/exposures?day={}", segment(&day))),
            );
            return Ok(Printed::Text(admin.text(&path).await?));
        }
    };
    Ok(Printed::Json(answer))
}

fn read(path: &Path) -> Result<String> {
    if path != Path::new("-") {
        return std::fs::read_to_string(path).with_context(|| path.display().to_string());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("standard input")?;
    Ok(text)
}

/// The results as lines that people read.
fn results(shown: &Value) -> Result<String> {
    let report = &shown["report"];
    let (Some(arms), Some(comparisons)) = (report["arms"].as_array(), report["comparisons"].as_array()) else {
        bail!("the answer has no report");
    };
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
    let mut lines = format!("experiment {}: {}\n\n", text(&report["experiment"]), text(&report["state"]));
    lines.push_str(&format!("{:<20} {:<10} {:>7} {:>9}\n", "arm", "role", "weight", "requests"));
    for arm in arms {
        let [name, role] = [&arm["name"], &arm["role"]].map(text);
        let [weight, requests] = [&arm["weight"], &arm["exposures"]].map(text);
        lines.push_str(&format!("{name:<20} {role:<10} {weight:>7} {requests:>9}\n"));
    }
    lines.push_str(&format!(
        "\n{:<20} {:<16} {:>12} {:>12} {:>12}  verdict\n",
        "arm", "metric", "difference", "from", "to"
    ));
    let number = |value: &Value| value.as_f64().map_or("-".to_owned(), |number| format!("{number:+.4}"));
    for comparison in comparisons {
        let [arm, metric, verdict] = [&comparison["arm"], &comparison["metric"], &comparison["verdict"]].map(text);
        let interval = &comparison["interval"];
        let [difference, low, high] = [&comparison["estimate"], &interval["low"], &interval["high"]].map(number);
        lines.push_str(&format!("{arm:<20} {metric:<16} {difference:>12} {low:>12} {high:>12}  {verdict}\n"));
    }
    lines.push_str(&format!("\ndecision: {}\n", report["decision"]));
    Ok(lines)
}
