// Rows of a matrix by their numbers: out[row] = from[rows[row]]. Embeddings of tokens; rows whose logits are wanted.
//
//   from  [.., width]  X     rows  [gridDim.x]  numbers of rows     out  [gridDim.x, width]  X
//
// Grid: one block for each row; eight elements for each thread and turn. Bits are copied as they are, but a NaN may become another.
#include "common.cuh"

namespace weft {

constexpr int GATHER_THREADS = 256;

template <typename X>
__device__ __forceinline__ void gather_rows(const X* from, const unsigned* rows, X* out, int width) {
    from += static_cast<size_t>(rows[blockIdx.x]) * width;
    out += static_cast<size_t>(blockIdx.x) * width;
    const bool from_aligned = rows_are_aligned(from, VECTOR), out_aligned = rows_are_aligned(out, VECTOR);
    for (int at = static_cast<int>(threadIdx.x) * VECTOR; at < width; at += GATHER_THREADS * VECTOR) {
        float values[VECTOR];
        load8(from + at, width - at, from_aligned, values);
        store8(out + at, width - at, out_aligned, values);
    }
}

}  // namespace weft

#define WEFT_GATHER(suffix, X)                                                         \
    extern "C" __global__ void __launch_bounds__(weft::GATHER_THREADS)                 \
        weft_gather_rows_##suffix(const X* from, const unsigned* rows, X* out, int width) { \
        weft::gather_rows<X>(from, rows, out, width);                                  \
    }

WEFT_GATHER(f32, float)
WEFT_GATHER(bf16, __nv_bfloat16)
WEFT_GATHER(f16, __half)
