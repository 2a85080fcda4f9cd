// Weights in e4m3 with a scale in f32 for each column.
//
//   fp8      x in e4m3 with a scale for each row, on sm_89 and later by their own products, before by way of f16
//   fp8_a16  x in f16 or bf16, weights widened to it, which loses nothing: for decode, where bytes of weights are all that count
//
//   codes  as in gemm_int8.cu: [tiles, steps, 2, lane, 16 bytes]
#include "gemm.cuh"

namespace weft {

struct Fp8Weights {
    const uint4* codes;

    static constexpr int PIECES = 2;
    static constexpr int STAGES = 4;
    __device__ __forceinline__ const uint4* piece(int which, int tile, int step, int steps, int lane) const {
        return codes + static_cast<unsigned>(((tile * steps + step) * 2 + which) * WARP + lane);
    }
};

struct Fp8 : Fp8Weights {
    using Sum = float;
    using Held = GemmBytes;
    const __nv_fp8_e4m3* x;

    __device__ __forceinline__ Fp8(const Fp8Weights& weights, const __nv_fp8_e4m3* of_x) : Fp8Weights(weights), x(of_x) {}
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
                // A sum of its own for each step: see mma.cuh.
                float products[4] = {};
                mma_16x8x32_e4m3(products, a, b);
#pragma unroll
                for (int i = 0; i < 4; ++i) sum[tile][r][i] += products[i];
            }
        }
    }
};

template <typename T>
struct Fp8A16 : Fp8Weights {
    using Sum = float;
    using Held = uint4;
    const T* x;

    __device__ __forceinline__ Fp8A16(const Fp8Weights& weights, const T* of_x) : Fp8Weights(weights), x(of_x) {}
    __device__ __forceinline__ Held hold(int row_tile, int step, const GemmPlace& place, const GemmCall& call) const {
        return gemm_hold16(x, row_tile, step, place, call);
    }
    template <int R>
    __device__ __forceinline__ void multiply(const uint4 (&pieces)[PIECES], const Held (&held)[R], Sum (&sum)[2][R][4]) const {
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
            const unsigned words[4] = {pieces[tile].x, pieces[tile].y, pieces[tile].z, pieces[tile].w};
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                unsigned low[2], high[2];
                widen_e4m3<T>(words[2 * half], low);
                widen_e4m3<T>(words[2 * half + 1], high);
                const unsigned a[4] = {low[0], high[0], low[1], high[1]};
#pragma unroll
                for (int r = 0; r < R; ++r) {
                    const unsigned first[2] = {held[r].x, held[r].y}, second[2] = {held[r].z, held[r].w};
                    mma_16x8x16<T>(sum[tile][r], a, half == 0 ? first : second);
                }
            }
        }
    }
};

}  // namespace weft

#define WEFT_FP8(R, BLOCKS, W)                                                                                            \
    extern "C" __global__ void __launch_bounds__(weft::GEMM_THREADS, BLOCKS) weft_gemm_fp8_##R(                           \
        const uint4* codes, const __nv_fp8_e4m3* x, weft::GemmCall call) {                                                \
        weft::gemm<W, R>(W(weft::Fp8Weights{codes}, x), call);                                                            \
    }
WEFT_GEMM_ROWS(WEFT_FP8, weft::Fp8)

#define WEFT_FP8_A16(R, BLOCKS, suffix, T)                                                                                \
    extern "C" __global__ void __launch_bounds__(weft::GEMM_THREADS, BLOCKS) weft_gemm_fp8_a16_##suffix##_##R(            \
        const uint4* codes, const T* x, weft::GemmCall call) {                                                            \
        weft::gemm<weft::Fp8A16<T>, R>(weft::Fp8A16<T>(weft::Fp8Weights{codes}, x), call);                                \
    }
WEFT_GEMM_ROWS(WEFT_FP8_A16, bf16, __nv_bfloat16)
WEFT_GEMM_ROWS(WEFT_FP8_A16, f16, __half)
