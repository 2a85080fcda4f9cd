//! Halves of adapters as they lie in a slot: the bytes that `lora_weights.cuh` reads.
//!
//! | format | stored | a value that comes back differs from the one given by at most |
//! |---|---|---|
//! | `F32` | 4 bytes a value | nothing |
//! | `Bf16`, `F16` | 2 bytes a value | half a unit in the last place of the format |
//! | `Int8` | scales, 1 byte a value | `1/254` of the largest of its rank |
//! | `Fp8` | scales, 1 byte a value (e4m3) | `1/16` of itself, or `2^-10 / 448` of the largest of its rank where that is more |
//!
//! and, for codes, a few roundings of f32 besides. Scales are f32, one for each rank, filled up to a multiple of 16 bytes; a rank's
//! largest value gets the largest code. A value that is no number makes its scale, and so its rank, none. Scales of less than 2^-126
//! are rounded further than this.

use crate::e4m3;
use half::{bf16, f16};
use std::ops::Range;

/// Largest rank that a slot is packed for; [`crate::table::RANK_MAX`] bounds the ranks of a launch.
pub const RANK_MAX: usize = crate::table::RANK_MAX;

/// How values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 4 bytes.
    F32,
    /// bf16.
    Bf16,
    /// f16.
    F16,
    /// Codes -127..=127.
    Int8,
    /// Codes e4m3.
    Fp8,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::F32, Self::Bf16, Self::F16, Self::Int8, Self::Fp8];

    /// How names of kernels end.
    #[must_use]
    pub fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Int8 => "int8",
            Self::Fp8 => "fp8",
        }
    }

    /// Bytes of half an adapter of `rank`: `width` is the inputs of an A or the outputs of a B. A page is what 8 ranks take.
    #[must_use]
    pub fn bytes(self, rank: usize, width: usize) -> usize {
        self.scale_bytes(rank) + rank * width * self.value_bytes()
    }

    /// At what its start must lie: less is refused, 16 bytes are fastest.
    #[must_use]
    pub fn alignment(self) -> usize {
        match self {
            Self::F32 | Self::Int8 | Self::Fp8 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    /// Bytes of a value; scales come on top.
    #[must_use]
    pub fn value_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
            Self::Int8 | Self::Fp8 => 1,
        }
    }

    fn scale_bytes(self, rank: usize) -> usize {
        if self.code_max().is_some() { (4 * rank).next_multiple_of(16) } else { 0 }
    }

    /// The largest code; none for floats.
    fn code_max(self) -> Option<f32> {
        match self {
            Self::F32 | Self::Bf16 | Self::F16 => None,
            Self::Int8 => Some(127.0),
            Self::Fp8 => Some(448.0),
        }
    }
}

/// Which half of an adapter, and its width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// A `[rank, in]`.
    Shrink(usize),
    /// B `[out_features, rank]`.
    Grow(usize),
}

impl Half {
    fn width(self) -> usize {
        match self {
            Self::Shrink(width) | Self::Grow(width) => width,
        }
    }

    /// The rank of the value at `index`.
    fn rank_of(self, index: usize, rank: usize) -> usize {
        match self {
            Self::Shrink(inputs) => index / inputs,
            Self::Grow(_) => index % rank,
        }
    }
}

/// What cannot be packed, or read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A rank that no launch takes.
    #[error("adapter: rank {rank} exceeds {RANK_MAX}")]
    Rank {
        /// The rank given.
        rank: usize,
    },
    /// Values that are not `rank` times the width, or bytes that are not what those take.
    #[error("adapter: {given} {what} for {half:?} of rank {rank}, should be {want}")]
    Length {
        /// Values or bytes.
        what: &'static str,
        /// How many there were.
        given: usize,
        /// How many there should be.
        want: usize,
        /// The shape.
        half: Half,
        /// The shape.
        rank: usize,
    },
}

fn checked(what: &'static str, given: usize, want: Option<usize>, half: Half, rank: usize) -> Result<(), Error> {
    if rank > RANK_MAX {
        return Err(Error::Rank { rank });
    }
    let want = want.unwrap_or(usize::MAX);
    if given == want { Ok(()) } else { Err(Error::Length { what, given, want, half, rank }) }
}

