//! Products with quantised weights, `out = x wᵀ`: which kernel of `gemm_*.cu`, and how large a launch. No IO, no device.
//!
//! [`codes`] turns numbers into codes, [`pack`] puts codes into the order in which the kernels load them, [`on_host`] runs it all in the
//! shim.

pub mod codes;
#[cfg(feature = "shim")]
pub mod on_host;
pub mod pack;

/// Threads of a block, of the products as of `weft_gemm_finish`; as in `gemm.cuh`.
pub const THREADS: u32 = 256;
/// Inputs of a step.
pub const STEP: usize = 32;
/// Columns of a warp.
pub const TILE: usize = 32;
/// Columns of a block.
pub const COLUMNS: usize = 64;
/// Parts of depth in a block.
const ALONG: usize = 4;
/// Steps that are worth a warp: below that a part of depth costs more to begin and to add up than it saves.
const PART_STEPS: usize = 4;
/// Rows, columns and depth end here, so that numbers of 32 bits hold all counts in a kernel.
const MOST: usize = 1 << 20;
/// Elements of a matrix end here, so that 32 bits hold the place of one.
const ELEMENTS_MAX: usize = 1 << 31;
/// Depth of exact sums: 131,072 products of two codes up to 127 fit into 32 bits.
const EXACT_DEPTH_MAX: usize = 1 << 17;

/// A product that no kernel does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A size or number outside of its limits.
    #[error("gemm: {field} is {value}, must be {limit}")]
    Field {
        /// Which one.
        field: &'static str,
        /// What it is.
        value: usize,
        /// What it may be.
        limit: &'static str,
    },
    /// A slice with another number of elements than its shape says.
    #[error("gemm: {field} has {found} elements, must have {expected}")]
    Length {
        /// Which one.
        field: &'static str,
        /// Its length.
        found: usize,
        /// The length by its shape.
        expected: usize,
    },
    /// Weights and inputs that do not go together.
    #[error("gemm: no kernel for weights {weights:?} and inputs {inputs:?}")]
    Pair {
        /// The weights.
        weights: Weights,
        /// The inputs.
        inputs: Inputs,
    },
}

impl Error {
    fn unless(holds: bool, field: &'static str, value: usize, limit: &'static str) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self::Field { field, value, limit }) }
    }

    fn length(field: &'static str, found: usize, expected: usize) -> Result<(), Self> {
        if found == expected { Ok(()) } else { Err(Self::Length { field, found, expected }) }
    }
}

/// How weights `[columns, depth]` are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weights {
    /// `scale * code + min`, code 0 to 15, scale and minimum in f16 per column and `group` inputs: 32, 64 or 128.
    Four {
        /// Inputs that share a scale.
        group: usize,
    },
    /// `scale * code`, code -127 to 127, a scale per column and 32 inputs.
    Int8Groups,
    /// The same with a scale per column.
    Int8Channels,
    /// `scale * code`, a code in e4m3, a scale per column.
    E4m3,
}

/// How inputs `[rows, depth]` are stored; codes as `quantise.cu` makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inputs {
    /// Two bytes.
    Bf16,
    /// Two bytes.
    F16,
    /// Codes -127 to 127 with a scale per row and 32 inputs.
    Int8Groups,
    /// The same with a scale per row.
    Int8Rows,
    /// Codes in e4m3 with a scale per row.
    E4m3Rows,
}

/// The parameter `GemmCall` of the kernels, 56 bytes; as in `gemm.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::NoUninit)]
pub struct Call {
    /// Address of `[rows, out_stride]` numbers of `out_type`.
    pub out: u64,
    /// Address of [`Launch::partial_bytes`] bytes, of no meaning before and after; null if that is zero.
    pub partials: u64,
    /// Address of `[columns]` f32, or null where weights have scales per group.
    pub column_scales: u64,
    /// Address of `[rows]` f32, or null where inputs have none per row.
    pub row_scales: u64,
    /// Rows.
    pub rows: i32,
    /// Outputs.
    pub columns: i32,
    /// Inputs.
    pub depth: i32,
    /// [`Launch::splits`].
    pub splits: i32,
    /// From one row of `out` to the next, in elements; at least `columns`.
    pub out_stride: i32,
    /// 0 f32, 1 bf16, 2 f16.
    pub out_type: i32,
}

