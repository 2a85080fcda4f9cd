// Fibres, barriers, warps and launches. One launch runs at a time in a process.
#include "shim.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <vector>

#include "internal.h"
#include "kernels.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace shim {

Coordinates here;
int running_thread = -1;

namespace {

constexpr unsigned THREADS_MAX = 1024;
constexpr unsigned WARP = 32;
constexpr size_t STACK_BYTES = 256 * 1024;
constexpr size_t GUARD_BYTES = 4096;

enum class State { Ready, AtBarrier, InWarp, Done };

// A context to switch to. On x86-64 a switch is a few instructions; ucontext's own makes two calls to the kernel, and a sum over a
// warp takes 160 switches.
struct Context {
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#endif
    ucontext_t context;
    void* fake_stack = nullptr;
    const void* bottom = nullptr;
    size_t bytes = 0;
};

struct Fibre {
    Context context;
    State state = State::Done;
    uint3 thread;
};

// What the lanes of a warp exchange. The last to arrive works out what each gets, so that others may begin the next exchange before
// one has read.
struct Warp {
    uint32_t given[WARP], gets[WARP];
    Collect what[WARP];
    unsigned from[WARP];
    unsigned mask = 0, arrived = 0;
    // Of a meeting: what each lane gave, and what the last one calls. Null while the lanes exchange values.
    void* brought[WARP];
    void (*compute)(void* const (&lanes)[WARP]) = nullptr;
};

std::mutex one_launch;
std::vector<Fibre> fibres;
std::vector<Warp> warps;
Context scheduler;
char* stacks = nullptr;
void* dynamic = nullptr;
void (*kernel)(void**) = nullptr;
void** kernel_arguments = nullptr;
bool failed = false;
char message[512];

#if defined(__x86_64__)
// Saves what a call must keep, leaves by one stack and comes back on the other.
extern "C" void weft_shim_switch(void** save, void* load);
asm(R"(
.text
.globl weft_shim_switch
.type weft_shim_switch, @function
weft_shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size weft_shim_switch, .-weft_shim_switch
)");
#endif

void switch_to(Context& from, Context& to, bool for_ever = false) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(for_ever ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#else
    (void)for_ever;
#endif
#if defined(__x86_64__)
    weft_shim_switch(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.context, &to.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

Fibre& running() { return fibres[unsigned(running_thread)]; }

void yield(State state, bool for_ever = false) {
    Fibre& self = running();
    self.state = state;
    switch_to(self.context, scheduler, for_ever);
}

void fibre_main() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler.bottom, &scheduler.bytes);
#endif
    kernel(kernel_arguments);
    yield(State::Done, true);
    abort();
}

void map_stacks() {
    if (stacks) return;
    void* const mapped = mmap(nullptr, THREADS_MAX * STACK_BYTES, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) abort();
    stacks = static_cast<char*>(mapped);
    for (unsigned i = 0; i < THREADS_MAX; ++i) mprotect(stacks + i * STACK_BYTES, GUARD_BYTES, PROT_NONE);
}

void prepare(unsigned index, uint3 block_size) {
    Fibre& fibre = fibres[index];
    char* const bottom = stacks + index * STACK_BYTES + GUARD_BYTES;
    const size_t bytes = STACK_BYTES - GUARD_BYTES;
    fibre.context.bottom = bottom;
    fibre.context.bytes = bytes;
    fibre.context.fake_stack = nullptr;
#if defined(__x86_64__)
    // As if fibre_main had been called: its frame begins 8 bytes off a multiple of 16, with a return address that is none.
    void** top = reinterpret_cast<void**>(bottom + bytes);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&fibre_main);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    fibre.context.stack_pointer = top;
#else
    getcontext(&fibre.context.context);
    fibre.context.context.uc_stack.ss_sp = bottom;
    fibre.context.context.uc_stack.ss_size = bytes;
    fibre.context.context.uc_link = nullptr;
    makecontext(&fibre.context.context, fibre_main, 0);
#endif
    fibre.thread = {index % block_size.x, index / block_size.x % block_size.y, index / block_size.x / block_size.y};
    fibre.state = State::Ready;
}

// Runs the threads of a warp until each waits for the block, for a lane that does not come, or is done.
void run_warp(unsigned warp, unsigned threads, bool backwards) {
    const unsigned first = warp * WARP, lanes = threads - first < WARP ? threads - first : WARP;
    for (bool ran = true; ran && !failed;) {
        ran = false;
        for (unsigned i = 0; i < lanes && !failed; ++i) {
            Fibre& fibre = fibres[first + (backwards ? lanes - 1 - i : i)];
            if (fibre.state != State::Ready) continue;
            ran = true;
            running_thread = int(&fibre - fibres.data());
            here.thread = fibre.thread;
            switch_to(scheduler, fibre.context);
            running_thread = -1;
        }
    }
}