/// The bytes of half an adapter from its values, row-major. Cost: two passes.
///
/// # Errors
///
/// When `values` are not of this shape, or `rank` exceeds [`RANK_MAX`].
pub fn half(values: &[f32], half: Half, rank: usize, format: Format) -> Result<Vec<u8>, Error> {
    checked("values", values.len(), rank.checked_mul(half.width()), half, rank)?;
    let mut bytes = Vec::with_capacity(format.bytes(rank, half.width()));
    let Some(code_max) = format.code_max() else {
        for value in values {
            match format {
                Format::Bf16 => bytes.extend(bf16::from_f32(*value).to_le_bytes()),
                Format::F16 => bytes.extend(f16::from_f32(*value).to_le_bytes()),
                _ => bytes.extend(value.to_le_bytes()),
            }
        }
        return Ok(bytes);
    };
    let scales = scales(values, half, rank, code_max);
    bytes.extend(scales.iter().flat_map(|scale| scale.to_le_bytes()));
    bytes.resize(format.scale_bytes(rank), 0);
    bytes.extend(values.iter().enumerate().map(|(index, value)| {
        let scale = scales[half.rank_of(index, rank)];
        let code = if scale > 0.0 { value / scale } else { 0.0 };
        if format == Format::Int8 { (code.round_ties_even() as i8).to_le_bytes()[0] } else { e4m3::encode(code) }
    }));
    Ok(bytes)
}

/// Of packed bytes those for some of the inputs of an A or of the outputs of a B, with the scales of the whole: codes stay what they are. Cost: a copy.
///
/// # Errors
///
/// When `bytes` are not of this shape, `rank` exceeds [`RANK_MAX`], or the part is not within the width.
pub fn part(bytes: &[u8], half: Half, rank: usize, format: Format, part: Range<usize>) -> Result<Vec<u8>, Error> {
    let width = half.width();
    checked("bytes", bytes.len(), Some(format.bytes(rank, width)), half, rank)?;
    if part.start > part.end || part.end > width {
        return Err(Error::Length { what: "columns", given: part.end, want: width, half, rank });
    }
    let (scales, values) = bytes.split_at(format.scale_bytes(rank));
    let each = format.value_bytes();
    let mut to = Vec::with_capacity(format.bytes(rank, part.len()));
    to.extend_from_slice(scales);
    match half {
        Half::Shrink(_) => {
            let rows = (0..rank).map(|row| &values[(row * width + part.start) * each..(row * width + part.end) * each]);
            rows.for_each(|row| to.extend_from_slice(row));
        }
        Half::Grow(_) => to.extend_from_slice(&values[part.start * rank * each..part.end * rank * each]),
    }
    Ok(to)
}

/// The scale of each rank: its largest value over the largest code. A value that is no number stays the largest.
fn scales(values: &[f32], half: Half, rank: usize, code_max: f32) -> Vec<f32> {
    let mut scales = vec![0.0f32; rank];
    for (index, value) in values.iter().enumerate() {
        let most = &mut scales[half.rank_of(index, rank)];
        *most = if value.abs() <= *most { *most } else { value.abs() };
    }
    for scale in &mut scales {
        *scale /= code_max;
    }
    scales
}

