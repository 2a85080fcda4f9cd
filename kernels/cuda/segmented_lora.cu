// Adapters over a batch whose rows use different ones: out[row, offset..] += scale * B(A x[row]).
//
// One launch per fused site (q/k/v, o, gate/up, down). Which rows use which adapter is read from a table in device memory, so a
// captured graph stays valid when the adapters of a batch, their ranks or their number change.
//
//   x       [rows, in]            X, row-major
//   out     [rows, out_stride]    X, row-major; rows without an item stay as they are
//   items   [grid.y]              rows that share their targets: 1 of them, or up to 16; `count` says how many items there are
//   targets                       of an item, in order: A [rank, in] and B [out_features, rank], both W, row-major, in a slot
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
#include "common.cuh"

namespace weft {

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

// shrunk [ROWS, stride] = scale * A x for the ranks of a target, zero up to the next multiple of 8.
template <int ROWS, typename X, typename W>
__device__ __forceinline__ void shrink(const X* x, int in, int rows, const LoraTarget& target, float* shrunk, int stride) {
    const W* a = static_cast<const W*>(target.a);
    const int rank = static_cast<int>(target.rank);
    const int lane = threadIdx.x % WARP;
    const bool x_aligned = rows_are_aligned(x, in);
    const bool a_aligned = rows_are_aligned(a, in);
    for (int first = threadIdx.x / WARP * LORA_RANKS; first < rank_steps(rank); first += LORA_WARPS * LORA_RANKS) {
        float sum[LORA_RANKS][ROWS] = {};
#pragma unroll(ROWS == 1 ? 4 : 1)
        for (int at = lane * VECTOR; at < in; at += WARP * VECTOR) {
            float weight[LORA_RANKS][VECTOR];
#pragma unroll
            for (int j = 0; j < LORA_RANKS; ++j)
                load8(a + static_cast<size_t>(first + j) * in + at, first + j < rank ? in - at : 0, a_aligned, weight[j]);
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
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
            if (row < rows) {
#pragma unroll
                for (int j = 0; j < LORA_RANKS; ++j) {
                    const float total = warp_sum(sum[j][row]);
                    if (lane == 0) shrunk[row * stride + first + j] = total * target.scale;
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
    const W* b = static_cast<const W*>(target.b);
    const int rank = static_cast<int>(target.rank);
    const int begin = static_cast<int>(target.out_offset);
    const int target_end = begin + static_cast<int>(target.out_features);
    const int end = end_column < target_end ? end_column : target_end;
    const bool b_aligned = rows_are_aligned(b, rank);
    for (int column = first_column + static_cast<int>(threadIdx.x); column < end; column += LORA_THREADS) {
        if (column < begin) continue;
        const W* of_column = b + static_cast<size_t>(column - begin) * rank;
        float sum[ROWS] = {};
        for (int at = 0; at < rank; at += VECTOR) {
            float weight[VECTOR];
            load8(of_column + at, rank - at, b_aligned, weight);
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

// For steps in which every item has one row.
template <typename X, typename W>
__device__ __forceinline__ void lora_decode(const X* x, int in, X* out, int out_stride, const LoraItem* items,
                                            const LoraTarget* targets, const unsigned* count, int shrunk_stride,
                                            int columns_per_block, float* shrunk) {
    if (blockIdx.y >= *count) return;
    const LoraItem item = items[blockIdx.y];
    lora_item<1, X, W>(x, in, out, out_stride, item, targets, shrunk, shrunk_stride, columns_per_block);
}

// For steps that hold prompts too: items of up to 16 rows, single ones among them.
template <typename X, typename W>
__device__ __forceinline__ void lora_mixed(const X* x, int in, X* out, int out_stride, const LoraItem* items,
                                           const LoraTarget* targets, const unsigned* count, int shrunk_stride,
                                           int columns_per_block, float* shrunk) {
    if (blockIdx.y >= *count) return;
    const LoraItem item = items[blockIdx.y];
    if (item.rows == 1) {
        lora_item<1, X, W>(x, in, out, out_stride, item, targets, shrunk, shrunk_stride, columns_per_block);
    } else {
        lora_item<LORA_ROWS, X, W>(x, in, out, out_stride, item, targets, shrunk, shrunk_stride, columns_per_block);
    }
}

}  // namespace weft

// Dynamic shared memory: decode 4 * shrunk_stride bytes, mixed 16 times that.
#define WEFT_LORA(kind, blocks, suffix, X, W)                                                                                     \
    extern "C" __global__ void __launch_bounds__(weft::LORA_THREADS, blocks) weft_lora_##kind##_##suffix(                         \
        const X* x, int in, X* out, int out_stride, const weft::LoraItem* items, const weft::LoraTarget* targets,                 \
        const unsigned* count, int shrunk_stride, int columns_per_block) {                                                        \
        WEFT_DYNAMIC_SHARED(shrunk);                                                                                              \
        weft::lora_##kind<X, W>(x, in, out, out_stride, items, targets, count, shrunk_stride, columns_per_block,                  \
                                reinterpret_cast<float*>(shrunk));                                                                \
    }

#define WEFT_LORA_TYPES(suffix, X, W)       \
    WEFT_LORA(decode, 4, suffix, X, W)      \
    WEFT_LORA(mixed, 2, suffix, X, W)

// The first type is that of x and out, the second that of A and B.
WEFT_LORA_TYPES(f32_f32, float, float)
WEFT_LORA_TYPES(f32_bf16, float, __nv_bfloat16)
WEFT_LORA_TYPES(bf16_bf16, __nv_bfloat16, __nv_bfloat16)
WEFT_LORA_TYPES(f16_f16, __half, __half)
