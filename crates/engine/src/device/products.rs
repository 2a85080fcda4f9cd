//! Products with the base's weights: by the device's library for floats, by the kernels of `gemm_*.cu` for codes.
//!
//! With codes a product is two or three launches: the inputs to codes, the product, and where depth is cut the sums of the cuts. None of
//! them depends on which rows are whose, so all are the same in a captured graph; their memory is taken once, at start.

use super::linear::{Codes, Linear};
use super::step::Step;
use super::weights::Weights;
use crate::Error;
use weft_cuda_device::{Access, Argument, Buffer, Counts, Device, Launch, Matmul, Type, View};
use weft_cuda_kernels::gemm::{self, Call, Groups, Inputs, STEP};

/// Inputs of a block of `quantise.cu`, where groups have scales.
const QUANTISE_INPUTS: usize = 2048;

/// Memory that products with codes need beside their matrices: one at a time uses it.
pub(crate) struct Workspace {
    /// Codes of inputs `[rows, depth]`.
    codes: Buffer,
    /// Their scales.
    scales: Buffer,
    /// Sums of cuts of depth.
    partials: Buffer,
}

impl Workspace {
    /// Room for any product of steps of up to `rows` rows, `logits_rows` of which go through the output matrix; nothing where weights are floats.
    ///
    /// # Errors
    /// [`Error::Products`] if so many rows are more than a product takes, [`Error::Device`] if there is too little memory.
    pub(crate) fn new(device: &Device, weights: &Weights, [rows, logits_rows]: [usize; 2]) -> Result<Self, Error> {
        let multiprocessors = device.properties().multiprocessors;
        let of_layers =
            weights.layers.first().into_iter().flat_map(|layer| layer.linears()).map(|linear| (linear, rows));
        let [mut of_codes, mut of_scales, mut of_partials] = [0; 3];
        for (linear, rows) in of_layers.chain([(&weights.head, logits_rows)]) {
            let Linear::Codes(codes) = linear else { continue };
            let (inputs, scales) = room(codes, rows);
            of_codes = of_codes.max(inputs);
            of_scales = of_scales.max(scales);
            of_partials = of_partials.max(partials(codes, rows, multiprocessors)?);
        }
        let [codes, scales, partials] = [of_codes, of_scales, of_partials].map(|bytes| device.allocate(bytes));
        Ok(Self { codes: codes?, scales: scales?, partials: partials? })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.codes.bytes() + self.scales.bytes() + self.partials.bytes()
    }
}

/// Bytes of inputs in codes, and of their scales.
fn room(codes: &Codes, rows: usize) -> (usize, usize) {
    match codes.inputs {
        Inputs::Bf16 | Inputs::F16 => (0, 0),
        Inputs::Int8Groups => (rows * codes.depth, codes.depth / STEP * stride(rows) * size_of::<f32>()),
        Inputs::Int8Rows | Inputs::E4m3Rows => (rows * codes.depth, rows * size_of::<f32>()),
    }
}

/// Of scales of groups, from one group to the next.
fn stride(rows: usize) -> usize {
    rows.next_multiple_of(8)
}

/// The most that up to `rows` rows need. Sums of cuts go through memory for few rows only, and then the more the more rows: 64 at a time are the
/// blocks of a grid.
fn partials(codes: &Codes, rows: usize, multiprocessors: usize) -> Result<usize, gemm::Error> {
    let of =
        |rows: usize| gemm::launch(codes.weights, codes.inputs, [rows, codes.columns(), codes.depth], multiprocessors);
    of(rows)?;
    let mut most = 0;
    for blocks in 1..=rows.div_ceil(64) {
        let launch = of((64 * blocks).min(rows))?;
        if launch.finish.is_none() {
            break;
        }
        most = launch.partial_bytes;
    }
    Ok(most)
}

