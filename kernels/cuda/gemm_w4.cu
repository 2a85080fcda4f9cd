// Weights of 4 bits: w = scale * code + min, code 0 to 15; scale and min in f16, for each column and group of 32, 64 or 128 of depth.
//
// Groups of 32 are ggml's Q4_1 and the CPU kernels' Q4 (kernels/src/quant.rs); codes around 8 with a scale for 128, as GPTQ and MARLIN have
// them, are min = -8 * scale.
//
//   codes   [tiles, steps, lane, 4 words]          of columns group, group + 8, group + 16, group + 24 of the tile: eight codes of
//                                                  k = 8 * member + 2 * i + j of the step in bits 4 * i + 16 * j, i 0 to 3, j 0 or 1
//   scales  [tiles, depth / group, 8, 4 words]     of the same four columns: scale in the lower half, min in the upper
//
// 4.25 to 5 bits a weight. No weight is rounded: code + 16 is the half-precision number whose upper four bits of fraction are the code, the
// products of a step are summed with it, and out += scale * that + (min - 16 * scale) * Σ x, where Σ x of a step is a product with ones.
//
//   w4a16  x in f16 or bf16
//   w4a8   x in codes of 8 bits with a scale for 32, as the CPU kernels do: out += x.scale * (scale * Σ codes + min * Σ x codes)
#include "gemm.cuh"

namespace weft {

struct W4 {
    const uint4* codes;
    const uint4* scales;
    int group_shift;  // 0, 1, 2 for groups of 1, 2, 4 steps

    static constexpr int PIECES = 2;
    static constexpr int STAGES = 4;
    __device__ __forceinline__ const uint4* piece(int which, int tile, int step, int steps, int lane) const {
        if (which == 0) return codes + static_cast<unsigned>((tile * steps + step) * WARP + lane);
        return scales + static_cast<unsigned>((tile * (steps >> group_shift) + (step >> group_shift)) * 8 + lane / 4);
    }
};

__device__ __forceinline__ void w4_scale(unsigned pair, float& scale, float& min) {
    const __half* const halves = reinterpret_cast<const __half*>(&pair);
    scale = to_float(halves[0]);
    min = to_float(halves[1]);
}

// pairs[i] holds code + 16 of k = 2 * i and the next.
template <typename T>
__device__ __forceinline__ void w4_pairs(unsigned codes, unsigned (&pairs)[4]);
template <>
__device__ __forceinline__ void w4_pairs<__half>(unsigned codes, unsigned (&pairs)[4]) {
    pairs[0] = (codes << 6 & 0x03c003c0u) | 0x4c004c00u;
    pairs[1] = (codes << 2 & 0x03c003c0u) | 0x4c004c00u;
    pairs[2] = (codes >> 2 & 0x03c003c0u) | 0x4c004c00u;
    pairs[3] = (codes >> 6 & 0x03c003c0u) | 0x4c004c00u;
}
template <>
__device__ __forceinline__ void w4_pairs<__nv_bfloat16>(unsigned codes, unsigned (&pairs)[4]) {
    pairs[0] = (codes << 3 & 0x00780078u) | 0x41804180u;
    pairs[1] = (codes >> 1 & 0x00780078u) | 0x41804180u;
    pairs[2] = (codes >> 5 & 0x00780078u) | 0x41804180u;
    pairs[3] = (codes >> 9 & 0x00780078u) | 0x41804180u;
}

template <typename T>
struct W4A16 : W4 {
    using Sum = float;
    using Held = uint4;
    const T* x;

