//! The tensors of a model: where they lie in its memory-mapped files, and how they are read.

use crate::Error;
use crate::dtype::TensorType;
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The weights of a base model, by their Hugging Face names. Cheap to clone; reads from memory maps.
///
/// A model with tied embeddings has no `lm_head.weight`.
#[derive(Clone)]
pub struct Weights {
    inner: Arc<Inner>,
}

struct Inner {
    files: Vec<MappedFile>,
    tensors: BTreeMap<String, Stored>,
}

/// One file of the model, mapped.
pub(crate) struct MappedFile {
    pub(crate) path: PathBuf,
    pub(crate) map: Mmap,
}

/// Where and how a tensor is stored.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    /// Index into the files.
    pub(crate) file: usize,
    /// Bytes within that file; checked against its length and the shape.
    pub(crate) range: Range<usize>,
    pub(crate) dtype: TensorType,
    /// Outermost first.
    pub(crate) shape: Vec<usize>,
    pub(crate) rows: RowOrder,
}

/// The order of a matrix's rows in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// As in Hugging Face's checkpoints.
    Plain,
    /// Rows of q and k in Llama GGUF files: within each of `heads` heads the two halves are interleaved, because
    /// ggml's rotary embedding turns neighbours (`permute` in llama.cpp's `convert_hf_to_gguf.py`).
    Interleaved {
        /// Heads the rows are grouped by.
        heads: usize,
    },
}

impl RowOrder {
    /// Which stored row is row `row` of the Hugging Face matrix, of `rows` rows.
    fn stored_row(self, row: usize, rows: usize) -> usize {
        match self {
            Self::Plain => row,
            Self::Interleaved { heads } => {
                let head_dim = rows / heads;
                let (head, within) = (row / head_dim, row % head_dim);
                let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
                head * head_dim + 2 * pair + half
            }
        }
    }
}

impl MappedFile {
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::io(path, source))?;
        // SAFETY: the map is read-only. As with every mapped model file, whoever truncates it in place while the
        // process runs kills the process with SIGBUS; model files are replaced by rename, never rewritten.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::io(path, source))?;
        Ok(Self { path: path.to_owned(), map })
    }
}

impl Weights {
    pub(crate) fn new(files: Vec<MappedFile>, tensors: BTreeMap<String, Stored>) -> Self {
        Self { inner: Arc::new(Inner { files, tensors }) }
    }

    /// The tensor as f32, row-major, rows in Hugging Face's order. Cost: one pass over the stored bytes and one
    /// allocation of 4 bytes per element; safe and sensible to call from several threads at once.
    ///
    /// # Errors
    /// [`Error::UnknownTensor`].
    pub fn load_f32(&self, name: &str) -> Result<Vec<f32>, Error> {
        let stored = self.inner.tensors.get(name).ok_or_else(|| Error::UnknownTensor(name.to_owned()))?;
        let bytes = self.stored_bytes(stored);
        let mut values = vec![0.0; stored.shape.iter().product()];
        match stored.rows {
            RowOrder::Plain => stored.dtype.to_f32(bytes, &mut values),
            RowOrder::Interleaved { .. } => {
                let (rows, columns) = (stored.shape[0], stored.shape[1]);
                let row_bytes = bytes.len() / rows;
                for (row, out) in values.chunks_exact_mut(columns).enumerate() {
                    let at = stored.rows.stored_row(row, rows) * row_bytes;
                    stored.dtype.to_f32(&bytes[at..at + row_bytes], out);
                }
            }
        }
        Ok(values)
    }

    /// The shape, outermost first: `[out_features, in_features]` for a linear layer.
    #[must_use]
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.inner.tensors.get(name).map(|stored| &*stored.shape)
    }

    /// How the file stores it: `F32`, `BF16`, `Q4_K`, ...
    #[must_use]
    pub fn stored_as(&self, name: &str) -> Option<&'static str> {
        self.inner.tensors.get(name).map(|stored| stored.dtype.name())
    }

    /// Whether the model has it.
    #[must_use]
    pub fn contains(&self, name: &str) -> bool {
        self.inner.tensors.contains_key(name)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.inner.tensors.keys().map(String::as_str)
    }

    /// Bytes of all tensors as stored.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.inner.tensors.values().map(|stored| stored.range.len() as u64).sum()
    }

    /// Number of weights.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.inner.tensors.values().map(|stored| stored.shape.iter().map(|n| *n as u64).product::<u64>()).sum()
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = &Path> {
        self.inner.files.iter().map(|file| &*file.path)
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = (&str, &Stored)> {
        self.inner.tensors.iter().map(|(name, stored)| (name.as_str(), stored))
    }

    pub(crate) fn stored_bytes(&self, stored: &Stored) -> &[u8] {
        &self.inner.files[stored.file].map[stored.range.clone()]
    }
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights").field("tensors", &self.inner.tensors.len()).field("bytes", &self.bytes()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_are_the_inverse_of_the_converter() {
        // The converter: reshape(heads, 2, head_dim / 2, in).swapaxes(1, 2). Rows 0..8 of two heads of four:
        let stored_holds = [0, 2, 1, 3, 4, 6, 5, 7];
        let order = RowOrder::Interleaved { heads: 2 };
        for row in 0..8 {
            assert_eq!(stored_holds[order.stored_row(row, 8)], row);
        }
    }
}
