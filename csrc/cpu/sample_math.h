// The arithmetic on sampled rows, as a table of functions: one table per instruction set. Rows are contiguous.
#pragma once

#include <cstdint>

#include "../common/dtype.h"

namespace vr::cpu {

struct SampleMath {
  // Reads `count` elements as float32.
  void (*load)(DType dtype, const void* source, int64_t stride, int64_t count, float* target);

  // Writes `count` elements, rounded to nearest even.
  void (*store)(DType dtype, const float* source, int64_t count, void* target);

  // out[c] = sum_k weights[k] rows[k][c]
  void (*mix)(DType dtype, const void* const* rows, const float* weights, int64_t count, int64_t channels, float* out);

  // dots[k] = sum_c rows[k][c] vector[c]
  void (*dot)(DType dtype, const void* const* rows, const float* vector, int64_t count, int64_t channels, float* dots);

  // rows[k][c] += weights[k] vector[c], one row after the other: a row may be named twice.
  void (*spread)(float* const* rows, const float* weights, const float* vector, int64_t count, int64_t channels);
};

extern const SampleMath kBaselineSampleMath;
#if defined(__x86_64__)
extern const SampleMath kAvx2SampleMath;
extern const SampleMath kAvx512SampleMath;
#endif

}  // namespace vr::cpu