/// The parameter `GemmGroups` of the kernels, 24 bytes; as in `gemm.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Groups {
    /// Address of codes `[rows, depth]`, a multiple of 16.
    pub codes: u64,
    /// Address of scales `[depth / 32, stride]`.
    pub scales: u64,
    /// Rows, rounded up to 8.
    pub stride: i32,
}

impl Groups {
    /// As it lies in memory.
    #[must_use]
    pub fn bytes(&self) -> [u8; 24] {
        let mut bytes = [0; 24];
        bytes[..8].copy_from_slice(&self.codes.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.scales.to_ne_bytes());
        bytes[16..20].copy_from_slice(&self.stride.to_ne_bytes());
        bytes
    }
}

/// The launches of a product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The product's kernel.
    pub kernel: String,
    /// Its blocks; [`THREADS`] threads each, no dynamic shared memory.
    pub grid: [u32; 3],
    /// Cuts of depth.
    pub splits: usize,
    /// Memory for sums of splits that have blocks of their own; zero if they have not, and then nothing is to be finished.
    pub partial_bytes: usize,
    /// Kernel and blocks that add them up, to be launched after.
    pub finish: Option<(&'static str, [u32; 3])>,
}

/// Chooses kernel and launch for `rows` by `columns` sums over `depth`.
///
/// Depth is cut until a block of each cut and 64 columns come to two per multiprocessor, whatever the rows, so that a row has the same bits
/// in every batch. Where rows make as many blocks by themselves, one block takes all cuts in turn and nothing goes through memory.
///
/// # Errors
///
/// When weights and inputs do not go together, rows are not 1 to 2^20, columns no multiple of 8 up to 2^20, depth no multiple of 32 and of
/// the group up to 2^20 (2^17 where sums are integers), or a matrix has more than 2^31 elements.
pub fn launch(
    weights: Weights,
    inputs: Inputs,
    [rows, columns, depth]: [usize; 3],
    multiprocessors: usize,
) -> Result<Launch, Error> {
    check_shape(weights, columns, depth)?;
    Error::unless((1..=MOST).contains(&rows), "rows", rows, "1 to 1048576")?;
    Error::unless(rows * depth <= ELEMENTS_MAX, "rows * depth", rows * depth, "at most 2147483648")?;
    Error::unless((1..=4096).contains(&multiprocessors), "multiprocessors", multiprocessors, "1 to 4096")?;
    let name = match (weights, inputs) {
        (Weights::Four { .. }, Inputs::Bf16) => "w4a16_bf16",
        (Weights::Four { .. }, Inputs::F16) => "w4a16_f16",
        (Weights::Four { .. }, Inputs::Int8Groups) => "w4a8",
        (Weights::Int8Groups, Inputs::Int8Groups) => "int8_groups",
        (Weights::Int8Channels, Inputs::Int8Rows) => "int8_channels",
        (Weights::E4m3, Inputs::Bf16) => "fp8_a16_bf16",
        (Weights::E4m3, Inputs::F16) => "fp8_a16_f16",
        (Weights::E4m3, Inputs::E4m3Rows) => "fp8",
        _ => return Err(Error::Pair { weights, inputs }),
    };
    let row_tiles = match rows {
        0..=8 => 1,
        9..=16 => 2,
        17..=32 => 4,
        _ => 8,
    };
    let (row_blocks, column_blocks) = (rows.div_ceil(8 * row_tiles), columns.div_ceil(COLUMNS));
    let enough = 2 * multiprocessors;
    let worth = (depth / STEP).div_ceil(ALONG * PART_STEPS);
    let splits = enough.div_ceil(column_blocks).clamp(1, worth);
    // A grid has at most 65,535 blocks in its second direction, which is that of rows in weft_gemm_finish.
    let cut_grid = splits > 1 && row_blocks * column_blocks < enough && rows <= 65_535;
    let finish = match weights {
        Weights::Int8Channels => "weft_gemm_finish_s32",
        _ => "weft_gemm_finish_f32",
    };
    Ok(Launch {
        kernel: format!("weft_gemm_{name}_{row_tiles}"),
        grid: [row_blocks as u32, column_blocks as u32, if cut_grid { splits as u32 } else { 1 }],
        splits,
        partial_bytes: if cut_grid { 4 * splits * rows * columns } else { 0 },
        finish: cut_grid.then(|| (finish, [columns.div_ceil(THREADS as usize) as u32, rows as u32, 1])),
    })
}

