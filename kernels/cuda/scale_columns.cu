// Factors for columns of some rows: out[row, out_offset + j] *= factors[j]. What DoRA makes of the outputs of a linear, once base and
// adapter are added up.
//
//   out      [rows, out_stride]  X, row-major; what no item names stays as it is
//   items                        up to 16 neighbouring rows, neighbouring columns, and a factor in f32 for each of these columns, in a slot
//                                at a multiple of 16 bytes; no two name the same element. `count` says how many items there are
//
// Items and their count lie in device memory, so a captured graph stays valid when adapters come and go.
//
// Grid: (items, ceil(out_stride / 2048)); eight columns for each thread. Bytes: factors once, their part of out read and written once.
#include "common.cuh"

namespace weft {

constexpr int SCALE_THREADS = 256;

// 24 bytes; src/columns.rs has the same.
struct ScaleItem {
    const float* factors;
    unsigned first_row;
    unsigned rows;
    unsigned out_offset;
    unsigned out_features;
};

template <typename X>
__device__ __forceinline__ void scale_columns(X* out, int out_stride, const ScaleItem* items, const unsigned* count) {
    if (blockIdx.x >= *count) return;
    const ScaleItem item = items[blockIdx.x];
    const int at = static_cast<int>(blockIdx.y * SCALE_THREADS + threadIdx.x) * VECTOR;
    const int left = static_cast<int>(item.out_features) - at;
    if (left <= 0) return;
    float factor[VECTOR];
    load8(item.factors + at, left, true, factor);
    X* to = out + static_cast<size_t>(item.first_row) * out_stride + item.out_offset + at;
    for (unsigned row = 0; row < item.rows; ++row, to += out_stride) {
        const bool aligned = rows_are_aligned(to, VECTOR);
        float value[VECTOR];
        load8(to, left, aligned, value);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i) value[i] *= factor[i];
        store8(to, left, aligned, value);
    }
}

}  // namespace weft

#define WEFT_SCALE_COLUMNS(suffix, X)                                                                    \
    extern "C" __global__ void __launch_bounds__(weft::SCALE_THREADS) weft_scale_columns_##suffix(       \
        X* out, int out_stride, const weft::ScaleItem* items, const unsigned* count) {                   \
        weft::scale_columns<X>(out, out_stride, items, count);                                           \
    }

WEFT_SCALE_COLUMNS(f32, float)
WEFT_SCALE_COLUMNS(bf16, __nv_bfloat16)
WEFT_SCALE_COLUMNS(f16, __half)
