// The table of kernels that a launch looks names up in.
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
extern const Kernel kernel_table[];
extern const size_t kernel_count;

}  // namespace shim
