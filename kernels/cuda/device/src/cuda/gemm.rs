//! Products by cublasLt.
//!
//! Our matrices are row-major, cublasLt's are column-major: it sees `x` and `out` transposed, and computes `out^T = w x^T`.

use super::calls::{handle, number};
use crate::driver::{Matmul, Type};
use crate::error::Error;
use crate::requirements::CUDA;
use cudarc::cublaslt::{result, result::CublasError, sys};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Most plans to keep: one for each shape. A full table is emptied.
const PLANS_MAX: usize = 4096;
/// More than this makes no difference to cublasLt.
const ALIGNMENT_MAX: u64 = 256;

/// What decides which algorithm is chosen.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Shape {
    sizes: [usize; 3],
    strides: [usize; 2],
    types: [Type; 2],
    /// Of x, w, out.
    alignments: [u64; 3],
    adds: bool,
    workspace_bytes: usize,
}

/// Descriptions of a shape, and the algorithm that the library's heuristic takes for it.
struct Plan {
    product: u64,
    /// Of w, x and out.
    matrices: [u64; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

pub(super) struct Gemm {
    library: u64,
    plans: Mutex<HashMap<Shape, Arc<Plan>>>,
}

impl std::fmt::Debug for Gemm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gemm").finish_non_exhaustive()
    }
}

fn failed(call: &'static str) -> impl FnOnce(CublasError) -> Error {
    move |error| Error::Driver { call, code: format!("{:?}", error.0), message: "cublasLt failed".to_owned() }
}

fn data_type(of: Type) -> sys::cudaDataType {
    match of {
        Type::F32 => sys::cudaDataType_t::CUDA_R_32F,
        Type::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        Type::F16 => sys::cudaDataType_t::CUDA_R_16F,
    }
}

impl Gemm {
    pub(super) fn new() -> Result<Self, Error> {
        const REMEDY: &str = "install cuBLAS of CUDA 13 (nvidia-cublas on PyPI) and name its folder in LD_LIBRARY_PATH";
        // SAFETY: loading NVIDIA's library runs its constructors, which is what it is for.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::NoLibrary { library: "cublasLt", remedy: REMEDY });
        }
        // SAFETY: the library is there, and every version has the function. It counts 10000 to the major version, 100 to the minor.
        let version = unsafe { sys::cublasLtGetVersion() };
        let found = (version / 10_000 * 1000 + version % 10_000 / 100 * 10) as i32;
        if found < CUDA {
            return Err(Error::TooOld { library: "cublasLt", found, needed: CUDA, remedy: REMEDY });
        }
        let library = result::create_handle().map_err(failed("cublasLtCreate"))?;
        Ok(Self { library: number(library), plans: Mutex::default() })
    }

    /// # Safety
    ///
    /// As [`crate::driver::Driver::enqueue`], with the device's context current.
    pub(super) unsafe fn enqueue(&self, stream: sys::cudaStream_t, matmul: &Matmul) -> Result<(), Error> {
        let plan = self.plan(matmul)?;
        let [w, x, out] = plan.matrices.map(handle);
        let (alpha, beta) = (1.0f32, if matmul.adds { 1.0f32 } else { 0.0 });
        // SAFETY: the descriptions say what the matrices are, which the caller vouches for; alpha and beta are read before the call returns.
        let result = unsafe {
            result::matmul(
                handle(self.library),
                handle(plan.product),
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                handle(matmul.w),
                w,
                handle(matmul.x),
                x,
                handle(matmul.out),
                out,
                handle(matmul.out),
                out,
                &raw const plan.algorithm,
                handle(matmul.workspace),
                matmul.workspace_bytes,
                stream,
            )
        };
        result.map_err(failed("cublasLtMatmul"))
    }

    fn plan(&self, matmul: &Matmul) -> Result<Arc<Plan>, Error> {
        let aligned = |address: u64| (1u64 << address.trailing_zeros().min(63)).min(ALIGNMENT_MAX);
        let shape = Shape {
            sizes: [matmul.rows, matmul.inputs, matmul.outputs],
            strides: [matmul.x_stride, matmul.out_stride],
            types: [matmul.of, matmul.out_of],
            alignments: [matmul.x, matmul.w, matmul.out].map(aligned),
            adds: matmul.adds,
            workspace_bytes: matmul.workspace_bytes,
        };
        let mut plans = self.plans.lock().expect("no panic while it is held");
        if let Some(plan) = plans.get(&shape) {
            return Ok(Arc::clone(plan));
        }
        let plan = Arc::new(Plan::new(handle(self.library), &shape)?);
        if plans.len() == PLANS_MAX {
            plans.clear();
        }
        plans.insert(shape, Arc::clone(&plan));
        Ok(plan)
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        // SAFETY: `new` made it, and it is destroyed once. A failure leaves nothing to be done.
        let _ = unsafe { result::destroy_handle(handle(self.library)) };
    }
}

