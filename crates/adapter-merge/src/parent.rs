//! The adapters that go into a merge, opened from their bytes and held against the base.

use crate::error::Error;
use weft_adapter_format::{BaseShape, CanonicalAdapter, ModuleDelta, TensorView};
use weft_types::Digest;

/// An adapter to merge. Its digest is computed from the very bytes that are merged.
#[derive(Clone, Debug)]
pub struct Parent<'a> {
    digest: Digest,
    adapter: CanonicalAdapter<'a>,
    bytes: u64,
}

impl<'a> Parent<'a> {
    /// Opens a canonical blob and hashes it. Cost: one pass over the bytes.
    ///
    /// A canonical blob holds LoRA or DoRA on linears and nothing else: trained biases, `modules_to_save` and the like are
    /// refused when a package is checked (`weft_adapter_format::check_package`), so none can come here. DoRA opens, and is
    /// refused by [`crate::merge`].
    ///
    /// # Errors
    /// [`Error::Blob`] if the bytes are not what the canonical writer writes for some adapter.
    pub fn open(blob: &'a [u8]) -> Result<Self, Error> {
        let digest = Digest::of(blob);
        let adapter = CanonicalAdapter::parse(blob).map_err(|source| Error::Blob { digest, source })?;
        Ok(Self { digest, adapter, bytes: blob.len() as u64 })
    }

    /// SHA-256 of the blob.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Length of the blob.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Its modules with their ranks and scales, by layer.
    #[must_use]
    pub fn modules(&self) -> &[ModuleDelta<'a>] {
        self.adapter.modules()
    }

    /// Every module must be one of the base, with its shape and finite values, and plain LoRA: what DoRA changes is
    /// `f ∘ (W + B A) - W` with a factor per output, which has the rank of `W`. Cost: one pass over the tensors.
    pub(crate) fn check(&self, base: &BaseShape) -> Result<(), Error> {
        if self.modules().is_empty() {
            return Err(self.unfit("it changes no module".to_owned()));
        }
        if self.adapter.is_dora() {
            let what = "it is a DoRA adapter: its deltas scale the base's weights, so they have no low rank to merge";
            return Err(self.unfit(what.to_owned()));
        }
        for delta in self.modules() {
            let name = delta.module.full_name(delta.layer);
            let Some(linear) = base.linear(delta.module).filter(|_| delta.layer < base.layers) else {
                let layers = base.layers;
                return Err(self.unfit(format!("it changes {name}, the base has {layers} layers and no such module")));
            };
            let (rows, columns) = (linear.out_features, linear.in_features);
            let shapes = [(delta.a, "lora_A", [delta.rank, columns]), (delta.b, "lora_B", [rows, delta.rank])];
            for (tensor, which, wanted) in shapes {
                if tensor.shape != wanted || tensor.shape.contains(&0) {
                    let found = tensor.shape;
                    return Err(self.unfit(format!("{name}.{which} is {found:?}, this base needs {wanted:?}")));
                }
                if let Some(index) = first_not_finite(&tensor) {
                    let (row, column) = (index / tensor.shape[1], index % tensor.shape[1]);
                    let what = format!("{name}.{which} holds NaN or infinity at row {row}, column {column}");
                    return Err(self.unfit(what));
                }
            }
        }
        Ok(())
    }

    fn unfit(&self, what: String) -> Error {
        Error::Unfit { digest: self.digest, what }
    }
}

fn first_not_finite(tensor: &TensorView<'_>) -> Option<usize> {
    let columns = tensor.shape[1];
    let row_bytes = columns * tensor.dtype.bytes();
    let mut values = Vec::with_capacity(columns);
    for (row, bytes) in tensor.bytes.chunks_exact(row_bytes).enumerate() {
        TensorView { shape: [1, columns], bytes, ..*tensor }.read_f32(&mut values);
        if let Some(column) = values.iter().position(|value| !value.is_finite()) {
            return Some(row * columns + column);
        }
    }
    None
}
