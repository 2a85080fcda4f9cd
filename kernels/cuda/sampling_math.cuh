// The arithmetic of crates/engine/src/sampling/{math,rng}.rs, operation by operation, so that both choose the same token.
//
// Every multiplication and addition whose rounding matters is written with its intrinsic: nvcc fuses none of those. Only `log` of
// f64 is the library's, on a device within 1 unit in the last place (CUDA C++ Programming Guide, 13.2); see sampling.cu for what follows.
#pragma once
#include "common.cuh"

namespace weft {

// exp(x) for x <= 0, exactly 0 below -87. Cephes' polynomial after splitting x = n ln 2 + r.
__device__ __forceinline__ float exp_below_zero(float x) {
    // Adding 1.5 * 2^23 rounds to the nearest integer, which then sits in the low bits of the float.
    constexpr float ROUND = 12582912.0f;
    const float clamped = x < -87.0f ? -87.0f : x;
    const float shifted = __fadd_rn(__fmul_rn(clamped, 1.44269504088896341f), ROUND);
    const float n = __fsub_rn(shifted, ROUND);
    const float r = __fadd_rn(__fsub_rn(clamped, __fmul_rn(n, 0.6933594f)), __fmul_rn(n, 2.1219444e-4f));
    float p = 1.9875691e-4f;
    p = __fadd_rn(__fmul_rn(p, r), 1.3981999e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 8.333452e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 4.1665796e-2f);
    p = __fadd_rn(__fmul_rn(p, r), 1.6666665e-1f);
    p = __fadd_rn(__fmul_rn(p, r), 5.0e-1f);
    const float fraction = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, r), r), r), 1.0f);
    const float value = __uint_as_float(__float_as_uint(fraction) + (__float_as_uint(shifted) << 23));
    return x < -87.0f ? 0.0f : value;
}

// How likely a logit is against the largest one: 1 for that.
__device__ __forceinline__ float weight_of(float logit, float max, float inverse_temperature) {
    return exp_below_zero(__fmul_rn(__fsub_rn(logit, max), inverse_temperature));
}

// A number in [0, 1) with 53 random bits: Philox4x32-10 (Salmon et al., SC'11) at counter (position, 0, 0) with key `seed`.
__device__ __forceinline__ double uniform_at(unsigned long long seed, unsigned long long position) {
    unsigned c0 = static_cast<unsigned>(position), c1 = static_cast<unsigned>(position >> 32), c2 = 0, c3 = 0;
    unsigned k0 = static_cast<unsigned>(seed), k1 = static_cast<unsigned>(seed >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const unsigned high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const unsigned high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    const unsigned long long bits = (static_cast<unsigned long long>(c1) << 32 | c0) >> 11;
    return static_cast<double>(bits) * (1.0 / 9007199254740992.0);
}

// Orders floats as unsigned numbers do; both zeros are one. Not for NaN.
__device__ __forceinline__ unsigned ordered_bits(float value) {
    const unsigned bits = __float_as_uint(__fadd_rn(value, 0.0f));
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float from_ordered_bits(unsigned ordered) {
    return __uint_as_float(ordered >> 31 ? ordered & 0x7fffffffu : ~ordered);
}

// A logarithm of a probability, never above 0 whatever the rounding of the sum.
__device__ __forceinline__ float logprob_of(float logit, double log_sum) {
    return fminf(static_cast<float>(static_cast<double>(logit) - log_sum), 0.0f);
}

}  // namespace weft
