//! From adapters with factors for their outputs to the device table of `scale_columns.cu`, and how `join_columns.cu` is launched. No IO, no device.

use std::ops::Range;

/// Threads of a block; as in `scale_columns.cu` and `join_columns.cu`.
pub const THREADS: u32 = 256;

/// Columns of a block.
const COLUMNS: usize = 2048;

/// Most rows of an item: a block goes through them one after the other.
pub const ROWS: usize = 16;

/// Neighbouring columns and what they are multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factors {
    /// Address of `[out_features]` f32, a multiple of 16 bytes.
    pub at: u64,
    /// First output column.
    pub out_offset: u32,
    /// Columns.
    pub out_features: u32,
}

/// Neighbouring rows that share factors. The layout of `ScaleItem` on the device, 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::NoUninit)]
pub struct Item {
    /// [`Factors::at`].
    pub factors: u64,
    /// The first of them.
    pub first_row: u32,
    /// 1 to [`ROWS`].
    pub rows: u32,
    /// [`Factors::out_offset`].
    pub out_offset: u32,
    /// [`Factors::out_features`].
    pub out_features: u32,
}

/// The items for rows that all use these factors.
pub fn items(rows: Range<usize>, factors: &[Factors]) -> impl Iterator<Item = Item> {
    let of_rows = move |first: usize| {
        let rows = ROWS.min(rows.end - first) as u32;
        let of = move |&Factors { at, out_offset, out_features }| Item {
            factors: at,
            first_row: first as u32,
            rows,
            out_offset,
            out_features,
        };
        factors.iter().map(of)
    };
    (rows.start..rows.end).step_by(ROWS).flat_map(of_rows)
}

/// Most items that `rows` rows of up to `segments` adapters make, with factors for up to `parts` ranges of columns each.
#[must_use]
pub fn items_max(rows: usize, segments: usize, parts: usize) -> usize {
    (rows / ROWS + segments).min(rows) * parts
}

/// Blocks for `items` items on rows of `out_stride` columns. `items` may be the most that a captured graph shall hold.
#[must_use]
pub fn grid(items: usize, out_stride: usize) -> [u32; 3] {
    [items as u32, out_stride.div_ceil(COLUMNS) as u32, 1]
}

/// Columns of a part that `join_columns.cu` puts beside others are a multiple of this.
pub const JOINED_MULTIPLE: usize = 8;

/// Blocks that join parts of `rows` rows, 65535 at most, to `width` columns.
#[must_use]
pub fn join_grid(rows: usize, width: usize) -> [u32; 3] {
    [width.div_ceil(COLUMNS) as u32, rows as u32, 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_are_covered_once_and_no_more_items_are_made_than_is_said() {
        let factors = [(0, 5), (8, 3)].map(|(out_offset, out_features)| Factors { at: 64, out_offset, out_features });
        for rows in [0..0, 3..4, 3..19, 3..20, 7..100] {
            let items: Vec<Item> = items(rows.clone(), &factors).collect();
            assert!(items.len() <= items_max(rows.len(), 1, 2), "{} for {rows:?}", items.len());
            for row in 0..110u32 {
                let of_row = |item: &&Item| (item.first_row..item.first_row + item.rows).contains(&row);
                let found: Vec<_> =
                    items.iter().filter(of_row).map(|item| (item.out_offset, item.out_features)).collect();
                let expected = if rows.contains(&(row as usize)) { vec![(0, 5), (8, 3)] } else { vec![] };
                assert_eq!(found, expected, "row {row} of {rows:?}");
            }
            assert!(items.iter().all(|item| item.rows as usize <= ROWS && item.factors == 64));
        }
        assert_eq!([items_max(5, 9, 3), items_max(160, 4, 3)], [15, 42]);
        assert_eq!((grid(7, 2048), grid(7, 2049), size_of::<Item>()), ([7, 1, 1], [7, 2, 1], 24));
    }
}
