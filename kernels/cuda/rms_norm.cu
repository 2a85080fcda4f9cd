// RMS norm, alone and with the residual: out = x / sqrt(mean(x^2) + eps) * weight.
//
//   x, out, residual  [rows, width]  X, row-major     weight  [width]  X
//
// Grid: (rows). One block per row, which it reads twice; the second time from L1 or L2. `add_rms_norm` stores `residual + x` in X
// and takes the norm of what it stored.
#include "common.cuh"

namespace weft {

constexpr int NORM_WARPS = 8;
constexpr int NORM_THREADS = NORM_WARPS * WARP;

template <typename X>
__device__ __forceinline__ void norm_row(const X* x, const X* weight, float eps, X* out, int width, float squares, float* scratch) {
    const float mean = block_sum<NORM_WARPS>(squares, scratch) / static_cast<float>(width);
    const float factor = 1.0f / sqrtf(mean + eps);
    const bool x_aligned = rows_are_aligned(x, VECTOR), weight_aligned = rows_are_aligned(weight, VECTOR);
    const bool out_aligned = rows_are_aligned(out, VECTOR);
    for (int at = static_cast<int>(threadIdx.x) * VECTOR; at < width; at += NORM_THREADS * VECTOR) {
        float value[VECTOR], by[VECTOR];
        load8(x + at, width - at, x_aligned, value);
        load8(weight + at, width - at, weight_aligned, by);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) value[i] = value[i] * factor * by[i];
        store8(out + at, width - at, out_aligned, value);
    }
}

template <typename X>
__device__ __forceinline__ void rms_norm(const X* x, const X* weight, float eps, X* out, int width, float* scratch) {
    x += static_cast<size_t>(blockIdx.x) * width;
    out += static_cast<size_t>(blockIdx.x) * width;
    const bool aligned = rows_are_aligned(x, VECTOR);
    float squares = 0.0f;
    for (int at = static_cast<int>(threadIdx.x) * VECTOR; at < width; at += NORM_THREADS * VECTOR) {
        float value[VECTOR];
        load8(x + at, width - at, aligned, value);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) squares = fmaf(value[i], value[i], squares);
    }
    norm_row(x, weight, eps, out, width, squares, scratch);
}

template <typename X>
__device__ __forceinline__ void add_rms_norm(X* residual, const X* x, const X* weight, float eps, X* out, int width,
                                             float* scratch) {
    residual += static_cast<size_t>(blockIdx.x) * width;
    x += static_cast<size_t>(blockIdx.x) * width;
    out += static_cast<size_t>(blockIdx.x) * width;
    const bool x_aligned = rows_are_aligned(x, VECTOR), residual_aligned = rows_are_aligned(residual, VECTOR);
    float squares = 0.0f;
    for (int at = static_cast<int>(threadIdx.x) * VECTOR; at < width; at += NORM_THREADS * VECTOR) {
        float value[VECTOR], sum[VECTOR];
        load8(x + at, width - at, x_aligned, value);
        load8(residual + at, width - at, residual_aligned, sum);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) {
            sum[i] = to_float(from_float<X>(sum[i] + value[i]));
            squares = fmaf(sum[i], sum[i], squares);
        }
        store8(residual + at, width - at, residual_aligned, sum);
    }
    // A thread reads back what itself wrote: no barrier is needed for it.
    norm_row(residual, weight, eps, out, width, squares, scratch);
}

}  // namespace weft

#define WEFT_NORM(suffix, X)                                                                                        \
    extern "C" __global__ void __launch_bounds__(weft::NORM_THREADS)                                                \
        weft_rms_norm_##suffix(const X* x, const X* weight, float eps, X* out, int width) {                         \
        __shared__ float scratch[weft::NORM_WARPS];                                                                 \
        weft::rms_norm<X>(x, weight, eps, out, width, scratch);                                                     \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(weft::NORM_THREADS)                                                \
        weft_add_rms_norm_##suffix(X* residual, const X* x, const X* weight, float eps, X* out, int width) {        \
        __shared__ float scratch[weft::NORM_WARPS];                                                                 \
        weft::add_rms_norm<X>(residual, x, weight, eps, out, width, scratch);                                       \
    }

WEFT_NORM(f32, float)
WEFT_NORM(bf16, __nv_bfloat16)
WEFT_NORM(f16, __half)
