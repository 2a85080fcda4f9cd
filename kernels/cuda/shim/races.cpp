// The race check: every access that the kernels make to memory, compared with the other accesses of its barrier interval.
//
// The kernels are compiled with -fsanitize=thread, which puts a call before each access; the functions called are these, not those of
// the thread sanitizer's runtime. Each two bytes of memory have a cell with their last write and last read. Two accesses are
// a race if one of them is a write, not both are atomic, and
//
//   - two threads of one block made them between the same two barriers, or
//   - two blocks of one launch made them, and the memory is not shared memory.
//
// Reading shared memory that the block has not written is an error too. Not seen: what warps may assume among themselves
// (`__syncwarp` orders nothing here: such code is reported though it is right), flags and fences between blocks (reported too), an order
// that a launch did not take, accesses by memcpy. A read by two blocks and then a third's write is seen; of several readers of one
// interval the last two are known.
#include <cstring>
#include <memory>
#include <unordered_map>

#include "internal.h"
#include "shim.h"

extern "C" char __data_start[] __attribute__((weak));
extern "C" char _end[] __attribute__((weak));
extern "C" char __executable_start[] __attribute__((weak));

namespace shim::races {
namespace {

constexpr size_t GRANULE = 2;
constexpr size_t PAGE = 4096;
// Several threads.
constexpr int32_t MANY = -2;
// Pages of cells to keep between launches.
constexpr size_t PAGES_KEPT = 4096;

struct Cell {
    uint32_t write_interval = 0, read_interval = 0;
    int32_t write_thread = 0, read_thread = 0;
    // A launch in which an earlier block than the last reader's has read.
    uint32_t read_before_launch = 0;
    bool write_is_atomic = false;
};
struct Cells {
    Cell of[PAGE / GRANULE];
};

std::unordered_map<uintptr_t, std::unique_ptr<Cells>> pages;
uintptr_t last_page = 0;
Cells* last_cells = nullptr;
uint32_t interval = 0, block_begin = 0, launch_begin = 0;
uintptr_t stacks_begin, stacks_end, dynamic_begin, dynamic_end;

Cell& cell(uintptr_t at) {
    const uintptr_t page = at / PAGE;
    if (page != last_page || !last_cells) {
        auto& found = pages[page];
        if (!found) found = std::make_unique<Cells>();
        last_page = page;
        last_cells = found.get();
    }
    return last_cells->of[at % PAGE / GRANULE];
}

#if defined(__SANITIZE_ADDRESS__)
constexpr bool SEES_WRITES = false;
#else
constexpr bool SEES_WRITES = true;
#endif

bool is_shared(uintptr_t at) {
    return (at >= dynamic_begin && at < dynamic_end) ||
           (at >= uintptr_t(__data_start) && at < uintptr_t(_end));
}

// Tables and arguments by value that the compiler put into the program itself.
bool is_constant(uintptr_t at) { return at >= uintptr_t(__executable_start) && at < uintptr_t(__data_start); }

// Whether an access in `then` by `thread` meets one of now, unordered.
bool meets(uint32_t then, int32_t thread, bool shared) {
    if (then == interval) return thread != running_thread;
    return !shared && then >= launch_begin && then < block_begin;
}

void check(uintptr_t at, Access access) {
    Cell& of = cell(at);
    const bool shared = is_shared(at);
    const char* const where = shared ? "shared" : "global";
    const bool both_atomic = access == Access::Atomic && of.write_is_atomic;
    if (!both_atomic && meets(of.write_interval, of.write_thread, shared)) {
        fail("race in %s memory: thread %d %s what %s wrote, with no barrier between", where, running_thread,
             access == Access::Read ? "reads" : "writes", of.write_interval == interval ? "another thread" : "another block");
    }
    if (access == Access::Read) {
        // Under the address sanitizer only what the shim itself does is seen: plain writes are not.
        if (SEES_WRITES && shared && of.write_interval < block_begin) fail("thread %d reads shared memory that nothing wrote", running_thread);
        if (of.read_interval >= launch_begin && of.read_interval < block_begin) of.read_before_launch = launch_begin;
        of.read_thread = of.read_interval == interval && of.read_thread != running_thread ? MANY : running_thread;
        of.read_interval = interval;
        return;
    }
    if (meets(of.read_interval, of.read_thread, shared) || (!shared && of.read_before_launch == launch_begin)) {
        fail("race in %s memory: thread %d writes what %s read, with no barrier between", where, running_thread,
             of.read_interval == interval ? "another thread" : "another block");
    }
    of.write_thread = of.write_interval == interval && of.write_thread != running_thread ? MANY : running_thread;
    of.write_interval = interval;
    of.write_is_atomic = access == Access::Atomic;
}

}  // namespace

void begin_launch(const void* stacks, size_t stack_bytes, const void* dynamic_shared, size_t dynamic_bytes) {
    if (pages.size() > PAGES_KEPT) {
        pages.clear();
        last_cells = nullptr;
    }
    stacks_begin = uintptr_t(stacks), stacks_end = stacks_begin + stack_bytes;
    dynamic_begin = uintptr_t(dynamic_shared), dynamic_end = dynamic_begin + dynamic_bytes;
    launch_begin = interval + 1;
}

void begin_block() { block_begin = ++interval; }
void pass_barrier() { ++interval; }

void note(const void* address, size_t bytes, Access access) {
    const uintptr_t at = uintptr_t(address);
    // What a thread alone uses: its stack, and what it asks about itself.
    if (running_thread < 0 || (at >= stacks_begin && at < stacks_end)) return;
    if (at >= uintptr_t(&here) && at < uintptr_t(&here + 1)) return;
    if (!is_shared(at) && !is_constant(at)) bounds::note(at, bytes, access != Access::Write, access != Access::Read);
    for (uintptr_t byte = at / GRANULE * GRANULE; byte < at + bytes; byte += GRANULE) check(byte, access);
}

}  // namespace shim::races

// What -fsanitize=thread calls.
using shim::races::Access;
using shim::races::note;
#define NOTE(bytes)                                                                             \
    void __tsan_read##bytes(void* at) { note(at, bytes, Access::Read); }                        \
    void __tsan_write##bytes(void* at) { note(at, bytes, Access::Write); }                      \
    void __tsan_unaligned_read##bytes(void* at) { note(at, bytes, Access::Read); }              \
    void __tsan_unaligned_write##bytes(void* at) { note(at, bytes, Access::Write); }
extern "C" {
NOTE(1)
NOTE(2)
NOTE(4)
NOTE(8)
NOTE(16)
void __tsan_read_range(void* at, size_t bytes) { note(at, bytes, Access::Read); }
void __tsan_write_range(void* at, size_t bytes) { note(at, bytes, Access::Write); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
