// Adapters for steps without tensor cores: one row an item (decode), or up to 16 (mixed). What they do: segmented_lora.cuh.
#include "segmented_lora.cuh"

namespace weft::lora {

// For steps in which every item has one row.
template <typename X, typename W>
__device__ __forceinline__ void lora_decode(const X* x, int in, X* out, int out_stride, const LoraItem* items,
                                            const LoraTarget* targets, const unsigned* count, int shrunk_stride,
                                            int columns_per_block, float* shrunk) {
    if (blockIdx.y >= *count) return;
    const LoraItem item = items[blockIdx.y];
    lora_item<1, X, W>(x, in, out, out_stride, item, targets, shrunk, shrunk_stride, columns_per_block);
}

// For steps that hold prompts too: items of up to 16 rows, single ones among them.
template <typename X, typename W>
__device__ __forceinline__ void lora_mixed(const X* x, int in, X* out, int out_stride, const LoraItem* items,
                                           const LoraTarget* targets, const unsigned* count, int shrunk_stride,
                                           int columns_per_block, float* shrunk) {
    if (blockIdx.y >= *count) return;
    const LoraItem item = items[blockIdx.y];
    if (item.rows == 1) {
        lora_item<1, X, W>(x, in, out, out_stride, item, targets, shrunk, shrunk_stride, columns_per_block);
    } else {
        lora_item<LORA_ROWS, X, W>(x, in, out, out_stride, item, targets, shrunk, shrunk_stride, columns_per_block);
    }
}

}  // namespace weft::lora

// Dynamic shared memory: decode 4 * shrunk_stride bytes, mixed 16 times that.
#define WEFT_LORA(kind, blocks, suffix, X, W)                                                                                              \
    extern "C" __global__ void __launch_bounds__(weft::lora::LORA_THREADS, blocks) weft_lora_##kind##_##suffix(                            \
        const X* x, int in, X* out, int out_stride, const weft::lora::LoraItem* items, const weft::lora::LoraTarget* targets,              \
        const unsigned* count, int shrunk_stride, int columns_per_block) {                                                                 \
        WEFT_DYNAMIC_SHARED(shrunk);                                                                                                       \
        weft::lora::lora_##kind<X, W>(x, in, out, out_stride, items, targets, count, shrunk_stride, columns_per_block,                     \
                                reinterpret_cast<float*>(shrunk));                                                                         \
    }

#define WEFT_LORA_TYPES(suffix, X, W)                                                                                                      \
    WEFT_LORA(decode, 4, suffix, X, W)                                                                                                     \
    WEFT_LORA(mixed, 2, suffix, X, W)

// The first type is that of x and out, the second that of A and B.
WEFT_LORA_TYPES(f32_f32, float, float)
WEFT_LORA_TYPES(f32_bf16, float, __nv_bfloat16)
WEFT_LORA_TYPES(bf16_bf16, __nv_bfloat16, __nv_bfloat16)
WEFT_LORA_TYPES(f16_f16, __half, __half)
// The same with codes.
WEFT_LORA_TYPES(f32_int8, float, weft::lora::Int8)
WEFT_LORA_TYPES(f32_fp8, float, weft::lora::Fp8)
WEFT_LORA_TYPES(bf16_int8, __nv_bfloat16, weft::lora::Int8)
WEFT_LORA_TYPES(bf16_fp8, __nv_bfloat16, weft::lora::Fp8)
WEFT_LORA_TYPES(f16_int8, __half, weft::lora::Int8)
WEFT_LORA_TYPES(f16_fp8, __half, weft::lora::Fp8)
