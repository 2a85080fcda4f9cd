// Keys and values of a step into their pages.
//
//   k, v  [rows, kv_heads, head_dim]  X; rows begin k_stride and v_stride elements apart, so parts of a fused q/k/v may be given
//
// Pages, items and block tables as attention.cuh says. Grid: (items). A block writes the rows of one item, eight elements for each
// thread at a time. Codes of e4m3 are value / scale, to nearest even, at most 448.
//
// Bytes: k and v once, and their share of the pages once.
#include "attention.cuh"

namespace weft {

// Eight elements of which `left` exist, and zero for the others as far as there is room.
template <typename X, typename Kv>
__device__ __forceinline__ void write_eight(const X* from, Kv* to, int left, int room, float scale) {
    float values[VECTOR];
    load8(from, left, reinterpret_cast<size_t>(from) % 16 == 0, values);
    if constexpr (IsE4m3<Kv>::value) {
        alignas(8) Kv codes[VECTOR];
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) codes[i] = from_float<Kv>(values[i] / scale);
        *reinterpret_cast<unsigned long long*>(to) = *reinterpret_cast<const unsigned long long*>(codes);
    } else {
        store8(to, room, reinterpret_cast<size_t>(to) % 16 == 0, values);
    }
}

template <typename X, typename Kv>
__device__ __forceinline__ void kv_write(const X* k, const X* v, int k_stride, int v_stride, const AttentionItem* items,
                                         const unsigned* count, const unsigned* block_tables, const AttentionShape& shape, Kv* k_pages,
                                         Kv* v_pages, const float* k_scale, const float* v_scale) {
    if (blockIdx.x >= *count) return;
    const AttentionItem item = items[blockIdx.x];
    const unsigned* table = block_tables + static_cast<size_t>(item.sequence) * shape.table_stride;
    const int stride = page_stride<Kv>(shape.head_dim), chunks = (stride + VECTOR - 1) / VECTOR, each_row = shape.kv_heads * chunks;
    for (int i = threadIdx.x; i < static_cast<int>(item.rows) * each_row; i += ATTENTION_THREADS) {
        const int token = i / each_row, head = i % each_row / chunks, at = i % chunks * VECTOR;
        const int position = static_cast<int>(item.start) + token;
        const size_t row = item.first_row + token;
        const size_t from = static_cast<size_t>(head) * shape.head_dim + at;
        const size_t block = static_cast<size_t>(table[position / shape.block_size]) * shape.block_rows;
        const size_t to = (block + head * shape.block_size + position % shape.block_size) * stride + at;
        const int left = shape.head_dim - at, room = stride - at;
        write_eight(k + row * k_stride + from, k_pages + to, left, room, IsE4m3<Kv>::value ? k_scale[head] : 1.0f);
        write_eight(v + row * v_stride + from, v_pages + to, left, room, IsE4m3<Kv>::value ? v_scale[head] : 1.0f);
    }
}

}  // namespace weft

#define WEFT_KV_WRITE(suffix, X, Kv)                                                                                             \
    extern "C" __global__ void __launch_bounds__(weft::ATTENTION_THREADS) weft_kv_write_##suffix(                               \
        const X* k, const X* v, int k_stride, int v_stride, const weft::AttentionItem* items, const unsigned* count,             \
        const unsigned* block_tables, weft::AttentionShape shape, Kv* k_pages, Kv* v_pages, const float* k_scale,                \
        const float* v_scale) {                                                                                                  \
        weft::kv_write<X, Kv>(k, v, k_stride, v_stride, items, count, block_tables, shape, k_pages, v_pages, k_scale, v_scale);  \
    }

WEFT_ATTENTION_TYPES(WEFT_KV_WRITE)
