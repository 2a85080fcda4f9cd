// Attention and its pages.
#include "table.h"

#include "../../attention_decode.cu"
#include "../../attention_prefill.cu"
#include "../../kv_write.cu"

#define ATTENTION(name)                                                                              \
    KERNEL(name##_f32_f32), KERNEL(name##_f32_bf16), KERNEL(name##_bf16_bf16), KERNEL(name##_bf16_e4m3), \
        KERNEL(name##_f16_f16), KERNEL(name##_f16_e4m3)

TABLE(attention_kernels,
      ATTENTION(weft_kv_write),
      ATTENTION(weft_attention_decode),
      ATTENTION(weft_attention_prefill),
      FLOATS(weft_attention_combine))
