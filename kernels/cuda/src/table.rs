//! From segments of rows to the device table of `segmented_lora.cu`. No IO, no device.

use crate::pack::Format;
use std::ops::Range;

/// Threads of a block; as in `segmented_lora.cu`.
pub const THREADS: u32 = 256;

/// Most rows of an item; as in `segmented_lora.cu`.
pub const ROWS: usize = 16;

/// Largest rank: 16 rows of it fill the 48 KiB of shared memory that every device gives unasked.
pub const RANK_MAX: usize = 768;

/// Largest rank on tensor cores: 32 KiB for 16 rows of it, and 16 KiB for what the warps add up.
pub const TENSOR_RANK_MAX: usize = 512;

/// Shared memory in which the warps of a block on tensor cores add up what each has; as in `lora_prefill.cu`.
const TENSOR_SUM_BYTES: usize = 16 * 1024;

/// Most items of a launch: blocks in the second dimension of a grid.
pub const ITEMS_MAX: usize = 65_535;

/// Rows that share their targets. The layout of `LoraItem` on the device, 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::NoUninit)]
pub struct Item {
    /// The first of them.
    pub first_row: u32,
    /// 1, or in a mixed step up to 16.
    pub rows: u32,
    /// Index into the table of targets.
    pub first_target: u32,
    /// How many targets they use.
    pub targets: u32,
}

/// One adapter's change to one linear. The layout of `LoraTarget` on the device, 32 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, bytemuck::NoUninit)]
pub struct Target {
    /// Address of A `[rank, in]`, as [`crate::pack`] lays it out; at a multiple of 16 bytes for vector loads, of
    /// [`crate::pack::Format::alignment`] at least.
    pub a: u64,
    /// Address of B `[out_features, rank]`, as A.
    pub b: u64,
    /// The actual rank, up to [`RANK_MAX`]; zero changes nothing.
    pub rank: u32,
    /// Multiplies A x.
    pub scale: f32,
    /// First output column.
    pub out_offset: u32,
    /// Columns.
    pub out_features: u32,
}

/// Which kernel a step uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Path {
    /// Every item is one row: fewer registers, more blocks at a time.
    Decode,
    /// Items of up to 16 rows, without tensor cores: a row has the same bits as in `Decode`.
    Mixed,
    /// Items of up to 16 rows on tensor cores; items of one row as in `Decode`.
    Prefill,
}

impl Path {
    /// The largest rank that the kernel takes.
    #[must_use]
    pub fn rank_max(self) -> usize {
        if self == Self::Prefill { TENSOR_RANK_MAX } else { RANK_MAX }
    }

    /// As in names of kernels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Mixed => "mixed",
            Self::Prefill => "prefill",
        }
    }
}

/// What the choice of a kernel depends on besides the rows of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Format of the activations; those in f32 have no kernel on tensor cores.
    pub activations: Format,
    /// A row must have the same bits whatever shares the step. Tensor cores add in an order of their own, and a row meets them or
    /// not by how many rows of its adapter the step has: they are not used then.
    pub batch_invariant: bool,
    /// The largest rank in the step.
    pub rank_max: usize,
}

/// What no launch can be made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Types that no kernel was compiled for.
    #[error(
        "lora: no {} kernel for activations in {} with adapters in {}",
        path.name(), activations.suffix(), adapters.suffix()
    )]
    Types {
        /// The kernel.
        path: Path,
        /// Format of x and out.
        activations: Format,
        /// Format of A and B.
        adapters: Format,
    },
    /// A rank whose rows do not fit into shared memory.
    #[error("lora: rank {rank} exceeds {limit} of the {} kernel", path.name())]
    Rank {
        /// The largest of the launch.
        rank: usize,
        /// Of this kernel.
        limit: usize,
        /// The kernel.
        path: Path,
    },
    /// More items than a grid has.
    #[error("lora: {items} items exceed {ITEMS_MAX}: give the step fewer rows")]
    Items {
        /// Of the launch.
        items: usize,
    },
    /// No items, or no columns.
    #[error("lora: {items} items, out_stride {out_stride}: nothing to launch")]
    Nothing {
        /// Of the launch.
        items: usize,
        /// Columns of a row.
        out_stride: usize,
    },
    /// More columns than an i32 counts.
    #[error("lora: out_stride {out_stride} exceeds {}", OUT_STRIDE_MAX)]
    Columns {
        /// Columns of a row.
        out_stride: usize,
    },
}

