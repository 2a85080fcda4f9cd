// Attention over pages of keys and values: what writing, decoding and prompts share.
//
//   k_pages, v_pages  [blocks, kv_heads, block_size, page_stride]  Kv, row-major, at a multiple of 16 bytes; page_stride is head_dim,
//                     rounded up to 16 bytes, and zero beyond it; other layers' pages, and anything else, may lie between the blocks
//   block_tables      [sequences, table_stride]  u32            physical blocks of each sequence, in order of position
//   items             neighbouring rows of one sequence; `count` says how many there are
//   k_scale, v_scale  [kv_heads]  f32, of one layer             e4m3 only: a value is its code times the scale of its head
//
// Items, their count and the block tables lie in device memory, so a captured graph stays valid while sequences grow, come and go.
//
// Same answer, whatever shares the batch. A *row* here is one query head of one token. It sees the positions lo..hi, and adds them up
// in an order that only lo and hi decide:
//
//   - positions are cut into tiles at multiples of 32, or 16 where a key has more than 512 bytes, and into splits at multiples of
//     `split_positions(hi - lo)`, a multiple of the tile;
//   - a score is one chain over the head; within a split, tile after tile, the largest score is that of all tiles so far, what was
//     added before is scaled to it, and weights and weighted values are two chains in order of position (Milakov and Gimelshein,
//     "Online normalizer calculation for softmax", 2018);
//   - splits are added in order.
//
// So a token has the same bits as part of a prompt, cut anywhere, and alone; a decode step may give each split a block of its own (Dao
// et al., "Flash-Decoding", 2023), and the size of the grid changes nothing. Products that are added to are written as `fmaf`,
// others as `__fmul_rn`, so that no compiler joins them in one kernel and not in another.
//
// A warp has ROWS rows, row `warp + 4 * i`; scores lie across its lanes by position, values by feature, DIMS for each lane. Sums of a row
// as a whole are in lane i.
#pragma once

#include "common.cuh"
#include "fp8.cuh"

