// Adapters for steps with prompts, on tensor cores: tables, grid and results as in segmented_lora.cuh, items of up to 16 rows.
//
// A block multiplies the 16 rows of an item by 32 ranks of A at a time. Its 8 warps take inputs in turn, 32 each (two products of
// depth 16), and add up in shared memory in the order of warps; what comes out stays there as fragments of the second product,
// 16 rows by B, 32 columns a warp. Single rows take the path of decode within the same launch, and have its bits.
//
// The fragments of a matrix product may hold its depth in any order, if both sides do. So a lane holds 8 neighbouring inputs of a row (16
// bytes of x, 8 of codes) and 4 neighbouring ranks of a column of B, read straight from memory: nothing is staged or turned around. Ranks
// of the first product and columns of the second are likewise dealt to tiles so that a lane's sums are what it needs next, or 8
// neighbouring columns of `out`.
//
// Tiles beyond rows, ranks, inputs or columns are zero and are not read. Work and reads end at the rank rounded up to 16.
//
// Precision: x and the values of A and B are what they are (codes are exact in bf16 and f16), sums f32. Between the two products, a row is
// brought to below 2^15 by a power of two, so that nothing leaves the range of f16, and split into two numbers of X: 16 bits of it
// remain in bf16, 22 in f16, where one number would keep 8 and 11. The second multiplication costs nothing that matters, because a
// chunk of 16 rows waits for A and B.
//
// Same answer: of a row, an element is the same whatever rows share its chunk and whatever splits there are, because an element of a matrix
// product depends on its row and its column alone, and warps take inputs by their place. It is not that of decode: tensor
// cores add in an order of their own.
#include "mma.cuh"
#include "segmented_lora.cuh"

namespace weft::lora {

// Inputs of a warp at a time, ranks of a block at a time, columns of a warp at a time.
constexpr int CHUNK = 32;
constexpr int TILES = 4;
// Ranks of one fragment of the second product.
constexpr int DEPTH = 16;
// Pieces of 16 bytes: what each warp has of 16 rows and 32 ranks.
constexpr int SUM_PIECES = LORA_WARPS * TILES * WARP;

// Where a lane is in fragments (mma.cuh).
struct Place {
    int warp, lane, group, member;
};
__device__ __forceinline__ Place place() {
    const int lane = static_cast<int>(threadIdx.x) % WARP;
    return {static_cast<int>(threadIdx.x) / WARP, lane, lane / 4, lane % 4};
}

// The rank, from the first of 32, that column `column` of a tile stands for: two tiles side by side give each lane 4 neighbours.
__device__ __forceinline__ int rank_of(int tile, int column) { return tile / 2 * DEPTH + column / 2 * 4 + tile % 2 * 2 + column % 2; }
// The column of `out`, from the first of 32, that column `column` of a tile stands for: four tiles give each lane 8 neighbours.
__device__ __forceinline__ int column_of(int tile, int column) { return column / 2 * VECTOR + tile * 2 + column % 2; }

template <typename T>
constexpr bool IS_HALF = false;
template <>
constexpr bool IS_HALF<__half> = true;
template <>
constexpr bool IS_HALF<__nv_bfloat16> = true;

// Two numbers of X as a register of a fragment holds them.
template <typename X>
__device__ __forceinline__ unsigned pair_of(float low, float high) {
    const X first = from_float<X>(low), second = from_float<X>(high);
    return *reinterpret_cast<const unsigned short*>(&first) | static_cast<unsigned>(*reinterpret_cast<const unsigned short*>(&second)) << 16;
}

// Eight values as pairs of X, of which `left` exist; the others are zero.
template <typename X, typename W>
__device__ __forceinline__ void load_pairs(const W* from, int left, bool aligned, unsigned (&to)[VECTOR / 2]) {
    if constexpr (IS_HALF<W>) {
        if (aligned && left >= VECTOR) {
            const uint4 bits = *reinterpret_cast<const uint4*>(from);
            to[0] = bits.x, to[1] = bits.y, to[2] = bits.z, to[3] = bits.w;
            return;
        }
    }
    float values[VECTOR];
    load_weights(from, left, aligned, values);
#pragma unroll
    for (int i = 0; i < VECTOR / 2; ++i) to[i] = pair_of<X>(values[2 * i], values[2 * i + 1]);
}

// Four values as pairs of X, of which `left` exist. `aligned`: by pieces of four.
template <typename X, typename W>
__device__ __forceinline__ void load_two_pairs(const W* from, int left, bool aligned, unsigned (&to)[2]) {
    float values[4];
    if constexpr (IS_CODE<W>) {
        widen4(load_codes(from, left, aligned), values, W{});
    } else {
        if (aligned && left >= 4) {
            const unsigned long long bits = *reinterpret_cast<const unsigned long long*>(from);
            to[0] = static_cast<unsigned>(bits), to[1] = static_cast<unsigned>(bits >> 32);
            return;
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) values[i] = i < left ? to_float(from[i]) : 0.0f;
    }
    to[0] = pair_of<X>(values[0], values[1]);
    to[1] = pair_of<X>(values[2], values[3]);
}

// sum [16, 32 of A's ranks from `first` on] over this warp's share of the inputs.
template <typename X, typename W>
__device__ __forceinline__ void multiply_inputs(const X* x, int in, int rows, const W* a, int rank, int first, int tiles,
                                                float (&sum)[TILES][4]) {
    const Place at = place();
    const bool x_aligned = rows_are_aligned(x, in);
    const bool a_aligned = pieces_are_aligned<VECTOR>(a, in);
    const X* row_low = x + static_cast<size_t>(at.group) * in;
    const X* row_high = row_low + static_cast<size_t>(8) * in;
    const bool has_low = at.group < rows, has_high = at.group + 8 < rows;
#pragma unroll 2
    for (int chunk = at.warp * CHUNK; chunk < in; chunk += LORA_WARPS * CHUNK) {
        const int input = chunk + at.member * VECTOR;
        unsigned low[VECTOR / 2], high[VECTOR / 2];
        load_pairs<X>(row_low + input, has_low ? in - input : 0, x_aligned, low);
        load_pairs<X>(row_high + input, has_high ? in - input : 0, x_aligned, high);
        const unsigned rows_first[4] = {low[0], high[0], low[1], high[1]};
        const unsigned rows_second[4] = {low[2], high[2], low[3], high[3]};
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            if (tile >= tiles) continue;
            const int r = first + rank_of(tile, at.group);
            unsigned weights[VECTOR / 2];
            load_pairs<X>(a + static_cast<size_t>(r) * in + input, r < rank ? in - input : 0, a_aligned, weights);
            const unsigned column_first[2] = {weights[0], weights[1]};
            const unsigned column_second[2] = {weights[2], weights[3]};
            mma_16x8x16<X>(sum[tile], rows_first, column_first);
            mma_16x8x16<X>(sum[tile], rows_second, column_second);
        }
    }
}

