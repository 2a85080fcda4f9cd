//! Element types and views of tensors that live in somebody else's bytes.

use std::fmt;

/// The element types of an adapter's tensors; all little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an IEEE single.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The name in a safetensors header.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
        }
    }

    /// The type with this name in a safetensors header.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::F32, Self::F16, Self::Bf16].into_iter().find(|dtype| dtype.as_str() == name)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A matrix in borrowed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorView<'a> {
    /// The element type.
    pub dtype: Dtype,
    /// `[rows, columns]`, row-major.
    pub shape: [usize; 2],
    /// `rows * columns` elements, little endian, of any alignment.
    pub bytes: &'a [u8],
}

impl TensorView<'_> {
    /// All elements, row-major, widened to single precision (exact). Cost: one pass, one allocation.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = Vec::new();
        self.read_f32(&mut values);
        values
    }

    /// [`Self::to_f32`] in place of what `values` holds, whose memory is used again.
    pub fn read_f32(&self, values: &mut Vec<f32>) {
        read_f32(self.dtype, self.bytes, values);
    }
}

/// A vector in borrowed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorView<'a> {
    /// The element type.
    pub dtype: Dtype,
    /// The elements, little endian, of any alignment.
    pub bytes: &'a [u8],
}

impl VectorView<'_> {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.bytes()
    }

    /// Whether there is no element.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All elements, widened to single precision (exact). Cost: one pass, one allocation.
    #[must_use]
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = Vec::new();
        self.read_f32(&mut values);
        values
    }

    /// [`Self::to_f32`] in place of what `values` holds, whose memory is used again.
    pub fn read_f32(&self, values: &mut Vec<f32>) {
        read_f32(self.dtype, self.bytes, values);
    }
}

fn read_f32(dtype: Dtype, bytes: &[u8], values: &mut Vec<f32>) {
    values.clear();
    match dtype {
        Dtype::F32 => values.extend(four_bytes(bytes).map(f32::from_le_bytes)),
        Dtype::F16 => values.extend(two_bytes(bytes).map(|raw| half::f16::from_bits(raw).to_f32())),
        // The upper half of a single: `half` asks for NaN first, which keeps the loop from becoming vectors.
        Dtype::Bf16 => values.extend(two_bytes(bytes).map(|raw| f32::from_bits(u32::from(raw) << 16))),
    }
}

/// What one pass over a tensor finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scan {
    /// Index of the first element that is NaN or infinite.
    pub(crate) not_finite_at: Option<usize>,
    /// Every element is zero of either sign (true for an empty tensor).
    pub(crate) all_zero: bool,
}

/// Looks at each element once, by its bits.
pub(crate) fn scan(dtype: Dtype, bytes: &[u8]) -> Scan {
    match dtype {
        // An exponent of all ones is NaN or infinity; everything but the sign zero is zero.
        Dtype::F32 => scan_elements(bytes.as_chunks::<4>().0, u32::from_le_bytes, 0x7f80_0000),
        Dtype::F16 => scan_elements(bytes.as_chunks::<2>().0, upper_half, 0x7c00_0000),
        Dtype::Bf16 => scan_elements(bytes.as_chunks::<2>().0, upper_half, 0x7f80_0000),
    }
}

/// Elements that are looked at together: one that is not finite is looked for only where there is one, so that the loop over all the others
/// becomes vectors.
const SCAN_ELEMENTS: usize = 1024;

fn scan_elements<T: Copy>(elements: &[T], bits: impl Fn(T) -> u32, exponent: u32) -> Scan {
    let is_finite = |bits: u32| bits & exponent != exponent;
    let mut seen = 0;
    let mut not_finite_at = None;
    for (at, block) in elements.chunks(SCAN_ELEMENTS).enumerate() {
        let mut all_finite = true;
        for element in block {
            let bits = bits(*element);
            seen |= bits;
            all_finite &= is_finite(bits);
        }
        if !all_finite && not_finite_at.is_none() {
            let index = block.iter().position(|element| !is_finite(bits(*element)));
            not_finite_at = index.map(|index| at * SCAN_ELEMENTS + index);
        }
    }
    Scan { not_finite_at, all_zero: seen & 0x7fff_ffff == 0 }
}

fn upper_half(raw: [u8; 2]) -> u32 {
    u32::from(u16::from_le_bytes(raw)) << 16
}

fn four_bytes(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> + '_ {
    bytes.as_chunks::<4>().0.iter().copied()
}

fn two_bytes(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    bytes.as_chunks::<2>().0.iter().map(|raw| u16::from_le_bytes(*raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f16(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect()
    }

    fn bf16(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| half::bf16::from_f32(*value).to_le_bytes()).collect()
    }

    fn f32s(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn every_dtype_widens_exactly_at_any_alignment() {
        let values = [0.0, -1.5, 0.25, 3.0];
        for (dtype, bytes) in [(Dtype::F32, f32s(&values)), (Dtype::F16, f16(&values)), (Dtype::Bf16, bf16(&values))] {
            let mut shifted = vec![0];
            shifted.extend(&bytes);
            let view = TensorView { dtype, shape: [2, 2], bytes: &shifted[1..] };
            assert_eq!(view.to_f32(), values, "{dtype}");
            let vector = VectorView { dtype, bytes: view.bytes };
            assert_eq!((vector.len(), vector.to_f32()), (4, values.to_vec()), "{dtype}");
        }
    }

    #[test]
    fn scan_finds_the_first_value_that_is_not_finite() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let values = [1.0, bad, bad];
            for (dtype, bytes) in
                [(Dtype::F32, f32s(&values)), (Dtype::F16, f16(&values)), (Dtype::Bf16, bf16(&values))]
            {
                assert_eq!(scan(dtype, &bytes).not_finite_at, Some(1), "{dtype} {bad}");
            }
        }
        assert_eq!(scan(Dtype::F16, &f16(&[65504.0])).not_finite_at, None);
    }

    #[test]
    fn scan_finds_it_wherever_it_is_among_many() {
        for at in [0, 1, SCAN_ELEMENTS - 1, SCAN_ELEMENTS, SCAN_ELEMENTS + 1, 3 * SCAN_ELEMENTS + 6] {
            let mut values = vec![0.5; 3 * SCAN_ELEMENTS + 7];
            assert_eq!(scan(Dtype::F32, &f32s(&values)), Scan { not_finite_at: None, all_zero: false });
            values[at] = f32::NAN;
            *values.last_mut().unwrap() = f32::INFINITY;
            for (dtype, bytes) in
                [(Dtype::F32, f32s(&values)), (Dtype::F16, f16(&values)), (Dtype::Bf16, bf16(&values))]
            {
                assert_eq!(scan(dtype, &bytes).not_finite_at, Some(at), "{dtype}");
            }
        }
        let mut values = vec![0.0; 2 * SCAN_ELEMENTS + 1];
        assert!(scan(Dtype::F32, &f32s(&values)).all_zero);
        *values.last_mut().unwrap() = 1e-40;
        assert!(!scan(Dtype::F32, &f32s(&values)).all_zero);
    }

    #[test]
    fn negative_zero_is_zero_and_the_smallest_subnormal_is_not() {
        assert!(scan(Dtype::F32, &f32s(&[0.0, -0.0])).all_zero);
        assert!(scan(Dtype::Bf16, &bf16(&[0.0, -0.0])).all_zero);
        assert!(!scan(Dtype::F16, &[1, 0]).all_zero);
    }
}
