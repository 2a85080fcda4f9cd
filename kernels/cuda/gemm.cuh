// out = x wᵀ with quantised weights: what the formats share. x [rows, depth], w [columns, depth], out [rows, columns], row-major. What is
// read by 16 bytes, x and the packed weights, begins at a multiple of them.
//
// For few rows (decode) the weights' way from memory is all that counts: each is read once, by loads of 16 bytes that are under way several
// steps ahead (cp.async), and lies in memory in the order in which lanes want it (repacked once, src/gemm/pack.rs), as Frantar et al.
// do it in "MARLIN: Mixed-Precision Auto-Regressive Parallel Inference on Large Language Models", 2024. A lane copies only what itself will
// read, so warps wait for nobody until they add up.
//
// Tensor cores get 16 columns of w as their A and 8 rows of x as their B: the sums of up to 8 rows cost one product, not half a one wasted.
// A *step* is 32 of depth, a *tile* the 32 columns of a warp. Since w and x may be summed in any order of k, lane (group, member) takes the
// neighbours k = 8 * member .. 8 * member + 7 of a step, in w of columns `group` and `group + 8` of 16, in x of row `group` of 8: one load.
//
// Same answer: depth is cut into `splits` times 4 parts, by depth, columns and device alone (src/gemm.rs); a part is summed by one warp,
// step by step, the 4 parts of a split are added in order, then the splits in order. So a row has the same bits alone and in a batch, and
// whether each split has a block of its own (its sums go through `partials`, and weft_gemm_finish adds them) or one block takes all in
// turn.
//
// Grid: (ceil(rows / (8 * R)), ceil(columns / 64), splits or 1), blocks of 256 threads: 2 tiles, 4 parts of depth. R = 1, 2, 4, 8 holds 8
// to 64 rows; more make more blocks, which read weights again, from L2 when they run at the same time. That is plain for long prompts.
#pragma once

#include "mma.cuh"