// shrunk = scale * A x, f32, as fragments: [rank / 16][first or second tile][lane] of four numbers, rows `group` and `group + 8`. Zero
// beyond the rank, up to the next multiple of 16. `sums` is left with the largest magnitudes of rows, [tile][16].
template <typename X, typename W>
__device__ __forceinline__ void shrink_tiles(const X* x, int in, int rows, const LoraTarget& target, float4* sums, float4* shrunk) {
    const Place at = place();
    const int rank = static_cast<int>(target.rank);
    const W* a = lora_values<W>(target.a, rank);
    // This thread adds up two numbers of one tile: ranks 2 * member and the next, row `group` or the one 8 below.
    const int tile = at.warp % TILES, below = at.warp / TILES;
    float most = 0.0f;
    for (int first = 0; first < rank; first += TILES * 8) {
        const int tiles = rank - first > DEPTH ? TILES : TILES / 2;
        float sum[TILES][4] = {};
        multiply_inputs(x, in, rows, a, rank, first, tiles, sum);
#pragma unroll
        for (int i = 0; i < TILES; ++i)
            if (i < tiles) sums[(at.warp * TILES + i) * WARP + at.lane] = {sum[i][0], sum[i][1], sum[i][2], sum[i][3]};
        __syncthreads();
        if (tile < tiles) {
            float left = 0.0f, right = 0.0f;
#pragma unroll
            for (int warp = 0; warp < LORA_WARPS; ++warp) {
                const float* part = reinterpret_cast<const float*>(sums + (warp * TILES + tile) * WARP + at.lane) + 2 * below;
                left += part[0];
                right += part[1];
            }
            const int r = first + rank_of(tile, 2 * at.member);
            left = r < rank ? left * lora_scale<W>(target, r) : 0.0f;
            right = r + 1 < rank ? right * lora_scale<W>(target, r + 1) : 0.0f;
            float* to = reinterpret_cast<float*>(shrunk + ((first / DEPTH + tile / 2) * 2 + tile % 2) * WARP + at.lane) + 2 * below;
            to[0] = left;
            to[1] = right;
            most = fmaxf(most, fmaxf(fabsf(left), fabsf(right)));
        }
        __syncthreads();
    }
    most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
    most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
    if (at.member == 0) reinterpret_cast<float*>(sums)[tile * LORA_ROWS + at.group + 8 * below] = most;
    __syncthreads();
}

