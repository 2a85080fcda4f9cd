// Prompts on tensor cores: items, pages, q and out as in attention_prefill.cu, activations of half precision. Three widths of a head: up
// to 64, 128 and 256 features (DIMS); what a head has less is zero, and is multiplied.
//
// As Dao does it in "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023: a block takes 64 rows, an
// item's tokens with all the query heads that share a key head, 16 rows a warp, which holds their queries, sums and scores in registers. Keys
// and values come tile after tile: values while scores are multiplied, the next keys while values are (cp.async), so that one place for
// either is enough.
//
// Grid: (kv_heads * ceil(group / 64), items): a group of more than 64 heads takes several blocks.
//
//   tile      64 positions, 16 beyond 128 features, at absolute multiples of that; [positions][DIMS] X in shared memory, pieces of 16 bytes
//             exchanged within a position by its number, so that ldmatrix meets all banks
//   e4m3      codes come into a ring of which each thread reads only what itself has asked for, and are widened (exactly) into the tile
//   scores    f32, in units of log 2; largest score and sum of weights (online softmax) in the four lanes that have a row
//   weights   one number of X each, and the sum is over those very numbers. So what rounding does is an average with other weights, each off
//             by at most 2^-8 (bf16) or 2^-11 (f16) of itself. With the last rounding of `out`, which is as coarse, that is 1.05 to 1.4
//             times the error of the last rounding alone (tests/attention.rs measures it). Two numbers for each weight, as lora_prefill.cu
//             has them, would leave the last rounding alone, at the price of half as many products again, which are the work here and
//             not beside it. Weights of f16 are 2^15 times what they were, so that small ones keep their bits.
//
// Same answer. A row's sums depend on what it sees and on its query, not on the rows beside it, on the item it is in or on where a chunk
// ends: tiles lie where positions say, an element of a product depends on its row and its column, and a position that the row does not see
// has the weight zero, which changes no sum. It is not the answer of decoding, whose order is another.
//
// What a row does not see leaves no trace, infinite or not. Positions that no row of the block sees are zero in the tile. Scores of others
// stay in their column, where they are put aside. Values are looked at where not all rows see all of the tile: those that are not finite
// are zero in the product, and rows that see them get them added afterwards.
//
// Operations: 4 * head_dim for each pair of a row and a position that it sees, with rows rounded up to 16, positions to tiles, features to
// DIMS.
#include "attention.cuh"
#include "mma.cuh"

namespace weft::tensor {

constexpr int ROWS = 16 * ATTENTION_WARPS;
constexpr float LOG2_E = 1.442695041f;

template <int DIMS>
constexpr int POSITIONS = DIMS > 128 ? 16 : 64;
// Pieces of 16 bytes: of a position as X, of a tile.
template <int DIMS>
constexpr int PIECES = DIMS / 8;
template <int DIMS>
constexpr int TILE_PIECES = POSITIONS<DIMS> * PIECES<DIMS>;

// A weight of one is this power of two.
template <typename X>
constexpr float ONE_LOG2 = IS_HALF<X> ? 15.0f : 0.0f;
// Bits of X that are all set in what is not finite.
template <typename X>
constexpr unsigned NOT_FINITE = IS_HALF<X> ? 0x7c00u : 0x7f80u;

// Where a piece of a position lies in a tile.
template <int DIMS>
__device__ __forceinline__ int piece_at(int position, int piece) {
    return position * PIECES<DIMS> + (piece ^ position % 8);
}

// The same value, of which the compiler knows nothing: what follows from it is computed where it is used, and takes no registers before.
__device__ __forceinline__ int afresh(int value) {
#ifdef __CUDACC__
    asm volatile("" : "+r"(value));
#endif
    return value;
}

// 2^x, off by at most 2^-22 of itself; 2^0 is 1. Zero below 2^-126.
__device__ __forceinline__ float power_of_two(float x) {
#ifdef __CUDACC__
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
#else
    return exp2f(x);
#endif
}

// 1 / x, off by at most 2^-23 of itself.
__device__ __forceinline__ float reciprocal(float x) {
#ifdef __CUDACC__
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(x));
    return inverse;
#else
    return 1.0f / x;
#endif
}