/// The values that packed bytes stand for, row-major, for checks. Cost: one pass.
///
/// # Errors
///
/// When `bytes` are not of this shape, or `rank` exceeds [`RANK_MAX`].
pub fn values(bytes: &[u8], half: Half, rank: usize, format: Format) -> Result<Vec<f32>, Error> {
    let want = (rank <= RANK_MAX && half.width() <= usize::MAX / 4096).then(|| format.bytes(rank, half.width()));
    checked("bytes", bytes.len(), want, half, rank)?;
    let f32s = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes"))).collect()
    };
    let halves = |convert: fn(u16) -> f32| -> Vec<f32> {
        let halves = bytes.chunks_exact(2);
        halves.map(|bytes| convert(u16::from_le_bytes(bytes.try_into().expect("two bytes")))).collect()
    };
    let codes = |convert: fn(u8) -> f32| -> Vec<f32> {
        let (scales, codes) = bytes.split_at(format.scale_bytes(rank));
        let scales = f32s(scales);
        codes.iter().enumerate().map(|(i, code)| convert(*code) * scales[half.rank_of(i, rank)]).collect()
    };
    Ok(match format {
        Format::F32 => f32s(bytes),
        Format::Bf16 => halves(|bits| bf16::from_bits(bits).to_f32()),
        Format::F16 => halves(|bits| f16::from_bits(bits).to_f32()),
        Format::Int8 => codes(|code| f32::from(i8::from_le_bytes([code]))),
        Format::Fp8 => codes(e4m3::decode),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_kernels::conformance::Random;
    use weft_kernels::{WeightFormat, reference};

    #[test]
    fn int8_has_the_codes_and_scales_of_the_cpu_kernels() {
        let random = &mut Random::new(3);
        let (rank, width) = (7, 45);
        let given = random.normals(rank * width);
        for (half, shape) in [(Half::Shrink(width), [rank, width]), (Half::Grow(width), [width, rank])] {
            let cpu = match half {
                Half::Shrink(_) => reference().pack_lora_a(&given, shape[0], shape[1], WeightFormat::Int8),
                Half::Grow(_) => reference().pack_lora_b(&given, shape[0], shape[1], WeightFormat::Int8),
            };
            let (codes, scales) = cpu.to_codes().unwrap();
            let bytes = super::half(&given, half, rank, Format::Int8).unwrap();
            let want: Vec<u8> = scales.iter().flat_map(|scale| scale.to_le_bytes()).chain([0; 4]).collect();
            assert_eq!(bytes[..32], want);
            assert_eq!(bytes[32..], codes.iter().map(|code| code.to_le_bytes()[0]).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_comes_back_is_within_the_bound_of_its_format() {
        let random = &mut Random::new(4);
        for format in Format::ALL {
            for (rank, width) in [(1, 1), (3, 50), (16, 33), (64, 20)] {
                for half in [Half::Shrink(width), Half::Grow(width)] {
                    // Ranks of very different sizes, one of them zero.
                    let given: Vec<f32> = (0..rank * width)
                        .map(|i| {
                            let rank = half.rank_of(i, rank);
                            let size = [1.0, 1e-3, 0.0, 100.0][rank % 4];
                            random.normal() * size * (-6.0 * random.normal().abs()).exp2()
                        })
                        .collect();
                    let bytes = super::half(&given, half, rank, format).unwrap();
                    assert_eq!(bytes.len(), format.bytes(rank, width));
                    let back = values(&bytes, half, rank, format).unwrap();
                    let mut most = vec![0.0f32; rank];
                    for (i, value) in given.iter().enumerate() {
                        let most = &mut most[half.rank_of(i, rank)];
                        *most = most.max(value.abs());
                    }
                    for (i, (given, back)) in given.iter().zip(&back).enumerate() {
                        let most = most[half.rank_of(i, rank)];
                        let bound = match format {
                            Format::F32 => 0.0,
                            Format::Bf16 => given.abs() / 256.0,
                            Format::F16 => (given.abs() / 2048.0).max(2f32.powi(-25)),
                            Format::Int8 => most / 254.0,
                            Format::Fp8 => (given.abs() / 16.0).max(most * 2f32.powi(-10) / 448.0),
                        };
                        let error = (given - back).abs();
                        assert!(error <= bound * 1.000_01, "{format:?} {half:?}: {given} came back as {back}");
                    }
                }
            }
        }
    }

    #[test]
    fn parts_have_the_values_of_the_whole() {
        let random = &mut Random::new(5);
        for format in Format::ALL {
            for (rank, width) in [(1, 6), (5, 24), (16, 18)] {
                let given = random.normals(rank * width);
                for half in [Half::Shrink(width), Half::Grow(width)] {
                    let whole = super::half(&given, half, rank, format).unwrap();
                    let all = values(&whole, half, rank, format).unwrap();
                    for range in [0..width / 2, width / 2..width, 0..width, 2..5] {
                        let bytes = part(&whole, half, rank, format, range.clone()).unwrap();
                        let (of, expected): (_, Vec<f32>) = match half {
                            Half::Shrink(_) => {
                                let rows = all.chunks(width).flat_map(|row| row[range.clone()].to_vec());
                                (Half::Shrink(range.len()), rows.collect())
                            }
                            Half::Grow(_) => {
                                (Half::Grow(range.len()), all[range.start * rank..range.end * rank].to_vec())
                            }
                        };
                        assert_eq!(
                            values(&bytes, of, rank, format).unwrap(),
                            expected,
                            "{format:?} {half:?} {range:?}"
                        );
                    }
                    assert_eq!(part(&whole, half, rank, format, 0..width).unwrap(), whole);
                    assert!(part(&whole, half, rank, format, 0..width + 1).is_err());
                    assert!(part(&whole[1..], half, rank, format, 0..1).is_err());
                }
            }
        }
    }

    #[test]
    fn what_is_no_number_stays_none_and_a_wrong_shape_is_named() {
        let back = |format| {
            let bytes = half(&[1.0, f32::NAN, 2.0, 3.0], Half::Shrink(2), 2, format).unwrap();
            values(&bytes, Half::Shrink(2), 2, format).unwrap()
        };
        for format in Format::ALL {
            assert!(back(format)[1].is_nan() && back(format)[3] == 3.0, "{format:?}");
        }
        let error = half(&[0.0; 5], Half::Grow(3), 2, Format::Fp8).unwrap_err();
        assert_eq!(error.to_string(), "adapter: 5 values for Grow(3) of rank 2, should be 6");
        let error = half(&[], Half::Grow(0), 769, Format::Fp8).unwrap_err();
        assert_eq!(error.to_string(), "adapter: rank 769 exceeds 768");
        assert!(values(&[0; 17], Half::Grow(1), 2, Format::Int8).is_err());
    }
}
