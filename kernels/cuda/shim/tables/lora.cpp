// Adapters.
#include "table.h"

#include "../../lora_prefill.cu"
#include "../../segmented_lora.cu"

#define LORA_TILES(name)                                                                            \
    KERNEL(name##_bf16_bf16), KERNEL(name##_bf16_int8), KERNEL(name##_bf16_fp8), KERNEL(name##_f16_f16), \
        KERNEL(name##_f16_int8), KERNEL(name##_f16_fp8)
#define LORA(name) \
    LORA_TILES(name), KERNEL(name##_f32_f32), KERNEL(name##_f32_bf16), KERNEL(name##_f32_int8), KERNEL(name##_f32_fp8)

TABLE(lora_kernels,
      LORA(weft_lora_decode),
      LORA(weft_lora_mixed),
      LORA_TILES(weft_lora_prefill))