// Two numbers of X, rounded to nearest, as a register of a fragment holds them.
template <typename X>
__device__ __forceinline__ unsigned pair_of(float low, float high) {
    unsigned pair;
#ifdef __CUDACC__
    if constexpr (IS_HALF<X>) {
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    } else {
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    }
#else
    X* const both = reinterpret_cast<X*>(&pair);
    both[0] = from_float<X>(low);
    both[1] = from_float<X>(high);
#endif
    return pair;
}
template <typename X>
__device__ __forceinline__ float sum_of_pair(unsigned pair) {
    const X* const both = reinterpret_cast<const X*>(&pair);
    return to_float(both[0]) + to_float(both[1]);
}

// Of the two rows of a lane, what they see, lo..hi (hi == 0: there is no such row), and what has been added up for them.
struct Rows {
    int hi[2];
    // The largest score of all four lanes, and the sum of the weights of this one.
    float most[2], sum[2];
};

__device__ __forceinline__ int lo_of(int hi, int window) { return max(hi - (window > 0 ? window : 0x7fffffff), 0); }

// A score times this is one in units of log 2; with a soft cap `top` in those units it is 2 score / cap.
struct Scores {
    float factor, top;
};
__device__ __forceinline__ Scores scores_of(const AttentionShape& shape, float k_scale) {
    const float scale = __fmul_rn(shape.scale, k_scale);
    if (shape.soft_cap > 0.0f) return {2.0f * LOG2_E * scale / shape.soft_cap, LOG2_E * shape.soft_cap};
    return {LOG2_E * scale, 0.0f};
}

// Two neighbouring elements of which `left` exist; the others are zero. `aligned`: `from` is a multiple of 4 bytes.
template <typename X>
__device__ __forceinline__ unsigned load_pair(const X* from, int left, bool aligned) {
    if (aligned && left >= 2) return *reinterpret_cast<const unsigned*>(from);
    const unsigned short* const bits = reinterpret_cast<const unsigned short*>(from);
    return (left > 0 ? bits[0] : 0u) | (left > 1 ? static_cast<unsigned>(bits[1]) << 16 : 0u);
}

// The rows of a block: row r, of `first..end`, is head `first_head + r % group` of token r / group of the item.
struct Block {
    int first, end, group, first_head, kv_head;
};
__device__ __forceinline__ Block block_of(const AttentionShape& shape, const AttentionItem& item) {
    const int group = afresh(shape.heads) / shape.kv_heads, of_head = (group + ROWS - 1) / ROWS;
    const int kv_head = static_cast<int>(blockIdx.x) / of_head;
    const int first = (static_cast<int>(blockIdx.x) - kv_head * of_head) * ROWS;
    return {first, min(static_cast<int>(item.rows) * group, first + ROWS), group, kv_head * group, kv_head};
}

// What all threads of a block know of its rows. In shared memory, because registers are short.
struct __align__(16) Common {
    // What the first row sees, and the last.
    int first_lo, first_hi, last_lo, last_hi;
    Scores scores;
    const unsigned* table;
    int kv_head;
};
__device__ __forceinline__ Pages pages_of(const Common& common, const AttentionShape& shape) {
    return {common.table, afresh(shape.block_rows), common.kv_head, afresh(shape.block_size)};
}

__device__ __forceinline__ Common common_of(const Block& block, const AttentionShape& shape, const AttentionItem& item,
                                            const unsigned* block_tables, float k_scale) {
    const int first_hi = static_cast<int>(item.start) + block.first / block.group + 1;
    const int last_hi = static_cast<int>(item.start) + (block.end - 1) / block.group + 1;
    return {lo_of(first_hi, shape.window), first_hi, lo_of(last_hi, shape.window), last_hi, scores_of(shape, k_scale),
            block_tables + static_cast<size_t>(item.sequence) * shape.table_stride, block.kv_head};
}

