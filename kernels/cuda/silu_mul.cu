// out = silu(gate) * up.
//
//   gate_up  [rows, 2 * inter]  X, gate then up     out  [rows, inter]  X
//
// Grid: (ceil(inter / 2048), rows); eight elements for each thread.
#include "common.cuh"

namespace weft {

constexpr int SILU_THREADS = 256;

template <typename X>
__device__ __forceinline__ void silu_mul(const X* gate_up, X* out, int inter) {
    const X* gate = gate_up + static_cast<size_t>(blockIdx.y) * 2 * inter;
    const X* up = gate + inter;
    out += static_cast<size_t>(blockIdx.y) * inter;
    const int at = static_cast<int>(blockIdx.x * SILU_THREADS + threadIdx.x) * VECTOR;
    if (at >= inter) return;
    float a[VECTOR], b[VECTOR];
    load8(gate + at, inter - at, rows_are_aligned(gate, VECTOR), a);
    load8(up + at, inter - at, rows_are_aligned(up, VECTOR), b);
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) a[i] = a[i] / (1.0f + expf(-a[i])) * b[i];
    store8(out + at, inter - at, rows_are_aligned(out, VECTOR), a);
}

}  // namespace weft

#define WEFT_SILU(suffix, X)                                                    \
    extern "C" __global__ void __launch_bounds__(weft::SILU_THREADS)            \
        weft_silu_mul_##suffix(const X* gate_up, X* out, int inter) {           \
        weft::silu_mul<X>(gate_up, out, inter);                                 \
    }

WEFT_SILU(f32, float)
WEFT_SILU(bf16, __nv_bfloat16)
WEFT_SILU(f16, __half)
