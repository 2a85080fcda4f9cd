// Attention and its pages.
#include "table.h"

#include "../../attention_decode.cu"
#include "../../attention_prefill.cu"
#include "../../attention_tensor.cu"
#include "../../kv_write.cu"

#define ATTENTION(name)                                                                              \
    KERNEL(name##_f32_f32), KERNEL(name##_f32_bf16), KERNEL(name##_bf16_bf16), KERNEL(name##_bf16_e4m3), \
        KERNEL(name##_f16_f16), KERNEL(name##_f16_e4m3)
#define TENSOR(width)                                                                                            \
    KERNEL(weft_attention_tensor_##width##_bf16_bf16), KERNEL(weft_attention_tensor_##width##_bf16_e4m3),        \
        KERNEL(weft_attention_tensor_##width##_f16_f16), KERNEL(weft_attention_tensor_##width##_f16_e4m3)

TABLE(attention_kernels,
      ATTENTION(weft_kv_write),
      ATTENTION(weft_attention_decode),
      ATTENTION(weft_attention_prefill),
      TENSOR(64), TENSOR(128), TENSOR(256),
      FLOATS(weft_attention_combine))
