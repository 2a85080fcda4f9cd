// CUDA C++ on a processor: what a `.cu` file of this repository needs to be compiled by g++ and run, thread by thread.
//
// Each thread of a block is a fibre. A fibre runs until it reaches a barrier or an operation of its warp, then the next one does; blocks
// run one after the other. The order of threads and blocks is a parameter of the launch, so that a result that depends on it shows.
// What is not here does not compile.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
// One block runs at a time, so shared memory is a static: the address sanitizer puts red zones around it, and it lies between the ends of
// the program's data, by which the race check knows it.
#define __shared__ static
#define WEFT_DYNAMIC_SHARED(name) float4* const name = static_cast<float4*>(shim::dynamic_shared())

struct uint3 {
    unsigned x, y, z;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

namespace shim {

// What a thread can ask about itself. The launch sets it at each switch.
struct Coordinates {
    uint3 thread, block, block_size, grid_size;
};
extern Coordinates here;

void* dynamic_shared();
void barrier();

enum class Collect { Value, Ballot };
// Gives `bits` to the other lanes of `mask` and returns, when all are there, what lane `from` gave (`Value`) or which lanes of the
// mask gave something other than zero (`Ballot`). A lane that is not in the mask, or two masks at a time, end the launch with an error.
uint32_t collect(Collect what, unsigned mask, uint32_t bits, unsigned from);
unsigned lane();

// Atomics: the race check lets them meet each other, and nothing else.
uint32_t atomic_add(uint32_t* at, uint32_t value);
float atomic_add(float* at, float value);
uint32_t atomic_max(uint32_t* at, uint32_t value);
uint32_t atomic_or(uint32_t* at, uint32_t value);
uint32_t atomic_exchange(uint32_t* at, uint32_t value);
uint32_t atomic_compare_exchange(uint32_t* at, uint32_t expected, uint32_t value);

inline uint32_t to_bits(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}
inline uint32_t to_bits(unsigned value) { return value; }
inline uint32_t to_bits(int value) { return uint32_t(value); }
template <typename T>
inline T from_bits(uint32_t bits) {
    T value;
    static_assert(sizeof(T) == 4, "shuffles of 4 bytes");
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

}  // namespace shim

#define threadIdx (shim::here.thread)
#define blockIdx (shim::here.block)
#define blockDim (shim::here.block_size)
#define gridDim (shim::here.grid_size)

inline void __syncthreads() { shim::barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { shim::collect(shim::Collect::Ballot, mask, 0, 0); }

template <typename T>
inline T __shfl_sync(unsigned mask, T value, int from) {
    return shim::from_bits<T>(shim::collect(shim::Collect::Value, mask, shim::to_bits(value), unsigned(from) % 32));
}
template <typename T>
inline T __shfl_xor_sync(unsigned mask, T value, int apart) {
    return __shfl_sync(mask, value, int(shim::lane() ^ unsigned(apart)));
}
template <typename T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned by) {
    const unsigned from = shim::lane() + by;
    return __shfl_sync(mask, value, int(from < 32 ? from : shim::lane()));
}
template <typename T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned by) {
    return __shfl_sync(mask, value, int(shim::lane() >= by ? shim::lane() - by : shim::lane()));
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    return shim::collect(shim::Collect::Ballot, mask, predicate != 0, 0);
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, !predicate) == 0; }

inline unsigned atomicAdd(unsigned* at, unsigned value) { return shim::atomic_add(at, value); }
inline float atomicAdd(float* at, float value) { return shim::atomic_add(at, value); }
inline unsigned atomicMax(unsigned* at, unsigned value) { return shim::atomic_max(at, value); }
inline unsigned atomicOr(unsigned* at, unsigned value) { return shim::atomic_or(at, value); }
inline unsigned atomicExch(unsigned* at, unsigned value) { return shim::atomic_exchange(at, value); }
inline unsigned atomicCAS(unsigned* at, unsigned expected, unsigned value) {
    return shim::atomic_compare_exchange(at, expected, value);
}

// Byte i of the result is the byte of low (0 to 3) or high (4 to 7) that the i-th four bits of `which` name.
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned which) {
    const uint64_t bytes = uint64_t(high) << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= unsigned(bytes >> 8 * (which >> 4 * i & 7u) & 0xffu) << 8 * i;
    return result;
}
inline float __fmul_rn(float a, float b) { return a * b; }

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a < b ? b : a; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline unsigned __float_as_uint(float value) { return shim::to_bits(value); }
inline float __uint_as_float(unsigned bits) { return shim::from_bits<float>(bits); }