/// What packing and launching ask of weights.
fn check_shape(weights: Weights, columns: usize, depth: usize) -> Result<(), Error> {
    let is_of = |value: usize, unit: usize| value > 0 && value.is_multiple_of(unit) && value <= MOST;
    Error::unless(is_of(columns, 8), "columns", columns, "a multiple of 8 up to 1048576")?;
    Error::unless(is_of(depth, STEP), "depth", depth, "a multiple of 32 up to 1048576")?;
    Error::unless(columns * depth <= ELEMENTS_MAX, "columns * depth", columns * depth, "at most 2147483648")?;
    if let Weights::Four { group } = weights {
        Error::unless([32, 64, 128].contains(&group), "group", group, "32, 64 or 128")?;
        Error::unless(depth.is_multiple_of(group), "depth", depth, "a multiple of the group")?;
    }
    if weights == Weights::Int8Channels {
        Error::unless(depth <= EXACT_DEPTH_MAX, "depth", depth, "at most 131072 where sums are integers")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUR: Weights = Weights::Four { group: 32 };

    #[test]
    fn cuts_fill_the_device_and_do_not_depend_on_rows() {
        let splits = |rows, columns, depth| launch(FOUR, Inputs::Bf16, [rows, columns, depth], 132).unwrap().splits;
        assert_eq!([1, 8, 64, 500, 5000].map(|rows| splits(rows, 4096, 4096)), [5; 5]);
        assert_eq!([splits(1, 28_672, 4096), splits(1, 4096, 14_336), splits(1, 64, 4096)], [1, 5, 8]);
        assert_eq!([splits(1, 64, 32), splits(1, 64, 512), splits(1, 64, 544)], [1, 1, 2]);
    }

    #[test]
    fn rows_choose_the_kernel_and_many_of_them_need_no_finish() {
        let of = |rows| launch(Weights::E4m3, Inputs::E4m3Rows, [rows, 4096, 4096], 132).unwrap();
        let kernels = [1, 8, 9, 16, 17, 32, 33, 64, 65].map(|rows| of(rows).kernel);
        assert_eq!(
            kernels.map(|kernel| kernel["weft_gemm_fp8_".len()..].to_owned()),
            ["1", "1", "2", "2", "4", "4", "8", "8", "8"]
        );
        let decode = of(3);
        assert_eq!((decode.grid, decode.partial_bytes), ([1, 64, 5], 5 * 3 * 4096 * 4));
        assert_eq!(decode.finish, Some(("weft_gemm_finish_f32", [16, 3, 1])));
        let prefill = of(321);
        assert_eq!((prefill.grid, prefill.partial_bytes, prefill.finish), ([6, 64, 1], 0, None));
    }

    #[test]
    fn what_no_kernel_does_is_refused_by_name_value_and_limit() {
        let told = |weights, inputs, shape| launch(weights, inputs, shape, 8).unwrap_err().to_string();
        assert_eq!(told(FOUR, Inputs::F16, [0, 8, 32]), "gemm: rows is 0, must be 1 to 1048576");
        assert_eq!(told(FOUR, Inputs::F16, [1, 12, 32]), "gemm: columns is 12, must be a multiple of 8 up to 1048576");
        assert_eq!(told(FOUR, Inputs::F16, [1, 8, 48]), "gemm: depth is 48, must be a multiple of 32 up to 1048576");
        assert_eq!(
            told(FOUR, Inputs::F16, [1, 8, 1 << 21]),
            "gemm: depth is 2097152, must be a multiple of 32 up to 1048576"
        );
        let large = told(FOUR, Inputs::F16, [4096, 8, 1 << 20]);
        assert_eq!(large, "gemm: rows * depth is 4294967296, must be at most 2147483648");
        let group = |group| Weights::Four { group };
        assert_eq!(told(group(16), Inputs::F16, [1, 8, 32]), "gemm: group is 16, must be 32, 64 or 128");
        assert_eq!(told(group(128), Inputs::F16, [1, 8, 64]), "gemm: depth is 64, must be a multiple of the group");
        let exact = told(Weights::Int8Channels, Inputs::Int8Rows, [1, 8, 131_104]);
        assert_eq!(exact, "gemm: depth is 131104, must be at most 131072 where sums are integers");
        let pair = told(Weights::E4m3, Inputs::Int8Rows, [1, 8, 32]);
        assert_eq!(pair, "gemm: no kernel for weights E4m3 and inputs Int8Rows");
    }

    #[test]
    fn parameters_have_the_size_that_the_kernels_expect() {
        assert_eq!((size_of::<Call>(), size_of::<Groups>()), (56, 24));
    }
}