/// Most columns of a row: kernels count them, rounded up to a block's, in i32.
pub const OUT_STRIDE_MAX: usize = 1 << 30;

/// The name of a kernel.
///
/// # Errors
///
/// When there is none for these types.
pub fn kernel(path: Path, activations: Format, adapters: Format) -> Result<String, Error> {
    let exists = match (activations, adapters) {
        (Format::F32, Format::F16) => false,
        (Format::F32, _) => path != Path::Prefill,
        (Format::Bf16, Format::Bf16 | Format::Int8 | Format::Fp8) => true,
        (Format::F16, Format::F16 | Format::Int8 | Format::Fp8) => true,
        _ => false,
    };
    if !exists {
        return Err(Error::Types { path, activations, adapters });
    }
    Ok(format!("weft_lora_{}_{}_{}", path.name(), activations.suffix(), adapters.suffix()))
}

/// A segment: its rows, and the indices of its targets.
pub type Segment = (Range<usize>, Range<usize>);

/// Chooses the kernel and cuts segments into items. Rows without a segment, and segments without rows, make none.
///
/// Rows of one adapter go by 16 once they are more than twice the adapters; below that single rows are cheaper, because
/// the second read of an adapter comes from L2. (The factor is an estimate, to be measured on a device.)
#[must_use]
pub fn items(segments: &[Segment], choice: Choice) -> (Path, Vec<Item>) {
    let used = || segments.iter().filter(|(rows, targets)| !rows.is_empty() && !targets.is_empty());
    let rows: usize = used().map(|(rows, _)| rows.len()).sum();
    let path = if rows <= 2 * used().count() {
        Path::Decode
    } else if choice.activations != Format::F32 && !choice.batch_invariant && choice.rank_max <= TENSOR_RANK_MAX {
        Path::Prefill
    } else {
        Path::Mixed
    };
    let most = if path == Path::Decode { 1 } else { ROWS };
    let mut items = Vec::new();
    for (rows, targets) in used() {
        for first in rows.clone().step_by(most) {
            items.push(Item {
                first_row: first as u32,
                rows: most.min(rows.end - first) as u32,
                first_target: targets.start as u32,
                targets: targets.len() as u32,
            });
        }
    }
    (path, items)
}

/// The shape of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Column splits and items.
    pub grid: [u32; 3],
    /// Columns of a split, a multiple of [`THREADS`].
    pub columns_per_block: u32,
    /// Ranks of a row in shared memory, a multiple of 8, on tensor cores of 16.
    pub shrunk_stride: u32,
    /// Dynamic shared memory.
    pub shared_bytes: usize,
}