// The queries of a warp's 16 rows as fragments, and what this lane's two rows see.
template <typename X, int DIMS>
__device__ __forceinline__ void load_queries(const X* q, const AttentionShape& shape, const AttentionItem& item, const Block& block,
                                             unsigned (&fragments)[DIMS / 16][4], Rows& rows) {
    const int lane = threadIdx.x % WARP, member = lane % 4;
    const bool aligned = reinterpret_cast<size_t>(q) % 4 == 0 && shape.q_stride % 2 == 0 && shape.head_dim % 2 == 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int row = block.first + static_cast<int>(threadIdx.x) / WARP * 16 + lane / 4 + 8 * i;
        const bool exists = row < block.end;
        const int token = exists ? row / block.group : 0, head = block.first_head + row % block.group;
        rows.hi[i] = exists ? static_cast<int>(item.start) + token + 1 : 0;
        rows.most[i] = LOWEST;
        rows.sum[i] = 0.0f;
        const X* const from = q + static_cast<size_t>(item.first_row + token) * shape.q_stride + static_cast<size_t>(head) * shape.head_dim;
        const int left = exists ? shape.head_dim : 0;
#pragma unroll
        for (int k = 0; k < DIMS / 16; ++k) {
            const int at = 16 * k + 2 * member;
            fragments[k][i] = load_pair(from + at, left - at, aligned);
            fragments[k][i + 2] = load_pair(from + at + 8, left - at - 8, aligned);
        }
    }
}

// The places of a tile's positions that the block's rows see, in shared memory, for the copies after the next barrier. Two tiles take
// turns.
template <int DIMS>
__device__ __forceinline__ void find_places(const Common& common, const AttentionShape& shape, int begin, unsigned* places) {
    const int thread = afresh(threadIdx.x);
    if (thread >= POSITIONS<DIMS>) return;
    const unsigned place = place_of_lane(pages_of(common, shape), begin + thread / WARP * WARP, common.first_lo, common.last_hi);
    places[begin / POSITIONS<DIMS> % 2 * POSITIONS<DIMS> + thread] = place;
}

// Begins to copy the keys or values of a tile, zero where no row sees them and beyond the head's pieces: into the tile, or, of codes, into
// the ring, where each thread has pieces of its own.
template <typename Kv, int DIMS>
__device__ __forceinline__ void begin_copy(const Kv* pages, const unsigned* places, int begin, int head_dim, uint4* to) {
    constexpr int EACH = DIMS * static_cast<int>(sizeof(Kv)) / 16, TOGETHER = ATTENTION_THREADS / EACH;
    const uint4* const from = reinterpret_cast<const uint4*>(pages);
    const int thread = afresh(threadIdx.x), piece = thread % EACH;
    const int head_pieces = page_stride<Kv>(afresh(head_dim)) * static_cast<int>(sizeof(Kv)) / 16;
#pragma unroll
    for (int i = 0; i < POSITIONS<DIMS> / TOGETHER; ++i) {
        const int position = i * TOGETHER + thread / EACH;
        const unsigned place = places[begin / POSITIONS<DIMS> % 2 * POSITIONS<DIMS> + position];
        const bool exists = place != NOTHING && piece < head_pieces;
        const size_t at = exists ? static_cast<size_t>(place) * head_pieces + piece : 0;
        copy16(to + (IsE4m3<Kv>::value ? i * ATTENTION_THREADS + thread : piece_at<DIMS>(position, piece)), from + at, exists);
    }
    commit_copies();
}

