//! From segments of rows to the device table of `segmented_lora.cu`. No IO, no device.

use std::ops::Range;

/// Threads of a block; as in `segmented_lora.cu`.
pub const THREADS: u32 = 256;

/// Most rows of an item; as in `segmented_lora.cu`.
pub const ROWS: usize = 16;

/// Largest rank: 16 rows of it fill the 48 KiB of shared memory that every device gives unasked.
pub const RANK_MAX: usize = 768;

/// Rows that share their targets. The layout of `LoraItem` on the device, 16 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Target {
    /// Address of A `[rank, in]`, row-major; 16-byte aligned for vector loads, any alignment is right.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Every item is one row: fewer registers, more blocks at a time.
    Decode,
    /// Items of up to 16 rows.
    Mixed,
}

/// A segment: its rows, and the indices of its targets.
pub type Segment = (Range<usize>, Range<usize>);

/// Chooses the kernel and cuts segments into items. Rows without a segment, and segments without rows, make none.
///
/// Rows of one adapter go by 16 once they are more than twice the adapters; below that single rows are cheaper, because
/// the second read of an adapter comes from L2. (The factor is an estimate, to be measured on a device.)
#[must_use]
pub fn items(segments: &[Segment]) -> (Path, Vec<Item>) {
    let used = || segments.iter().filter(|(rows, targets)| !rows.is_empty() && !targets.is_empty());
    let rows: usize = used().map(|(rows, _)| rows.len()).sum();
    let (path, most) = if rows > 2 * used().count() { (Path::Mixed, ROWS) } else { (Path::Decode, 1) };
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
    /// Ranks of a row in shared memory, a multiple of 8.
    pub shrunk_stride: u32,
    /// Dynamic shared memory.
    pub shared_bytes: usize,
}

/// Splits columns so far that two blocks come on each multiprocessor, and no further: each split shrinks its rows again.
///
/// `items` may be the most that a captured graph shall hold; blocks beyond the count in device memory end at once.
///
/// # Panics
///
/// When `rank_max` exceeds [`RANK_MAX`], or nothing is to be launched.
#[must_use]
pub fn shape(path: Path, items: usize, rank_max: usize, out_stride: usize, multiprocessors: usize) -> Shape {
    assert!(rank_max <= RANK_MAX, "lora: rank {rank_max} exceeds {RANK_MAX}");
    assert!(items > 0 && out_stride > 0, "lora: {items} items, out_stride {out_stride}: nothing to launch");
    let threads = THREADS as usize;
    let splits = (2 * multiprocessors).div_ceil(items).clamp(1, out_stride.div_ceil(threads));
    let columns_per_block = out_stride.div_ceil(splits).next_multiple_of(threads);
    let shrunk_stride = rank_max.next_multiple_of(8);
    let rows = if path == Path::Decode { 1 } else { ROWS };
    Shape {
        grid: [out_stride.div_ceil(columns_per_block) as u32, items as u32, 1],
        columns_per_block: columns_per_block as u32,
        shrunk_stride: shrunk_stride as u32,
        shared_bytes: 4 * rows * shrunk_stride,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_covered_once_and_empty_segments_make_no_items() {
        let (path, made) = items(&[(3..3, 0..2), (0..1, 0..2), (5..40, 2..3), (41..42, 3..3)]);
        assert_eq!(path, Path::Mixed);
        let rows: Vec<_> = made.iter().map(|item| (item.first_row, item.rows, item.first_target)).collect();
        assert_eq!(rows, [(0, 1, 0), (5, 16, 2), (21, 16, 2), (37, 3, 2)]);
        let (path, made) = items(&[(0..1, 0..3), (1..3, 3..6)]);
        assert_eq!((path, made.len()), (Path::Decode, 3));
    }

    #[test]
    fn splits_fill_the_device_and_no_more() {
        let splits = |items| shape(Path::Decode, items, 16, 28_672, 132).grid[0];
        assert_eq!([1, 32, 64, 264, 1000].map(splits), [112, 9, 5, 1, 1]);
        let shape = shape(Path::Mixed, 1, 17, 100, 132);
        let want = Shape { grid: [1, 1, 1], columns_per_block: 256, shrunk_stride: 24, shared_bytes: 4 * 16 * 24 };
        assert_eq!(shape, want);
    }
}
