// Every `.cu` file as one C++ file, compiled with the checks, and the table of what it defines.
#include "kernels.h"

#include <utility>

#include "shim.h"

#include "../rms_norm.cu"
#include "../rope.cu"
#include "../segmented_lora.cu"
#include "../silu_mul.cu"
#include "probes.cu"

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

}  // namespace

#define KERNEL(name) {#name, [](void** arguments) { call(&name, arguments); }}
#define FLOATS(name) KERNEL(name##_f32), KERNEL(name##_bf16), KERNEL(name##_f16)

extern const Kernel kernel_table[] = {
    KERNEL(weft_lora_decode_f32_f32),
    KERNEL(weft_lora_decode_f32_bf16),
    KERNEL(weft_lora_decode_bf16_bf16),
    KERNEL(weft_lora_decode_f16_f16),
    KERNEL(weft_lora_mixed_f32_f32),
    KERNEL(weft_lora_mixed_f32_bf16),
    KERNEL(weft_lora_mixed_bf16_bf16),
    KERNEL(weft_lora_mixed_f16_f16),
    FLOATS(weft_rms_norm),
    FLOATS(weft_add_rms_norm),
    FLOATS(weft_rope),
    FLOATS(weft_silu_mul),
    KERNEL(probe_races_in_shared),
    KERNEL(probe_races_in_global),
    KERNEL(probe_reads_what_nothing_wrote),
    KERNEL(probe_misses_a_barrier),
    KERNEL(probe_misses_its_warp),
    KERNEL(probe_votes_and_shuffles),
    KERNEL(probe_counts_by_atomics),
    KERNEL(probe_reverses),
};
extern const size_t kernel_count = sizeof(kernel_table) / sizeof(kernel_table[0]);

}  // namespace shim
