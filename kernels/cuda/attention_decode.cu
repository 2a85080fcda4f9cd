// Decoding: one token of each sequence over all that came before it, splits of the context side by side.
//
//   q         [rows, heads, head_dim]  X, rows q_stride apart     out  [rows, heads, head_dim]  X, rows out_stride apart
//   partials  [partials, heads, head_dim]  f32, and [partials, heads, 2]: largest score and sum of weights of a split
//
// Grid: (splits, kv_heads * head blocks, items). A block takes every `gridDim.x`-th split of one sequence, for up to `block_heads`
// (at most 8) of the query heads that share a key head: keys and values are read once for all of them. The grid is fixed for a
// size of batch: how many splits there are follows from the position, which lies in device memory. A row with one split is done
// then; for others `weft_attention_combine` adds the splits in order. Items have one row here.
//
// Bytes: keys and values that are seen, once for each block of heads; 8 * (head_dim + 2) for each split and head, where there are several.
#include "attention.cuh"

namespace weft {

__device__ __forceinline__ unsigned split_count(const Seen& seen) {
    return static_cast<unsigned>((seen.hi - 1) / seen.split - seen.lo / seen.split + 1);
}

template <typename X, typename Kv, int ROWS, int DIMS>
__device__ __forceinline__ void decode_heads(const X* q, const AttentionShape& shape, const AttentionItem& item, const Seen& seen,
                                             const Pages& pages, const Kv* k_pages, const Kv* v_pages, float k_scale, float v_scale,
                                             int first_head, int heads, float* partial_out, float* partial_sums, X* out,
                                             void* shared) {
    const int warp = threadIdx.x / WARP;
    const Tiles tiles = lay_out<Kv, true>(shared, ROWS * ATTENTION_WARPS, shape.head_dim);
    load_rows(q, shape, item, first_head, heads, 0, heads, ROWS * ATTENTION_WARPS, tiles);
    const unsigned splits = split_count(seen);
    for (unsigned split = blockIdx.x; split < splits; split += gridDim.x) {
        const int split_begin = (seen.lo / seen.split + static_cast<int>(split)) * seen.split;
        const int lo = max(seen.lo, split_begin), hi = min(seen.hi, split_begin + seen.split);
        Sums<ROWS, DIMS> sums;
        clear(sums);
#pragma unroll 1
        for (int begin = lo / tiles.positions * tiles.positions; begin < hi; begin += tiles.positions) {
            const unsigned place = place_of_lane(pages, begin, lo, hi);
            stage(k_pages, place, shape.head_dim, tiles, tiles.k);
            stage(v_pages, place, shape.head_dim, tiles, tiles.v);
            __syncthreads();
            weigh<Kv>(tiles, begin, __fmul_rn(shape.scale, k_scale), shape.soft_cap, sums);
            __syncthreads();
            add_values<Kv>(tiles, begin, begin >= lo && begin + tiles.positions <= hi, sums);
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const int row = warp + ATTENTION_WARPS * i, head = first_head + row;
            const float max = __shfl_sync(ALL_LANES, sums.max, i), sum = __shfl_sync(ALL_LANES, sums.sum, i);
            if (row >= heads) continue;
            if (splits == 1) {
                store_row(output_of(out, shape, item, 0, head), shape.head_dim, sum, sums.out[i], v_scale);
                continue;
            }
            const size_t at = (static_cast<size_t>(item.first_partial) + split) * shape.heads + head;
            const int lane = threadIdx.x % WARP;
            if (lane == 0) {
                partial_sums[at * 2] = max;
                partial_sums[at * 2 + 1] = sum;
            }
#pragma unroll
            for (int d = 0; d < DIMS; ++d)
                if (lane * DIMS + d < shape.head_dim) partial_out[at * shape.head_dim + lane * DIMS + d] = sums.out[i][d];
        }
    }
}

template <typename X, typename Kv, int DIMS>
__device__ __forceinline__ void decode_dims(const X* q, const AttentionShape& shape, const AttentionItem& item, const Seen& seen,
                                            const Pages& pages, const Kv* k_pages, const Kv* v_pages, float k_scale, float v_scale,
                                            int first_head, int heads, float* partial_out, float* partial_sums, X* out, void* shared) {
    if (heads <= ATTENTION_WARPS) {
        decode_heads<X, Kv, 1, DIMS>(q, shape, item, seen, pages, k_pages, v_pages, k_scale, v_scale, first_head, heads, partial_out,
                                     partial_sums, out, shared);
    } else {
        decode_heads<X, Kv, 2, DIMS>(q, shape, item, seen, pages, k_pages, v_pages, k_scale, v_scale, first_head, heads, partial_out,
                                     partial_sums, out, shared);
    }
}

template <typename X, typename Kv>
__device__ __forceinline__ void attention_decode(const X* q, const AttentionItem* items, const unsigned* count,
                                                 const unsigned* block_tables, const AttentionShape& shape, const Kv* k_pages,
                                                 const Kv* v_pages, const float* k_scale, const float* v_scale, int block_heads,
                                                 float* partial_out, float* partial_sums, X* out, void* shared) {
    if (blockIdx.z >= *count) return;
    const AttentionItem item = items[blockIdx.z];
    const Seen seen = seen_from(static_cast<int>(item.start), shape.window);
    if (blockIdx.x >= split_count(seen)) return;
    const int kv_head = static_cast<int>(blockIdx.y) % shape.kv_heads, group = shape.heads / shape.kv_heads;
    const int first = static_cast<int>(blockIdx.y) / shape.kv_heads * block_heads, heads = min(group - first, block_heads);
    const int first_head = kv_head * group + first;
    const Pages pages = {block_tables + static_cast<size_t>(item.sequence) * shape.table_stride, shape.block_rows, kv_head,
                         shape.block_size};
    const float key_scale = IsE4m3<Kv>::value ? k_scale[kv_head] : 1.0f, value_scale = IsE4m3<Kv>::value ? v_scale[kv_head] : 1.0f;
    if (shape.head_dim <= 64) {
        decode_dims<X, Kv, 2>(q, shape, item, seen, pages, k_pages, v_pages, key_scale, value_scale, first_head, heads, partial_out,
                              partial_sums, out, shared);
    } else if (shape.head_dim <= 128) {
        decode_dims<X, Kv, 4>(q, shape, item, seen, pages, k_pages, v_pages, key_scale, value_scale, first_head, heads, partial_out,
                              partial_sums, out, shared);
    } else {
        decode_dims<X, Kv, 8>(q, shape, item, seen, pages, k_pages, v_pages, key_scale, value_scale, first_head, heads, partial_out,
                              partial_sums, out, shared);
    }
}

// Adds the splits of rows that have several. Grid: (heads / 4 rounded up, items), a warp for each head.
template <typename X, int DIMS>
__device__ __forceinline__ void combine_head(const AttentionShape& shape, const AttentionItem& item, unsigned splits, int head,
                                             float v_scale, const float* partial_out, const float* partial_sums, X* out) {
    const int lane = threadIdx.x % WARP;
    Sums<1, DIMS> total;
    clear(total);
    for (unsigned split = 0; split < splits; ++split) {
        const size_t at = (static_cast<size_t>(item.first_partial) + split) * shape.heads + head;
        const float max = partial_sums[at * 2], sum = partial_sums[at * 2 + 1];
        float values[DIMS];
#pragma unroll
        for (int d = 0; d < DIMS; ++d)
            values[d] = lane * DIMS + d < shape.head_dim ? partial_out[at * shape.head_dim + lane * DIMS + d] : 0.0f;
        add_split(total, 0, split == 0, max, sum, values);
    }
    store_row(output_of(out, shape, item, 0, head), shape.head_dim, __shfl_sync(ALL_LANES, total.sum, 0), total.out[0], v_scale);
}

template <typename X>
__device__ __forceinline__ void attention_combine(const AttentionItem* items, const unsigned* count, const AttentionShape& shape,
                                                  const float* v_scale, const float* partial_out, const float* partial_sums, X* out) {
    if (blockIdx.y >= *count) return;
    const AttentionItem item = items[blockIdx.y];
    const unsigned splits = split_count(seen_from(static_cast<int>(item.start), shape.window));
    const int head = static_cast<int>(blockIdx.x * ATTENTION_WARPS + threadIdx.x / WARP);
    if (splits == 1 || head >= shape.heads) return;
    const float scale = v_scale ? v_scale[head / (shape.heads / shape.kv_heads)] : 1.0f;
    if (shape.head_dim <= 64) {
        combine_head<X, 2>(shape, item, splits, head, scale, partial_out, partial_sums, out);
    } else if (shape.head_dim <= 128) {
        combine_head<X, 4>(shape, item, splits, head, scale, partial_out, partial_sums, out);
    } else {
        combine_head<X, 8>(shape, item, splits, head, scale, partial_out, partial_sums, out);
    }
}

}  // namespace weft

