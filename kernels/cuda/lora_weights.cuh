// Adapters as codes of 8 bits, beside those in floats: how they lie in a slot, and how a register gets their values.
//
// Half an adapter, A [rank, in] or B [out_features, rank], in a slot (src/pack.rs writes it):
//
//   floats   the values, row-major
//   codes    f32 scale of each rank, filled up to a multiple of 16 bytes; then a byte for each value, row-major. A multiple of 4 bytes
//            is enough for the start of a slot
//
// A value is its code times the scale of its rank, in A and in B. Both scales of a rank multiply one number, that rank's A x, once:
// the loops over values see codes alone, and a rank costs 8 bytes more than its codes.
//
// Codes become f32 exactly. `Int8`: two's complement, -127..=127. `Fp8`: e4m3 as OCP defines it ("OFP8", 2023), no NaN among them.
#pragma once

#include "common.cuh"

namespace weft::lora {

struct Int8 {
    unsigned char bits;
};
struct Fp8 {
    unsigned char bits;
};

// By how much what a register gets must be multiplied to be the code's value; 0 for floats, which have no scales.
template <typename W>
struct CodeUnit {
    static constexpr float VALUE = 0.0f;
};
template <>
struct CodeUnit<Int8> {
    static constexpr float VALUE = 1.0f;
};
template <>
struct CodeUnit<Fp8> {
    static constexpr float VALUE = 256.0f;
};
template <typename W>
constexpr bool IS_CODE = CodeUnit<W>::VALUE != 0.0f;

// The values of half an adapter that begins at `half`.
template <typename W>
__device__ __forceinline__ const W* lora_values(const void* half, int rank) {
    const size_t scale_bytes = IS_CODE<W> ? (static_cast<size_t>(rank) * sizeof(float) + 15) / 16 * 16 : 0;
    return reinterpret_cast<const W*>(static_cast<const unsigned char*>(half) + scale_bytes);
}

// Four codes to numbers whose product with CodeUnit is their value. Put into the fraction of 2^23, an integer needs one subtraction.
__device__ __forceinline__ void widen4(unsigned codes, float* to, Int8) {
    const unsigned shifted = codes ^ 0x80808080u;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
        const unsigned bits = 0x4b000000u | (shifted >> (8 * i) & 0xffu);
        to[i] = *reinterpret_cast<const float*>(&bits) - 8388736.0f;
    }
}

// Sign, exponent and fraction of e4m3 lie as in f16, whose exponent counts from 15 instead of 7: 2^-8 of the value, subnormals too.
__device__ __forceinline__ void widen4(unsigned codes, float* to, Fp8) {
    const unsigned even = codes << 8;
    const unsigned halves[2] = {(even & 0x80008000u) | (even >> 1 & 0x3f803f80u), (codes & 0x80008000u) | (codes >> 1 & 0x3f803f80u)};
    const __half* values = reinterpret_cast<const __half*>(halves);
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = to_float(values[i % 2 * 2 + i / 2]);
}

// Whether `PER` values from `start` on, and from each row of `width` on, can be read at once.
template <int PER, typename W>
__device__ __forceinline__ bool pieces_are_aligned(const W* start, int width) {
    constexpr size_t bytes = PER * sizeof(W) < 16 ? PER * sizeof(W) : 16;
    return reinterpret_cast<size_t>(start) % bytes == 0 && static_cast<size_t>(width) * sizeof(W) % bytes == 0;
}

// Four codes of which `left` exist; the others are zero.
template <typename W>
__device__ __forceinline__ unsigned load_codes(const W* from, int left, bool aligned) {
    if (aligned && left >= 4) return *reinterpret_cast<const unsigned*>(from);
    unsigned codes = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i)
        if (i < left) codes |= static_cast<unsigned>(from[i].bits) << (8 * i);
    return codes;
}

// As `load8` of common.cuh, for any weights. `aligned`: by pieces of eight.
template <typename W>
__device__ __forceinline__ void load_weights(const W* from, int left, bool aligned, float (&to)[VECTOR]) {
    if constexpr (!IS_CODE<W>) {
        load8(from, left, aligned, to);
    } else if (aligned && left >= VECTOR) {
        const unsigned long long codes = *reinterpret_cast<const unsigned long long*>(from);
        widen4(static_cast<unsigned>(codes), to, W{});
        widen4(static_cast<unsigned>(codes >> 32), to + 4, W{});
    } else {
        widen4(load_codes(from, left, false), to, W{});
        widen4(load_codes(from + 4, left - 4, false), to + 4, W{});
    }
}

}  // namespace weft::lora
