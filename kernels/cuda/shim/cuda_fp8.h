// `__nv_fp8_e4m3` for the shim: the conversions that the kernels use. Four bits of exponent, bias 7, three of fraction; no infinities, 0x7f
// and 0xff are NaN, 448 is the largest (Micikevicius et al., "FP8 Formats for Deep Learning", 2022).
#pragma once
#include <cstdint>
#include <cstring>

using __nv_fp8_storage_t = unsigned char;
enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3 };

// To nearest even. `__NV_SATFINITE`: what is too large, infinity too, becomes 448; otherwise NaN.
inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float value, __nv_saturation_t saturation, __nv_fp8_interpretation_t) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t sign = bits >> 24 & 0x80u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return 0x7f;  // NaN, the one that the device makes
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    // 464 is the middle between 448 and the number that NaN stands in the place of; 448 is even.
    if (magnitude > 464.0f) return __nv_fp8_storage_t(sign | (saturation == __NV_SATFINITE ? 0x7eu : 0x7fu));
    if (magnitude < 0x1p-6f) {
        // Below the smallest normal: steps of 2^-9. The addition rounds to nearest even.
        const float shifted = magnitude + 0x1p14f;
        uint32_t of_shifted;
        std::memcpy(&of_shifted, &shifted, 4);
        return __nv_fp8_storage_t(sign | (of_shifted - 0x46800000u));
    }
    const uint32_t rounded = bits + 0x7ffffu + (bits >> 20 & 1u);
    return __nv_fp8_storage_t(sign | ((rounded - 0x3c000000u) >> 20));
}

struct __nv_fp8_e4m3 {
    __nv_fp8_storage_t __x;

    __nv_fp8_e4m3() = default;
    explicit __nv_fp8_e4m3(float value) : __x(__nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3)) {}

    explicit operator float() const {
        const uint32_t sign = uint32_t(__x & 0x80u) << 24, exponent = __x >> 3 & 15u, fraction = __x & 7u;
        uint32_t bits;
        if ((__x & 0x7fu) == 0x7fu) {
            bits = 0x7fffffffu;
        } else if (exponent == 0) {
            const float magnitude = float(fraction) * 0x1p-9f;
            std::memcpy(&bits, &magnitude, 4);
        } else {
            bits = (exponent + 120) << 23 | fraction << 20;
        }
        bits |= sign;
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }
};
