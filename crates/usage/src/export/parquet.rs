//! Tables as Parquet, by its own writer of columns: Arrow is not needed for it.

use super::table::{Cell, Column, Kind};
use crate::Error;
use parquet::data_type::{ByteArray, ByteArrayType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::parser::parse_message_type;
use std::io::Write;
use std::sync::Arc;

/// Rows of a row group, which is held in memory until it is written.
pub const ROW_GROUP_ROWS: usize = 16_384;

pub(super) struct ParquetTable<W: Write + Send> {
    columns: &'static [Column],
    writer: SerializedFileWriter<W>,
    /// One for each column.
    buffers: Vec<Buffer>,
    rows: usize,
}

/// A column of the row group in the making.
struct Buffer {
    /// For each row 1 if it has a value, 0 if it is empty.
    definitions: Vec<i16>,
    values: Values,
}

enum Values {
    Text(Vec<ByteArray>),
    /// Counts, as the bits of unsigned integers, and times.
    Wide(Vec<i64>),
    Dates(Vec<i32>),
}

impl<W: Write + Send> ParquetTable<W> {
    pub(super) fn new(columns: &'static [Column], write: W) -> Result<Self, Error> {
        let schema = Arc::new(parse_message_type(&schema(columns))?);
        let properties = Arc::new(WriterProperties::builder().set_created_by("weft".to_owned()).build());
        let writer = SerializedFileWriter::new(write, schema, properties)?;
        Ok(Self { columns, writer, buffers: empty(columns), rows: 0 })
    }

    pub(super) fn row(&mut self, cells: Vec<Cell>) -> Result<(), Error> {
        assert_eq!(cells.len(), self.columns.len(), "a cell for each column");
        for ((cell, column), buffer) in cells.into_iter().zip(self.columns).zip(&mut self.buffers) {
            buffer.push(column, cell)?;
        }
        self.rows += 1;
        if self.rows == ROW_GROUP_ROWS { self.write_group() } else { Ok(()) }
    }

    fn write_group(&mut self) -> Result<(), Error> {
        let mut group = self.writer.next_row_group()?;
        for buffer in std::mem::replace(&mut self.buffers, empty(self.columns)) {
            let mut column = group.next_column()?.expect("the schema has a column for each buffer");
            buffer.write(&mut column)?;
            column.close()?;
        }
        group.close()?;
        self.rows = 0;
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<W, Error> {
        if self.rows > 0 {
            self.write_group()?;
        }
        Ok(self.writer.into_inner()?)
    }
}

fn schema(columns: &[Column]) -> String {
    let field = |column: &Column| {
        let name = column.name;
        match column.kind {
            Kind::Text => format!("OPTIONAL BINARY {name} (STRING);"),
            Kind::Count => format!("OPTIONAL INT64 {name} (INTEGER(64,false));"),
            Kind::Time => format!("OPTIONAL INT64 {name} (TIMESTAMP(MILLIS,true));"),
            Kind::Date => format!("OPTIONAL INT32 {name} (DATE);"),
        }
    };
    format!("message usage {{ {} }}", columns.iter().map(field).collect::<String>())
}

fn empty(columns: &[Column]) -> Vec<Buffer> {
    columns.iter().map(|column| Buffer { definitions: Vec::new(), values: Values::of(column.kind) }).collect()
}

impl Values {
    fn of(kind: Kind) -> Self {
        match kind {
            Kind::Text => Self::Text(Vec::new()),
            Kind::Count | Kind::Time => Self::Wide(Vec::new()),
            Kind::Date => Self::Dates(Vec::new()),
        }
    }
}

impl Buffer {
    fn push(&mut self, column: &Column, cell: Cell) -> Result<(), Error> {
        self.definitions.push(i16::from(cell != Cell::Empty));
        match (&mut self.values, cell) {
            (_, Cell::Empty) => {}
            (Values::Text(values), Cell::Text(text)) => values.push(ByteArray::from(text.into_bytes())),
            (Values::Wide(values), Cell::Count(count)) => {
                let too_large = |_| Error::TooLarge { column: column.name, value: count, limit: u64::MAX };
                values.push(u64::try_from(count).map_err(too_large)?.cast_signed());
            }
            (Values::Wide(values), Cell::Time(ms)) => values.push(ms.cast_signed()),
            (Values::Dates(values), Cell::Date(day)) => values.push(day.number().cast_signed()),
            (_, cell) => unreachable!("column {} holds no {cell:?}", column.name),
        }
        Ok(())
    }

    fn write(self, column: &mut SerializedColumnWriter<'_>) -> Result<(), Error> {
        let definitions = Some(&self.definitions[..]);
        match self.values {
            Values::Text(values) => column.typed::<ByteArrayType>().write_batch(&values, definitions, None)?,
            Values::Wide(values) => column.typed::<Int64Type>().write_batch(&values, definitions, None)?,
            Values::Dates(values) => column.typed::<Int32Type>().write_batch(&values, definitions, None)?,
        };
        Ok(())
    }
}
