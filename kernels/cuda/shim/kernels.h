// The table of kernels that a launch looks names up in.
#pragma once
#include <cstddef>

namespace shim {

struct Kernel {
    const char* name;
    void (*call)(void** arguments);
};
extern const Kernel kernel_table[];
extern const size_t kernel_count;

}  // namespace shim
