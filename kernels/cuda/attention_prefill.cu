// Prompts: several tokens of one sequence over its pages, their own keys and values among them; chunks of any size, at any start.
//
//   q  [rows, heads, head_dim]  X, rows q_stride apart     out  [rows, heads, head_dim]  X, rows out_stride apart
//
// Grid: (kv_heads, items). A block takes the tokens of an item with all the query heads that share a key head: up to 32 rows (16 beyond
// 128 features) at a time, which read each key and value once. Rows of an item that are more than that, with very large groups, go one
// after the other. Sums are those of decoding (attention.cuh), with the splits added up by the block itself.
//
// Operations: 4 * head_dim for each pair of a row and a position that it sees, rounded up to tiles; f32 without tensor cores.
#include "attention.cuh"

namespace weft {

template <typename X, typename Kv, int ROWS, int DIMS>
__device__ __forceinline__ void prefill_rows(const X* q, const AttentionShape& shape, const AttentionItem& item, const Pages& pages,
                                             const Kv* k_pages, const Kv* v_pages, float k_scale, float v_scale, X* out, void* shared) {
    const int warp = threadIdx.x / WARP, group = shape.heads / shape.kv_heads, first_head = pages.kv_head * group;
    const Tiles tiles = lay_out<Kv, false>(shared, ROWS * ATTENTION_WARPS, shape.head_dim);
    const int end_row = static_cast<int>(item.rows) * group;
    for (int first = 0; first < end_row; first += ROWS * ATTENTION_WARPS) {
        const int rows = min(end_row - first, ROWS * ATTENTION_WARPS);
        load_rows(q, shape, item, first_head, group, first, end_row, ROWS * ATTENTION_WARPS, tiles);
        const Seen earliest = seen_from(static_cast<int>(item.start) + first / group, shape.window);
        const Seen latest = seen_from(static_cast<int>(item.start) + (first + rows - 1) / group, shape.window);
        Sums<ROWS, DIMS> sums, total;
        clear(sums);
        clear(total);
#pragma unroll 1
        for (int begin = earliest.lo / tiles.positions * tiles.positions; begin < latest.hi; begin += tiles.positions) {
            const unsigned place = place_of_lane(pages, begin, earliest.lo, latest.hi);
            stage(k_pages, place, shape.head_dim, tiles, tiles.k);
            __syncthreads();
            weigh<Kv>(tiles, begin, __fmul_rn(shape.scale, k_scale), shape.soft_cap, sums);
            __syncthreads();
            stage(v_pages, place, shape.head_dim, tiles, tiles.v);
            __syncthreads();
            const bool all_see_all = rows == ROWS * ATTENTION_WARPS && begin >= latest.lo && begin + tiles.positions <= earliest.hi;
            add_values<Kv>(tiles, begin, all_see_all, sums);
            const int end = begin + tiles.positions;
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                const Seen seen = tiles.seen[warp + ATTENTION_WARPS * i];
                if (end % seen.split != 0 && end < latest.hi) continue;
                const int split_begin = begin / seen.split * seen.split;
                if (split_begin < seen.hi && end > seen.lo)
                    add_split(total, i, split_begin <= seen.lo, __shfl_sync(ALL_LANES, sums.max, i), __shfl_sync(ALL_LANES, sums.sum, i),
                              sums.out[i]);
                clear(sums, i);
            }
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const int row = first + warp + ATTENTION_WARPS * i;
            const float sum = __shfl_sync(ALL_LANES, total.sum, i);
            if (row >= end_row) continue;
            store_row(output_of(out, shape, item, row / group, first_head + row % group), shape.head_dim, sum, total.out[i], v_scale);
        }
    }
}

template <typename X, typename Kv>
__device__ __forceinline__ void attention_prefill(const X* q, const AttentionItem* items, const unsigned* count,
                                                  const unsigned* block_tables, const AttentionShape& shape, const Kv* k_pages,
                                                  const Kv* v_pages, const float* k_scale, const float* v_scale, X* out, void* shared) {
    if (blockIdx.y >= *count) return;
    const AttentionItem item = items[blockIdx.y];
    const int kv_head = static_cast<int>(blockIdx.x);
    const Pages pages = {block_tables + static_cast<size_t>(item.sequence) * shape.table_stride, shape.block_rows, kv_head,
                         shape.block_size};
    const float key_scale = IsE4m3<Kv>::value ? k_scale[kv_head] : 1.0f, value_scale = IsE4m3<Kv>::value ? v_scale[kv_head] : 1.0f;
    if (shape.head_dim <= 64) {
        prefill_rows<X, Kv, 8, 2>(q, shape, item, pages, k_pages, v_pages, key_scale, value_scale, out, shared);
    } else if (shape.head_dim <= 128) {
        prefill_rows<X, Kv, 8, 4>(q, shape, item, pages, k_pages, v_pages, key_scale, value_scale, out, shared);
    } else {
        prefill_rows<X, Kv, 4, 8>(q, shape, item, pages, k_pages, v_pages, key_scale, value_scale, out, shared);
    }
}

}  // namespace weft

#define WEFT_ATTENTION_PREFILL(suffix, X, Kv)                                                                                    \
    extern "C" __global__ void __launch_bounds__(weft::ATTENTION_THREADS, 3) weft_attention_prefill_##suffix(                    \
        const X* q, const weft::AttentionItem* items, const unsigned* count, const unsigned* block_tables,                       \
        weft::AttentionShape shape, const Kv* k_pages, const Kv* v_pages, const float* k_scale, const float* v_scale, X* out) {  \
        WEFT_DYNAMIC_SHARED(shared);                                                                                             \
        weft::attention_prefill<X, Kv>(q, items, count, block_tables, shape, k_pages, v_pages, k_scale, v_scale, out, shared);   \
    }

WEFT_ATTENTION_TYPES(WEFT_ATTENTION_PREFILL)
