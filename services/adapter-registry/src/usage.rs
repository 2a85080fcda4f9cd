//! The usage ledger: kept for gateways, read for operators, compacted.

use crate::Error;
use crate::core::{Core, now_ms};
use bytes::Bytes;
use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use weft_proto::registry::v1 as pb;
use weft_service_kit::shutdown::Shutdown;
use weft_types::{Digest, TenantName};
use weft_usage::{
    Amounts, Format, Hour, Key, Ledger, Owner, Record, RecordExport, Residency, Segment, TotalExport, Totals,
};

/// Longest batch: a gateway's segment.
const LINES_BYTES_MAX: usize = 1_572_864;
/// Adapters in one report of a worker.
const ROWS_MAX: usize = 4_096;
/// By how much times may exceed their interval: two clocks are in it.
const CLOCK_SLACK_MS: u64 = 1_000;
/// Largest piece of an export.
const PIECE_BYTES: usize = 256 << 10;
const PIECES_IN_FLIGHT: usize = 4;
/// Between two looks for hours to compact, and how far back a look goes.
const COMPACT_EVERY: Duration = Duration::from_secs(900);
const COMPACT_HOURS: u64 = 26;
const HOUR_MS: u64 = 3_600_000;

/// What is to be read.
pub(crate) struct Asked {
    tenant: Option<TenantName>,
    from_ms: u64,
    to_ms: u64,
    shape: Shape,
}

enum Shape {
    Json,
    Totals(Format),
    Records(Format),
}

impl Asked {
    pub(crate) fn read(request: &pb::ReadUsageRequest) -> Result<Self, Error> {
        let named = |text: &str| text.parse().map_err(|source| Error::Name { param: "tenant", source });
        let tenant = (!request.tenant.is_empty()).then(|| named(&request.tenant)).transpose()?;
        let shape = match (request.format.as_str(), request.records) {
            ("json", false) => Shape::Json,
            ("json", true) => {
                return Err(Error::invalid("format", "records are exported as csv or parquet, not as json"));
            }
            ("csv", false) => Shape::Totals(Format::Csv),
            ("csv", true) => Shape::Records(Format::Csv),
            ("parquet", false) => Shape::Totals(Format::Parquet),
            ("parquet", true) => Shape::Records(Format::Parquet),
            (other, _) => {
                let shown: String = other.chars().take(32).collect();
                return Err(Error::invalid(
                    "format",
                    format!("format is {shown:?}, allowed are json, csv and parquet"),
                ));
            }
        };
        Ok(Self { tenant, from_ms: request.from_ms, to_ms: request.to_ms, shape })
    }
}

/// Collects what is written until somebody takes it.
#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Shared {
    fn take_if(&self, bytes_min: usize) -> Bytes {
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if written.len() >= bytes_min { std::mem::take(&mut *written).into() } else { Bytes::new() }
    }

    /// Hands on what was written, if it is enough for a piece.
    async fn send(&self, pieces: &Pieces) {
        self.send_if(PIECE_BYTES, pieces).await;
    }

    async fn send_if(&self, bytes_min: usize, pieces: &Pieces) {
        let mut written = self.take_if(bytes_min);
        while !written.is_empty() {
            let piece = written.split_to(written.len().min(PIECE_BYTES));
            // An error means that nobody listens: then this task is about to end.
            let _ = pieces.send(Ok(piece)).await;
        }
    }
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Pieces = mpsc::Sender<Result<Bytes, Error>>;

impl Core {
    fn ledger(&self) -> Ledger {
        Ledger::new(Arc::clone(&self.store))
    }

    /// Keeps a gateway's batch; the same again changes nothing.
    pub(crate) async fn keep_usage(&self, request: pb::KeepUsageRequest) -> Result<(), Error> {
        let Some(segment) = Segment::parse(&request.segment) else {
            let shown: String = request.segment.chars().take(80).collect();
            return Err(Error::invalid("segment", format!("segment {shown:?} is no segment's name")));
        };
        let bytes = request.lines.len();
        if bytes > LINES_BYTES_MAX {
            return Err(Error::invalid("lines", format!("lines has {bytes} bytes, the limit is {LINES_BYTES_MAX}")));
        }
        self.ledger().ship_lines(&segment, request.lines).await?;
        Ok(())
    }

