// Rotary embedding in place: pairs (i, i + head_dim / 2) of each head, angle positions[row] * inv_freq[i].
//
//   x          [rows, heads, head_dim]  X; rows begin `row_stride` elements apart, so q and k within a fused q/k/v are one call
//   positions  [rows]  u32              inv_freq  [head_dim / 2]  f32, at most 256 of them
//
// Grid: (rows). A block computes the sines of its position once, for all heads. The angle is an f32 product by definition: that is
// what models are trained with.
#include "common.cuh"

namespace weft {

constexpr int ROPE_THREADS = 128;
constexpr int ROPE_HALF_MAX = 256;

template <typename X>
__device__ __forceinline__ void rope(X* x, int heads, int head_dim, int row_stride, const unsigned* positions,
                                     const float* inv_freq, float attention_factor, float* sines, float* cosines) {
    const int half = head_dim / 2;
    const float position = static_cast<float>(positions[blockIdx.x]);
    for (int i = static_cast<int>(threadIdx.x); i < half; i += ROPE_THREADS) {
        float sine, cosine;
        sincosf(__fmul_rn(position, inv_freq[i]), &sine, &cosine);
        sines[i] = sine * attention_factor;
        cosines[i] = cosine * attention_factor;
    }
    __syncthreads();
    x += static_cast<size_t>(blockIdx.x) * row_stride;
    for (int pair = static_cast<int>(threadIdx.x); pair < heads * half; pair += ROPE_THREADS) {
        const int i = pair % half;
        X* low = x + pair / half * head_dim + i;
        const float a = to_float(low[0]), b = to_float(low[half]);
        low[0] = from_float<X>(a * cosines[i] - b * sines[i]);
        low[half] = from_float<X>(b * cosines[i] + a * sines[i]);
    }
}

}  // namespace weft

#define WEFT_ROPE(suffix, X)                                                                                            \
    extern "C" __global__ void __launch_bounds__(weft::ROPE_THREADS)                                                    \
        weft_rope_##suffix(X* x, int heads, int head_dim, int row_stride, const unsigned* positions,                    \
                           const float* inv_freq, float attention_factor) {                                             \
        __shared__ float sines[weft::ROPE_HALF_MAX];                                                                    \
        __shared__ float cosines[weft::ROPE_HALF_MAX];                                                                  \
        weft::rope<X>(x, heads, head_dim, row_stride, positions, inv_freq, attention_factor, sines, cosines);           \
    }

WEFT_ROPE(f32, float)
WEFT_ROPE(bf16, __nv_bfloat16)
WEFT_ROPE(f16, __half)
