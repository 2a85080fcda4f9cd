//! `weft usage`: the ledger from the command line.

use crate::client::{Admin, segment};
use anyhow::{Context, Result};
use clap::Args;
use std::io::Write;
use std::path::PathBuf;

/// Which usage, as what.
#[derive(Args)]
pub struct Flags {
    /// One tenant; absent: all
    #[arg(long)]
    pub tenant: Option<String>,
    /// From this time on, in Unix milliseconds; absent: 31 days ago
    #[arg(long)]
    pub from_ms: Option<u64>,
    /// Until before this time, in Unix milliseconds; absent: now
    #[arg(long)]
    pub to_ms: Option<u64>,
    /// json, csv or parquet
    #[arg(long, default_value = "json")]
    pub format: String,
    /// Each answer in place of totals; as csv or parquet
    #[arg(long)]
    pub records: bool,
    /// Write to this file instead of standard output
    #[arg(long)]
    pub output: Option<PathBuf>,
}

/// Reads the ledger and writes it out, piece by piece.
///
/// # Errors
/// As [`Admin::get`]; or the file cannot be written.
pub async fn run(admin: &Admin, flags: Flags) -> Result<()> {
    let mut path = format!("usage?format={}&records={}", segment(&flags.format), flags.records);
    let given = [
        ("tenant", flags.tenant),
        ("from_ms", flags.from_ms.map(|ms| ms.to_string())),
        ("to_ms", flags.to_ms.map(|ms| ms.to_string())),
    ];
    for (name, value) in given {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", segment(&value)));
        }
    }
    let mut out: Box<dyn Write + Send> = match &flags.output {
        Some(path) => Box::new(std::fs::File::create(path).with_context(|| path.display().to_string())?),
        None => Box::new(std::io::stdout()),
    };
    match admin.stream(&path, &mut out).await {
        // `| head` has seen enough.
        Err(error)
            if error.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe) =>
        {
            Ok(())
        }
        done => done,
    }
}
