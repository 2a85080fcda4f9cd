// The kernels that a launch finds by name: one table for each file of tables/.
#pragma once
#include <cstddef>
#include <cstdint>

namespace shim {

struct Parameter {
    uint32_t bytes, is_pointer;
};
struct Kernel {
    const char* name;
    void (*call)(void** arguments);
    // Writes up to `capacity` of its parameters, in order, and says how many it has.
    size_t (*describe)(Parameter* to, size_t capacity);
};
struct Table {
    const Kernel* kernels;
    size_t count;
};
extern const Table attention_kernels, gemm_kernels, lora_kernels, probe_kernels, row_kernels, sampling_kernels;

// Null beyond the last.
const Kernel* kernel_at(size_t index);
// Null if there is none.
const Kernel* kernel_named(const char* name);

}  // namespace shim