// Waits for what this thread has begun to copy, and widens codes into the tile. Other threads may read it after a barrier.
template <typename X, typename Kv, int DIMS>
__device__ __forceinline__ void end_copy(const uint4* ring, uint4* tile) {
    wait_for_copies<0>();
    if constexpr (IsE4m3<Kv>::value) {
        constexpr int EACH = DIMS / 16, TOGETHER = ATTENTION_THREADS / EACH;
        const int thread = afresh(threadIdx.x), piece = thread % EACH;
#pragma unroll(DIMS > 128 ? 1 : 4)
        for (int i = 0; i < POSITIONS<DIMS> / TOGETHER; ++i) {
            const int position = i * TOGETHER + thread / EACH;
            const uint4 codes = ring[i * ATTENTION_THREADS + thread];
            unsigned wide[4][2];
            widen_e4m3<X>(codes.x, wide[0]);
            widen_e4m3<X>(codes.y, wide[1]);
            widen_e4m3<X>(codes.z, wide[2]);
            widen_e4m3<X>(codes.w, wide[3]);
            tile[piece_at<DIMS>(position, 2 * piece)] = {wide[0][0], wide[0][1], wide[1][0], wide[1][1]};
            tile[piece_at<DIMS>(position, 2 * piece + 1)] = {wide[2][0], wide[2][1], wide[3][0], wide[3][1]};
        }
    }
}

// Products of the warp's queries with the keys of a tile: [8 positions][4], rows `group` and `group + 8`, columns 2 * member and the next.
template <typename X, int DIMS>
__device__ __forceinline__ void multiply_keys(const uint4* tile, const unsigned (&q)[DIMS / 16][4], float (&s)[POSITIONS<DIMS> / 8][4]) {
    const int lane = afresh(threadIdx.x) % WARP;
    const int base = piece_at<DIMS>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int n = 0; n < POSITIONS<DIMS> / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n][i] = 0.0f;
#pragma unroll
    for (int k = 0; k < DIMS / 16; ++k) {
#pragma unroll
        for (int n = 0; n < POSITIONS<DIMS> / 16; ++n) {
            unsigned keys[4];
            load_matrices(keys, tile + 16 * n * PIECES<DIMS> + (base ^ 2 * k));
            const unsigned first[2] = {keys[0], keys[1]}, second[2] = {keys[2], keys[3]};
            mma_16x8x16<X>(s[2 * n], q[k], first);
            mma_16x8x16<X>(s[2 * n + 1], q[k], second);
        }
    }
}

// Products become scores.
template <int TILES>
__device__ __forceinline__ void score(const Scores& scores, float (&s)[TILES][4]) {
#pragma unroll
    for (int n = 0; n < TILES; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n][i] = __fmul_rn(s[n][i], scores.factor);
    if (scores.top == 0.0f) return;
    // top * tanh(score / 2 in natural units), within a few units of 2^-24 * top.
#pragma unroll
    for (int n = 0; n < TILES; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i)
            s[n][i] = __fsub_rn(scores.top, __fmul_rn(2.0f * scores.top, reciprocal(__fadd_rn(1.0f, power_of_two(s[n][i])))));
}

// Below every score, where a row does not see a position.
template <int TILES>
__device__ __forceinline__ void hide(int begin, int window, const Rows& rows, float (&s)[TILES][4]) {
    const int first = begin + afresh(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int lo = lo_of(rows.hi[i], window) - first, hi = rows.hi[i] - first;
#pragma unroll
        for (int n = 0; n < TILES; ++n)
#pragma unroll
            for (int column = 0; column < 2; ++column)
                if (8 * n + column < lo || 8 * n + column >= hi) s[n][2 * i + column] = LOWEST;
    }
}

