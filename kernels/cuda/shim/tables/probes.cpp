// What tests the shim itself.
#include "table.h"

#include "../probes.cu"
#include "../mma_probes.cu"

TABLE(probe_kernels,
      KERNEL(probe_races_in_shared),
      KERNEL(probe_races_in_global),
      KERNEL(probe_reads_what_nothing_wrote),
      KERNEL(probe_misses_a_barrier),
      KERNEL(probe_misses_its_warp),
      KERNEL(probe_votes_and_shuffles),
      KERNEL(probe_counts_by_atomics),
      KERNEL(probe_reverses),
      KERNEL(probe_mma_f16),
      KERNEL(probe_mma_bf16),
      KERNEL(probe_mma_s8),
      KERNEL(probe_mma_e4m3),
      KERNEL(probe_mma_e4m3_widened),
      KERNEL(probe_loads_matrices),
      KERNEL(probe_copies),
      KERNEL(probe_copies_without_waiting),
      KERNEL(probe_copies_over_what_is_read),
      KERNEL(probe_mma_without_a_lane),
      KERNEL(probe_to_e4m3),
      KERNEL(probe_widens_e4m3),
      KERNEL(probe_weighs))
