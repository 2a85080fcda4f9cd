//! How tensors are stored, and how they become f32.
//!
//! Block layouts and arithmetic follow ggml: structs in `ggml/src/ggml-common.h`, `dequantize_row_*` in
//! `ggml/src/ggml-quants.c` (`ggml-org/llama.cpp`). Products and sums are taken in the same order, so that values
//! are the same to the bit. Tested against the Python package `gguf` (`tests/golden/make_dequant.py`).

use half::{bf16, f16};

/// How one tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TensorType {
    F32,
    F16,
    Bf16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

/// Elements in a super-block of the K formats.
const QK_K: usize = 256;

impl TensorType {
    /// From ggml's `enum ggml_type`.
    pub(crate) fn from_ggml(code: u32) -> Option<Self> {
        Some(match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4K,
            13 => Self::Q5K,
            14 => Self::Q6K,
            30 => Self::Bf16,
            _ => return None,
        })
    }

    /// A type number with its name in ggml, for error messages.
    pub(crate) fn describe_ggml(code: u32) -> String {
        let name = match code {
            9 => "Q8_1",
            10 => "Q2_K",
            11 => "Q3_K",
            15 => "Q8_K",
            16 => "IQ2_XXS",
            17 => "IQ2_XS",
            18 => "IQ3_XXS",
            19 => "IQ1_S",
            20 => "IQ4_NL",
            21 => "IQ3_S",
            22 => "IQ2_S",
            23 => "IQ4_XS",
            24 => "I8",
            25 => "I16",
            26 => "I32",
            27 => "I64",
            28 => "F64",
            29 => "IQ1_M",
            34 => "TQ1_0",
            35 => "TQ2_0",
            39 => "MXFP4",
            _ => return format!("{code} (unknown)"),
        };
        format!("{name} ({code})")
    }

    /// From the word safetensors uses.
    pub(crate) fn from_safetensors(dtype: safetensors::Dtype) -> Option<Self> {
        match dtype {
            safetensors::Dtype::F32 => Some(Self::F32),
            safetensors::Dtype::F16 => Some(Self::F16),
            safetensors::Dtype::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// The name in digests and messages; never change one.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Elements per block, and bytes per block.
    pub(crate) fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 2 + 16),
            Self::Q4_1 => (32, 4 + 16),
            Self::Q5_0 => (32, 2 + 4 + 16),
            Self::Q5_1 => (32, 4 + 4 + 16),
            Self::Q8_0 => (32, 2 + 32),
            Self::Q4K => (QK_K, 4 + 12 + 128),
            Self::Q5K => (QK_K, 4 + 12 + 32 + 128),
            Self::Q6K => (QK_K, 128 + 64 + 16 + 2),
        }
    }

    /// Bytes of a tensor of this shape (outermost first), or what is wrong with the shape. Rows are whole blocks.
    pub(crate) fn bytes_of_shape(self, shape: &[usize]) -> Result<u64, String> {
        let (block_elements, block_bytes) = self.block();
        let row = shape.last().copied().unwrap_or(1);
        if row % block_elements != 0 {
            return Err(format!(
                "has rows of {row} elements, which {} cannot hold: its blocks have {block_elements}",
                self.name()
            ));
        }
        let mut elements = 1u64;
        for &size in shape {
            elements = elements
                .checked_mul(size as u64)
                .filter(|_| size > 0)
                .ok_or_else(|| format!("has the impossible shape {shape:?}"))?;
        }
        (elements / block_elements as u64)
            .checked_mul(block_bytes as u64)
            .ok_or_else(|| format!("has the impossible shape {shape:?}"))
    }

    /// Writes the values of `stored` to `out`. One pass, no allocation; about 1 GB/s of output.
    ///
    /// # Panics
    /// If `stored` and `out` are not the same whole number of blocks. Callers have checked the shape.
    pub(crate) fn to_f32(self, stored: &[u8], out: &mut [f32]) {
        let (elements, bytes) = self.block();
        assert!(
            out.len().is_multiple_of(elements) && stored.len() == out.len() / elements * bytes,
            "invariant: {} bytes hold {} values of {}",
            stored.len(),
            out.len(),
            self.name()
        );
        match self {
            Self::F32 => each::<1, 4>(stored, out, |b, y| y[0] = f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
            Self::F16 => each::<1, 2>(stored, out, |b, y| y[0] = half_at(b, 0)),
            Self::Bf16 => each::<1, 2>(stored, out, |b, y| y[0] = bf16::from_le_bytes([b[0], b[1]]).to_f32()),
            Self::Q4_0 => each::<32, 18>(stored, out, q4_0),
            Self::Q4_1 => each::<32, 20>(stored, out, q4_1),
            Self::Q5_0 => each::<32, 22>(stored, out, q5_0),
            Self::Q5_1 => each::<32, 24>(stored, out, q5_1),
            Self::Q8_0 => each::<32, 34>(stored, out, q8_0),
            Self::Q4K => each::<QK_K, 144>(stored, out, q4_k),
            Self::Q5K => each::<QK_K, 176>(stored, out, q5_k),
            Self::Q6K => each::<QK_K, 210>(stored, out, q6_k),
        }
    }
}

