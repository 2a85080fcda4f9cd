//! The order of weights in device memory: that in which the lanes of a warp load them (`gemm.cuh`, `gemm_w4.cu`, `gemm_int8.cu`).
//!
//! | what | stored |
//! |---|---|
//! | codes of 4 bits | `[columns/32][depth/32][32 lanes][4 words]` |
//! | their scales and minima | `[columns/32][depth/group][8][4 words]` |
//! | codes of 8 bits | `[columns/32][depth/32][2][32 lanes][4 words]` |
//! | their scales per group | `[columns/32][depth/32][8][4 f32]` |
//!
//! Columns are filled up to a multiple of 32 with codes and scales of zero. Packing is done once, at load: a pass over the weights.

use super::{Error, STEP, TILE, Weights, check_shape};
use half::f16;

/// What one load takes.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::NoUninit)]
pub struct Piece(pub [u32; 4]);

/// Weights as the kernels read them.
#[derive(Clone, Debug, PartialEq)]
pub struct Packed {
    /// Their format.
    pub weights: Weights,
    /// Outputs.
    pub columns: usize,
    /// Inputs.
    pub depth: usize,
    /// The codes.
    pub codes: Vec<Piece>,
    /// Scales of groups; empty where there are none.
    pub scales: Vec<Piece>,
    /// Scales of columns; empty where there are none.
    pub column_scales: Vec<f32>,
}

/// Weights `scale * code + min` of 4 bits: `codes [columns, depth]` of 0 to 15, `scales` and `mins [columns, depth / group]`.
///
/// # Errors
///
/// When a slice has not its shape, a code exceeds 15, or the shape is one that [`super::launch`] refuses.
pub fn four(
    [columns, depth]: [usize; 2],
    group: usize,
    codes: &[u8],
    scales: &[f16],
    mins: &[f16],
) -> Result<Packed, Error> {
    let weights = Weights::Four { group };
    check_shape(weights, columns, depth)?;
    let groups = depth / group;
    Error::length("codes", codes.len(), columns * depth)?;
    Error::length("scales", scales.len(), columns * groups)?;
    Error::length("mins", mins.len(), columns * groups)?;
    if let Some(code) = codes.iter().find(|code| **code > 15) {
        return Err(Error::Field { field: "code", value: usize::from(*code), limit: "0 to 15" });
    }
    let mut packed =
        Packed { weights, columns, depth, codes: Vec::new(), scales: Vec::new(), column_scales: Vec::new() };
    for tile in (0..columns).step_by(TILE) {
        for step in 0..depth / STEP {
            packed.codes.extend((0..32).map(|lane| {
                let word = |quarter: usize| {
                    let column = tile + lane / 4 + 8 * quarter;
                    if column >= columns {
                        return 0;
                    }
                    let eight = &codes[column * depth + step * STEP + 8 * (lane % 4)..][..8];
                    let bits = |k: usize| u32::from(eight[k]) << (4 * (k / 2) + 16 * (k % 2));
                    (0..8).map(bits).sum()
                };
                Piece([0, 1, 2, 3].map(word))
            }));
        }
        for index in 0..groups {
            packed.scales.extend((0..8).map(|of| {
                let word = |quarter: usize| {
                    let column = tile + of + 8 * quarter;
                    if column >= columns {
                        return 0;
                    }
                    let at = column * groups + index;
                    u32::from(scales[at].to_bits()) | u32::from(mins[at].to_bits()) << 16
                };
                Piece([0, 1, 2, 3].map(word))
            }));
        }
    }
    Ok(packed)
}

/// Weights `scale * (code - 8)` of 4 bits, as GPTQ stores symmetric ones: shapes as in [`four`].
///
/// # Errors
///
/// As [`four`].
pub fn four_symmetric(shape: [usize; 2], group: usize, codes: &[u8], scales: &[f16]) -> Result<Packed, Error> {
    // Exact: a product with a power of two.
    let mins: Vec<f16> = scales.iter().map(|scale| f16::from_f32(-8.0 * scale.to_f32())).collect();
    four(shape, group, codes, scales, &mins)
}

/// Weights of 8 bits with a scale for 32 inputs: `codes [columns, depth]`, `scales [columns, depth / 32]`.
///
/// # Errors
///
/// When a slice has not its shape, or the shape is one that [`super::launch`] refuses.
pub fn int8_groups([columns, depth]: [usize; 2], codes: &[i8], scales: &[f32]) -> Result<Packed, Error> {
    let groups = depth / STEP;
    let mut packed = bytes(Weights::Int8Groups, [columns, depth], codes, i8::cast_unsigned)?;
    Error::length("scales", scales.len(), columns * groups)?;
    for tile in (0..columns).step_by(TILE) {
        for group in 0..groups {
            packed.scales.extend((0..8).map(|of| {
                let word = |quarter: usize| {
                    let column = tile + of + 8 * quarter;
                    if column < columns { scales[column * groups + group].to_bits() } else { 0 }
                };
                Piece([0, 1, 2, 3].map(word))
            }));
        }
    }
    Ok(packed)
}