namespace weft {

constexpr int ATTENTION_WARPS = 4;
constexpr int ATTENTION_THREADS = ATTENTION_WARPS * WARP;
// Positions of the smallest split, and splits of a row until they grow: 32,768 positions. Besides, a window may begin within one.
constexpr unsigned SPLIT_POSITIONS = 256;
constexpr unsigned SPLITS = 128;
// Weights of a row in shared memory: 32, and 4 for the sake of banks.
constexpr int WEIGHTS_STRIDE = WARP + 4;
// Below every score. Not minus infinity: the difference of two is zero.
constexpr float LOWEST = -3.402823466e38f;

// Rows `first_row..first_row + rows` of a step are the positions `start..start + rows` of a sequence. 20 bytes; src/attention.rs has
// the same.
struct AttentionItem {
    unsigned first_row;
    unsigned rows;
    // Which block table.
    unsigned sequence;
    unsigned start;
    // Where results of its splits begin; only for decoding.
    unsigned first_partial;
};

// What a launch says of its layer. src/attention.rs has the same.
struct AttentionShape {
    int heads;
    int kv_heads;
    int head_dim;
    int block_size;
    // Rows of pages, of page_stride elements each, between a block and the next: kv_heads * block_size, or more where other things lie between.
    int block_rows;
    int table_stride;
    // Elements between rows of q, and of out; k and v have their own when they are written.
    int q_stride;
    int out_stride;
    // Positions that a row sees, its own included; 0: all.
    int window;
    float scale;
    // Scores become cap * tanh(score / cap); 0: they stay.
    float soft_cap;
};

struct Pages {
    const unsigned* table;
    int block_rows, kv_head, block_size;
};

// What a row sees, and the size of its splits. `lo == hi`: there is no such row.
struct __align__(16) Seen {
    int lo, hi, split, unused;
};

template <typename Kv>
struct IsE4m3 {
    static constexpr bool value = false;
};
template <>
struct IsE4m3<__nv_fp8_e4m3> {
    static constexpr bool value = true;
};

__device__ __forceinline__ int round_up(int value, int to) { return (value + to - 1) / to * to; }

__device__ __forceinline__ int split_positions(int seen) {
    unsigned size = SPLIT_POSITIONS;
    while (size * SPLITS < static_cast<unsigned>(seen)) size *= 2;
    return static_cast<int>(size);
}

// What a row at `position` sees.
__device__ __forceinline__ Seen seen_from(int position, int window) {
    Seen seen;
    seen.hi = position + 1;
    seen.lo = window > 0 && seen.hi > window ? seen.hi - window : 0;
    seen.split = split_positions(seen.hi - seen.lo);
    seen.unused = 0;
    return seen;
}

template <typename Kv>
__device__ __forceinline__ int tile_positions(int head_dim) {
    return head_dim * static_cast<int>(sizeof(Kv)) > 512 ? WARP / 2 : WARP;
}

// Elements between neighbouring positions of a page.
template <typename Kv>
__device__ __forceinline__ int page_stride(int head_dim) {
    return round_up(head_dim, 16 / static_cast<int>(sizeof(Kv)));
}

// Features of a tile: as many as are read at a time, 8, and whole pieces of 16 bytes.
template <typename Kv>
__device__ __forceinline__ int tile_dims(int head_dim) {
    return round_up(head_dim, sizeof(Kv) == 1 ? 16 : VECTOR);
}

// Bytes between keys, or values, of a tile: an odd number of 16 bytes for the sake of banks.
template <typename Kv>
__device__ __forceinline__ int tile_stride(int head_dim) {
    return (tile_dims<Kv>(head_dim) * static_cast<int>(sizeof(Kv)) / 16 | 1) * 16;
}

// Reads N elements from shared memory, at a multiple of their size.
template <int N, typename Kv>
__device__ __forceinline__ void load_kv(const Kv* from, float (&to)[N]) {
    constexpr int BYTES = N * sizeof(Kv);
    alignas(16) Kv values[N];
    if constexpr (BYTES >= 16) {
#pragma unroll
        for (int i = 0; i < BYTES / 16; ++i) reinterpret_cast<uint4*>(values)[i] = reinterpret_cast<const uint4*>(from)[i];
    } else if constexpr (BYTES == 8) {
        *reinterpret_cast<unsigned long long*>(values) = *reinterpret_cast<const unsigned long long*>(from);
    } else if constexpr (BYTES == 4) {
        *reinterpret_cast<unsigned*>(values) = *reinterpret_cast<const unsigned*>(from);
    } else {
        *reinterpret_cast<unsigned short*>(values) = *reinterpret_cast<const unsigned short*>(from);
    }
    if constexpr (IsE4m3<Kv>::value && N % 4 == 0) {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            unsigned halves[2];
            widen_e4m3<__half>(*reinterpret_cast<const unsigned*>(values + i), halves);
#pragma unroll
            for (int j = 0; j < 4; ++j) to[i + j] = to_float(reinterpret_cast<const __half*>(halves)[j]);
        }
    } else {
#pragma unroll
        for (int i = 0; i < N; ++i) to[i] = to_float(values[i]);
    }
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int apart = WARP / 2; apart > 0; apart /= 2) value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, apart));
    return value;
}

// Shared memory of a block of `rows` rows; `attention::shared_bytes` in src/attention.rs adds up the same.
struct Tiles {
    float* q;                // [rows, dims], zero where there is nothing
    unsigned char* k;        // [tile, stride] bytes
    unsigned char* v;        // the same, or the same place
    float* weights;          // [rows, WEIGHTS_STRIDE]
    Seen* seen;              // [rows]
    int positions, stride, dims;
};

template <typename Kv, bool KEYS_BESIDE_VALUES>
__device__ __forceinline__ Tiles lay_out(void* shared, int rows, int head_dim) {
    Tiles tiles;
    tiles.positions = tile_positions<Kv>(head_dim);
    tiles.stride = tile_stride<Kv>(head_dim);
    tiles.dims = tile_dims<Kv>(head_dim);
    tiles.seen = static_cast<Seen*>(shared);
    tiles.q = reinterpret_cast<float*>(tiles.seen + rows);
    tiles.weights = tiles.q + rows * tiles.dims;
    tiles.k = reinterpret_cast<unsigned char*>(tiles.weights + rows * WEIGHTS_STRIDE);
    tiles.v = KEYS_BESIDE_VALUES ? tiles.k + tiles.positions * tiles.stride : tiles.k;
    return tiles;
}

