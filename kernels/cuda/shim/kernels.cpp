// Every kernel of the shim.
#include "kernels.h"

#include <cstring>

namespace shim {
namespace {

constexpr const Table* TABLES[] = {&attention_kernels, &gemm_kernels, &lora_kernels, &probe_kernels, &row_kernels, &sampling_kernels};

}  // namespace

const Kernel* kernel_at(size_t index) {
    for (const Table* table : TABLES) {
        if (index < table->count) return table->kernels + index;
        index -= table->count;
    }
    return nullptr;
}

const Kernel* kernel_named(const char* name) {
    for (const Table* table : TABLES)
        for (size_t i = 0; i < table->count; ++i)
            if (strcmp(table->kernels[i].name, name) == 0) return table->kernels + i;
    return nullptr;
}

}  // namespace shim
