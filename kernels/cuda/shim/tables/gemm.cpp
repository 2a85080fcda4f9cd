// Products with quantised weights.
#include "table.h"

#include "../../gemm_finish.cu"
#include "../../gemm_fp8.cu"
#include "../../gemm_int8.cu"
#include "../../gemm_w4.cu"
#include "../../quantise.cu"

#define GEMMS(name) KERNEL(name##_1), KERNEL(name##_2), KERNEL(name##_4), KERNEL(name##_8)

TABLE(gemm_kernels,
      GEMMS(weft_gemm_w4a16_bf16),
      GEMMS(weft_gemm_w4a16_f16),
      GEMMS(weft_gemm_w4a8),
      GEMMS(weft_gemm_int8_groups),
      GEMMS(weft_gemm_int8_channels),
      GEMMS(weft_gemm_fp8),
      GEMMS(weft_gemm_fp8_a16_bf16),
      GEMMS(weft_gemm_fp8_a16_f16),
      KERNEL(weft_gemm_finish_f32),
      KERNEL(weft_gemm_finish_s32),
      FLOATS(weft_quantise_int8_groups),
      FLOATS(weft_quantise_int8_rows),
      FLOATS(weft_quantise_fp8_rows))