    /// Keeps what adapters took of a worker; the same report again changes nothing.
    pub(crate) async fn keep_residency(&self, request: pb::KeepResidencyRequest) -> Result<(), Error> {
        let writer = uuid::Uuid::parse_str(&request.incarnation)
            .map_err(|error| Error::invalid("incarnation", format!("incarnation: {error}")))?;
        let pb::KeepResidencyRequest { worker, sequence, from_ms, to_ms, rows, .. } = request;
        if rows.len() > ROWS_MAX {
            return Err(Error::invalid("rows", format!("rows are {}, the limit is {ROWS_MAX}", rows.len())));
        }
        let interval_ms = to_ms.saturating_sub(from_ms);
        let mut records = Vec::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate() {
            let digest = Digest::try_from(row.digest.as_ref());
            let digest = digest.map_err(|error| Error::invalid("rows", format!("rows[{at}].digest: {error}")))?;
            if row.slot_ms.saturating_add(row.memory_ms) > interval_ms.saturating_add(CLOCK_SLACK_MS) {
                let ms = row.slot_ms.saturating_add(row.memory_ms);
                let message = format!("rows[{at}]: {ms} ms in an interval of {interval_ms} ms");
                return Err(Error::invalid("rows", message));
            }
            let record = Record::Residency(Residency {
                id: format!("{}-{sequence}-{at}", writer.simple()),
                worker: worker.clone(),
                incarnation: writer.simple().to_string(),
                from_ms,
                to_ms,
                digest,
                slot_ms: row.slot_ms,
                memory_ms: row.memory_ms,
                bytes_moved: row.bytes_moved,
                bytes: row.bytes,
            });
            records.push(record.to_json().map_err(|error| Error::invalid("rows", format!("rows[{at}]: {error}")))?);
        }
        let segment = Segment::parse(&format!("{}-{sequence:08}-{to_ms:015}", writer.simple()));
        let segment =
            segment.ok_or_else(|| Error::invalid("to_ms", format!("{to_ms} is no time, or {sequence} no sequence")))?;
        self.ledger().ship(&segment, &records).await?;
        Ok(())
    }

    /// Reads the ledger as a table, piece by piece. An error in the middle is the last piece. Ends, and gives `permit` back, when nobody
    /// listens any more.
    pub(crate) fn read_usage(
        self: &Arc<Self>,
        asked: Asked,
        permit: OwnedSemaphorePermit,
    ) -> Result<mpsc::Receiver<Result<Bytes, Error>>, Error> {
        // Refused before anything runs.
        let reader = self.ledger().read(asked.from_ms..asked.to_ms)?;
        let (sender, receiver) = mpsc::channel(PIECES_IN_FLIGHT);
        let owners = self.owners();
        tokio::spawn(async move {
            let _permit = permit;
            let exported = tokio::select! {
                exported = export(reader, &asked, &owners, &sender) => exported,
                () = sender.closed() => return,
            };
            if let Err(error) = exported {
                // An error means that nobody listens.
                let _ = sender.send(Err(error)).await;
            }
        });
        Ok(receiver)
    }

    /// Who owns which bytes, condemned versions among them: they were used once.
    fn owners(&self) -> HashMap<Digest, Vec<Owner>> {
        let mut owners: HashMap<Digest, Vec<Owner>> = HashMap::new();
        for (tenant, known) in &self.catalog().tenants {
            for (adapter, versions) in &known.adapters {
                for version in versions.all() {
                    let owner = Owner { tenant: tenant.clone(), adapter: adapter.clone(), version: version.number };
                    owners.entry(version.digest).or_default().push(owner);
                }
            }
        }
        owners
    }
}

