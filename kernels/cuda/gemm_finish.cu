// The end of a product whose splits had blocks of their own: adds their sums in order of splits and stores them with their scales.
//
//   call.partials  [splits, rows, columns] f32, or s32 of weft_gemm_int8_channels
//
// Grid: (ceil(columns / 256), rows).
#include "gemm.cuh"

namespace weft {

template <typename Sum>
__device__ __forceinline__ void gemm_finish(const GemmCall& call) {
    const int row = static_cast<int>(blockIdx.y), column = static_cast<int>(blockIdx.x * GEMM_THREADS + threadIdx.x);
    if (column >= call.columns) return;
    Sum total = 0;
    for (int split = 0; split < call.splits; ++split)
        total += static_cast<const Sum*>(call.partials)[(static_cast<size_t>(split) * call.rows + row) * call.columns + column];
    gemm_store(call, row, column, total);
}

}  // namespace weft

extern "C" __global__ void __launch_bounds__(weft::GEMM_THREADS) weft_gemm_finish_f32(weft::GemmCall call) {
    weft::gemm_finish<float>(call);
}
extern "C" __global__ void __launch_bounds__(weft::GEMM_THREADS) weft_gemm_finish_s32(weft::GemmCall call) {
    weft::gemm_finish<int>(call);
}