/// Decodes block after block; the sizes are constants so that each decoder is compiled for its own.
fn each<const ELEMENTS: usize, const BYTES: usize>(stored: &[u8], out: &mut [f32], decode: impl Fn(&[u8], &mut [f32])) {
    for (block, values) in stored.chunks_exact(BYTES).zip(out.chunks_exact_mut(ELEMENTS)) {
        decode(block, values);
    }
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// `d f16 | 16 bytes of nibbles`: low nibbles are elements 0..16, high ones 16..32; value (n - 8)·d.
fn q4_0(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 0);
    let (low, high) = y.split_at_mut(16);
    for (j, &q) in block[2..18].iter().enumerate() {
        low[j] = f32::from(i16::from(q & 15) - 8) * d;
        high[j] = f32::from(i16::from(q >> 4) - 8) * d;
    }
}

/// `d f16 | m f16 | nibbles`; value n·d + m.
fn q4_1(block: &[u8], y: &mut [f32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let (low, high) = y.split_at_mut(16);
    for (j, &q) in block[4..20].iter().enumerate() {
        low[j] = f32::from(q & 15) * d + m;
        high[j] = f32::from(q >> 4) * d + m;
    }
}

/// The fifth bits: bit j of `high` belongs to element j.
fn fifth_bits(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
}

/// `d f16 | fifth bits u32 | nibbles`; value (n - 16)·d.
fn q5_0(block: &[u8], y: &mut [f32]) {
    let (d, high_bits) = (half_at(block, 0), fifth_bits(block, 2));
    let (low, high) = y.split_at_mut(16);
    for (j, &q) in block[6..22].iter().enumerate() {
        let n0 = u32::from(q & 15) | (high_bits >> j & 1) << 4;
        let n1 = u32::from(q >> 4) | (high_bits >> (j + 16) & 1) << 4;
        low[j] = (n0 as i32 - 16) as f32 * d;
        high[j] = (n1 as i32 - 16) as f32 * d;
    }
}

/// `d f16 | m f16 | fifth bits u32 | nibbles`; value n·d + m.
fn q5_1(block: &[u8], y: &mut [f32]) {
    let (d, m, high_bits) = (half_at(block, 0), half_at(block, 2), fifth_bits(block, 4));
    let (low, high) = y.split_at_mut(16);
    for (j, &q) in block[8..24].iter().enumerate() {
        let n0 = u32::from(q & 15) | (high_bits >> j & 1) << 4;
        let n1 = u32::from(q >> 4) | (high_bits >> (j + 16) & 1) << 4;
        low[j] = n0 as f32 * d + m;
        high[j] = n1 as f32 * d + m;
    }
}

/// `d f16 | 32 × i8`; value q·d.
fn q8_0(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 0);
    for (value, &q) in y.iter_mut().zip(&block[2..34]) {
        *value = f32::from(q as i8) * d;
    }
}

/// The 6-bit scale and minimum of sub-block `j` of 8, packed into 12 bytes (`get_scale_min_k4`).
fn scale_min(j: usize, packed: &[u8]) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        (packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}