// Scores become weights, as fragments of the second product; what has been added up is scaled to the new largest score.
template <typename X, int DIMS>
__device__ __forceinline__ void weigh(const float (&s)[POSITIONS<DIMS> / 8][4], Rows& rows,
                                      unsigned (&weights)[POSITIONS<DIMS> / 16][4], float (&out)[DIMS / 8][4]) {
    constexpr int TILES = POSITIONS<DIMS> / 8;
    float factor[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float most = rows.most[i];
#pragma unroll
        for (int n = 0; n < TILES; ++n) most = fmaxf(most, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
        factor[i] = power_of_two(rows.most[i] - most);
        rows.most[i] = most;
        // A row that has seen nothing yet is far above what it does not see.
        const float one = most == LOWEST ? 0.0f : most - ONE_LOG2<X>;
        float sum = __fmul_rn(rows.sum[i], factor[i]);
#pragma unroll
        for (int n = 0; n < TILES; ++n) {
            const unsigned pair = pair_of<X>(power_of_two(s[n][2 * i] - one), power_of_two(s[n][2 * i + 1] - one));
            weights[n / 2][n % 2 * 2 + i] = pair;
            sum += sum_of_pair<X>(pair);
        }
        rows.sum[i] = sum;
    }
    // Seldom, once the first tiles are over.
    if (!__any_sync(ALL_LANES, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
    for (int n = 0; n < DIMS / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) out[n][i] = __fmul_rn(out[n][i], factor[i / 2]);
}

// out [16 rows][DIMS] += weights times the values of a tile, fragments as in multiply_keys.
template <typename X, int DIMS>
__device__ __forceinline__ void add_values(const uint4* tile, const unsigned (&weights)[POSITIONS<DIMS> / 16][4],
                                           float (&out)[DIMS / 8][4]) {
    const int lane = afresh(threadIdx.x) % WARP;
    const int base = piece_at<DIMS>(lane % 16, lane / 16);
#pragma unroll
    for (int k = 0; k < POSITIONS<DIMS> / 16; ++k) {
#pragma unroll
        for (int n = 0; n < DIMS / 16; ++n) {
            unsigned values[4];
            load_matrices_turned(values, tile + 16 * k * PIECES<DIMS> + (base ^ 2 * n));
            const unsigned first[2] = {values[0], values[1]}, second[2] = {values[2], values[3]};
            mma_16x8x16<X>(out[2 * n], weights[k], first);
            mma_16x8x16<X>(out[2 * n + 1], weights[k], second);
        }
    }
}

// Which halves of a pair are finite, as bits of them.
template <typename X>
__device__ __forceinline__ unsigned finite_halves(unsigned pair) {
    const unsigned low = (pair & NOT_FINITE<X>) == NOT_FINITE<X> ? 0 : 0x0000ffffu;
    const unsigned high = (pair >> 16 & NOT_FINITE<X>) == NOT_FINITE<X> ? 0 : 0xffff0000u;
    return low | high;
}

// Whether a tile has values that are not finite: each warp looks at all of it, so that all say the same.
template <typename X, int DIMS>
__device__ __forceinline__ bool has_infinite(const uint4* tile) {
    unsigned finite = 0xffffffffu;
#pragma unroll 2
    for (int at = threadIdx.x % WARP; at < TILE_PIECES<DIMS>; at += WARP) {
        const uint4 bits = tile[at];
        finite &= finite_halves<X>(bits.x) & finite_halves<X>(bits.y) & finite_halves<X>(bits.z) & finite_halves<X>(bits.w);
    }
    return __any_sync(ALL_LANES, finite != 0xffffffffu);
}

// Puts zero in their place. All threads call it.
template <typename X, int DIMS>
__device__ __forceinline__ void clear_infinite(uint4* tile) {
    __syncthreads();
#pragma unroll 1
    for (int at = threadIdx.x; at < TILE_PIECES<DIMS>; at += ATTENTION_THREADS) {
        uint4 bits = tile[at];
        bits.x &= finite_halves<X>(bits.x);
        bits.y &= finite_halves<X>(bits.y);
        bits.z &= finite_halves<X>(bits.z);
        bits.w &= finite_halves<X>(bits.w);
        tile[at] = bits;
    }
    __syncthreads();
}

// Adds the values of begin..end that are not finite to those rows that see them. Seldom.
template <typename Kv, int DIMS>
__device__ __forceinline__ void add_infinite(const Kv* v_pages, const Pages& pages, const AttentionShape& shape, int begin, int end,
                                             const Rows& rows, float (&out)[DIMS / 8][4]) {
    const int member = threadIdx.x % 4;
    for (int position = begin; position < end; ++position) {
        bool sees[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) sees[i] = position >= lo_of(rows.hi[i], shape.window) && position < rows.hi[i];
        if (!sees[0] && !sees[1]) continue;
        const size_t block = static_cast<size_t>(pages.table[position / pages.block_size]) * pages.block_rows;
        const Kv* const values =
            v_pages + (block + pages.kv_head * pages.block_size + position % pages.block_size) * page_stride<Kv>(shape.head_dim);
#pragma unroll
        for (int n = 0; n < DIMS / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int at = 8 * n + 2 * member + i % 2;
                if (at >= shape.head_dim || !sees[i / 2]) continue;
                const float value = to_float(values[at]);
                // Neither infinite nor NaN.
                if (value - value == 0.0f) continue;
                out[n][i] += value;
            }
        }
    }
}

// out = sums / sum of weights, of this lane's two rows.
template <typename X, int DIMS>
__device__ __forceinline__ void store_rows(X* out, const AttentionShape& shape, const AttentionItem& item, const Block& block,
                                           float v_scale, const Rows& rows, const float (&sums)[DIMS / 8][4]) {
    const int lane = threadIdx.x % WARP, member = lane % 4;
    const bool aligned = reinterpret_cast<size_t>(out) % 4 == 0 && shape.out_stride % 2 == 0 && shape.head_dim % 2 == 0;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        float sum = rows.sum[i];
        sum += __shfl_xor_sync(ALL_LANES, sum, 1);
        sum += __shfl_xor_sync(ALL_LANES, sum, 2);
        const int row = block.first + static_cast<int>(threadIdx.x) / WARP * 16 + lane / 4 + 8 * i;
        if (row >= block.end) continue;
        X* const to = output_of(out, shape, item, row / block.group, block.first_head + row % block.group);
        const float share = __fdiv_rn(1.0f, sum);
#pragma unroll
        for (int n = 0; n < DIMS / 8; ++n) {
            const int at = 8 * n + 2 * member;
            const unsigned pair = pair_of<X>(__fmul_rn(__fmul_rn(sums[n][2 * i], share), v_scale),
                                             __fmul_rn(__fmul_rn(sums[n][2 * i + 1], share), v_scale));
            if (aligned && at + 1 < shape.head_dim) {
                *reinterpret_cast<unsigned*>(to + at) = pair;
            } else {
                const X* const both = reinterpret_cast<const X*>(&pair);
                if (at < shape.head_dim) to[at] = both[0];
                if (at + 1 < shape.head_dim) to[at + 1] = both[1];
            }
        }
    }
}

// Shared memory: what all know, a tile of keys, one of values, and for codes a ring of half a tile.
template <typename X, typename Kv, int DIMS>
__device__ __forceinline__ void attention_tensor(const X* q, const AttentionItem* items, const unsigned* count,
                                                 const unsigned* block_tables, const AttentionShape& shape, const Kv* k_pages,
                                                 const Kv* v_pages, const float* k_scale, const float* v_scale, X* to, void* shared) {
    if (blockIdx.y >= *count) return;
    const AttentionItem& item = items[blockIdx.y];
    Common* const common = static_cast<Common*>(shared);
    unsigned* const places = reinterpret_cast<unsigned*>(common + 1);
    uint4* const keys = reinterpret_cast<uint4*>(places + 2 * POSITIONS<DIMS>);
    uint4* const values = keys + TILE_PIECES<DIMS>;
    uint4* const ring = values + TILE_PIECES<DIMS>;
    const Block block = block_of(shape, item);
    // A warp without rows copies and waits, and no more.
    const bool has_rows = block.first + static_cast<int>(threadIdx.x) / WARP * 16 < block.end;
    if (threadIdx.x == 0) *common = common_of(block, shape, item, block_tables, IsE4m3<Kv>::value ? k_scale[block.kv_head] : 1.0f);
    __syncthreads();
    int begin = common->first_lo / POSITIONS<DIMS> * POSITIONS<DIMS>;
    find_places<DIMS>(*common, shape, begin, places);
    __syncthreads();
    begin_copy<Kv, DIMS>(k_pages, places, begin, shape.head_dim, IsE4m3<Kv>::value ? ring : keys);
    unsigned queries[DIMS / 16][4];
    Rows rows;
    load_queries<X, DIMS>(q, shape, item, block, queries, rows);
    float out[DIMS / 8][4];
#pragma unroll
    for (int n = 0; n < DIMS / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) out[n][i] = 0.0f;

#pragma unroll 1
    do {
        const int end = begin + POSITIONS<DIMS>;
        end_copy<X, Kv, DIMS>(ring, keys);
        __syncthreads();
        // All have used the values of the last tile.
        begin_copy<Kv, DIMS>(v_pages, places, begin, shape.head_dim, IsE4m3<Kv>::value ? ring : values);
        find_places<DIMS>(*common, shape, end, places);
        const bool all_see_all = begin >= common->last_lo && end <= common->first_hi;
        unsigned weights[POSITIONS<DIMS> / 16][4];
        if (has_rows) {
            float s[POSITIONS<DIMS> / 8][4];
            multiply_keys<X, DIMS>(keys, queries, s);
            score(common->scores, s);
            if (!all_see_all) hide(begin, shape.window, rows, s);
            weigh<X, DIMS>(s, rows, weights, out);
        }
        end_copy<X, Kv, DIMS>(ring, values);
        __syncthreads();
        // All have used the keys of this one.
        if (end < common->last_hi) begin_copy<Kv, DIMS>(k_pages, places, end, shape.head_dim, IsE4m3<Kv>::value ? ring : keys);
        const bool some_are_infinite = !all_see_all && has_infinite<X, DIMS>(values);
        if (some_are_infinite) clear_infinite<X, DIMS>(values);
        if (has_rows) {
            add_values<X, DIMS>(values, weights, out);
            if (some_are_infinite) add_infinite<Kv, DIMS>(v_pages, pages_of(*common, shape), shape, begin, end, rows, out);
        }
        begin = end;
    } while (begin < common->last_hi);
    // Once more, instead of keeping it.
    const Block same = block_of(shape, item);
    store_rows<X, DIMS>(to, shape, item, same, IsE4m3<Kv>::value ? v_scale[same.kv_head] : 1.0f, rows, out);
}

}  // namespace weft::tensor

