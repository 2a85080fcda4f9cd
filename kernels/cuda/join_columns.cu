// Parts of rows side by side: out[row] = from[0][row], from[1][row], ... up to `width` columns. What ranks computed of a row of logits, each
// some columns, once an all_gather has brought the parts one after the other.
//
//   from  [parts, gridDim.y, part_width]  f32; part_width is a multiple of 8     out  [gridDim.y, width]  f32; width <= parts * part_width
//
// Grid: (ceil(width / 2048), rows); eight columns for each thread. Bytes: out read and written once.
#include "common.cuh"

namespace weft {

constexpr int JOIN_THREADS = 256;

}  // namespace weft

extern "C" __global__ void __launch_bounds__(weft::JOIN_THREADS)
    weft_join_columns_f32(const float* from, int part_width, float* out, int width) {
    using namespace weft;
    const int at = static_cast<int>(blockIdx.x * JOIN_THREADS + threadIdx.x) * VECTOR;
    const int left = width - at;
    if (left <= 0) return;
    const size_t part = at / part_width, row = part * gridDim.y + blockIdx.y;
    from += row * part_width + at % part_width;
    out += static_cast<size_t>(blockIdx.y) * width + at;
    float values[VECTOR];
    load8(from, left, rows_are_aligned(from, VECTOR), values);
    store8(out, left, rows_are_aligned(out, VECTOR), values);
}
