// The sampler.
#include "table.h"

#include "../../sampling.cu"

TABLE(sampling_kernels,
      KERNEL(weft_sample_begin),
      FLOATS(weft_sample),
      FLOATS(weft_sample_large))