// The power of two that brings the largest magnitude of a row to 2^14 or more and below 2^15; its inverse is normal too. 1 for a row that
// is not finite.
__device__ __forceinline__ float row_factor(const float* most, int row) {
    float largest = 0.0f;
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) largest = fmaxf(largest, most[tile * LORA_ROWS + row]);
    const int exponent = static_cast<int>(*reinterpret_cast<const unsigned*>(&largest) >> 23);
    const int wanted = 2 * 127 + 14 - exponent;
    const unsigned bits = static_cast<unsigned>(exponent == 255 ? 127 : wanted < 253 ? wanted : 253) << 23;
    return *reinterpret_cast<const float*>(&bits);
}

// Two numbers as a register of X and another of what that leaves out.
template <typename X>
__device__ __forceinline__ void split(float low, float high, float factor, unsigned& upper, unsigned& lower) {
    low *= factor;
    high *= factor;
    upper = pair_of<X>(low, high);
    lower = pair_of<X>(low - to_float(from_float<X>(low)), high - to_float(from_float<X>(high)));
}

// The f32 fragments of `shrunk` become, in the same place, one of upper parts and one of lower parts.
template <typename X>
__device__ __forceinline__ void split_fragments(float4* shrunk, int rank, const float* most) {
    const Place at = place();
    const float factor = row_factor(most, at.group), factor_below = row_factor(most, at.group + 8);
    for (int depth = at.warp; depth * DEPTH < rank; depth += LORA_WARPS) {
        float4* const here = shrunk + depth * 2 * WARP + at.lane;
        const float4 first = here[0], second = here[WARP];
        uint4 upper, lower;
        split<X>(first.x, first.y, factor, upper.x, lower.x);
        split<X>(first.z, first.w, factor_below, upper.y, lower.y);
        split<X>(second.x, second.y, factor, upper.z, lower.z);
        split<X>(second.z, second.w, factor_below, upper.w, lower.w);
        *reinterpret_cast<uint4*>(here) = upper;
        *reinterpret_cast<uint4*>(here + WARP) = lower;
    }
    __syncthreads();
}

// to[column..] += sums, for the eight columns from `column` on that lie in begin..end.
template <typename X>
__device__ __forceinline__ void add_columns(X* to, int column, int begin, int end, bool aligned, const float (&sums)[VECTOR]) {
    float values[VECTOR];
    if (column >= begin && end - column >= VECTOR) {
        load8(to + column, VECTOR, aligned, values);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) values[i] += sums[i];
        store8(to + column, VECTOR, aligned, values);
    } else {
#pragma unroll
        for (int i = 0; i < VECTOR; ++i)
            if (column + i >= begin && column + i < end) to[column + i] = from_float<X>(to_float(to[column + i]) + sums[i]);
    }
}

// out[row, column] += B[column] . shrunk[row] for the columns of a target within first_column..end_column. A column belongs to the
// same thread for every target, so targets may share columns.
template <typename X, typename W>
__device__ __forceinline__ void grow_tiles(const LoraTarget& target, const float4* shrunk, const float* most, int rows, X* out,
                                           int out_stride, int first_column, int end_column) {
    const Place at = place();
    const int rank = static_cast<int>(target.rank);
    const W* b = lora_values<W>(target.b, rank);
    const int begin = static_cast<int>(target.out_offset);
    const int target_end = begin + static_cast<int>(target.out_features);
    const int end = end_column < target_end ? end_column : target_end;
    const bool b_aligned = pieces_are_aligned<4>(b, rank);
    const bool out_aligned = rows_are_aligned(out, out_stride);
    const float back = 1.0f / row_factor(most, at.group), back_below = 1.0f / row_factor(most, at.group + 8);
    for (int unit = first_column + at.warp * CHUNK; unit < end; unit += LORA_WARPS * CHUNK) {
        if (unit + CHUNK <= begin) continue;
        float sum[TILES][4] = {};
        for (int first = 0; first < rank; first += DEPTH) {
            const uint4* fragment = reinterpret_cast<const uint4*>(shrunk) + first / DEPTH * 2 * WARP + at.lane;
            const uint4 upper = fragment[0], lower = fragment[WARP];
            const unsigned rows_upper[4] = {upper.x, upper.y, upper.z, upper.w};
            const unsigned rows_lower[4] = {lower.x, lower.y, lower.z, lower.w};
            const int r = first + at.member * 4;
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                const int column = unit + column_of(tile, at.group);
                const bool is_ours = column >= begin && column < end;
                unsigned weights[2];
                load_two_pairs<X>(b + static_cast<size_t>(is_ours ? column - begin : 0) * rank + r, is_ours ? rank - r : 0, b_aligned,
                                  weights);
                mma_16x8x16<X>(sum[tile], rows_upper, weights);
                mma_16x8x16<X>(sum[tile], rows_lower, weights);
            }
        }
        float of_row[VECTOR], of_row_below[VECTOR];
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                of_row[2 * tile + i] = sum[tile][i] * back;
                of_row_below[2 * tile + i] = sum[tile][2 + i] * back_below;
            }
        }
        const int column = unit + at.member * VECTOR;
        X* const to = out + static_cast<size_t>(at.group) * out_stride;
        if (at.group < rows) add_columns(to, column, begin, end, out_aligned, of_row);
        if (at.group + 8 < rows) add_columns(to + static_cast<size_t>(8) * out_stride, column, begin, end, out_aligned, of_row_below);
    }
}

