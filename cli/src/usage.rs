//! `weft usage`: the ledger from the command line.

use crate::client::{Admin, segment};
use anyhow::{Context, Result};
use clap::Args;
use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

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
    /// json, csv or parquet; absent: json, or csv with --records
    #[arg(long)]
    pub format: Option<String>,
    /// Each answer in place of totals: as csv or parquet
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
    let format = flags.format.as_deref().unwrap_or(if flags.records { "csv" } else { "json" });
    let mut path = format!("usage?format={}&records={}", segment(format), flags.records);
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
    if let Some(output) = &flags.output
        && !is_special(output)
    {
        return save(admin, &path, output).await;
    }
    let mut out: Box<dyn Write + Send> = match &flags.output {
        Some(output) => Box::new(File::create(output).with_context(|| output.display().to_string())?),
        None => Box::new(std::io::stdout()),
    };
    match admin.stream(&path, &mut out).await {
        // `| head` has seen enough.
        Err(error) if error.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == ErrorKind::BrokenPipe) => {
            Ok(())
        }
        done => done,
    }
}

/// A pipe or a device: nothing is put in its place.
fn is_special(output: &Path) -> bool {
    std::fs::metadata(output).is_ok_and(|found| !found.is_file() && !found.is_dir())
}

/// Writes beside the file, and gives it its name when all is there: what was there before stays until then, and half a table never looks
/// like a whole one.
async fn save(admin: &Admin, path: &str, output: &Path) -> Result<()> {
    // The file itself, not a link to it.
    let output = output.canonicalize().unwrap_or_else(|_| output.to_owned());
    let mut part: OsString = output.clone().into();
    part.push(".part");
    let shown = |error: std::io::Error| anyhow::Error::new(error).context(output.display().to_string());
    let mut file = File::create(&part).map_err(shown)?;
    let saved = match admin.stream(path, &mut file).await {
        Ok(()) => file.sync_all().and_then(|()| std::fs::rename(&part, &output)).map_err(shown),
        Err(error) => Err(error),
    };
    if saved.is_err() {
        // What is left of it is of no use; why it failed is what is told.
        let _ = std::fs::remove_file(&part);
    }
    saved
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    /// An admin listener that gives this one answer.
    fn answering(answer: &'static str) -> Admin {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        Admin::new(&url, "key")
    }

    fn flags(output: &Path) -> Flags {
        let output = Some(output.to_owned());
        Flags { tenant: None, from_ms: None, to_ms: None, format: Some("csv".into()), records: false, output }
    }

    #[tokio::test]
    async fn a_table_takes_the_place_of_the_last_one_only_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let bill = dir.path().join("bill.csv");
        std::fs::write(&bill, "the last one").unwrap();
        for failing in [
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}",
            "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf of it",
            "",
        ] {
            run(&answering(failing), flags(&bill)).await.unwrap_err();
            assert_eq!(std::fs::read_to_string(&bill).unwrap(), "the last one");
        }
        run(&answering("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nnew"), flags(&bill)).await.unwrap();
        assert_eq!(std::fs::read_to_string(&bill).unwrap(), "new");
        let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["bill.csv"]);
    }
}
