// Adapters over a batch whose rows use different ones: out[row, offset..] += scale * B(A x[row]).
//
// One launch per fused site (q/k/v, o, gate/up, down). Which rows use which adapter is read from a table in device memory, so a
// captured graph stays valid when the adapters of a batch, their ranks or their number change.
//
//   x       [rows, in]            X, row-major
//   out     [rows, out_stride]    X, row-major; rows without an item stay as they are
//   items   [grid.y]              rows that share their targets: 1 of them, or up to 16; `count` says how many items there are
//   targets                       of an item, in order: A [rank, in] and B [out_features, rank], both W, row-major, in a slot
//                                 (lora_weights.cuh)
//
// Grid: (column splits, items). A block shrinks its rows into shared memory, then grows its `columns_per_block` columns of `out`.
// Nothing goes through memory between the two, so no block waits for another; the price is that each column split shrinks again. A is
// read from HBM once and for the other splits from L2. The host takes as many splits as fill the device and no more
// (src/table.rs), so that a step with many items has one.
//
// Work follows the sum of actual ranks: loops end at the rank, rounded up to 8. Only the shared memory, 4 bytes for each row and rank,
// is that of the largest rank (`shrunk_stride`, a multiple of 8).
//
// Bytes: A and B of each item once, x and its columns of out once. Sums are f32, in the order that common.cuh states; a row has the
// same bits alone and among 16, whatever the splits.
#pragma once

#include "lora_weights.cuh"

namespace weft::lora {

constexpr int LORA_WARPS = 8;
constexpr int LORA_THREADS = LORA_WARPS * WARP;
// Ranks that a warp shrinks at once: each x that it reads is used twice.
constexpr int LORA_RANKS = 2;
constexpr int LORA_ROWS = 16;

// Rows `first_row..first_row + rows` use targets `first_target..first_target + targets`. 16 bytes; src/table.rs has the same.
struct LoraItem {
    unsigned first_row;
    unsigned rows;
    unsigned first_target;
    unsigned targets;
};

// One adapter's change to one linear. 32 bytes; src/table.rs has the same.
struct LoraTarget {
    const void* a;
    const void* b;
    unsigned rank;
    float scale;
    unsigned out_offset;
    unsigned out_features;
};

__device__ __forceinline__ int rank_steps(int rank) { return (rank + VECTOR - 1) / VECTOR * VECTOR; }

// What a rank's sum of products is multiplied by, that of codes too; zero for ranks that do not exist.
template <typename W>
__device__ __forceinline__ float lora_scale(const LoraTarget& target, int rank) {
    if (rank >= static_cast<int>(target.rank)) return 0.0f;
    if constexpr (!IS_CODE<W>) {
        return target.scale;
    } else {
        constexpr float UNITS = CodeUnit<W>::VALUE * CodeUnit<W>::VALUE;
        return target.scale * (static_cast<const float*>(target.a)[rank] * static_cast<const float*>(target.b)[rank] * UNITS);
    }
}

// shrunk [ROWS, stride] = scale * A x for the ranks of a target, times the scales of codes; zero up to the next multiple of 8.
template <int ROWS, typename X, typename W>
__device__ __forceinline__ void shrink(const X* x, int in, int rows, const LoraTarget& target, float* shrunk, int stride) {
    const int rank = static_cast<int>(target.rank);
    const W* a = lora_values<W>(target.a, rank);
    const int lane = threadIdx.x % WARP;
    const bool x_aligned = rows_are_aligned(x, in);
    const bool a_aligned = pieces_are_aligned<VECTOR>(a, in);
    for (int first = threadIdx.x / WARP * LORA_RANKS; first < rank_steps(rank); first += LORA_WARPS * LORA_RANKS) {
        float sum[LORA_RANKS][ROWS] = {};
#pragma unroll(ROWS == 1 ? 4 : 1)
        for (int at = lane * VECTOR; at < in; at += WARP * VECTOR) {
            float weight[LORA_RANKS][VECTOR];
#pragma unroll
            for (int j = 0; j < LORA_RANKS; ++j)
                load_weights(a + static_cast<size_t>(first + j) * in + at, first + j < rank ? in - at : 0, a_aligned, weight[j]);
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                if (row < rows) {
                    float value[VECTOR];
                    load8(x + static_cast<size_t>(row) * in + at, in - at, x_aligned, value);
#pragma unroll
                    for (int j = 0; j < LORA_RANKS; ++j)
#pragma unroll
                        for (int i = 0; i < VECTOR; ++i) sum[j][row] = fmaf(weight[j][i], value[i], sum[j][row]);
                }
            }
        }
        float scale[LORA_RANKS];
#pragma unroll
        for (int j = 0; j < LORA_RANKS; ++j) scale[j] = lora_scale<W>(target, first + j);
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
            if (row < rows) {
#pragma unroll
                for (int j = 0; j < LORA_RANKS; ++j) {
                    const float total = warp_sum(sum[j][row]);
                    // A rank beyond the last must be zero even where x is not finite.
                    if (lane == 0) shrunk[row * stride + first + j] = first + j < rank ? total * scale[j] : 0.0f;
                }
            }
        }
    }
}