/// `d f16 | dmin f16 | 12 bytes of scales | 128 bytes of nibbles`; value d·scale·n - dmin·min.
fn q4_k(block: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let scales = &block[4..16];
    for (pair, (values, nibbles)) in y.chunks_exact_mut(64).zip(block[16..144].chunks_exact(32)).enumerate() {
        let (scale0, min0) = scale_min(2 * pair, scales);
        let (scale1, min1) = scale_min(2 * pair + 1, scales);
        let (d0, m0, d1, m1) = (d * scale0, dmin * min0, d * scale1, dmin * min1);
        let (low, high) = values.split_at_mut(32);
        for (l, &q) in nibbles.iter().enumerate() {
            low[l] = d0 * f32::from(q & 15) - m0;
            high[l] = d1 * f32::from(q >> 4) - m1;
        }
    }
}

/// As [`q4_k`] with a fifth bit per element: bit `2·pair` and `2·pair + 1` of 32 bytes before the nibbles.
fn q5_k(block: &[u8], y: &mut [f32]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (scales, fifth) = (&block[4..16], &block[16..48]);
    for (pair, (values, nibbles)) in y.chunks_exact_mut(64).zip(block[48..176].chunks_exact(32)).enumerate() {
        let (scale0, min0) = scale_min(2 * pair, scales);
        let (scale1, min1) = scale_min(2 * pair + 1, scales);
        let (d0, m0, d1, m1) = (d * scale0, dmin * min0, d * scale1, dmin * min1);
        let (low, high) = values.split_at_mut(32);
        for (l, &q) in nibbles.iter().enumerate() {
            let bits = fifth[l] >> (2 * pair);
            low[l] = d0 * f32::from(q & 15 | (bits & 1) << 4) - m0;
            high[l] = d1 * f32::from(q >> 4 | (bits >> 1 & 1) << 4) - m1;
        }
    }
}

/// `128 bytes of low nibbles | 64 bytes of high bit pairs | 16 × i8 scales | d f16`; value d·scale·(n - 32).
fn q6_k(block: &[u8], y: &mut [f32]) {
    let d = half_at(block, 208);
    for (part, values) in y.chunks_exact_mut(128).enumerate() {
        let low = &block[64 * part..64 * part + 64];
        let high = &block[128 + 32 * part..128 + 32 * part + 32];
        let scales = &block[192 + 8 * part..192 + 8 * part + 8];
        for l in 0..32 {
            let n = [
                low[l] & 15 | (high[l] & 3) << 4,
                low[l + 32] & 15 | (high[l] >> 2 & 3) << 4,
                low[l] >> 4 | (high[l] >> 4 & 3) << 4,
                low[l + 32] >> 4 | (high[l] >> 6) << 4,
            ];
            for (quarter, n) in n.into_iter().enumerate() {
                let scale = f32::from(scales[l / 16 + 2 * quarter] as i8);
                values[l + 32 * quarter] = d * scale * f32::from(i16::from(n) - 32);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Case {
        r#type: String,
        code: u32,
        stored: String,
        f32: String,
    }

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    }

    #[test]
    fn every_type_decodes_to_the_bits_that_the_gguf_package_reads() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("../tests/golden/dequant.json")).unwrap();
        assert_eq!(cases.len(), 11);
        for case in cases {
            let kind = TensorType::from_ggml(case.code).unwrap();
            assert_eq!(kind.name(), case.r#type);
            let expected: Vec<u32> =
                bytes(&case.f32).chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect();
            let stored = bytes(&case.stored);
            assert_eq!(kind.bytes_of_shape(&[expected.len()]), Ok(stored.len() as u64), "{}", case.r#type);
            let mut values = vec![f32::NAN; expected.len()];
            kind.to_f32(&stored, &mut values);
            let found: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
            assert_eq!(found, expected, "{}", case.r#type);
        }
    }

    #[test]
    fn shapes_that_no_file_can_hold_are_refused() {
        assert!(TensorType::Q4_0.bytes_of_shape(&[2, 33]).unwrap_err().contains("33"));
        assert!(TensorType::Q4K.bytes_of_shape(&[2, 128]).is_err());
        assert!(TensorType::F32.bytes_of_shape(&[usize::MAX, 2]).is_err());
        assert!(TensorType::F32.bytes_of_shape(&[usize::MAX / 2]).is_err());
        assert!(TensorType::F32.bytes_of_shape(&[0, 4]).is_err());
    }
}
