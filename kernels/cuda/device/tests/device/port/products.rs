//! Products with quantised weights.

use super::{Port, reads, writes};
use weft_cuda_device::{Access, Argument, Buffer};
use weft_cuda_kernels::gemm::on_host::FilledUp;
use weft_cuda_kernels::gemm::pack::Packed;
use weft_cuda_kernels::gemm::{self, Call, Groups, Inputs, STEP, Weights};
use weft_cuda_kernels::on_host::Element;
use weft_kernels::PackedLinear;

/// Inputs on the device.
pub(crate) struct X {
    inputs: Inputs,
    rows: usize,
    values: Buffer,
    /// None: they are no codes.
    scales: Option<Buffer>,
}

/// Rows of scales of groups.
fn stride(rows: usize) -> usize {
    rows.next_multiple_of(8)
}

impl Port {
    /// Inputs `[rows, depth]` as a product takes them: as they are, or in codes.
    pub(crate) fn inputs<T: Element + bytemuck::Pod>(&self, x: &[T], depth: usize, inputs: Inputs) -> X {
        let (rows, x_at) = (x.len() / depth, self.put(x));
        let (name, scales, grid) = match inputs {
            Inputs::Bf16 | Inputs::F16 => return X { inputs, rows, values: x_at, scales: None },
            Inputs::Int8Groups => {
                let grid = [stride(rows) as u32, depth.div_ceil(2048) as u32, 1];
                ("int8_groups", depth / STEP * stride(rows), grid)
            }
            Inputs::Int8Rows => ("int8_rows", rows, [rows as u32, 1, 1]),
            Inputs::E4m3Rows => ("fp8_rows", rows, [rows as u32, 1, 1]),
        };
        let (codes, scales) = (self.room(rows * depth), self.room(4 * scales));
        let depth = Argument::I32(depth as i32);
        let for_groups = [
            reads(&x_at),
            Argument::I32(rows as i32),
            depth,
            writes(&codes),
            writes(&scales),
            Argument::I32(stride(rows) as i32),
        ];
        let for_rows = [reads(&x_at), depth, writes(&codes), writes(&scales)];
        let arguments = if inputs == Inputs::Int8Groups { &for_groups[..] } else { &for_rows[..] };
        self.run(&format!("weft_quantise_{name}_{}", T::SUFFIX), (grid, gemm::THREADS, 0), arguments, &[]);
        X { inputs, rows, values: codes, scales: Some(scales) }
    }

    /// `[rows, columns]` in f32.
    pub(crate) fn product(&self, weights: &Packed, x: &X) -> Vec<f32> {
        let Packed { columns, depth, .. } = *weights;
        let shape = gemm::launch(weights.weights, x.inputs, [x.rows, columns, depth], self.multiprocessors()).unwrap();
        let [codes, scales] = [&weights.codes, &weights.scales].map(|pieces| self.put(pieces));
        let column_scales = (!weights.column_scales.is_empty()).then(|| self.put(&weights.column_scales));
        let row_scales = x.scales.as_ref().filter(|_| x.inputs != Inputs::Int8Groups);
        let partials = (shape.partial_bytes > 0).then(|| self.room(shape.partial_bytes));
        let out = self.room(4 * x.rows * columns);
        let address = |buffer: Option<&Buffer>| buffer.map_or(0, Buffer::address);
        let call = Call {
            out: out.address(),
            partials: address(partials.as_ref()),
            column_scales: address(column_scales.as_ref()),
            row_scales: address(row_scales),
            rows: x.rows as i32,
            columns: columns as i32,
            depth: depth as i32,
            splits: shape.splits as i32,
            out_stride: columns as i32,
            out_type: 0,
        };
        let call = [Argument::Bytes(bytemuck::bytes_of(&call))];
        let factors: Vec<Access<'_>> =
            column_scales.iter().chain(row_scales).map(|scales| scales.all().reads()).collect();
        let groups =
            Groups { codes: x.values.address(), scales: address(x.scales.as_ref()), stride: stride(x.rows) as i32 };
        let groups = groups.bytes();
        let mut arguments = vec![reads(&codes)];
        if !weights.scales.is_empty() {
            arguments.push(reads(&scales));
        }
        if let Weights::Four { group } = weights.weights {
            arguments.push(Argument::I32((group / STEP).trailing_zeros().cast_signed()));
        }
        let mut reached = factors.clone();
        if x.inputs == Inputs::Int8Groups {
            reached.extend([&x.values].into_iter().chain(&x.scales).map(|part| part.all().reads()));
            arguments.push(Argument::Bytes(&groups));
        } else {
            arguments.push(reads(&x.values));
        }
        reached.push(partials.as_ref().unwrap_or(&out).all().writes());
        self.run(&shape.kernel, (shape.grid, gemm::THREADS, 0), &[&arguments[..], &call].concat(), &reached);
        if let (Some((kernel, grid)), Some(partials)) = (shape.finish, &partials) {
            let reached = [&factors[..], &[partials.all().reads(), out.all().writes()]].concat();
            self.run(kernel, (grid, gemm::THREADS, 0), &call, &reached);
        }
        self.get(&out)
    }

    /// `linear` of the port, for weights in codes.
    pub(super) fn linear(&self, x: &[f32], w: &PackedLinear, out: &mut [f32]) {
        let Some(product) = FilledUp::new(x, w, out) else { return };
        let x = self.inputs(&product.x, product.weights.depth, Inputs::Int8Groups);
        product.take(&self.product(&product.weights, &x), out);
    }
}