void run_block(uint3 block_size, unsigned threads, unsigned order) {
    races::begin_block();
    forget_copies();
    const unsigned warp_count = (threads + WARP - 1) / WARP;
    warps.assign(warp_count, Warp());
    for (unsigned i = 0; i < threads; ++i) prepare(i, block_size);
    while (!failed) {
        for (unsigned i = 0; i < warp_count; ++i) run_warp(order & 1 ? warp_count - 1 - i : i, threads, order & 2);
        unsigned at_barrier = 0, in_warp = 0, done = 0;
        for (unsigned i = 0; i < threads; ++i) {
            at_barrier += fibres[i].state == State::AtBarrier;
            in_warp += fibres[i].state == State::InWarp;
            done += fibres[i].state == State::Done;
        }
        if (failed || done == threads) return;
        if (at_barrier != threads) {
            fail("of %u threads %u wait at a barrier, %u for their warp, and %u have ended", threads, at_barrier, in_warp, done);
            return;
        }
        races::pass_barrier();
        for (unsigned i = 0; i < threads; ++i) fibres[i].state = State::Ready;
    }
}

void run_grid(uint3 grid, uint3 block_size, unsigned order) {
    const unsigned threads = block_size.x * block_size.y * block_size.z;
    const size_t blocks = size_t(grid.x) * grid.y * grid.z;
    here.block_size = block_size, here.grid_size = grid;
    fibres.resize(threads);
    for (size_t i = 0; i < blocks && !failed; ++i) {
        const size_t block = order & 4 ? blocks - 1 - i : i;
        here.block = {unsigned(block % grid.x), unsigned(block / grid.x % grid.y), unsigned(block / grid.x / grid.y)};
        run_block(block_size, threads, order);
    }
}

}  // namespace

void fail(const char* format, ...) {
    if (!failed) {
        va_list arguments;
        va_start(arguments, format);
        const int length = snprintf(message, sizeof message, "block (%u, %u, %u): ", here.block.x, here.block.y, here.block.z);
        vsnprintf(message + length, sizeof message - size_t(length), format, arguments);
        va_end(arguments);
        failed = true;
    }
    if (running_thread >= 0) {
        yield(State::Done);
        abort();
    }
}

void* dynamic_shared() { return dynamic; }
unsigned lane() { return unsigned(running_thread) % WARP; }
void barrier() { yield(State::AtBarrier); }

uint32_t collect(Collect what, unsigned mask, uint32_t bits, unsigned from) {
    const unsigned thread = unsigned(running_thread), self = thread % WARP, first = thread - self;
    const unsigned lanes = fibres.size() - first < WARP ? unsigned(fibres.size() - first) : WARP;
    // Lanes that the block does not have are not waited for.
    const unsigned expected = lanes == WARP ? mask : mask & ((1u << lanes) - 1);
    Warp& warp = warps[thread / WARP];
    if (!(expected >> self & 1)) fail("lane %u calls an operation of lanes %08x", self, mask);
    if (warp.arrived != 0 && warp.compute) fail("lanes of one warp are at a matrix operation and at another");
    if (warp.arrived != 0 && warp.mask != expected) fail("lanes of one warp name %08x and %08x", warp.mask, expected);
    if (what == Collect::Value && !(expected >> from & 1)) fail("lane %u reads lane %u, which is not among %08x", self, from, expected);
    warp.mask = expected;
    warp.given[self] = bits;
    warp.what[self] = what;
    warp.from[self] = from;
    warp.arrived |= 1u << self;
    if (warp.arrived != expected) {
        yield(State::InWarp);
        return warp.gets[self];
    }
    warp.arrived = 0;
    uint32_t votes = 0;
    for (unsigned i = 0; i < lanes; ++i)
        if ((expected >> i & 1) && warp.given[i] != 0) votes |= 1u << i;
    for (unsigned i = 0; i < lanes; ++i) {
        if (!(expected >> i & 1)) continue;
        warp.gets[i] = warp.what[i] == Collect::Ballot ? votes : warp.given[warp.from[i]];
        if (i != self) fibres[first + i].state = State::Ready;
    }
    return warp.gets[self];
}