// As many blocks on a multiprocessor as registers shall allow.
#define WEFT_ATTENTION_TENSOR(suffix, X, Kv, DIMS, BLOCKS)                                                                         \
    extern "C" __global__ void __launch_bounds__(weft::ATTENTION_THREADS, BLOCKS) weft_attention_tensor_##DIMS##_##suffix(         \
        const X* q, const weft::AttentionItem* items, const unsigned* count, const unsigned* block_tables,                         \
        weft::AttentionShape shape, const Kv* k_pages, const Kv* v_pages, const float* k_scale, const float* v_scale, X* out) {    \
        WEFT_DYNAMIC_SHARED(shared);                                                                                               \
        weft::tensor::attention_tensor<X, Kv, DIMS>(q, items, count, block_tables, shape, k_pages, v_pages, k_scale, v_scale, out, \
                                                    shared);                                                                       \
    }
#define WEFT_ATTENTION_TENSOR_WIDTHS(suffix, X, Kv)  \
    WEFT_ATTENTION_TENSOR(suffix, X, Kv, 64, 4)      \
    WEFT_ATTENTION_TENSOR(suffix, X, Kv, 128, 2)     \
    WEFT_ATTENTION_TENSOR(suffix, X, Kv, 256, 2)

WEFT_ATTENTION_TENSOR_WIDTHS(bf16_bf16, __nv_bfloat16, __nv_bfloat16)
WEFT_ATTENTION_TENSOR_WIDTHS(bf16_e4m3, __nv_bfloat16, __nv_fp8_e4m3)
WEFT_ATTENTION_TENSOR_WIDTHS(f16_f16, __half, __half)
WEFT_ATTENTION_TENSOR_WIDTHS(f16_e4m3, __half, __nv_fp8_e4m3)
