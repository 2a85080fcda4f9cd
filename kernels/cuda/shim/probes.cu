// Kernels that show what the shim does and sees (tests/shim.rs). Not for a device.
#include "../common.cuh"
#include "../sampling_math.cuh"

// Turns a block of 64 values around, through shared memory, with the barrier that this needs.
extern "C" __global__ void probe_reverses(const float* from, float* to) {
    __shared__ float held[64];
    held[threadIdx.x] = from[blockIdx.x * 64 + threadIdx.x];
    __syncthreads();
    to[blockIdx.x * 64 + threadIdx.x] = held[63 - threadIdx.x];
}

// The same without it.
extern "C" __global__ void probe_races_in_shared(const float* from, float* to) {
    __shared__ float held[64];
    held[threadIdx.x] = from[threadIdx.x];
    __syncthreads();
    const float mine = held[threadIdx.x];
    held[63 - threadIdx.x] = mine;
    to[threadIdx.x] = mine;
}

// Every block writes the same place.
extern "C" __global__ void probe_races_in_global(float* to) {
    if (threadIdx.x == 0) to[0] = static_cast<float>(blockIdx.x);
}

extern "C" __global__ void probe_reads_what_nothing_wrote(float* to) {
    __shared__ float held[64];
    if (threadIdx.x < 63) held[threadIdx.x] = 1.0f;
    __syncthreads();
    to[threadIdx.x] = held[threadIdx.x];
}

extern "C" __global__ void probe_misses_a_barrier(float* to) {
    if (threadIdx.x == 5) return;
    __syncthreads();
    to[threadIdx.x] = 1.0f;
}

extern "C" __global__ void probe_misses_its_warp(float* to) {
    if (threadIdx.x % 2 == 0) to[threadIdx.x] = weft::warp_sum(1.0f);
}

// For each of 32 lanes: the sum of lanes, the lane 3 below, the lane 5 above, lane 7, and who is odd.
extern "C" __global__ void probe_votes_and_shuffles(unsigned* to) {
    const unsigned lane = threadIdx.x;
    to[lane * 5] = static_cast<unsigned>(weft::warp_sum(static_cast<float>(lane)));
    to[lane * 5 + 1] = __shfl_up_sync(weft::ALL_LANES, lane, 3);
    to[lane * 5 + 2] = __shfl_down_sync(weft::ALL_LANES, lane, 5);
    to[lane * 5 + 3] = __shfl_sync(weft::ALL_LANES, lane, 7);
    to[lane * 5 + 4] = __ballot_sync(weft::ALL_LANES, lane % 2 == 1);
}

// Threads of all blocks add to one counter.
extern "C" __global__ void probe_counts_by_atomics(unsigned* count) { atomicAdd(count, 1u); }

// The sampler's exponential, of one value a thread.
extern "C" __global__ void probe_weighs(const float* from, float* to) {
    const unsigned at = blockIdx.x * 64 + threadIdx.x;
    to[at] = weft::exp_below_zero(from[at]);
}