// The row of pages, of head_dim elements each, that holds position `begin + lane`; none unless it is within lo..hi.
constexpr unsigned NOTHING = 0xffffffffu;
__device__ __forceinline__ unsigned place_of_lane(const Pages& pages, int begin, int lo, int hi) {
    const int position = begin + static_cast<int>(threadIdx.x % WARP);
    if (position < lo || position >= hi) return NOTHING;
    const unsigned block = pages.table[position / pages.block_size];
    return block * static_cast<unsigned>(pages.block_rows) +
           static_cast<unsigned>(pages.kv_head * pages.block_size + position % pages.block_size);
}

// Copies the keys or values of a tile into shared memory, 16 bytes for a lane; zero where no row sees them, and beyond the head. `place`:
// of each lane's position. All threads call it.
template <typename Kv>
__device__ __forceinline__ void stage(const Kv* pages, unsigned place, int head_dim, const Tiles& tiles, unsigned char* to) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int pieces = page_stride<Kv>(head_dim) * static_cast<int>(sizeof(Kv)) / 16;
    const int all_pieces = tiles.dims * static_cast<int>(sizeof(Kv)) / 16;
    // As many lanes for each position as it has pieces, up to a power of two. So all lanes of a warp take the same number of turns.
    int lanes = 1;
    while (lanes < all_pieces && lanes < WARP) lanes *= 2;
    const int together = WARP / lanes;
#pragma unroll 4
    for (int j = warp * together + lane / lanes; j < tiles.positions; j += ATTENTION_WARPS * together) {
        const unsigned row = __shfl_sync(ALL_LANES, place, j);
        const uint4* from = reinterpret_cast<const uint4*>(pages) + static_cast<size_t>(row) * pieces;
        uint4* at = reinterpret_cast<uint4*>(to + j * tiles.stride);
#pragma unroll 1
        for (int piece = lane % lanes; piece < all_pieces; piece += lanes) {
            uint4 bits = {0, 0, 0, 0};
            if (row != NOTHING && piece < pieces) bits = from[piece];
            at[piece] = bits;
        }
    }
}

// What a warp has added up for its rows since their split began. The largest score and the sum of weights of row i are in lane i.
template <int ROWS, int DIMS>
struct Sums {
    float max;
    float sum;
    float out[ROWS][DIMS];
};

// Row i, or all of them.
template <int ROWS, int DIMS>
__device__ __forceinline__ void clear(Sums<ROWS, DIMS>& sums, int i) {
    if (static_cast<int>(threadIdx.x % WARP) == i) {
        sums.max = LOWEST;
        sums.sum = 0.0f;
    }
#pragma unroll
    for (int d = 0; d < DIMS; ++d) sums.out[i][d] = 0.0f;
}
template <int ROWS, int DIMS>
__device__ __forceinline__ void clear(Sums<ROWS, DIMS>& sums) {
    sums.max = LOWEST;
    sums.sum = 0.0f;
#pragma unroll
    for (int i = 0; i < ROWS; ++i)
#pragma unroll
        for (int d = 0; d < DIMS; ++d) sums.out[i][d] = 0.0f;
}

// Adds the split of row i that comes next in order; `is_first`: it is the first. All lanes call it with the same `max` and `sum`.
template <int ROWS, int DIMS>
__device__ __forceinline__ void add_split(Sums<ROWS, DIMS>& total, int i, bool is_first, float max, float sum, const float (&out)[DIMS]) {
    const float max_before = __shfl_sync(ALL_LANES, total.max, i), sum_before = __shfl_sync(ALL_LANES, total.sum, i);
    const float highest = is_first ? max : fmaxf(max_before, max);
    const float before = expf(max_before - highest), now = expf(max - highest);
    if (static_cast<int>(threadIdx.x % WARP) == i) {
        total.max = highest;
        total.sum = is_first ? sum : fmaf(sum, now, __fmul_rn(sum_before, before));
    }
#pragma unroll
    for (int d = 0; d < DIMS; ++d) total.out[i][d] = is_first ? out[d] : fmaf(out[d], now, __fmul_rn(total.out[i][d], before));
}

