// Kernels that show what the shim makes of matrix products and asynchronous copies (tests/mma.rs). Not for a device.
#include "../mma.cuh"

// One warp; a [32, 4], b [32, 2] and d [32, 4] are the registers of its lanes.
#define WEFT_PROBE_MMA(name, product, D)                                                                  \
    extern "C" __global__ void name(const unsigned* a, const unsigned* b, D* d) {                         \
        const unsigned lane = threadIdx.x;                                                                \
        const unsigned of_a[4] = {a[lane * 4], a[lane * 4 + 1], a[lane * 4 + 2], a[lane * 4 + 3]};        \
        const unsigned of_b[2] = {b[lane * 2], b[lane * 2 + 1]};                                          \
        D of_d[4] = {d[lane * 4], d[lane * 4 + 1], d[lane * 4 + 2], d[lane * 4 + 3]};                     \
        product(of_d, of_a, of_b);                                                                        \
        for (int i = 0; i < 4; ++i) d[lane * 4 + i] = of_d[i];                                            \
    }
WEFT_PROBE_MMA(probe_mma_f16, weft::mma_16x8x16<__half>, float)
WEFT_PROBE_MMA(probe_mma_bf16, weft::mma_16x8x16<__nv_bfloat16>, float)
WEFT_PROBE_MMA(probe_mma_s8, weft::mma_16x8x32_s8, int)
WEFT_PROBE_MMA(probe_mma_e4m3, weft::mma_16x8x32_e4m3, float)
WEFT_PROBE_MMA(probe_mma_e4m3_widened, weft::mma_16x8x32_e4m3_widened, float)

// One warp; from [4, 8, 8] of 16 bits; to [2, 32, 4]: the registers as they come, and turned.
extern "C" __global__ void probe_loads_matrices(const unsigned short* from, unsigned* to) {
    __shared__ uint4 rows[32];
    const unsigned lane = threadIdx.x;
    unsigned short* const row = reinterpret_cast<unsigned short*>(&rows[lane]);
    for (int i = 0; i < 8; ++i) row[i] = from[lane * 8 + i];
    __syncthreads();
    unsigned plain[4], turned[4];
    weft::load_matrices(plain, &rows[lane]);
    weft::load_matrices_turned(turned, &rows[lane]);
    for (int i = 0; i < 4; ++i) {
        to[lane * 4 + i] = plain[i];
        to[(32 + lane) * 4 + i] = turned[i];
    }
}

// 64 threads; from [64, 4]. Two groups of copies, of which the second does not exist for odd threads; to [2, 64, 4] is what thread 63 - i
// got.
extern "C" __global__ void probe_copies(const float* from, float* to) {
    __shared__ float4 held[2][64];
    const unsigned thread = threadIdx.x;
    for (int group = 0; group < 2; ++group) {
        weft::copy16(&held[group][thread], from + thread * 4, group == 0 || thread % 2 == 0);
        weft::commit_copies();
    }
    weft::wait_for_copies<1>();
    __syncthreads();
    reinterpret_cast<float4*>(to)[thread] = held[0][63 - thread];
    weft::wait_for_copies<0>();
    __syncthreads();
    reinterpret_cast<float4*>(to)[64 + thread] = held[1][63 - thread];
}

extern "C" __global__ void probe_copies_without_waiting(const float* from, float* to) {
    __shared__ float4 held[64];
    weft::copy16(&held[threadIdx.x], from + threadIdx.x * 4);
    weft::commit_copies();
    __syncthreads();
    reinterpret_cast<float4*>(to)[threadIdx.x] = held[threadIdx.x];
    weft::wait_for_copies<0>();
}

// A barrier after the copy, but none before: the neighbour may still read what it overwrites.
extern "C" __global__ void probe_copies_over_what_is_read(const float* from, float* to) {
    __shared__ float4 held[64];
    held[threadIdx.x] = reinterpret_cast<const float4*>(from)[threadIdx.x];
    __syncthreads();
    reinterpret_cast<float4*>(to)[threadIdx.x] = held[63 - threadIdx.x];
    weft::copy16(&held[threadIdx.x], from + threadIdx.x * 4);
    weft::commit_copies();
    weft::wait_for_copies<0>();
}

extern "C" __global__ void probe_mma_without_a_lane(float* to) {
    if (threadIdx.x == 3) return;
    const unsigned a[4] = {}, b[2] = {};
    float d[4] = {};
    weft::mma_16x8x16<__half>(d, a, b);
    to[threadIdx.x] = d[0];
}

// to[i] is the code of from[i], in the lowest byte.
extern "C" __global__ void probe_to_e4m3(const float* from, unsigned* to) {
    const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
    to[i] = weft::from_float<__nv_fp8_e4m3>(from[i]).__x;
}

// Codes 4i to 4i + 3 of thread i, as f32: by the header, by way of f16, by way of bf16. to [3, 256].
extern "C" __global__ void probe_widens_e4m3(float* to) {
    const unsigned i = threadIdx.x;
    const unsigned codes = 4 * i | (4 * i + 1) << 8 | (4 * i + 2) << 16 | (4 * i + 3) << 24;
    unsigned half[2], bf16[2];
    weft::widen_e4m3<__half>(codes, half);
    weft::widen_e4m3<__nv_bfloat16>(codes, bf16);
    for (int j = 0; j < 4; ++j) {
        __nv_fp8_e4m3 code;
        code.__x = static_cast<unsigned char>(codes >> 8 * j);
        to[4 * i + j] = weft::to_float(code);
        to[256 + 4 * i + j] = weft::to_float(reinterpret_cast<const __half*>(half)[j]);
        to[512 + 4 * i + j] = weft::to_float(reinterpret_cast<const __nv_bfloat16*>(bf16)[j]);
    }
}