impl Step<'_> {
    /// `out [rows, outputs] = x wᵀ` for `x [rows, inputs]`.
    pub(crate) fn product(
        &self,
        linear: &Linear,
        rows: usize,
        [inputs, outputs]: [usize; 2],
        x: View<'_>,
        (out, out_of): (View<'_>, Type),
    ) -> Result<(), Error> {
        match linear {
            Linear::Plain(w) => Ok(self.stream.matmul(&Matmul {
                rows,
                inputs,
                outputs,
                x,
                x_stride: inputs,
                w: w.all(),
                of: self.precision.of(),
                out,
                out_stride: outputs,
                out_of,
                adds: false,
            })?),
            Linear::Codes(codes) => self.product_of_codes(codes, rows, x, (out, out_of)),
        }
    }

    fn product_of_codes(
        &self,
        codes: &Codes,
        rows: usize,
        x: View<'_>,
        (out, out_of): (View<'_>, Type),
    ) -> Result<(), Error> {
        let workspace = self.products;
        let (of_codes, of_scales) = room(codes, rows);
        let (x_codes, x_scales) = (workspace.codes.part(0..of_codes)?, workspace.scales.part(0..of_scales)?);
        self.quantise(codes, rows, x, x_codes, x_scales)?;

        let multiprocessors = self.device.properties().multiprocessors;
        let shape = gemm::launch(codes.weights, codes.inputs, [rows, codes.columns(), codes.depth], multiprocessors)?;
        let partials = workspace.partials.part(0..shape.partial_bytes)?;
        let has_row_scales = matches!(codes.inputs, Inputs::Int8Rows | Inputs::E4m3Rows);
        let address = |view: &View<'_>, is_used: bool| if is_used { view.address() } else { 0 };
        let call = Call {
            out: out.address(),
            partials: address(&partials, shape.partial_bytes > 0),
            column_scales: codes.column_scales.as_ref().map_or(0, Buffer::address),
            row_scales: address(&x_scales, has_row_scales),
            rows: rows as i32,
            columns: codes.outputs as i32,
            depth: codes.depth as i32,
            splits: shape.splits as i32,
            out_stride: codes.outputs as i32,
            out_type: match out_of {
                Type::F32 => 0,
                Type::Bf16 => 1,
                Type::F16 => 2,
            },
        };
        // What the kernels reach by addresses within their parameters.
        let mut factors: Vec<Access<'_>> = codes.column_scales.iter().map(|scales| scales.all().reads()).collect();
        factors.extend(has_row_scales.then(|| x_scales.reads()));
        let is_cut = shape.finish.is_some();
        let mut reached = if is_cut { vec![partials.writes()] } else { [&factors[..], &[out.writes()]].concat() };

        let call_bytes = bytemuck::bytes_of(&call);
        let groups =
            Groups { codes: x_codes.address(), scales: x_scales.address(), stride: stride(rows) as i32 }.bytes();
        let mut arguments: Vec<Argument<'_>> = vec![codes.codes.all().reads().into()];
        if let Some(scales) = &codes.scales {
            arguments.push(scales.all().reads().into());
        }
        if let gemm::Weights::Four { group } = codes.weights {
            arguments.push(Argument::I32((group / STEP).trailing_zeros().cast_signed()));
        }
        arguments.push(match codes.inputs {
            Inputs::Bf16 | Inputs::F16 => x.reads().into(),
            Inputs::Int8Rows | Inputs::E4m3Rows => x_codes.reads().into(),
            Inputs::Int8Groups => {
                reached.extend([x_codes.reads(), x_scales.reads()]);
                Argument::Bytes(&groups)
            }
        });
        arguments.push(Argument::Bytes(call_bytes));
        let written = if is_cut { partials } else { out };
        let read = if of_codes > 0 { of_codes + of_scales } else { x.bytes() };
        self.launch(&Launch {
            kernel: &shape.kernel,
            grid: shape.grid,
            threads: gemm::THREADS,
            shared_bytes: 0,
            arguments: &arguments,
            through_tables: &reached,
            counts: Counts {
                read_bytes: (codes.bytes() + read) as u64,
                written_bytes: written.bytes() as u64,
                operations: 2 * (rows * codes.outputs * codes.depth) as u64,
            },
        })?;
        let Some((kernel, grid)) = shape.finish else { return Ok(()) };
        factors.extend([partials.reads(), out.writes()]);
        self.launch(&Launch {
            kernel,
            grid,
            threads: gemm::THREADS,
            shared_bytes: 0,
            arguments: &[Argument::Bytes(call_bytes)],
            through_tables: &factors,
            counts: Counts { read_bytes: partials.bytes() as u64, written_bytes: out.bytes() as u64, operations: 0 },
        })
    }

    /// Inputs `[rows, depth]` to codes, where a product wants them.
    fn quantise(&self, codes: &Codes, rows: usize, x: View<'_>, to: View<'_>, scales: View<'_>) -> Result<(), Error> {
        let depth = codes.depth;
        let (kernel, is_grouped) = match codes.inputs {
            Inputs::Bf16 | Inputs::F16 => return Ok(()),
            Inputs::Int8Groups => ("quantise_int8_groups", true),
            Inputs::Int8Rows => ("quantise_int8_rows", false),
            Inputs::E4m3Rows => ("quantise_fp8_rows", false),
        };
        let (x, to, scales): (Argument<'_>, Argument<'_>, Argument<'_>) =
            (x.reads().into(), to.writes().into(), scales.writes().into());
        let depth_is = Argument::I32(depth as i32);
        let for_groups = [x, Argument::I32(rows as i32), depth_is, to, scales, Argument::I32(stride(rows) as i32)];
        let for_rows = [x, depth_is, to, scales];
        let (arguments, grid) = if is_grouped {
            (&for_groups[..], [stride(rows) as u32, depth.div_ceil(QUANTISE_INPUTS) as u32])
        } else {
            (&for_rows[..], [rows as u32, 1])
        };
        let (of_codes, of_scales) = room(codes, rows);
        let bytes = [self.bytes(rows * depth), (of_codes + of_scales) as u64];
        self.launch_rows(kernel, (grid, gemm::THREADS), arguments, bytes)
    }
}
