// What tensor cores and the asynchronous copies of a block do, one warp instruction a function. Names of registers and lanes as in the
// PTX ISA ("Warp Level Matrix Multiply-Accumulate Instructions"; "Data Movement and Conversion Instructions").
//
// With `group` = lane / 4 and `member` = lane % 4, and K the depth (elements i of a register from its lowest bits up):
//
//   A [16, K]  a[r] element i: row group + 8 * (r % 2), column member * E + i + 4 * E * (r / 2)     E = 2 of 16 bits (K 16), 4 of 8 (K 32)
//   B [K, 8]   b[r] element i: row member * E + i + 4 * E * r, column group
//   D [16, 8]  d[i]: row group + 8 * (i / 2), column 2 * member + i % 2                            f32, or s32
//
// The products of a row and a column may be summed in any order of k as long as A and B agree, so a kernel is free to let its lanes
// hold neighbouring elements instead.
//
// All 32 lanes call these together. In the shim D = C + the products, added one after the other in order of k, each rounded to f32.
// Devices sum in another order and cut bits off before: about 24 bits remain for 16-bit operands, and for e4m3 on sm_89 and 90 as few as 14
// (DeepSeek-V3 technical report, 2024, 3.3.2). So sums over e4m3 begin anew every 32 of k here, and are added up in f32.
#pragma once

#include "common.cuh"
#include "fp8.cuh"

#ifndef __CUDACC__
#include "shim/mma.h"
#endif

namespace weft {

// d [16, 8] += A [16, 16] B [16, 8]; T is __half or __nv_bfloat16.
template <typename T>
__device__ __forceinline__ void mma_16x8x16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);

template <>
__device__ __forceinline__ void mma_16x8x16<__half>(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    shim::mma_f16(d, a, b);
#endif
}

template <>
__device__ __forceinline__ void mma_16x8x16<__nv_bfloat16>(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    shim::mma_bf16(d, a, b);
#endif
}

// d [16, 8] += A [16, 32] B [32, 8] of signed bytes. Exact; beyond 32 bits it wraps.
__device__ __forceinline__ void mma_16x8x32_s8(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    shim::mma_s8(d, a, b);
#endif
}

// d [16, 8] += A [16, 32] B [32, 8] of e4m3 by way of f16, which holds every value of it: for devices before sm_89. The first product
// takes the lower two of four neighbours for its lower eight of k and the upper two for the others, in A as in B.
__device__ __forceinline__ void mma_16x8x32_e4m3_widened(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        unsigned low[2], high[2], column[2];
        widen_e4m3<__half>(a[2 * half], low);
        widen_e4m3<__half>(a[2 * half + 1], high);
        widen_e4m3<__half>(b[half], column);
        const unsigned rows[4] = {low[0], high[0], low[1], high[1]};
        mma_16x8x16<__half>(d, rows, column);
    }
}

// d [16, 8] += A [16, 32] B [32, 8] of e4m3.
__device__ __forceinline__ void mma_16x8x32_e4m3(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifndef __CUDACC__
    shim::mma_e4m3(d, a, b);
#elif __CUDA_ARCH__ >= 890
    asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    mma_16x8x32_e4m3_widened(d, a, b);
#endif
}

// Loads four 8x8 matrices of 16-bit elements from shared memory. Lane i gives the row i % 8 of matrix i / 8, 16 bytes and aligned to them;
// to[m] of a lane holds row lane / 4, columns 2 * (lane % 4) and the next, of matrix m.
__device__ __forceinline__ void load_matrices(unsigned (&to)[4], const void* row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
                 : "memory");
#else
    shim::load_matrices(to, row, false);
#endif
}

// The same with each matrix turned: to[m] holds rows 2 * (lane % 4) and the next of column lane / 4.
__device__ __forceinline__ void load_matrices_turned(unsigned (&to)[4], const void* row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(static_cast<unsigned>(__cvta_generic_to_shared(row)))
                 : "memory");
#else
    shim::load_matrices(to, row, true);
#endif
}

// Begins to copy 16 bytes into shared memory, past L1; both addresses are multiples of 16. Unless it `exists`, zeroes come and nothing is
// read, though `from` must be some valid address. Of a thread alone: no other lane needs to call it.
__device__ __forceinline__ void copy16(void* to_shared, const void* from, bool exists = true) {
#ifdef __CUDACC__
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to_shared))),
                 "l"(from), "r"(exists ? 16 : 0)
                 : "memory");
#else
    shim::copy16(to_shared, from, exists);
#endif
}

// Ends a group of this thread's copies; a group may be empty.
__device__ __forceinline__ void commit_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    shim::commit_copies();
#endif
}

// Waits until all but the last PENDING groups of this thread are in shared memory. Other threads see them after a barrier that follows.
template <int PENDING>
__device__ __forceinline__ void wait_for_copies() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#else
    shim::wait_for_copies(PENDING);
#endif
}

}  // namespace weft
