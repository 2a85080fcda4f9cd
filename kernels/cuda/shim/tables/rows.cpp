// What works on plain rows.
#include "table.h"

#include "../../gather_rows.cu"
#include "../../join_columns.cu"
#include "../../rms_norm.cu"
#include "../../rope.cu"
#include "../../scale_columns.cu"
#include "../../silu_mul.cu"

TABLE(row_kernels,
      FLOATS(weft_gather_rows),
      KERNEL(weft_join_columns_f32),
      FLOATS(weft_rms_norm),
      FLOATS(weft_add_rms_norm),
      FLOATS(weft_rope),
      FLOATS(weft_silu_mul),
      FLOATS(weft_scale_columns))
