//! The GGUF container: a header, typed metadata, a list of tensors, and their data.
//!
//! Layout (`ggml/docs/gguf.md` in `ggml-org/ggml`, versions 2 and 3, little-endian):
//!
//! ```text
//! "GGUF" | version u32 | tensors u64 | metadata entries u64
//! metadata entries: key string | type u32 | value
//! tensor entries:   name string | dims u32 | dims × u64 (innermost first) | type u32 | offset u64
//! padding to general.alignment (default 32) | data, each tensor at a multiple of the alignment
//! ```
//!
//! [`parse`] borrows from the bytes (a memory map), checks every length against what is left, and allocates only in
//! proportion to entries that are really there, so that no file makes it panic or ask for absurd memory.

mod load;
mod reader;
mod value;

pub(crate) use load::{Meta, open};
use value::Value;

use crate::dtype::TensorType;
use reader::Reader;
use std::collections::BTreeMap;
use std::ops::Range;

/// Metadata entries a file may have; models have about 40.
const METADATA_ENTRIES_MAX: u64 = 1 << 16;
/// Tensors a file may have; a model of 100 layers has about 1,000.
const TENSORS_MAX: u64 = 1 << 16;
/// Bytes of a metadata key (the format's own limit) and of a tensor's name (ggml: 64, here with room).
const KEY_BYTES_MAX: usize = 65_535;
const NAME_BYTES_MAX: usize = 256;
/// ggml's `GGML_MAX_DIMS`.
const DIMS_MAX: u32 = 4;
/// Largest `general.alignment` taken.
const ALIGNMENT_MAX: u64 = 1 << 20;

/// Why the bytes are no usable GGUF file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The bytes contradict the format.
    Broken(String),
    /// The bytes ask for something unknown here.
    Unsupported(String),
    /// One tensor's entry is wrong.
    Tensor(String, String),
}

pub(crate) fn broken(text: impl Into<String>) -> Problem {
    Problem::Broken(text.into())
}

/// A parsed header; values and names point into the file's bytes.
#[derive(Debug)]
pub(crate) struct Gguf<'a> {
    pub(crate) metadata: BTreeMap<&'a str, Value<'a>>,
    pub(crate) tensors: Vec<TensorEntry<'a>>,
}

/// One tensor of the file.
#[derive(Debug)]
pub(crate) struct TensorEntry<'a> {
    pub(crate) name: &'a str,
    /// Outermost first, as Hugging Face writes shapes (the file has them the other way round).
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: TensorType,
    /// Where its data is, in bytes from the start of the file; within the file.
    pub(crate) range: Range<usize>,
}

/// Reads the header and checks that every tensor lies within `bytes`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Gguf<'_>, Problem> {
    let mut reader = Reader::new(bytes);
    if reader.take(4, "magic")? != b"GGUF" {
        return Err(broken("it does not begin with GGUF"));
    }
    let version = reader.u32("version")?;
    match version {
        2 | 3 => {}
        _ if matches!(version.swap_bytes(), 2 | 3) => {
            return Err(Problem::Unsupported("a big-endian gguf file".into()));
        }
        _ => return Err(Problem::Unsupported(format!("gguf version {version}, supported are 2 and 3"))),
    }
    let tensor_count = bounded(reader.u64("tensor count")?, TENSORS_MAX, "tensor count")?;
    let metadata_count = bounded(reader.u64("metadata count")?, METADATA_ENTRIES_MAX, "metadata count")?;

    let mut metadata = BTreeMap::new();
    for _ in 0..metadata_count {
        let key = reader.text(KEY_BYTES_MAX, "metadata key")?;
        let value = value::read(&mut reader, key)?;
        if metadata.insert(key, value).is_some() {
            return Err(broken(format!("metadata key {key} occurs twice")));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(value) => value
            .as_u64()
            .filter(|n| n.is_power_of_two() && *n <= ALIGNMENT_MAX)
            .ok_or_else(|| broken(format!("general.alignment {value:?} is no power of two up to {ALIGNMENT_MAX}")))?,
    };

    let mut entries = Vec::new();
    for _ in 0..tensor_count {
        entries.push(read_entry(&mut reader, alignment)?);
    }
    let data_start = (reader.position() as u64).next_multiple_of(alignment);
    let tensors = place(entries, data_start, bytes.len() as u64)?;
    Ok(Gguf { metadata, tensors })
}

fn bounded(count: u64, max: u64, what: &str) -> Result<u64, Problem> {
    if count > max {
        return Err(broken(format!("{what} {count} exceeds {max}")));
    }
    Ok(count)
}

/// A tensor entry before its offset is known to be good.
struct RawEntry<'a> {
    name: &'a str,
    shape: Vec<usize>,
    dtype: TensorType,
    offset: u64,
    bytes: u64,
}

fn read_entry<'a>(reader: &mut Reader<'a>, alignment: u64) -> Result<RawEntry<'a>, Problem> {
    let name = reader.text(NAME_BYTES_MAX, "tensor name")?;
    let wrong = |problem: String| Problem::Tensor(name.to_owned(), problem);
    let dims = reader.u32("tensor dimensions")?;
    if dims == 0 || dims > DIMS_MAX {
        return Err(wrong(format!("has {dims} dimensions, not 1 to {DIMS_MAX}")));
    }
    let mut shape = Vec::new();
    for _ in 0..dims {
        let size = reader.u64("tensor shape")?;
        shape.push(usize::try_from(size).map_err(|_| wrong(format!("has a dimension of {size}")))?);
    }
    shape.reverse();
    let code = reader.u32("tensor type")?;
    let dtype = TensorType::from_ggml(code)
        .ok_or_else(|| wrong(format!("has type {}, which is not supported", TensorType::describe_ggml(code))))?;
    let bytes = dtype.bytes_of_shape(&shape).map_err(&wrong)?;
    let offset = reader.u64("tensor offset")?;
    if offset % alignment != 0 {
        return Err(wrong(format!("begins at {offset}, which is no multiple of the alignment {alignment}")));
    }
    Ok(RawEntry { name, shape, dtype, offset, bytes })
}

fn place<'a>(entries: Vec<RawEntry<'a>>, data_start: u64, file_bytes: u64) -> Result<Vec<TensorEntry<'a>>, Problem> {
    let mut seen = std::collections::BTreeSet::new();
    let mut tensors = Vec::new();
    for entry in entries {
        let wrong = |problem: String| Problem::Tensor(entry.name.to_owned(), problem);
        if !seen.insert(entry.name) {
            return Err(wrong("occurs twice".into()));
        }
        let start = data_start.checked_add(entry.offset);
        let end = start.and_then(|start| start.checked_add(entry.bytes));
        let (Some(start), Some(end)) = (start, end) else {
            return Err(wrong(format!("begins at {}, beyond any file", entry.offset)));
        };
        if end > file_bytes {
            return Err(wrong(format!("ends at byte {end} but the file has {file_bytes}: it was cut short")));
        }
        // Both fit: `end` is at most the length of a slice in memory.
        let range = start as usize..end as usize;
        tensors.push(TensorEntry { name: entry.name, shape: entry.shape, dtype: entry.dtype, range });
    }
    Ok(tensors)
}