namespace weft {

constexpr int GEMM_STEP = 32;
constexpr int GEMM_TILE = 32;
constexpr int GEMM_ACROSS = 2;
constexpr int GEMM_ALONG = 4;
constexpr int GEMM_THREADS = GEMM_ACROSS * GEMM_ALONG * WARP;
constexpr int GEMM_COLUMNS = GEMM_ACROSS * GEMM_TILE;
// Elements of 8 rows and a block's columns that a thread adds up.
constexpr int GEMM_MINE = 8 * GEMM_COLUMNS / GEMM_THREADS;

// 56 bytes; src/gemm.rs has the same.
struct GemmCall {
    void* out;                   // [rows, out_stride] of out_type
    void* partials;              // [splits, rows, columns] f32 or s32, where splits have blocks of their own
    const float* column_scales;  // [columns], or null
    const float* row_scales;     // [rows], or null
    int rows;
    int columns;
    int depth;       // a multiple of 32
    int splits;
    int out_stride;
    int out_type;    // 0 f32, 1 bf16, 2 f16
};

template <typename Sum>
__device__ __forceinline__ void gemm_store(const GemmCall& call, int row, int column, Sum sum) {
    float value = static_cast<float>(sum);
    if (call.column_scales) value *= call.column_scales[column];
    if (call.row_scales) value *= call.row_scales[row];
    const size_t at = static_cast<size_t>(row) * call.out_stride + column;
    if (call.out_type == 0) {
        static_cast<float*>(call.out)[at] = value;
    } else if (call.out_type == 1) {
        static_cast<__nv_bfloat16*>(call.out)[at] = from_float<__nv_bfloat16>(value);
    } else {
        static_cast<__half*>(call.out)[at] = from_float<__half>(value);
    }
}

// Where a warp works.
struct GemmPlace {
    int lane;
    int tile;
    int first_row;
};

// sum [tile of 16][R][4] += the products of steps begin..end of one tile. A format F says
//
//   Sum                          float or int
//   PIECES, STAGES               pieces of 16 bytes that a lane needs for a step, steps held in shared memory
//   piece(which, tile, step, steps, lane)   where such a piece lies
//   Held, hold(row_tile, step, place, call) what a lane needs of 8 rows of x for a step
//   multiply(pieces, held, sum)
template <typename F, int R>
__device__ __forceinline__ void gemm_part(const F& format, const GemmCall& call, const GemmPlace& place, int begin, int end,
                                          uint4 (&ring)[F::STAGES][F::PIECES][GEMM_THREADS], typename F::Sum (&sum)[2][R][4]) {
    const int steps = call.depth / GEMM_STEP;
    const auto fetch = [&](int step, int stage) {
#pragma unroll
        for (int which = 0; which < F::PIECES; ++which)
            copy16(&ring[stage][which][threadIdx.x], format.piece(which, place.tile, step, steps, place.lane));
    };
#pragma unroll
    for (int ahead = 0; ahead < F::STAGES - 1; ++ahead) {
        if (begin + ahead < end) fetch(begin + ahead, ahead);
        commit_copies();
    }
    // Of few rows, x is read a step ahead; of many, the reads of one step are enough to have under way, and registers are short.
    constexpr bool AHEAD = R <= 2;
    typename F::Held held[R] = {}, next[R] = {};
    if (AHEAD && begin < end) {
#pragma unroll
        for (int r = 0; r < R; ++r) held[r] = format.hold(r, begin, place, call);
    }
    int stage = 0;
#pragma unroll 1
    for (int step = begin; step < end; ++step) {
        if (!AHEAD) {
#pragma unroll
            for (int r = 0; r < R; ++r) held[r] = format.hold(r, step, place, call);
        }
        wait_for_copies<F::STAGES - 2>();
        uint4 pieces[F::PIECES];
#pragma unroll
        for (int which = 0; which < F::PIECES; ++which) pieces[which] = ring[stage][which][threadIdx.x];
        // The stage that the last step has read.
        const int later = step + F::STAGES - 1;
        if (later < end) fetch(later, stage == 0 ? F::STAGES - 1 : stage - 1);
        commit_copies();
        if (AHEAD && step + 1 < end) {
#pragma unroll
            for (int r = 0; r < R; ++r) next[r] = format.hold(r, step + 1, place, call);
        }
        format.template multiply<R>(pieces, held, sum);
        if (AHEAD) {
#pragma unroll
            for (int r = 0; r < R; ++r) held[r] = next[r];
        }
        stage = stage + 1 == F::STAGES ? 0 : stage + 1;
    }
    wait_for_copies<0>();
}

template <typename F, int R>
__device__ __forceinline__ void gemm(const F& format, const GemmCall& call) {
    using Sum = typename F::Sum;
    __shared__ uint4 ring[F::STAGES][F::PIECES][GEMM_THREADS];
    // Four more columns, so that the lanes of a warp write to different banks.
    __shared__ Sum scratch[GEMM_ALONG][8][GEMM_COLUMNS + 4];
    const int thread = static_cast<int>(threadIdx.x), warp = thread / WARP, lane = thread % WARP;
    const int across = warp % GEMM_ACROSS, along = warp / GEMM_ACROSS;
    const int first_column = static_cast<int>(blockIdx.y) * GEMM_COLUMNS;
    const GemmPlace place = {lane, static_cast<int>(blockIdx.y) * GEMM_ACROSS + across, static_cast<int>(blockIdx.x) * 8 * R};
    const bool has_columns = place.tile * GEMM_TILE < call.columns;
    const int steps = call.depth / GEMM_STEP, parts = call.splits * GEMM_ALONG;
    const bool takes_all = gridDim.z == 1;
    const int first_split = takes_all ? 0 : static_cast<int>(blockIdx.z), end_split = takes_all ? call.splits : first_split + 1;

    Sum total[R][GEMM_MINE] = {};
    for (int split = first_split; split < end_split; ++split) {
        const int part = split * GEMM_ALONG + along;
        Sum sum[2][R][4] = {};
        if (has_columns) gemm_part<F, R>(format, call, place, part * steps / parts, (part + 1) * steps / parts, ring, sum);
#pragma unroll
        for (int r = 0; r < R; ++r) {
            __syncthreads();
#pragma unroll
            for (int tile = 0; tile < 2; ++tile)
#pragma unroll
                for (int i = 0; i < 4; ++i)
                    scratch[along][2 * (lane % 4) + i % 2][across * GEMM_TILE + tile * 16 + lane / 4 + 8 * (i / 2)] = sum[tile][r][i];
            __syncthreads();
#pragma unroll
            for (int j = 0; j < GEMM_MINE; ++j) {
                const int row = (thread + j * GEMM_THREADS) / GEMM_COLUMNS, column = thread % GEMM_COLUMNS;
                Sum of_split = scratch[0][row][column];
#pragma unroll
                for (int of = 1; of < GEMM_ALONG; ++of) of_split += scratch[of][row][column];
                total[r][j] += of_split;
            }
        }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int j = 0; j < GEMM_MINE; ++j) {
            const int row = place.first_row + r * 8 + (thread + j * GEMM_THREADS) / GEMM_COLUMNS;
            const int column = first_column + thread % GEMM_COLUMNS;
            if (row >= call.rows || column >= call.columns) continue;
            if (takes_all) {
                gemm_store(call, row, column, total[r][j]);
            } else {
                const size_t at = (static_cast<size_t>(blockIdx.z) * call.rows + row) * call.columns + column;
                static_cast<Sum*>(call.partials)[at] = total[r][j];
            }
        }
    }
}

