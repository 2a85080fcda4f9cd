// What the kernels share: element types, loads of eight, sums over a warp and a block.
//
// Plain CUDA C++ without the standard library, so that NVRTC takes it as it is. The same text is compiled by g++ against
// shim/, which runs it on a processor.
//
// Same answer, whatever shares the batch: a sum over elements 0..n goes to 32 lanes, element i to lane (i / 8) % 32, each lane adds
// in order of i, then the lanes are added pairwise. Aligned or not, in a chunk of 16 rows or alone: the order is this one.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

// The shared memory whose size the launch says, as 16-byte pieces; the shim has its own.
#ifndef WEFT_DYNAMIC_SHARED
#define WEFT_DYNAMIC_SHARED(name) extern __shared__ float4 name[]
#endif

namespace weft {

constexpr int WARP = 32;
// Elements of one load: 16 bytes of half precision, two times 16 bytes of f32.
constexpr int VECTOR = 8;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) { return value; }
template <>
__device__ __forceinline__ __half from_float<__half>(float value) { return __float2half_rn(value); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }

// Whether rows of `width` elements from `start` on all begin at a multiple of 16 bytes.
template <typename T>
__device__ __forceinline__ bool rows_are_aligned(const T* start, int width) {
    return (reinterpret_cast<size_t>(start) % 16 == 0) && ((static_cast<size_t>(width) * sizeof(T)) % 16 == 0);
}

// Reads eight elements of which `left` exist; the others are zero. `aligned`: `from` is a multiple of 16 bytes.
template <typename T>
__device__ __forceinline__ void load8(const T* from, int left, bool aligned, float (&to)[VECTOR]) {
    if (aligned && left >= VECTOR) {
        constexpr int PIECES = VECTOR * sizeof(T) / 16;
        constexpr int EACH = 16 / sizeof(T);
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece) {
            const uint4 bits = reinterpret_cast<const uint4*>(from)[piece];
            const T* values = reinterpret_cast<const T*>(&bits);
#pragma unroll
            for (int i = 0; i < EACH; ++i) to[piece * EACH + i] = to_float(values[i]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) to[i] = i < left ? to_float(from[i]) : 0.0f;
    }
}

// Writes the first `left` of eight elements.
template <typename T>
__device__ __forceinline__ void store8(T* to, int left, bool aligned, const float (&from)[VECTOR]) {
    if (aligned && left >= VECTOR) {
        constexpr int PIECES = VECTOR * sizeof(T) / 16;
        constexpr int EACH = 16 / sizeof(T);
#pragma unroll
        for (int piece = 0; piece < PIECES; ++piece) {
            uint4 bits;
            T* values = reinterpret_cast<T*>(&bits);
#pragma unroll
            for (int i = 0; i < EACH; ++i) values[i] = from_float<T>(from[piece * EACH + i]);
            reinterpret_cast<uint4*>(to)[piece] = bits;
        }
    } else {
#pragma unroll
        for (int i = 0; i < VECTOR; ++i)
            if (i < left) to[i] = from_float<T>(from[i]);
    }
}

// The sum over the lanes of a warp, the same in each. All 32 lanes call it.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) value += __shfl_xor_sync(ALL_LANES, value, apart);
    return value;
}

// The sum over a block of WARPS warps, the same in each thread. All threads call it; `scratch [WARPS]` lies in shared memory and may
// be used again after the next barrier.
template <int WARPS>
__device__ __forceinline__ float block_sum(float value, float* scratch) {
    value = warp_sum(value);
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = value;
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) total += scratch[warp];
    return total;
}

}  // namespace weft