void meet(void* mine, void (*compute)(void* const (&lanes)[WARP])) {
    const unsigned thread = unsigned(running_thread), self = thread % WARP, first = thread - self;
    if (fibres.size() - first < WARP) fail("a matrix operation in a warp of %zu lanes", fibres.size() - first);
    Warp& warp = warps[thread / WARP];
    if (warp.arrived != 0 && warp.compute != compute) fail("lanes of one warp are at a matrix operation and at another");
    warp.compute = compute;
    warp.brought[self] = mine;
    warp.arrived |= 1u << self;
    if (warp.arrived != 0xffffffffu) {
        yield(State::InWarp);
        return;
    }
    compute(warp.brought);
    warp.arrived = 0;
    warp.compute = nullptr;
    for (unsigned i = 0; i < WARP; ++i)
        if (i != self) fibres[first + i].state = State::Ready;
}

// Notes the access, and puts what `change` makes of the value there.
template <class T, class Change>
static T atomically(T* at, Change change) {
    races::note(at, sizeof *at, races::Access::Atomic);
    const T before = *at;
    *at = change(before);
    return before;
}
uint32_t atomic_add(uint32_t* at, uint32_t value) {
    return atomically(at, [=](uint32_t before) { return before + value; });
}
float atomic_add(float* at, float value) {
    return atomically(at, [=](float before) { return before + value; });
}
uint32_t atomic_max(uint32_t* at, uint32_t value) {
    return atomically(at, [=](uint32_t before) { return before < value ? value : before; });
}
uint32_t atomic_or(uint32_t* at, uint32_t value) {
    return atomically(at, [=](uint32_t before) { return before | value; });
}
uint32_t atomic_exchange(uint32_t* at, uint32_t value) {
    return atomically(at, [=](uint32_t) { return value; });
}
uint32_t atomic_compare_exchange(uint32_t* at, uint32_t expected, uint32_t value) {
    return atomically(at, [=](uint32_t before) { return before == expected ? value : before; });
}

}  // namespace shim

// As cuLaunchKernel: `arguments` are pointers to the values. `order`: bit 0 warps, bit 1 lanes, bit 2 blocks backwards.
// Returns 0, or 1 with a message.
extern "C" int weft_shim_launch(const char* name, const unsigned grid[3], const unsigned block[3], size_t dynamic_bytes,
                                void** arguments, unsigned order, char* error, size_t error_bytes) {
    const std::lock_guard<std::mutex> alone(shim::one_launch);
    shim::failed = false;
    shim::message[0] = 0;
    shim::here = {};
    const shim::Kernel* const kernel = shim::kernel_named(name);
    shim::kernel = kernel ? kernel->call : nullptr;
    const size_t threads = size_t(block[0]) * block[1] * block[2];
    if (!shim::kernel) {
        snprintf(error, error_bytes, "no kernel %s", name);
        return 1;
    }
    // What every device since sm_80 allows without asking for more.
    if (threads == 0 || threads > shim::THREADS_MAX || dynamic_bytes > 48 * 1024 || grid[1] > 65535 || grid[2] > 65535 ||
        size_t(grid[0]) * grid[1] * grid[2] == 0) {
        snprintf(error, error_bytes, "%s: grid (%u, %u, %u), block (%u, %u, %u), %zu bytes: no device launches this", name, grid[0],
                 grid[1], grid[2], block[0], block[1], block[2], dynamic_bytes);
        return 1;
    }
    shim::map_stacks();
    shim::kernel_arguments = arguments;
    if (posix_memalign(&shim::dynamic, 16, dynamic_bytes ? dynamic_bytes : 1) != 0) abort();
    memset(shim::dynamic, 0xff, dynamic_bytes);
    shim::races::begin_launch(shim::stacks, shim::THREADS_MAX * shim::STACK_BYTES, shim::dynamic, dynamic_bytes);
    shim::run_grid({grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, order);
    free(shim::dynamic);
    shim::dynamic = nullptr;
    if (!shim::failed) return 0;
    snprintf(error, error_bytes, "%s: %s", name, shim::message);
    return 1;
}

// The name of a kernel by its number; null beyond the last.
extern "C" const char* weft_shim_kernel(size_t index) {
    const shim::Kernel* const kernel = shim::kernel_at(index);
    return kernel ? kernel->name : nullptr;
}

// As Kernel::describe; 0 beyond the last kernel.
extern "C" size_t weft_shim_parameters(size_t index, shim::Parameter* to, size_t capacity) {
    const shim::Kernel* const kernel = shim::kernel_at(index);
    return kernel ? kernel->describe(to, capacity) : 0;
}