// out[row, column] += B[column] . shrunk[row] for the columns of a target within first_column..end_column. A column belongs to the
// same thread for every target, so targets may share columns.
template <int ROWS, typename X, typename W>
__device__ __forceinline__ void grow(const LoraTarget& target, const float* shrunk, int stride, int rows, X* out, int out_stride,
                                     int first_column, int end_column) {
    const int rank = static_cast<int>(target.rank);
    const W* b = lora_values<W>(target.b, rank);
    const int begin = static_cast<int>(target.out_offset);
    const int target_end = begin + static_cast<int>(target.out_features);
    const int end = end_column < target_end ? end_column : target_end;
    const bool b_aligned = pieces_are_aligned<VECTOR>(b, rank);
    for (int column = first_column + static_cast<int>(threadIdx.x); column < end; column += LORA_THREADS) {
        if (column < begin) continue;
        const W* of_column = b + static_cast<size_t>(column - begin) * rank;
        float sum[ROWS] = {};
        for (int at = 0; at < rank; at += VECTOR) {
            float weight[VECTOR];
            load_weights(of_column + at, rank - at, b_aligned, weight);
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                if (row < rows) {
                    const float4* values = reinterpret_cast<const float4*>(shrunk + row * stride + at);
                    const float4 low = values[0], high = values[1];
                    float total = sum[row];
                    total = fmaf(weight[0], low.x, total);
                    total = fmaf(weight[1], low.y, total);
                    total = fmaf(weight[2], low.z, total);
                    total = fmaf(weight[3], low.w, total);
                    total = fmaf(weight[4], high.x, total);
                    total = fmaf(weight[5], high.y, total);
                    total = fmaf(weight[6], high.z, total);
                    total = fmaf(weight[7], high.w, total);
                    sum[row] = total;
                }
            }
        }
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
            if (row < rows) {
                X* to = out + static_cast<size_t>(row) * out_stride + column;
                *to = from_float<X>(to_float(*to) + sum[row]);
            }
        }
    }
}

template <int ROWS, typename X, typename W>
__device__ __forceinline__ void lora_item(const X* x, int in, X* out, int out_stride, const LoraItem& item,
                                          const LoraTarget* targets, float* shrunk, int shrunk_stride, int columns_per_block) {
    const int rows = static_cast<int>(item.rows);
    const int first_column = static_cast<int>(blockIdx.x) * columns_per_block;
    const int end_column = out_stride - first_column < columns_per_block ? out_stride : first_column + columns_per_block;
    x += static_cast<size_t>(item.first_row) * in;
    out += static_cast<size_t>(item.first_row) * out_stride;
    for (unsigned i = 0; i < item.targets; ++i) {
        const LoraTarget target = targets[item.first_target + i];
        const int begin = static_cast<int>(target.out_offset), end = begin + static_cast<int>(target.out_features);
        // The same for all threads of the block: none misses a barrier.
        if (target.rank == 0 || begin >= end_column || end <= first_column) continue;
        shrink<ROWS, X, W>(x, in, rows, target, shrunk, shrunk_stride);
        __syncthreads();
        grow<ROWS, X, W>(target, shrunk, shrunk_stride, rows, out, out_stride, first_column, end_column);
        __syncthreads();
    }
}

}  // namespace weft::lora