// Scores of the tile's keys, position `lane` of it, and their weights into shared memory; what the rows have so far is scaled to the new
// largest score. `scale`: that of scores and of keys.
template <typename Kv, int ROWS, int DIMS>
__device__ __forceinline__ void weigh(const Tiles& tiles, int begin, float scale, float soft_cap, Sums<ROWS, DIMS>& sums) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    // Half a tile has each key twice; the second is seen by none.
    const Kv* key = reinterpret_cast<const Kv*>(tiles.k + lane % tiles.positions * tiles.stride);
    float score[ROWS] = {};
#pragma unroll 1
    for (int at = 0; at < tiles.dims; at += VECTOR) {
        float k[VECTOR];
        load_kv<VECTOR>(key + at, k);
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            const float4* q = reinterpret_cast<const float4*>(tiles.q + (warp + ATTENTION_WARPS * i) * tiles.dims + at);
            const float4 low = q[0], high = q[1];
            float total = score[i];
            total = fmaf(k[0], low.x, total);
            total = fmaf(k[1], low.y, total);
            total = fmaf(k[2], low.z, total);
            total = fmaf(k[3], low.w, total);
            total = fmaf(k[4], high.x, total);
            total = fmaf(k[5], high.y, total);
            total = fmaf(k[6], high.z, total);
            total = fmaf(k[7], high.w, total);
            score[i] = total;
        }
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        const int row = warp + ATTENTION_WARPS * i, position = begin + lane;
        const Seen seen = tiles.seen[row];
        const bool is_seen = lane < tiles.positions && position >= seen.lo && position < seen.hi;
        float s = __fmul_rn(score[i], scale);
        // cap * tanh(s / cap), within a few units of 2^-24 * cap.
        if (soft_cap > 0.0f) s = __fsub_rn(soft_cap, __fdiv_rn(2.0f * soft_cap, __fadd_rn(1.0f, expf(__fdiv_rn(2.0f * s, soft_cap)))));
        const float before = __shfl_sync(ALL_LANES, sums.max, i);
        const float highest = fmaxf(before, warp_max(is_seen ? s : LOWEST));
        const float factor = expf(before - highest);
        tiles.weights[row * WEIGHTS_STRIDE + lane] = is_seen ? expf(s - highest) : 0.0f;
        if (lane == i) {
            sums.max = highest;
            sums.sum = __fmul_rn(sums.sum, factor);
        }
#pragma unroll
        for (int d = 0; d < DIMS; ++d) sums.out[i][d] = __fmul_rn(sums.out[i][d], factor);
    }
}

// Adds the weighted values of a tile, all of them to each row, or those whose bit is set: others are not even multiplied by zero, because
// they may not be finite. `of_lane`: the bits of row `lane`.
template <bool ALL, typename Kv, int ROWS, int DIMS>
__device__ __forceinline__ void add_values(const Tiles& tiles, const unsigned (&seen)[ROWS], unsigned of_lane, Sums<ROWS, DIMS>& sums) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    // Lanes beyond the features repeat lane 0, those beyond the rows the first, and store nothing in the end.
    const unsigned char* values = tiles.v + (lane * DIMS < tiles.dims ? lane * DIMS * static_cast<int>(sizeof(Kv)) : 0);
    const float* weights = tiles.weights + warp * WEIGHTS_STRIDE;
    const float* weights_of_lane = weights + (lane < ROWS ? lane * ATTENTION_WARPS * WEIGHTS_STRIDE : 0);
#pragma unroll 1
    for (int at = 0; at < tiles.positions; at += 4) {
        float v[4][DIMS];
#pragma unroll
        for (int j = 0; j < 4; ++j) load_kv<DIMS>(reinterpret_cast<const Kv*>(values + (at + j) * tiles.stride), v[j]);
        const float4 own = *reinterpret_cast<const float4*>(weights_of_lane + at);
        if (ALL || (of_lane >> at & 1u)) sums.sum += own.x;
        if (ALL || (of_lane >> at & 2u)) sums.sum += own.y;
        if (ALL || (of_lane >> at & 4u)) sums.sum += own.z;
        if (ALL || (of_lane >> at & 8u)) sums.sum += own.w;
#pragma unroll
        for (int i = 0; i < ROWS; ++i) {
            if (!ALL && seen[i] == 0) continue;
            const float4 four = *reinterpret_cast<const float4*>(weights + i * ATTENTION_WARPS * WEIGHTS_STRIDE + at);
            const float weight[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (!ALL && !(seen[i] >> (at + j) & 1u)) continue;
#pragma unroll
                for (int d = 0; d < DIMS; ++d) sums.out[i][d] = fmaf(weight[j], v[j][d], sums.out[i][d]);
            }
        }
    }
}

