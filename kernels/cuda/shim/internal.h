// Between the parts of the shim: the fibres (shim.cpp), the race check (races.cpp) and what a launch may touch (bounds.cpp).
#pragma once
#include <cstddef>
#include <cstdint>

namespace shim {

// Ends the running launch with this message, the first one wins. Does not return when called from a fibre.
void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Numbers of the thread that runs, or -1 outside of launches.
extern int running_thread;

// Gives `mine` to the warp; when all of its 32 lanes have come, the last one calls `compute` with what each gave, in order of lanes. All
// lanes of one meeting name the same function.
void meet(void* mine, void (*compute)(void* const (&lanes)[32]));

// Copies that a block before has begun and not waited for (mma.cpp).
void forget_copies();

namespace races {

enum class Access { Read, Write, Atomic };

// Intervals are numbered through all launches: a block begins one, each of its barriers another.
void begin_launch(const void* stacks, size_t stack_bytes, const void* dynamic_shared, size_t dynamic_bytes);
void begin_block();
void pass_barrier();
void note(const void* at, size_t bytes, Access access);

}  // namespace races

// bounds.cpp
namespace bounds {
void note(uintptr_t at, size_t bytes, bool reads, bool writes);
}
}  // namespace shim