/// Weights of 8 bits with a scale for each column: `codes [columns, depth]`, `scales [columns]`.
///
/// # Errors
///
/// As [`int8_groups`].
pub fn int8_channels([columns, depth]: [usize; 2], codes: &[i8], scales: &[f32]) -> Result<Packed, Error> {
    let mut packed = bytes(Weights::Int8Channels, [columns, depth], codes, i8::cast_unsigned)?;
    Error::length("scales", scales.len(), columns)?;
    packed.column_scales = scales.to_vec();
    Ok(packed)
}

/// Weights in e4m3 with a scale for each column: `codes [columns, depth]`, `scales [columns]`.
///
/// # Errors
///
/// As [`int8_groups`].
pub fn e4m3([columns, depth]: [usize; 2], codes: &[u8], scales: &[f32]) -> Result<Packed, Error> {
    let mut packed = bytes(Weights::E4m3, [columns, depth], codes, |code| code)?;
    Error::length("scales", scales.len(), columns)?;
    packed.column_scales = scales.to_vec();
    Ok(packed)
}

fn bytes<C: Copy>(
    weights: Weights,
    [columns, depth]: [usize; 2],
    codes: &[C],
    bits: impl Fn(C) -> u8,
) -> Result<Packed, Error> {
    check_shape(weights, columns, depth)?;
    Error::length("codes", codes.len(), columns * depth)?;
    let mut packed =
        Packed { weights, columns, depth, codes: Vec::new(), scales: Vec::new(), column_scales: Vec::new() };
    for tile in (0..columns).step_by(TILE) {
        for step in 0..depth / STEP {
            packed.codes.extend((0..64).map(|lane| {
                let word = |quarter: usize| {
                    let column = tile + lane / 32 * 16 + lane % 32 / 4 + 8 * (quarter % 2);
                    if column >= columns {
                        return 0;
                    }
                    let four = &codes[column * depth + step * STEP + 8 * (lane % 4) + 4 * (quarter / 2)..][..4];
                    u32::from_le_bytes([0, 1, 2, 3].map(|i: usize| bits(four[i])))
                };
                Piece([0, 1, 2, 3].map(word))
            }));
        }
    }
    Ok(packed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_filled_up_and_nothing_is_lost() {
        let (columns, depth) = (40, 64);
        let codes: Vec<u8> = (0..columns * depth).map(|i| (i % 15 + 1) as u8).collect();
        let scales = vec![f16::ONE; columns * 2];
        let packed = four([columns, depth], 32, &codes, &scales, &scales).unwrap();
        assert_eq!((packed.codes.len(), packed.scales.len()), (2 * 2 * 32, 2 * 2 * 8));
        let nibbles =
            packed.codes.iter().flat_map(|piece| piece.0).flat_map(|word| (0..8).map(move |i| word >> (4 * i) & 15));
        assert_eq!(nibbles.map(|code| code as usize).sum::<usize>(), codes.iter().map(|code| usize::from(*code)).sum());
        let bytes = e4m3([columns, depth], &codes, &vec![1.0; columns]).unwrap();
        assert_eq!(bytes.codes.len(), 2 * 2 * 64);
        let kept = bytes.codes.iter().flat_map(|piece| piece.0).flat_map(u32::to_le_bytes).filter(|code| *code != 0);
        assert_eq!(kept.count(), columns * depth);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let told = |packed: Result<Packed, Error>| packed.unwrap_err().to_string();
        let halves = [f16::ONE; 8];
        assert_eq!(told(four([8, 32], 32, &[3; 255], &halves, &halves)), "gemm: codes has 255 elements, must have 256");
        assert_eq!(told(four([8, 32], 32, &[16; 256], &halves, &halves)), "gemm: code is 16, must be 0 to 15");
        assert_eq!(told(four([8, 32], 32, &[3; 256], &halves, &halves[1..])), "gemm: mins has 7 elements, must have 8");
        assert_eq!(told(int8_groups([8, 32], &[3; 256], &[1.0; 7])), "gemm: scales has 7 elements, must have 8");
        let odd = "gemm: columns is 4, must be a multiple of 8 up to 1048576";
        assert_eq!(told(int8_channels([4, 32], &[3; 128], &[1.0; 4])), odd);
    }
}
