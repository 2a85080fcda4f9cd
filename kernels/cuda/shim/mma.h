// Tensor cores and asynchronous copies for the shim, lane by lane as the PTX ISA says (see ../mma.cuh).
#pragma once

namespace shim {

// d = d + A B over the fragments of the 32 lanes; products are exact, the sums go in order of k, each rounded to f32.
void mma_f16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
void mma_e4m3(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);
void mma_s8(int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]);

void load_matrices(unsigned (&to)[4], const void* row, bool turned);

// A copy is done when it is waited for, not before: until then its place holds NaN. For the race check it writes both when it begins and
// when it is done.
void copy16(void* to_shared, const void* from, bool exists);
void commit_copies();
void wait_for_copies(int pending);

}  // namespace shim
