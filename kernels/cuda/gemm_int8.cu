// Weights and activations of 8 bits: w = scale * code, code -127 to 127.
//
//   groups    a scale in f32 for each column and 32 of depth, and for each row and 32 of depth: the CPU kernels' Int8
//               (kernels/src/quant.rs)
//   channels  a scale for each column, and for each row; the sum over all of depth is an exact integer. Depth at most 131,072, so that
//             it fits into 32 bits
//
//   codes   [tiles, steps, 2, lane, 16 bytes]   of 16 columns: k = 8 * member + 0..3 of column `group` and of column `group + 8`,
//                                               then k = 8 * member + 4..7 of both
//   scales  [tiles, steps, 8, 4 f32]            groups only: of columns group, group + 8, group + 16, group + 24
#include "gemm.cuh"

namespace weft {

struct Int8Groups {
    using Sum = float;
    using Held = GemmGroups::Held;
    static constexpr int PIECES = 3;
    static constexpr int STAGES = 3;
    const uint4* codes;
    const uint4* scales;
    GemmGroups x;

    __device__ __forceinline__ const uint4* piece(int which, int tile, int step, int steps, int lane) const {
        const unsigned at = static_cast<unsigned>(tile * steps + step);
        return which < 2 ? codes + (at * 2 + which) * WARP + lane : scales + at * 8 + lane / 4;
    }
    __device__ __forceinline__ Held hold(int row_tile, int step, const GemmPlace& place, const GemmCall& call) const {
        return x.hold(row_tile, step, place, call);
    }
    template <int R>
    __device__ __forceinline__ void multiply(const uint4 (&pieces)[PIECES], const Held (&held)[R], Sum (&sum)[2][R][4]) const {
        const float* const scale = reinterpret_cast<const float*>(&pieces[2]);
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const unsigned b[2] = {held[r].codes.low, held[r].codes.high};
#pragma unroll
            for (int tile = 0; tile < 2; ++tile) {
                const unsigned a[4] = {pieces[tile].x, pieces[tile].y, pieces[tile].z, pieces[tile].w};
                int products[4] = {};
                mma_16x8x32_s8(products, a, b);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const float scaled = scale[2 * tile + i / 2] * static_cast<float>(products[i]);
                    sum[tile][r][i] = fmaf(held[r].scale[i % 2], scaled, sum[tile][r][i]);
                }
            }
        }
    }
};

struct Int8Channels {
    using Sum = int;
    using Held = GemmBytes;
    static constexpr int PIECES = 2;
    static constexpr int STAGES = 4;
    const uint4* codes;
    const signed char* x;

    __device__ __forceinline__ const uint4* piece(int which, int tile, int step, int steps, int lane) const {
        return codes + static_cast<unsigned>(((tile * steps + step) * 2 + which) * WARP + lane);
    }
    __device__ __forceinline__ Held hold(int row_tile, int step, const GemmPlace& place, const GemmCall& call) const {
        return gemm_hold8(x, row_tile, step, place, call);
    }
    template <int R>
    __device__ __forceinline__ void multiply(const uint4 (&pieces)[PIECES], const Held (&held)[R], Sum (&sum)[2][R][4]) const {
#pragma unroll
        for (int r = 0; r < R; ++r) {
            const unsigned b[2] = {held[r].low, held[r].high};
#pragma unroll
            for (int tile = 0; tile < 2; ++tile) {
                const unsigned a[4] = {pieces[tile].x, pieces[tile].y, pieces[tile].z, pieces[tile].w};
                mma_16x8x32_s8(sum[tile][r], a, b);
            }
        }
    }
};

}  // namespace weft

#define WEFT_INT8_GROUPS(R, BLOCKS, W)                                                                                    \
    extern "C" __global__ void __launch_bounds__(weft::GEMM_THREADS, BLOCKS) weft_gemm_int8_groups_##R(                   \
        const uint4* codes, const uint4* scales, weft::GemmGroups x, weft::GemmCall call) {                               \
        weft::gemm<W, R>(W{codes, scales, x}, call);                                                                      \
    }
WEFT_GEMM_ROWS(WEFT_INT8_GROUPS, weft::Int8Groups)

#define WEFT_INT8_CHANNELS(R, BLOCKS, W)                                                                                  \
    extern "C" __global__ void __launch_bounds__(weft::GEMM_THREADS, BLOCKS) weft_gemm_int8_channels_##R(                 \
        const uint4* codes, const signed char* x, weft::GemmCall call) {                                                  \
        weft::gemm<W, R>(W{codes, x}, call);                                                                              \
    }
WEFT_GEMM_ROWS(WEFT_INT8_CHANNELS, weft::Int8Channels)
