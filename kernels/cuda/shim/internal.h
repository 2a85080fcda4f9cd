// Between the two halves of the shim: the fibres (shim.cpp) and the race check (races.cpp).
#pragma once
#include <cstddef>
#include <cstdint>

namespace shim {

// Ends the running launch with this message, the first one wins. Does not return when called from a fibre.
void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Numbers of the thread that runs, or -1 outside of launches.
extern int running_thread;

namespace races {

enum class Access { Read, Write, Atomic };

// Intervals are numbered through all launches: a block begins one, each of its barriers another.
void begin_launch(const void* stacks, size_t stack_bytes, const void* dynamic_shared, size_t dynamic_bytes);
void begin_block();
void pass_barrier();
void note(const void* at, size_t bytes, Access access);

}  // namespace races
}  // namespace shim
