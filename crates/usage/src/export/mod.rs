//! Records and totals as tables, for whoever counts elsewhere: CSV, and Parquet without compression.
//!
//! One table of records for both kinds; what a kind does not have is empty (null). A residency is one row for each tenant that
//! owns its digest, with the tenant's part of it: the row's key is `id` and `tenant`, and the rows of one id add up to the record.
//!
//! Memory is that of the rows under way: none for CSV, [`ROW_GROUP_ROWS`] rows for Parquet (about 20 MB), and what Parquet keeps of
//! each row group until the end (about 10 KB). What was written before an error is of no use.

mod csv;
mod parquet;
mod table;

pub use self::parquet::ROW_GROUP_ROWS;

use self::csv::CsvTable;
use self::parquet::ParquetTable;
use crate::share::{self, Owner};
use crate::{Amounts, Error, Key, Record};
use std::io::Write;
use table::Cell::{Count, Date, Empty, Text, Time};
use table::{Cell, Column, Kind};
use weft_types::Digest;

/// What a table is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// RFC 4180 with a line of names; times are Unix milliseconds, days `yyyy-mm-dd`. Text that a spreadsheet would take for a formula
    /// begins with `'`.
    Csv,
    /// Apache Parquet; counts are unsigned 64-bit integers, times timestamps in milliseconds (UTC), days dates.
    Parquet,
}

const RECORD_COLUMNS: &[Column] = &[
    Column::new("kind", Kind::Text),
    Column::new("id", Kind::Text),
    Column::new("tenant", Kind::Text),
    Column::new("key_id", Kind::Text),
    Column::new("adapter", Kind::Text),
    Column::new("version", Kind::Count),
    Column::new("digest", Kind::Text),
    Column::new("ended_ms", Kind::Time),
    Column::new("outcome", Kind::Text),
    Column::new("duration_ms", Kind::Count),
    Column::new("prompt_tokens", Kind::Count),
    Column::new("completion_tokens", Kind::Count),
    Column::new("cached_tokens", Kind::Count),
    Column::new("worker", Kind::Text),
    Column::new("incarnation", Kind::Text),
    Column::new("from_ms", Kind::Time),
    Column::new("slot_ms", Kind::Count),
    Column::new("memory_ms", Kind::Count),
    Column::new("bytes_moved", Kind::Count),
    Column::new("bytes", Kind::Count),
];

const TOTAL_COLUMNS: &[Column] = &[
    Column::new("day", Kind::Date),
    Column::new("tenant", Kind::Text),
    Column::new("adapter", Kind::Text),
    Column::new("version", Kind::Count),
    Column::new("requests", Kind::Count),
    Column::new("prompt_tokens", Kind::Count),
    Column::new("completion_tokens", Kind::Count),
    Column::new("cached_tokens", Kind::Count),
    Column::new("bytes_moved", Kind::Count),
    Column::new("slot_ms", Kind::Count),
    Column::new("memory_ms", Kind::Count),
];

enum Table<W: Write + Send> {
    Csv(CsvTable<W>),
    Parquet(ParquetTable<W>),
}

impl<W: Write + Send> Table<W> {
    fn new(format: Format, columns: &'static [Column], write: W) -> Result<Self, Error> {
        Ok(match format {
            Format::Csv => Self::Csv(CsvTable::new(columns, write)?),
            Format::Parquet => Self::Parquet(ParquetTable::new(columns, write)?),
        })
    }

    fn row(&mut self, cells: Vec<Cell>) -> Result<(), Error> {
        match self {
            Self::Csv(table) => table.row(cells),
            Self::Parquet(table) => table.row(cells),
        }
    }

    fn finish(self) -> Result<W, Error> {
        match self {
            Self::Csv(table) => table.finish(),
            Self::Parquet(table) => table.finish(),
        }
    }
}

/// A table of records in the making.
pub struct RecordExport<W: Write + Send> {
    table: Table<W>,
}