impl Plan {
    fn new(library: sys::cublasLtHandle_t, shape: &Shape) -> Result<Self, Error> {
        use sys::cublasLtMatmulDescAttributes_t as Of;
        let [rows, inputs, outputs] = shape.sizes.map(|size| size as u64);
        let [x_stride, out_stride] = shape.strides.map(|stride| stride as i64);
        let [of, out_of] = shape.types.map(data_type);
        // Made whole at once, so that `Drop` frees what there is when a later step fails.
        let mut plan = Self { product: 0, matrices: [0; 3], algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] } };
        // Sums in f32 also for f32: no TF32.
        let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let product = result::create_matmul_desc(compute, sys::cudaDataType_t::CUDA_R_32F);
        plan.product = number(product.map_err(failed("cublasLtMatmulDescCreate"))?);
        // CUBLAS_OP_T, which the bindings of cublasLt leave out.
        let transposed = 1u32;
        // SAFETY: the description was just made, and the value has the attribute's type.
        let set = unsafe {
            let of = Of::CUBLASLT_MATMUL_DESC_TRANSA;
            result::set_matmul_desc_attribute(
                handle(plan.product),
                of,
                (&raw const transposed).cast(),
                size_of_val(&transposed),
            )
        };
        set.map_err(failed("cublasLtMatmulDescSetAttribute"))?;
        let matrices =
            [(of, inputs, outputs, inputs as i64), (of, inputs, rows, x_stride), (out_of, outputs, rows, out_stride)];
        for (at, (of, rows, columns, stride)) in plan.matrices.iter_mut().zip(matrices) {
            let matrix = result::create_matrix_layout(of, rows, columns, stride);
            *at = number(matrix.map_err(failed("cublasLtMatrixLayoutCreate"))?);
        }
        plan.algorithm = plan.choose(library, shape)?;
        Ok(plan)
    }

    fn choose(&self, library: sys::cublasLtHandle_t, shape: &Shape) -> Result<sys::cublasLtMatmulAlgo_t, Error> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Of;
        let wishes = result::create_matmul_pref().map_err(failed("cublasLtMatmulPreferenceCreate"))?;
        let [x, w, out] = shape.alignments.map(|alignment| alignment as u32);
        // Parts of a sum are added in f32, not in the type of the result.
        let reduction = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let numbers = [
            (Of::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reduction),
            (Of::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, w),
            (Of::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x),
            (Of::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, out),
            (Of::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, out),
        ];
        let workspace = shape.workspace_bytes as u64;
        let [of_w, of_x, of_out] = self.matrices.map(handle);
        // SAFETY: the preference was just made and is destroyed once; values have their attributes' types; the descriptions live.
        let found = unsafe {
            let set =
                |of, value: *const std::ffi::c_void, bytes| result::set_matmul_pref_attribute(wishes, of, value, bytes);
            let mut found = set(Of::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), 8);
            for (of, value) in numbers {
                found = found.and_then(|()| set(of, (&raw const value).cast(), 4));
            }
            let found = found.and_then(|()| {
                let product = handle(self.product);
                result::get_matmul_algo_heuristic(library, product, of_w, of_x, of_out, of_out, wishes)
            });
            let _ = result::destroy_matmul_pref(wishes);
            found
        };
        found.map(|found| found.algo).map_err(failed("cublasLtMatmulAlgoGetHeuristic"))
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: what is not zero was made by `new`, and is destroyed once. A failure leaves nothing to be done.
        unsafe {
            for matrix in self.matrices.into_iter().filter(|matrix| *matrix != 0) {
                let _ = result::destroy_matrix_layout(handle(matrix));
            }
            if self.product != 0 {
                let _ = result::destroy_matmul_desc(handle(self.product));
            }
        }
    }
}
