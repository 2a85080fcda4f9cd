//! Tables as CSV.

use super::table::{Cell, Column};
use crate::Error;
use std::io::Write;

pub(super) struct CsvTable<W: Write> {
    writer: csv::Writer<W>,
}

impl<W: Write> CsvTable<W> {
    pub(super) fn new(columns: &[Column], write: W) -> Result<Self, Error> {
        let mut writer = csv::Writer::from_writer(write);
        writer.write_record(columns.iter().map(|column| column.name))?;
        Ok(Self { writer })
    }

    pub(super) fn row(&mut self, cells: Vec<Cell>) -> Result<(), Error> {
        Ok(self.writer.write_record(cells.into_iter().map(field))?)
    }

    pub(super) fn finish(self) -> Result<W, Error> {
        self.writer.into_inner().map_err(|error| Error::Csv(error.into_error().into()))
    }
}

fn field(cell: Cell) -> String {
    match cell {
        Cell::Empty => String::new(),
        Cell::Text(text) => guarded(text),
        Cell::Count(count) => count.to_string(),
        Cell::Time(ms) => ms.to_string(),
        Cell::Date(day) => day.to_string(),
    }
}

/// A spreadsheet takes text that begins so for a formula, and runs it (OWASP, "CSV Injection"); `'` makes it text. Ids come from
/// outside this room, and may begin with any printable character.
fn guarded(text: String) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) { format!("'{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formulas_become_text() {
        for formula in ["=1+1", "+1", "-1", "@SUM(A1)"] {
            assert_eq!(field(Cell::text(formula)), format!("'{formula}"));
        }
        assert_eq!(field(Cell::text("chatcmpl-1=2")), "chatcmpl-1=2");
        assert_eq!(field(Cell::Empty), "");
    }
}
