// Every `.cu` file as one C++ file, compiled with the checks, and the table of what it defines.
#include "kernels.h"

#include <type_traits>
#include <utility>

#include "shim.h"

#include "../gather_rows.cu"
#include "../gemm_finish.cu"
#include "../gemm_fp8.cu"
#include "../gemm_int8.cu"
#include "../gemm_w4.cu"
#include "../quantise.cu"
#include "../lora_prefill.cu"
#include "../attention_decode.cu"
#include "../attention_prefill.cu"
#include "../kv_write.cu"
#include "../rms_norm.cu"
#include "../rope.cu"
#include "../sampling.cu"
#include "../segmented_lora.cu"
#include "../silu_mul.cu"
#include "probes.cu"
#include "mma_probes.cu"

namespace shim {
namespace {

template <typename... P, size_t... I>
inline void call_with(void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_const_t<P>*>(arguments[I])...);
}
template <typename... P>
inline void call(void (*kernel)(P...), void** arguments) {
    call_with(kernel, arguments, std::index_sequence_for<P...>());
}

template <typename... P>
inline size_t describe(void (*)(P...), Parameter* to, size_t capacity) {
    const Parameter all[] = {{uint32_t(sizeof(P)), std::is_pointer_v<P>}...};
    for (size_t i = 0; i < sizeof...(P) && i < capacity; ++i) to[i] = all[i];
    return sizeof...(P);
}

}  // namespace

#define KERNEL(name)                                                   \
    {#name, [](void** arguments) { call(&name, arguments); },          \
     [](Parameter* to, size_t capacity) { return describe(&name, to, capacity); }}
#define GEMMS(name) KERNEL(name##_1), KERNEL(name##_2), KERNEL(name##_4), KERNEL(name##_8)
#define ATTENTION(name)                                                                              \
    KERNEL(name##_f32_f32), KERNEL(name##_f32_bf16), KERNEL(name##_bf16_bf16), KERNEL(name##_bf16_e4m3), \
        KERNEL(name##_f16_f16), KERNEL(name##_f16_e4m3)
#define FLOATS(name) KERNEL(name##_f32), KERNEL(name##_bf16), KERNEL(name##_f16)
#define LORA_TILES(name)                                                                            \
    KERNEL(name##_bf16_bf16), KERNEL(name##_bf16_int8), KERNEL(name##_bf16_fp8), KERNEL(name##_f16_f16), \
        KERNEL(name##_f16_int8), KERNEL(name##_f16_fp8)
#define LORA(name) \
    LORA_TILES(name), KERNEL(name##_f32_f32), KERNEL(name##_f32_bf16), KERNEL(name##_f32_int8), KERNEL(name##_f32_fp8)

extern const Kernel kernel_table[] = {
    FLOATS(weft_gather_rows),
    LORA(weft_lora_decode),
    LORA(weft_lora_mixed),
    LORA_TILES(weft_lora_prefill),
    ATTENTION(weft_kv_write),
    ATTENTION(weft_attention_decode),
    ATTENTION(weft_attention_prefill),
    FLOATS(weft_attention_combine),
    FLOATS(weft_rms_norm),
    FLOATS(weft_add_rms_norm),
    FLOATS(weft_rope),
    KERNEL(weft_sample_begin),
    FLOATS(weft_sample),
    FLOATS(weft_sample_large),
    FLOATS(weft_silu_mul),
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
    FLOATS(weft_quantise_fp8_rows),
    KERNEL(probe_races_in_shared),
    KERNEL(probe_races_in_global),
    KERNEL(probe_reads_what_nothing_wrote),
    KERNEL(probe_misses_a_barrier),
    KERNEL(probe_misses_its_warp),
    KERNEL(probe_votes_and_shuffles),
    KERNEL(probe_counts_by_atomics),
    KERNEL(probe_reverses),
    KERNEL(probe_mma_f16),
    KERNEL(probe_mma_bf16),
    KERNEL(probe_mma_s8),
    KERNEL(probe_mma_e4m3),
    KERNEL(probe_mma_e4m3_widened),
    KERNEL(probe_loads_matrices),
    KERNEL(probe_copies),
    KERNEL(probe_copies_without_waiting),
    KERNEL(probe_copies_over_what_is_read),
    KERNEL(probe_mma_without_a_lane),
    KERNEL(probe_to_e4m3),
    KERNEL(probe_widens_e4m3),
    KERNEL(probe_weighs),
};
extern const size_t kernel_count = sizeof(kernel_table) / sizeof(kernel_table[0]);

}  // namespace shim