impl<W: Write + Send> std::fmt::Debug for RecordExport<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordExport").finish_non_exhaustive()
    }
}

impl<W: Write + Send> RecordExport<W> {
    /// An empty table.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(format: Format, write: W) -> Result<Self, Error> {
        Ok(Self { table: Table::new(format, RECORD_COLUMNS, write)? })
    }

    /// Adds a record: one row, or one for each tenant that owns a residency's digest. `owners` is asked for residencies only. Cost: may
    /// write.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&mut self, record: &Record, owners: impl FnOnce(&Digest) -> Vec<Owner>) -> Result<(), Error> {
        match record {
            Record::Request(request) => self.table.row(vec![
                Cell::text("request"),
                Cell::text(&request.id),
                Cell::text(request.tenant.as_str()),
                Cell::text(&request.key_id),
                request.adapter.as_ref().map_or(Empty, |adapter| Cell::text(adapter.as_str())),
                Cell::count(request.version),
                request.digest.map_or(Empty, |digest| Text(digest.to_string())),
                Time(request.ended_ms),
                Cell::text(request.outcome.as_str()),
                Cell::count(request.duration_ms),
                Cell::count(request.prompt_tokens),
                Cell::count(request.completion_tokens),
                Cell::count(request.cached_tokens),
                Empty,
                Empty,
                Empty,
                Empty,
                Empty,
                Empty,
                Empty,
            ]),
            Record::Residency(residency) => {
                for share in share::split(residency, owners(&residency.digest)) {
                    let owner = share.owner.as_ref();
                    self.table.row(vec![
                        Cell::text("residency"),
                        Cell::text(&residency.id),
                        owner.map_or(Empty, |owner| Cell::text(owner.tenant.as_str())),
                        Empty,
                        owner.map_or(Empty, |owner| Cell::text(owner.adapter.as_str())),
                        Cell::count(owner.map(|owner| owner.version)),
                        Text(residency.digest.to_string()),
                        Time(residency.to_ms),
                        Empty,
                        Empty,
                        Empty,
                        Empty,
                        Empty,
                        Cell::text(&residency.worker),
                        Cell::text(&residency.incarnation),
                        Time(residency.from_ms),
                        Cell::count(share.slot_ms),
                        Cell::count(share.memory_ms),
                        Cell::count(share.bytes_moved),
                        Cell::count(residency.bytes),
                    ])?;
                }
                Ok(())
            }
        }
    }

    /// Ends the table and gives back what it was written to.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(self) -> Result<W, Error> {
        self.table.finish()
    }
}

/// A table of sums by key in the making.
pub struct TotalExport<W: Write + Send> {
    table: Table<W>,
}

impl<W: Write + Send> std::fmt::Debug for TotalExport<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TotalExport").finish_non_exhaustive()
    }
}

impl<W: Write + Send> TotalExport<W> {
    /// An empty table.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(format: Format, write: W) -> Result<Self, Error> {
        Ok(Self { table: Table::new(format, TOTAL_COLUMNS, write)? })
    }

    /// Adds a sum as a row. Cost: may write.
    ///
    /// # Errors
    /// It cannot be written; [`Error::TooLarge`] for Parquet if the sum has more than 64 bits.
    pub fn add(&mut self, key: &Key, sum: &Amounts) -> Result<(), Error> {
        self.table.row(vec![
            Date(key.day),
            key.tenant.as_ref().map_or(Empty, |tenant| Cell::text(tenant.as_str())),
            key.adapter.as_ref().map_or(Empty, |adapter| Cell::text(adapter.as_str())),
            Cell::count(key.version),
            Cell::count(sum.requests),
            Count(sum.prompt_tokens),
            Count(sum.completion_tokens),
            Count(sum.cached_tokens),
            Count(sum.bytes_moved),
            Count(sum.slot_ms),
            Count(sum.memory_ms),
        ])
    }

    /// Ends the table and gives back what it was written to.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(self) -> Result<W, Error> {
        self.table.finish()
    }
}
