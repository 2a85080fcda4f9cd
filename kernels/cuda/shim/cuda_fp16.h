// `__half` for the shim: the conversions that the kernels use, to nearest even.
#pragma once
#include <cstdint>
#include <cstring>

struct __half {
    uint16_t bits;
};

inline float __half2float(__half half) {
    const uint32_t sign = uint32_t(half.bits & 0x8000u) << 16, exponent = half.bits >> 10 & 31u, fraction = half.bits & 1023u;
    float magnitude;
    if (exponent == 0) {
        magnitude = float(fraction) * 0x1p-24f;
    } else {
        const uint32_t bits = (exponent == 31 ? 255u << 23 : (exponent + 112) << 23) | fraction << 13;
        std::memcpy(&magnitude, &bits, 4);
    }
    uint32_t bits;
    std::memcpy(&bits, &magnitude, 4);
    bits |= sign;
    std::memcpy(&magnitude, &bits, 4);
    return magnitude;
}

inline __half __float2half_rn(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return {0x7fff};                          // NaN, the one that the device makes
    if (bits >= 0x47800000u) return {uint16_t(sign | 0x7c00u)};      // 65536 and above
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    if (bits < 0x38800000u) {                                        // below the smallest normal: steps of 2^-24
        const float shifted = magnitude + 0.5f;                      // the addition rounds to nearest even
        uint32_t of_shifted;
        std::memcpy(&of_shifted, &shifted, 4);
        return {uint16_t(sign | (of_shifted - 0x3f000000u))};
    }
    const uint32_t rounded = bits + 0xfffu + (bits >> 13 & 1u);
    return {uint16_t(sign | ((rounded - 0x38000000u) >> 13))};
}
