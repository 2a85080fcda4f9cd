//! What numbers on a device are.

use half::bf16;
use weft_cuda_device::Type;
use weft_cuda_kernels::pack::Format;

/// Storage of weights, KV and activations on a device. Sums are f32 in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    /// The parity reference.
    F32,
    /// What devices are built for.
    Bf16,
}

impl Precision {
    /// As it is written in settings and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.suffix()
    }

    /// How names of kernels end.
    pub(crate) fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    pub(crate) fn of(self) -> Type {
        match self {
            Self::F32 => Type::F32,
            Self::Bf16 => Type::Bf16,
        }
    }

    /// The same, as kernels for adapters call it.
    pub(crate) fn format(self) -> Format {
        match self {
            Self::F32 => Format::F32,
            Self::Bf16 => Format::Bf16,
        }
    }

    /// Of an element.
    #[must_use]
    pub fn bytes(self) -> usize {
        self.of().bytes()
    }

    /// Appends values as the device holds them, to nearest even.
    pub(crate) fn encode(self, values: &[f32], to: &mut Vec<u8>) {
        match self {
            Self::F32 => to.extend(values.iter().flat_map(|value| value.to_ne_bytes())),
            Self::Bf16 => to.extend(values.iter().flat_map(|&value| bf16::from_f32(value).to_ne_bytes())),
        }
    }
}
