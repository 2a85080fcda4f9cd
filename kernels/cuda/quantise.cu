// Codes of 8 bits for activations, x = scale * code.
//
//   x      [rows, depth]  X, row-major, begins at a multiple of 16 bytes; depth a multiple of 32
//   codes  [rows, depth]  int8 or e4m3
//
//   int8_groups  scales [depth / 32, stride], stride = rows rounded up to 8; zero beyond the last row. scale = max |x| / 127 of 32
//                neighbours, code = x * (127 / max |x|) to the nearest integer, ties to even: what the CPU kernels do
//                (kernels/src/quant.rs)
//   int8_rows    scales [rows], the same for a whole row
//   fp8_rows     scales [rows], scale = max |x| / 448, code = x * (448 / max |x|) to the nearest e4m3
//
// What is not finite makes its scale NaN, so that it shows in the result; below 1e-30 a maximum counts as zero.
//
// Grid: int8_groups (stride, ceil(depth / 2048)), rows (rows). A row is read twice by `rows`, the second time from L1 or L2.
#include "fp8.cuh"

namespace weft {

constexpr int QUANTISE_WARPS = 8;
constexpr int QUANTISE_THREADS = QUANTISE_WARPS * WARP;
constexpr float QUANTISE_LEAST = 1e-30f;

struct __align__(8) EightCodes {
    unsigned low, high;
};

// The largest |x|, and NaN if one of them is not finite, else zero.
struct Range {
    float most;
    float bad;
};

__device__ __forceinline__ Range range_of(const float (&value)[VECTOR]) {
    Range range = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        range.most = fmaxf(range.most, fabsf(value[i]));
        range.bad += value[i] * 0.0f;
    }
    return range;
}

__device__ __forceinline__ Range both(Range a, Range b) { return {fmaxf(a.most, b.most), a.bad + b.bad}; }

// Over lanes that differ in bits below LANES.
template <int LANES>
__device__ __forceinline__ Range range_of_lanes(Range range) {
#pragma unroll
    for (int apart = 1; apart < LANES; apart *= 2)
        range = both(range, {__shfl_xor_sync(ALL_LANES, range.most, apart), __shfl_xor_sync(ALL_LANES, range.bad, apart)});
    return range;
}

template <typename Code>
constexpr float CODE_MAX = 127.0f;
template <>
constexpr float CODE_MAX<__nv_fp8_e4m3> = E4M3_MAX;

template <typename Code>
__device__ __forceinline__ unsigned code_bits(float value);
template <>
__device__ __forceinline__ unsigned code_bits<signed char>(float value) {
    // NaN becomes -127: there is an integer for it.
    const int code = static_cast<int>(fminf(fmaxf(rintf(value), -127.0f), 127.0f));
    return static_cast<unsigned>(code) & 0xffu;
}
template <>
__device__ __forceinline__ unsigned code_bits<__nv_fp8_e4m3>(float value) {
    return from_float<__nv_fp8_e4m3>(value).__x;
}

template <typename Code>
__device__ __forceinline__ float scale_of(Range range) {
    return (range.most < QUANTISE_LEAST ? 0.0f : range.most / CODE_MAX<Code>) + range.bad;
}

template <typename Code>
__device__ __forceinline__ void store_codes(const float (&value)[VECTOR], float most, Code* to) {
    const float inverse = most < QUANTISE_LEAST ? 0.0f : CODE_MAX<Code> / most;
    EightCodes codes = {0, 0};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        codes.low |= code_bits<Code>(value[i] * inverse) << 8 * i;
        codes.high |= code_bits<Code>(value[i + 4] * inverse) << 8 * i;
    }
    *reinterpret_cast<EightCodes*>(to) = codes;
}

template <typename X>
__device__ __forceinline__ void quantise_groups(const X* x, int rows, int depth, signed char* codes, float* scales, int stride) {
    const int row = static_cast<int>(blockIdx.x);
    const int at = static_cast<int>(blockIdx.y * QUANTISE_THREADS + threadIdx.x) * VECTOR;
    float value[VECTOR];
    const size_t first = static_cast<size_t>(row) * depth + at;
    load8(x + first, row < rows ? depth - at : 0, true, value);
    const Range range = range_of_lanes<4>(range_of(value));
    if (at >= depth) return;
    if (threadIdx.x % 4 == 0) scales[static_cast<size_t>(at / 32) * stride + row] = scale_of<signed char>(range);
    if (row < rows) store_codes(value, range.most, codes + first);
}

template <typename X, typename Code>
__device__ __forceinline__ void quantise_row(const X* x, int depth, Code* codes, float* scales, Range (&scratch)[QUANTISE_WARPS]) {
    const size_t row = blockIdx.x;
    x += row * depth;
    codes += row * depth;
    Range range = {0.0f, 0.0f};
    float value[VECTOR];
    for (int at = static_cast<int>(threadIdx.x) * VECTOR; at < depth; at += QUANTISE_THREADS * VECTOR) {
        load8(x + at, depth - at, true, value);
        range = both(range, range_of(value));
    }
    range = range_of_lanes<WARP>(range);
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = range;
    __syncthreads();
    range = scratch[0];
#pragma unroll
    for (int warp = 1; warp < QUANTISE_WARPS; ++warp) range = both(range, scratch[warp]);
    if (threadIdx.x == 0) scales[row] = scale_of<Code>(range);
    for (int at = static_cast<int>(threadIdx.x) * VECTOR; at < depth; at += QUANTISE_THREADS * VECTOR) {
        load8(x + at, depth - at, true, value);
        store_codes(value, range.most, codes + at);
    }
}

}  // namespace weft

#define WEFT_QUANTISE(suffix, X)                                                                                          \
    extern "C" __global__ void __launch_bounds__(weft::QUANTISE_THREADS)                                                  \
        weft_quantise_int8_groups_##suffix(const X* x, int rows, int depth, signed char* codes, float* scales, int stride) { \
        weft::quantise_groups<X>(x, rows, depth, codes, scales, stride);                                                  \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(weft::QUANTISE_THREADS)                                                  \
        weft_quantise_int8_rows_##suffix(const X* x, int depth, signed char* codes, float* scales) {                      \
        __shared__ weft::Range scratch[weft::QUANTISE_WARPS];                                                             \
        weft::quantise_row<X, signed char>(x, depth, codes, scales, scratch);                                             \
    }                                                                                                                     \
    extern "C" __global__ void __launch_bounds__(weft::QUANTISE_THREADS)                                                  \
        weft_quantise_fp8_rows_##suffix(const X* x, int depth, __nv_fp8_e4m3* codes, float* scales) {                     \
        __shared__ weft::Range scratch[weft::QUANTISE_WARPS];                                                             \
        weft::quantise_row<X, __nv_fp8_e4m3>(x, depth, codes, scales, scratch);                                           \
    }

WEFT_QUANTISE(f32, float)
WEFT_QUANTISE(bf16, __nv_bfloat16)
WEFT_QUANTISE(f16, __half)