    __device__ __forceinline__ W4A16(const W4& weights, const T* of_x) : W4(weights), x(of_x) {}
    __device__ __forceinline__ Held hold(int row_tile, int step, const GemmPlace& place, const GemmCall& call) const {
        return gemm_hold16(x, row_tile, step, place, call);
    }
    template <int R>
    __device__ __forceinline__ void multiply(const uint4 (&pieces)[PIECES], const Held (&held)[R], Sum (&sum)[2][R][4]) const {
        constexpr unsigned ONE = IS_HALF<T> ? 0x3c003c00u : 0x3f803f80u;
        const unsigned ones[4] = {ONE, ONE, ONE, ONE};
        const unsigned words[4] = {pieces[0].x, pieces[0].y, pieces[0].z, pieces[0].w};
        const unsigned scales_of[4] = {pieces[1].x, pieces[1].y, pieces[1].z, pieces[1].w};
        float scale[4], shift[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            w4_scale(scales_of[i], scale[i], shift[i]);
            shift[i] = fmaf(-16.0f, scale[i], shift[i]);
        }
        unsigned a[2][2][4];
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
            unsigned low[4], high[4];
            w4_pairs<T>(words[2 * tile], low);
            w4_pairs<T>(words[2 * tile + 1], high);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                a[tile][half][0] = low[2 * half];
                a[tile][half][1] = high[2 * half];
                a[tile][half][2] = low[2 * half + 1];
                a[tile][half][3] = high[2 * half + 1];
            }
        }
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const unsigned first[2] = {held[r].x, held[r].y}, second[2] = {held[r].z, held[r].w};
            float of_x[4] = {};
            mma_16x8x16<T>(of_x, ones, first);
            mma_16x8x16<T>(of_x, ones, second);
#pragma unroll
            for (int tile = 0; tile < 2; ++tile) {
                float products[4] = {};
                mma_16x8x16<T>(products, a[tile][0], first);
                mma_16x8x16<T>(products, a[tile][1], second);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int column = 2 * tile + i / 2;
                    const float shifted = fmaf(shift[column], of_x[i % 2], sum[tile][r][i]);
                    sum[tile][r][i] = fmaf(scale[column], products[i], shifted);
                }
            }
        }
    }
};

struct W4A8 : W4 {
    using Sum = float;
    using Held = GemmGroups::Held;
    GemmGroups x;

    __device__ __forceinline__ W4A8(const W4& weights, const GemmGroups& of_x) : W4(weights), x(of_x) {}
    __device__ __forceinline__ Held hold(int row_tile, int step, const GemmPlace& place, const GemmCall& call) const {
        return x.hold(row_tile, step, place, call);
    }
    template <int R>
    __device__ __forceinline__ void multiply(const uint4 (&pieces)[PIECES], const Held (&held)[R], Sum (&sum)[2][R][4]) const {
        const unsigned ones[4] = {0x01010101u, 0x01010101u, 0x01010101u, 0x01010101u};
        const unsigned words[4] = {pieces[0].x, pieces[0].y, pieces[0].z, pieces[0].w};
        const unsigned scales_of[4] = {pieces[1].x, pieces[1].y, pieces[1].z, pieces[1].w};
        float scale[4], min[4];
        // Lower halves of the bytes hold k = 0, 4, 1, 5, upper ones 2, 6, 3, 7.
        unsigned a[2][4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            w4_scale(scales_of[i], scale[i], min[i]);
            a[i / 2][i % 2] = words[i] & 0x0f0f0f0fu;
            a[i / 2][i % 2 + 2] = words[i] >> 4 & 0x0f0f0f0fu;
        }
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const GemmBytes codes = held[r].codes;
            const unsigned b[2] = {__byte_perm(codes.low, codes.high, 0x5140), __byte_perm(codes.low, codes.high, 0x7362)};
            int of_x[4] = {};
            mma_16x8x32_s8(of_x, ones, b);
#pragma unroll
            for (int tile = 0; tile < 2; ++tile) {
                int products[4] = {};
                mma_16x8x32_s8(products, a[tile], b);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int column = 2 * tile + i / 2;
                    const float shifted = min[column] * static_cast<float>(of_x[i % 2]);
                    const float both = fmaf(scale[column], static_cast<float>(products[i]), shifted);
                    sum[tile][r][i] = fmaf(held[r].scale[i % 2], both, sum[tile][r][i]);
                }
            }
        }
    }
};

}  // namespace weft

#define WEFT_W4A16(R, BLOCKS, suffix, T)                                                                                  \
    extern "C" __global__ void __launch_bounds__(weft::GEMM_THREADS, BLOCKS) weft_gemm_w4a16_##suffix##_##R(              \
        const uint4* codes, const uint4* scales, int group_shift, const T* x, weft::GemmCall call) {                      \
        weft::gemm<weft::W4A16<T>, R>(weft::W4A16<T>(weft::W4{codes, scales, group_shift}, x), call);                     \
    }
WEFT_GEMM_ROWS(WEFT_W4A16, bf16, __nv_bfloat16)
WEFT_GEMM_ROWS(WEFT_W4A16, f16, __half)

#define WEFT_W4A8(R, BLOCKS, W)                                                                                           \
    extern "C" __global__ void __launch_bounds__(weft::GEMM_THREADS, BLOCKS) weft_gemm_w4a8_##R(                          \
        const uint4* codes, const uint4* scales, int group_shift, weft::GemmGroups x, weft::GemmCall call) {              \
        weft::gemm<W, R>(W(weft::W4{codes, scales, group_shift}, x), call);                                               \
    }
WEFT_GEMM_ROWS(WEFT_W4A8, weft::W4A8)
