//! Typed metadata values.

use super::reader::Reader;
use super::{Problem, broken};

/// Arrays of arrays may nest this deep.
const NESTING_MAX: usize = 4;

/// A metadata value. Integers are widened; strings and arrays point into the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    /// Meant to be UTF-8, but only keys that are used are checked.
    String(&'a [u8]),
    Array(Array<'a>),
}

/// An array that is decoded when it is used.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Array<'a> {
    kind: u32,
    count: usize,
    bytes: &'a [u8],
}

// The format's type numbers.
const UINT8: u32 = 0;
const INT8: u32 = 1;
const UINT16: u32 = 2;
const INT16: u32 = 3;
const UINT32: u32 = 4;
const INT32: u32 = 5;
const FLOAT32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const UINT64: u32 = 10;
const INT64: u32 = 11;
const FLOAT64: u32 = 12;

fn fixed_bytes(kind: u32) -> Option<usize> {
    match kind {
        UINT8 | INT8 | BOOL => Some(1),
        UINT16 | INT16 => Some(2),
        UINT32 | INT32 | FLOAT32 => Some(4),
        UINT64 | INT64 | FLOAT64 => Some(8),
        _ => None,
    }
}

pub(super) fn read<'a>(reader: &mut Reader<'a>, key: &str) -> Result<Value<'a>, Problem> {
    let kind = reader.u32(key)?;
    read_kind(reader, key, kind, 0)
}

fn read_kind<'a>(reader: &mut Reader<'a>, key: &str, kind: u32, depth: usize) -> Result<Value<'a>, Problem> {
    Ok(match kind {
        UINT8 => Value::Unsigned(u64::from(reader.array::<1>(key)?[0])),
        INT8 => Value::Signed(i64::from(i8::from_le_bytes(reader.array(key)?))),
        UINT16 => Value::Unsigned(u64::from(u16::from_le_bytes(reader.array(key)?))),
        INT16 => Value::Signed(i64::from(i16::from_le_bytes(reader.array(key)?))),
        UINT32 => Value::Unsigned(u64::from(reader.u32(key)?)),
        INT32 => Value::Signed(i64::from(i32::from_le_bytes(reader.array(key)?))),
        FLOAT32 => Value::Float(f64::from(f32::from_le_bytes(reader.array(key)?))),
        BOOL => match reader.array::<1>(key)?[0] {
            0 => Value::Bool(false),
            1 => Value::Bool(true),
            other => return Err(broken(format!("{key} is a bool of value {other}"))),
        },
        STRING => Value::String(reader.string(key)?),
        ARRAY => Value::Array(read_array(reader, key, depth)?),
        UINT64 => Value::Unsigned(reader.u64(key)?),
        INT64 => Value::Signed(i64::from_le_bytes(reader.array(key)?)),
        FLOAT64 => Value::Float(f64::from_le_bytes(reader.array(key)?)),
        other => return Err(broken(format!("{key} has the unknown value type {other}"))),
    })
}

fn read_array<'a>(reader: &mut Reader<'a>, key: &str, depth: usize) -> Result<Array<'a>, Problem> {
    if depth >= NESTING_MAX {
        return Err(broken(format!("{key} nests arrays deeper than {NESTING_MAX}")));
    }
    let kind = reader.u32(key)?;
    let count = reader.u64(key)?;
    // Every element takes at least one byte, so this bounds all work below by the file's length.
    let count = usize::try_from(count)
        .ok()
        .filter(|count| *count <= reader.left())
        .ok_or_else(|| broken(format!("{key} is an array of {count} but the file has {} bytes left", reader.left())))?;
    if let Some(size) = fixed_bytes(kind) {
        let bytes = reader.take(count.saturating_mul(size), key)?;
        return Ok(Array { kind, count, bytes });
    }
    // Walk over it once to find its end; elements are read again when they are used.
    let rest = reader.rest();
    for _ in 0..count {
        read_kind(reader, key, kind, depth + 1)?;
    }
    let bytes = &rest[..rest.len() - reader.left()];
    Ok(Array { kind, count, bytes })
}

impl<'a> Value<'a> {
    /// A whole number that is not negative.
    pub(crate) fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(n) => Some(*n),
            Self::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    pub(crate) fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            _ => None,
        }
    }

    pub(crate) fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Bool(b) => Some(*b),
            _ => None,
        }
    }

    pub(crate) fn as_text(&self) -> Option<&'a str> {
        match self {
            Self::String(raw) => std::str::from_utf8(raw).ok(),
            _ => None,
        }
    }

    pub(crate) fn as_array(&self) -> Option<&Array<'a>> {
        match self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }
}

impl<'a> Array<'a> {
    /// The elements as UTF-8 strings; `None` if they are anything else.
    pub(crate) fn texts(&self) -> Option<Vec<&'a str>> {
        if self.kind != STRING {
            return None;
        }
        let mut reader = Reader::new(self.bytes);
        // The element count was walked over when the file was read, so it is backed by bytes.
        let mut texts = Vec::with_capacity(self.count);
        for _ in 0..self.count {
            let raw = reader.string("array element").ok()?;
            texts.push(std::str::from_utf8(raw).ok()?);
        }
        Some(texts)
    }

    /// The elements as whole numbers; `None` if they are anything else.
    pub(crate) fn integers(&self) -> Option<Vec<i64>> {
        if !matches!(self.kind, UINT8 | INT8 | UINT16 | INT16 | UINT32 | INT32 | UINT64 | INT64) {
            return None;
        }
        let mut reader = Reader::new(self.bytes);
        let mut numbers = Vec::with_capacity(self.count);
        for _ in 0..self.count {
            numbers.push(match read_kind(&mut reader, "array element", self.kind, 0).ok()? {
                Value::Unsigned(n) => i64::try_from(n).ok()?,
                Value::Signed(n) => n,
                _ => return None,
            });
        }
        Some(numbers)
    }
}