// Where the eight elements of a lane begin, of a row and step of x. In 32 bits, to spare registers: x has at most 2^31 elements.
__device__ __forceinline__ unsigned gemm_offset(int row, int step, const GemmPlace& place, const GemmCall& call) {
    return static_cast<unsigned>(row) * static_cast<unsigned>(call.depth) +
           static_cast<unsigned>(step * GEMM_STEP + place.lane % 4 * 8);
}

// Eight elements of x of a row and step, 16 bytes: k = 8 * member and on. Beyond the last row zeroes.
template <typename T>
__device__ __forceinline__ uint4 gemm_hold16(const T* x, int row_tile, int step, const GemmPlace& place, const GemmCall& call) {
    const int row = place.first_row + row_tile * 8 + place.lane / 4;
    if (row >= call.rows) return uint4{0, 0, 0, 0};
    return *reinterpret_cast<const uint4*>(x + gemm_offset(row, step, place, call));
}

// The same of bytes.
struct __align__(8) GemmBytes {
    unsigned low, high;
};
__device__ __forceinline__ GemmBytes gemm_hold8(const void* x, int row_tile, int step, const GemmPlace& place, const GemmCall& call) {
    const int row = place.first_row + row_tile * 8 + place.lane / 4;
    if (row >= call.rows) return GemmBytes{0, 0};
    return *reinterpret_cast<const GemmBytes*>(static_cast<const char*>(x) + gemm_offset(row, step, place, call));
}

// Codes and their scales per row and 32 of depth, as weft_quantise_int8_groups writes them.
struct GemmGroups {
    const signed char* codes;  // [rows, depth]
    const float* scales;       // [depth / 32, stride], zero beyond the last row
    int stride;                // rows, rounded up to 8

    struct Held {
        GemmBytes codes;
        // Of rows 2 * member and the next.
        float scale[2];
    };
    __device__ __forceinline__ Held hold(int row_tile, int step, const GemmPlace& place, const GemmCall& call) const {
        Held held = {gemm_hold8(codes, row_tile, step, place, call), {0.0f, 0.0f}};
        const int first = place.first_row + row_tile * 8;
        if (first >= call.rows) return held;
        const float* const of_rows = scales + static_cast<unsigned>(step * stride + first + 2 * (place.lane % 4));
        held.scale[0] = of_rows[0];
        held.scale[1] = of_rows[1];
        return held;
    }
};

}  // namespace weft

// One kernel for each R, with the blocks that shall fit on a multiprocessor: with 64 rows a thread needs more than 128 registers.
#define WEFT_GEMM_ROWS(WEFT_KERNEL, ...) \
    WEFT_KERNEL(1, 3, __VA_ARGS__)       \
    WEFT_KERNEL(2, 2, __VA_ARGS__)       \
    WEFT_KERNEL(4, 2, __VA_ARGS__)       \
    WEFT_KERNEL(8, 1, __VA_ARGS__)