async fn export(
    mut reader: weft_usage::Reader,
    asked: &Asked,
    owners: &HashMap<Digest, Vec<Owner>>,
    pieces: &Pieces,
) -> Result<(), Error> {
    let of_tenant = |digest: &Digest| -> Vec<Owner> {
        let all = owners.get(digest).cloned().unwrap_or_default();
        all.into_iter().filter(|owner| asked.tenant.as_ref().is_none_or(|only| owner.tenant == *only)).collect()
    };
    let concerns = |record: &Record| match (&asked.tenant, record) {
        (None, _) => true,
        (Some(only), Record::Request(request)) => request.tenant == *only,
        (Some(_), Record::Residency(residency)) => !of_tenant(&residency.digest).is_empty(),
    };
    let written = Shared::default();
    let mut records = match asked.shape {
        Shape::Records(format) => Some(RecordExport::new(format, written.clone())?),
        Shape::Json | Shape::Totals(_) => None,
    };
    let mut totals = Totals::new();
    while let Some(record) = reader.next().await {
        let record = match record {
            Ok(record) => record,
            Err(error @ weft_usage::Error::Line { .. }) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a line of the usage ledger is left out");
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        if !concerns(&record) {
            continue;
        }
        match &mut records {
            Some(records) => records.add(&record, of_tenant)?,
            None => totals.add(&record, of_tenant),
        }
        written.send(pieces).await;
    }
    match (records, &asked.shape) {
        (Some(records), _) => drop(records.finish()?),
        (None, Shape::Totals(format)) => {
            let mut table = TotalExport::new(*format, written.clone())?;
            for (key, sum) in totals.iter() {
                table.add(key, sum)?;
                written.send(pieces).await;
            }
            table.finish()?;
        }
        (None, _) => write_json(&totals, &written, pieces).await,
    }
    written.send_if(0, pieces).await;
    Ok(())
}

/// `{"usage": [rows]}`, row by row.
async fn write_json(totals: &Totals, written: &Shared, pieces: &Pieces) {
    let write = |text: &[u8]| {
        // Into memory.
        let _ = written.clone().write_all(text);
    };
    write(b"{\"usage\":[");
    for (at, (key, sum)) in totals.iter().enumerate() {
        if at > 0 {
            write(b",");
        }
        write(&json_row(key, sum));
        written.send(pieces).await;
    }
    write(b"]}");
}

/// A sum as JSON. Amounts are numbers as long as JSON's readers take them exactly.
fn json_row(key: &Key, sum: &Amounts) -> Vec<u8> {
    let number = |value: u128| serde_json::Value::from(u64::try_from(value).unwrap_or(u64::MAX));
    let row = serde_json::json!({
        "day": key.day.to_string(),
        "tenant": key.tenant,
        "adapter": key.adapter,
        "version": key.version,
        "requests": sum.requests,
        "prompt_tokens": number(sum.prompt_tokens),
        "completion_tokens": number(sum.completion_tokens),
        "cached_tokens": number(sum.cached_tokens),
        "bytes_moved": number(sum.bytes_moved),
        "slot_ms": number(sum.slot_ms),
        "memory_ms": number(sum.memory_ms),
    });
    serde_json::to_vec(&row).expect("numbers and names serialize")
}

/// Joins the many batches of hours that are over, until shutdown. All registries may do it at once.
pub(crate) async fn compact(core: Arc<Core>, shutdown: Shutdown) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(COMPACT_EVERY) => {}
            () = shutdown.wait() => return,
        }
        let now = now_ms();
        for back in 1..=COMPACT_HOURS {
            let hour = Hour::of_ms(now.saturating_sub(back * HOUR_MS));
            match core.ledger().compact(hour, now).await {
                // It is too early for the last hours.
                Ok(_) | Err(weft_usage::Error::TooEarly { .. }) => {}
                Err(error) => {
                    tracing::warn!(%hour, error = &error as &dyn std::error::Error, "an hour of usage is not compacted");
                }
            }
        }
    }
}