#define WEFT_ATTENTION_DECODE(suffix, X, Kv)                                                                                     \
    extern "C" __global__ void __launch_bounds__(weft::ATTENTION_THREADS, 4) weft_attention_decode_##suffix(                     \
        const X* q, const weft::AttentionItem* items, const unsigned* count, const unsigned* block_tables,                       \
        weft::AttentionShape shape, const Kv* k_pages, const Kv* v_pages, const float* k_scale, const float* v_scale,            \
        int block_heads, float* partial_out, float* partial_sums, X* out) {                                                      \
        WEFT_DYNAMIC_SHARED(shared);                                                                                             \
        weft::attention_decode<X, Kv>(q, items, count, block_tables, shape, k_pages, v_pages, k_scale, v_scale, block_heads,     \
                                      partial_out, partial_sums, out, shared);                                                   \
    }

// v_scale: null unless pages are e4m3.
#define WEFT_ATTENTION_COMBINE(suffix, X)                                                                                        \
    extern "C" __global__ void __launch_bounds__(weft::ATTENTION_THREADS) weft_attention_combine_##suffix(                       \
        const weft::AttentionItem* items, const unsigned* count, weft::AttentionShape shape, const float* v_scale,               \
        const float* partial_out, const float* partial_sums, X* out) {                                                           \
        weft::attention_combine<X>(items, count, shape, v_scale, partial_out, partial_sums, out);                                \
    }

WEFT_ATTENTION_TYPES(WEFT_ATTENTION_DECODE)
WEFT_ATTENTION_COMBINE(f32, float)
WEFT_ATTENTION_COMBINE(bf16, __nv_bfloat16)
WEFT_ATTENTION_COMBINE(f16, __half)