template <typename X, typename W>
__device__ __forceinline__ void lora_tiles(const X* x, int in, X* out, int out_stride, const LoraItem& item, const LoraTarget* targets,
                                           float4* sums, float4* shrunk, int columns_per_block) {
    const int rows = static_cast<int>(item.rows);
    const int first_column = static_cast<int>(blockIdx.x) * columns_per_block;
    const int end_column = out_stride - first_column < columns_per_block ? out_stride : first_column + columns_per_block;
    const float* most = reinterpret_cast<const float*>(sums);
    x += static_cast<size_t>(item.first_row) * in;
    out += static_cast<size_t>(item.first_row) * out_stride;
    for (unsigned i = 0; i < item.targets; ++i) {
        const LoraTarget target = targets[item.first_target + i];
        const int begin = static_cast<int>(target.out_offset), end = begin + static_cast<int>(target.out_features);
        // The same for all threads of the block: none misses a barrier.
        if (target.rank == 0 || begin >= end_column || end <= first_column) continue;
        shrink_tiles<X, W>(x, in, rows, target, sums, shrunk);
        split_fragments<X>(shrunk, static_cast<int>(target.rank), most);
        grow_tiles<X, W>(target, shrunk, most, rows, out, out_stride, first_column, end_column);
        __syncthreads();
    }
}

template <typename X, typename W>
__device__ __forceinline__ void lora_prefill(const X* x, int in, X* out, int out_stride, const LoraItem* items, const LoraTarget* targets,
                                             const unsigned* count, int shrunk_stride, int columns_per_block, float4* shared) {
    if (blockIdx.y >= *count) return;
    const LoraItem item = items[blockIdx.y];
    if (item.rows == 1) {
        lora_item<1, X, W>(x, in, out, out_stride, item, targets, reinterpret_cast<float*>(shared), shrunk_stride, columns_per_block);
    } else {
        lora_tiles<X, W>(x, in, out, out_stride, item, targets, shared, shared + SUM_PIECES, columns_per_block);
    }
}

}  // namespace weft::lora

// Dynamic shared memory: 16 KiB, and 64 * shrunk_stride bytes, which is a multiple of 16 ranks here.
#define WEFT_LORA_PREFILL(suffix, X, W)                                                                                                    \
    extern "C" __global__ void __launch_bounds__(weft::lora::LORA_THREADS, 2) weft_lora_prefill_##suffix(                                  \
        const X* x, int in, X* out, int out_stride, const weft::lora::LoraItem* items, const weft::lora::LoraTarget* targets,              \
        const unsigned* count, int shrunk_stride, int columns_per_block) {                                                                 \
        WEFT_DYNAMIC_SHARED(shared);                                                                                                       \
        weft::lora::lora_prefill<X, W>(x, in, out, out_stride, items, targets, count, shrunk_stride, columns_per_block, shared);           \
    }

WEFT_LORA_PREFILL(bf16_bf16, __nv_bfloat16, __nv_bfloat16)
WEFT_LORA_PREFILL(bf16_int8, __nv_bfloat16, weft::lora::Int8)
WEFT_LORA_PREFILL(bf16_fp8, __nv_bfloat16, weft::lora::Fp8)
WEFT_LORA_PREFILL(f16_f16, __half, __half)
WEFT_LORA_PREFILL(f16_int8, __half, weft::lora::Int8)
WEFT_LORA_PREFILL(f16_fp8, __half, weft::lora::Fp8)
