//! The header of a safetensors file, read from foreign bytes under bounds.
//!
//! The format: 8 bytes little-endian header length, that many bytes of JSON (an object from tensor name to `dtype`,
//! `shape` and `data_offsets`, and `__metadata__`, an object of strings), then the data. Tensors fill the data without
//! gap or overlap. The `safetensors` crate is not used here because it stops at the first fault and lets duplicate
//! names pass; the tests check that both readers agree on every blob we write.

use crate::error::{Reasons, shown};
use crate::tensor::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use std::collections::HashSet;
use std::fmt;

/// More tensors than any adapter has: 126 layers of 7 modules have 1,764, with DoRA 2,646.
const TENSORS_MAX: usize = 65_536;
/// An adapter's tensors have one or two dimensions; a few more are read so that they can be named in the refusal.
const DIMENSIONS_MAX: usize = 8;

/// What a header says; nothing in it is checked but its syntax.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Header {
    pub(crate) tensors: Vec<Entry>,
    pub(crate) metadata: Vec<(String, String)>,
}

/// One tensor of a header.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

impl Entry {
    /// The shape as a matrix, if it is one that fits in memory.
    pub(crate) fn matrix(&self) -> Option<[usize; 2]> {
        let [rows, columns] = self.shape[..] else { return None };
        Some([usize::try_from(rows).ok()?, usize::try_from(columns).ok()?])
    }

    /// The length, if this is a vector that fits in memory.
    pub(crate) fn vector(&self) -> Option<usize> {
        let [length] = self.shape[..] else { return None };
        usize::try_from(length).ok()
    }

    /// Bytes that dtype and shape ask for; `None` for a dtype we do not read or a product that overflows.
    fn bytes_wanted(&self) -> Option<u64> {
        let element = Dtype::from_name(&self.dtype)?.bytes() as u64;
        self.shape.iter().try_fold(element, |bytes, dimension| bytes.checked_mul(*dimension))
    }

    /// The tensor's bytes. Only after [`check_layout`] found no fault.
    pub(crate) fn slice<'a>(&self, data: &'a [u8]) -> &'a [u8] {
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        data.get(at(self.start)..at(self.end)).unwrap_or_default()
    }
}

/// Splits a file into the text of its header and its data. Looks at no more than the first bytes.
pub(crate) fn split(file: &[u8], header_bytes_max: usize) -> Result<(&[u8], &[u8]), String> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(format!("the weights are truncated: {} bytes are too few for a safetensors file", file.len()));
    };
    if rest.first().is_some_and(|first| *first != b'{') {
        return Err(foreign_kind(file));
    }
    let length = u64::from_le_bytes(*length);
    if length > header_bytes_max as u64 {
        return Err(format!("the header of the weights has {length} bytes, the limit is {header_bytes_max}"));
    }
    match usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length)) {
        Some(parts) => Ok(parts),
        None => {
            let held = rest.len();
            Err(format!(
                "the weights are truncated: the header has {length} bytes, the file holds {held} after its length"
            ))
        }
    }
}

/// Names the formats that people send by mistake.
fn foreign_kind(file: &[u8]) -> String {
    let is_pickle = file[0] == 0x80 && (2..=5).contains(&file[1]);
    if file.starts_with(b"PK\x03\x04") || is_pickle {
        let kind = if is_pickle { "a Python pickle" } else { "a zip archive" };
        return format!(
            "the weights are {kind}, as torch.save writes adapter_model.bin; only adapter_model.safetensors is accepted"
        );
    }
    if file.starts_with(b"GGUF") {
        return "the weights are a GGUF file; only adapter_model.safetensors is accepted".to_owned();
    }
    "the weights are not a safetensors file: no JSON object behind the first 8 bytes".to_owned()
}

/// Reads the text of a header. Memory stays within a small multiple of the text.
pub(crate) fn parse(text: &[u8]) -> Result<Header, String> {
    let mut reader = serde_json::Deserializer::from_slice(text);
    let header = Header::deserialize(&mut reader).and_then(|header| reader.end().map(|()| header));
    header.map_err(|error| format!("the header of the weights is not valid: {error}"))
}

/// Checks that the tensors fill the data exactly, each with the bytes its dtype and shape ask for.
/// True if there is no fault.
pub(crate) fn check_layout(tensors: &[Entry], data_bytes: usize, reasons: &mut Reasons) -> bool {
    let data_bytes = data_bytes as u64;
    let mut sound = true;
    let mut fault = |reason: String| {
        reasons.push(reason);
        sound = false;
    };
    let last = tensors.iter().map(|tensor| tensor.end.max(tensor.start)).max().unwrap_or(0);
    if last > data_bytes {
        fault(format!("the weights are truncated: the tensors need {last} bytes of data, the file holds {data_bytes}"));
    } else if last < data_bytes {
        fault(format!("{} bytes of data behind the last tensor belong to none", data_bytes - last));
    }
    let mut in_order: Vec<&Entry> = tensors.iter().collect();
    in_order.sort_by_key(|tensor| (tensor.start, tensor.end));
    let mut filled = 0;
    for tensor in in_order {
        let Entry { start, end, dtype, shape, .. } = tensor;
        let name = shown(&tensor.name);
        if end < start {
            fault(format!("tensor {name}: its data ends at {end}, before it starts at {start}"));
            continue;
        }
        if *start > filled {
            fault(format!("tensor {name}: a gap of {} bytes before it", start - filled));
        } else if *start < filled {
            fault(format!("tensor {name}: its data from {start} overlaps another tensor's up to {filled}"));
        }
        filled = filled.max(*end);
        if Dtype::from_name(dtype).is_some() && tensor.bytes_wanted() != Some(end - start) {
            fault(format!("tensor {name}: {dtype} {shape:?} does not fit its {} bytes of data", end - start));
        }
    }
    sound
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object from tensor name to dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
        let mut header = Header::default();
        let mut names = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            if !names.insert(name.clone()) {
                return Err(twice(&name));
            }
            if name == "__metadata__" {
                header.metadata = map.next_value::<Strings>()?.0;
                continue;
            }
            if header.tensors.len() == TENSORS_MAX {
                return Err(A::Error::custom(format_args!("more than {TENSORS_MAX} tensors")));
            }
            let RawEntry { dtype, shape, data_offsets: [start, end] } = map.next_value()?;
            if shape.len() > DIMENSIONS_MAX {
                return Err(A::Error::custom(format_args!("a tensor has {} dimensions", shape.len())));
            }
            header.tensors.push(Entry { name, dtype, shape, start, end });
        }
        Ok(header)
    }
}

fn twice<E: serde::de::Error>(name: &str) -> E {
    E::custom(format_args!("{:?} appears twice", shown(name)))
}

/// Equal or unknown fields are refused by the derive.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// An object of strings with distinct keys.
struct Strings(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(StringsVisitor).map(Self)
    }
}

struct StringsVisitor;

impl<'de> Visitor<'de> for StringsVisitor {
    type Value = Vec<(String, String)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut keys = HashSet::new();
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, String>()? {
            if !keys.insert(key.clone()) {
                return Err(twice(&key));
            }
            entries.push((key, value));
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests;