/// Splits columns so far that two blocks come on each multiprocessor, and no further: each split shrinks its rows again.
///
/// `items` may be the most that a captured graph shall hold; blocks beyond the count in device memory end at once.
///
/// # Errors
///
/// When `rank_max`, `items` or `out_stride` exceed what the kernel takes, or nothing is to be launched.
pub fn shape(
    path: Path,
    items: usize,
    rank_max: usize,
    out_stride: usize,
    multiprocessors: usize,
) -> Result<Shape, Error> {
    let limit = path.rank_max();
    if rank_max > limit {
        return Err(Error::Rank { rank: rank_max, limit, path });
    }
    if items == 0 || out_stride == 0 {
        return Err(Error::Nothing { items, out_stride });
    }
    if items > ITEMS_MAX {
        return Err(Error::Items { items });
    }
    if out_stride > OUT_STRIDE_MAX {
        return Err(Error::Columns { out_stride });
    }
    let threads = THREADS as usize;
    let splits = (2 * multiprocessors).div_ceil(items).clamp(1, out_stride.div_ceil(threads));
    let columns_per_block = out_stride.div_ceil(splits).next_multiple_of(threads);
    let shrunk_stride = rank_max.next_multiple_of(if path == Path::Prefill { 16 } else { 8 });
    let shared_bytes = match path {
        Path::Decode => 4 * shrunk_stride,
        Path::Mixed => 4 * ROWS * shrunk_stride,
        Path::Prefill => 4 * ROWS * shrunk_stride + TENSOR_SUM_BYTES,
    };
    Ok(Shape {
        grid: [out_stride.div_ceil(columns_per_block) as u32, items as u32, 1],
        columns_per_block: columns_per_block as u32,
        shrunk_stride: shrunk_stride as u32,
        shared_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHOICE: Choice = Choice { activations: Format::Bf16, batch_invariant: false, rank_max: 16 };

    #[test]
    fn rows_are_covered_once_and_empty_segments_make_no_items() {
        for (activations, expected) in [(Format::F32, Path::Mixed), (Format::F16, Path::Prefill)] {
            let choice = Choice { activations, ..CHOICE };
            let (path, made) = items(&[(3..3, 0..2), (0..1, 0..2), (5..40, 2..3), (41..42, 3..3)], choice);
            assert_eq!(path, expected);
            let rows: Vec<_> = made.iter().map(|item| (item.first_row, item.rows, item.first_target)).collect();
            assert_eq!(rows, [(0, 1, 0), (5, 16, 2), (21, 16, 2), (37, 3, 2)]);
            let (path, made) = items(&[(0..1, 0..3), (1..3, 3..6)], choice);
            assert_eq!((path, made.len()), (Path::Decode, 3));
        }
    }

    #[test]
    fn tensor_cores_are_taken_only_where_they_may_and_can() {
        let path = |choice| items(&[(0..100, 0..1)], choice).0;
        assert_eq!(path(CHOICE), Path::Prefill);
        assert_eq!(path(Choice { rank_max: 512, ..CHOICE }), Path::Prefill);
        assert_eq!(path(Choice { rank_max: 513, ..CHOICE }), Path::Mixed);
        assert_eq!(path(Choice { batch_invariant: true, ..CHOICE }), Path::Mixed);
        assert_eq!(path(Choice { activations: Format::F32, ..CHOICE }), Path::Mixed);
    }

    #[test]
    fn names_are_those_of_the_kernels_that_exist() {
        let mut named = Vec::new();
        for path in [Path::Decode, Path::Mixed, Path::Prefill] {
            for activations in Format::ALL {
                named.extend(Format::ALL.iter().filter_map(|adapters| kernel(path, activations, *adapters).ok()));
            }
        }
        named.sort_unstable();
        let mut exist = crate::host::kernels();
        exist.retain(|name| name.starts_with("weft_lora_"));
        exist.sort_unstable();
        assert_eq!(named, exist);
        let error = kernel(Path::Decode, Format::Bf16, Format::F16).unwrap_err();
        assert_eq!(error.to_string(), "lora: no decode kernel for activations in bf16 with adapters in f16");
    }

    #[test]
    fn splits_fill_the_device_and_no_more() {
        let splits = |items| shape(Path::Decode, items, 16, 28_672, 132).unwrap().grid[0];
        assert_eq!([1, 32, 64, 264, 1000].map(splits), [112, 9, 5, 1, 1]);
        let shape = |path| shape(path, 1, 24, 100, 132).unwrap();
        let want = Shape { grid: [1, 1, 1], columns_per_block: 256, shrunk_stride: 24, shared_bytes: 4 * 16 * 24 };
        assert_eq!(shape(Path::Mixed), want);
        assert_eq!(shape(Path::Prefill), Shape { shrunk_stride: 32, shared_bytes: 2048 + 16_384, ..want });
    }

    #[test]
    fn no_launch_is_larger_than_a_device_takes() {
        for (path, limit) in [(Path::Decode, 768), (Path::Mixed, 768), (Path::Prefill, 512)] {
            assert!(shape(path, 1, limit, 100, 132).unwrap().shared_bytes <= 48 * 1024);
            let error = shape(path, 1, limit + 1, 100, 132).unwrap_err();
            let want = format!("lora: rank {} exceeds {limit} of the {} kernel", limit + 1, path.name());
            assert_eq!(error.to_string(), want);
        }
        assert_eq!(shape(Path::Mixed, 65_536, 8, 100, 132), Err(Error::Items { items: 65_536 }));
        assert_eq!(shape(Path::Mixed, 1, 8, 0, 132), Err(Error::Nothing { items: 1, out_stride: 0 }));
        let out_stride = OUT_STRIDE_MAX + 1;
        assert_eq!(shape(Path::Mixed, 1, 8, out_stride, 132), Err(Error::Columns { out_stride }));
    }
}