// Of 32 positions from `begin` on, which a row sees; position j is bit j.
__device__ __forceinline__ unsigned seen_bits(const Seen& seen, int begin) {
    const int first = max(seen.lo - begin, 0), end = min(seen.hi - begin, WARP);
    return first < end ? ALL_LANES >> (WARP - (end - first)) << first : 0;
}

// `all_see_all`: every row sees every position of the tile.
template <typename Kv, int ROWS, int DIMS>
__device__ __forceinline__ void add_values(const Tiles& tiles, int begin, bool all_see_all, Sums<ROWS, DIMS>& sums) {
    unsigned seen[ROWS] = {}, of_lane = 0;
    if (all_see_all) {
        add_values<true, Kv>(tiles, seen, of_lane, sums);
        return;
    }
#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        seen[i] = seen_bits(tiles.seen[threadIdx.x / WARP + ATTENTION_WARPS * i], begin);
        if (static_cast<int>(threadIdx.x % WARP) == i) of_lane = seen[i];
    }
    add_values<false, Kv>(tiles, seen, of_lane, sums);
}

// The query heads of a block's rows into shared memory, and what they see: row r is head `first_head + (first + r) % group` of token
// (first + r) / group of an item, for `first + r` below `end`.
template <typename X>
__device__ __forceinline__ void load_rows(const X* q, const AttentionShape& shape, const AttentionItem& item, int first_head, int group,
                                          int first, int end, int rows, const Tiles& tiles) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int r = warp; r < rows; r += ATTENTION_WARPS) {
        const bool exists = first + r < end;
        const int token = (first + r) / group, head = first_head + (first + r) % group;
        const X* from = q + static_cast<size_t>(item.first_row + token) * shape.q_stride + static_cast<size_t>(head) * shape.head_dim;
        for (int d = lane; d < tiles.dims; d += WARP)
            tiles.q[r * tiles.dims + d] = exists && d < shape.head_dim ? to_float(from[d]) : 0.0f;
        if (lane == 0) {
            Seen seen = {0, 0, 1, 0};
            if (exists) seen = seen_from(static_cast<int>(item.start) + token, shape.window);
            tiles.seen[r] = seen;
        }
    }
}

// Where a row's output begins.
template <typename X>
__device__ __forceinline__ X* output_of(X* out, const AttentionShape& shape, const AttentionItem& item, int token, int head) {
    return out + static_cast<size_t>(item.first_row + token) * shape.out_stride + static_cast<size_t>(head) * shape.head_dim;
}

template <typename X, int DIMS>
__device__ __forceinline__ void store_row(X* to, int head_dim, float sum, const float (&out)[DIMS], float v_scale) {
    const int at = threadIdx.x % WARP * DIMS;
#pragma unroll
    for (int d = 0; d < DIMS; ++d)
        if (at + d < head_dim) to[at + d] = from_float<X>(__fmul_rn(out[d] / sum, v_scale));
}

}  // namespace weft

// Types of activations and of keys and values. Kernels of half precision take pages of the same type or of e4m3.
#define WEFT_ATTENTION_TYPES(DEFINE)                \
    DEFINE(f32_f32, float, float)                   \
    DEFINE(f32_bf16, float, __nv_bfloat16)          \
    DEFINE(bf16_bf16, __nv_bfloat16, __nv_bfloat16) \
    DEFINE(bf16_e4m3, __nv_bfloat16, __nv_fp8_e4m3) \
    DEFINE(f16_f16, __half, __half)                 \
    DEFINE(f16_e4m3, __half, __nv_fp8_e4m3)
