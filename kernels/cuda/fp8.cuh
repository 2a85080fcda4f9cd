// e4m3: eight bits, four of them exponent (bias 7), three fraction; no infinities, 0x7f and 0xff are NaN, 448 is the largest
// (Micikevicius et al., "FP8 Formats for Deep Learning", 2022).
#pragma once

#include <cuda_fp8.h>

#include "common.cuh"

namespace weft {

constexpr float E4M3_MAX = 448.0f;

template <typename T>
constexpr bool IS_HALF = false;
template <>
constexpr bool IS_HALF<__half> = true;

__device__ __forceinline__ float to_float(__nv_fp8_e4m3 value) { return static_cast<float>(value); }

// To nearest even; what is larger than 448 becomes 448, NaN stays NaN.
template <>
__device__ __forceinline__ __nv_fp8_e4m3 from_float<__nv_fp8_e4m3>(float value) {
    return static_cast<__nv_fp8_e4m3>(value);
}

// Two products of 16-bit floats at a time, rounded to nearest even, subnormal numbers kept.
template <typename T>
__device__ __forceinline__ unsigned multiply_pair(unsigned a, unsigned b) {
    unsigned product;
#ifdef __CUDACC__
    if constexpr (IS_HALF<T>) {
        asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(product) : "r"(a), "r"(b));
    } else {
        // sm_80 has no multiplication of bf16 alone: minus zero is added.
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(a), "r"(b), "r"(0x80008000u));
    }
#else
    const T* const x = reinterpret_cast<const T*>(&a);
    const T* const y = reinterpret_cast<const T*>(&b);
    T* const to = reinterpret_cast<T*>(&product);
    for (int i = 0; i < 2; ++i) to[i] = from_float<T>(to_float(x[i]) * to_float(y[i]));
#endif
    return product;
}

// Four codes, the first in the lowest bits, as two pairs of T: exact, NaN stays NaN. Fraction and exponent are moved to where those of T
// begin, and the product with a power of two makes up for the other bias, for subnormal codes as well.
template <typename T>
__device__ __forceinline__ void widen_e4m3(unsigned codes, unsigned (&to)[2]) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 890
    if constexpr (IS_HALF<T>) {
        asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(to[0]) : "h"(static_cast<unsigned short>(codes)));
        asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(to[1]) : "h"(static_cast<unsigned short>(codes >> 16)));
        return;
    }
#endif
    // The upper bit of a byte where the code is NaN.
    const unsigned nan = ((codes & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u;
    // 2^8 and 2^120.
    constexpr unsigned FACTOR = IS_HALF<T> ? 0x5c005c00u : 0x7b807b80u;
    // How far the exponent moves to the right from bits 8 to 14, and an exponent of ones.
    constexpr int RIGHT = IS_HALF<T> ? 1 : 4;
    constexpr unsigned ONES = IS_HALF<T> ? 0x7c00u : 0x7f80u;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
        const unsigned two = codes >> 16 * pair, nan_two = nan >> 16 * pair;
        // Each code in the upper byte of its half.
        const unsigned spread = (two & 0xffu) << 8 | (two & 0xff00u) << 16;
        const unsigned moved = (spread & 0x80008000u) | (spread & 0x7f007f00u) >> RIGHT;
        const unsigned quiet = (nan_two >> 7 & 1u) * ONES | (nan_two >> 15 & 1u) * (ONES << 16);
        to[pair] = multiply_pair<T>(moved, FACTOR) | quiet;
    }
}

}  // namespace weft
