// The float32 arithmetic of importance, as a table of functions: one table per instruction set.
#pragma once

#include <cstdint>

#include "../common/dtype.h"

namespace vr::cpu {

struct ImportanceMath {
  // scores[(k * group + g) * score_stride] = sum_c queries[k][g][c] key[k][c], where key k stands key_stride after the
  // one before it, dense, float32 or bfloat16, and the queries are all dense.
  void (*dot_heads)(const float* queries, int64_t group, DType dtype, const void* key, int64_t key_stride,
                    int64_t kv_heads, int64_t width, float* scores, int64_t score_stride);

  // The largest element; NaNs do not count. -infinity for none.
  float (*largest)(const float* row, int64_t count);

  // row = exp(row - shift); returns the sum.
  double (*exp_and_sum)(float* row, int64_t count, float shift);

  // row /= divisor
  void (*divide)(float* row, int64_t count, float divisor);

  // sums += row * factor
  void (*add_scaled)(const float* row, int64_t count, float factor, float* sums);

  // sums += exp(row - shift)
  void (*add_exp)(const float* row, int64_t count, float shift, float* sums);

  // sum_j row[j] grad[j]
  double (*product_sum)(const float* row, const float* grad, int64_t count);

  // row *= factor * (grad - mean)
  void (*multiply_by_difference)(float* row, int64_t count, float factor, const float* grad, float mean);
};

extern const ImportanceMath kBaselineImportance;
#if defined(__x86_64__)
extern const ImportanceMath kAvx2Importance;
extern const ImportanceMath kAvx512Importance;
#endif

// Of the instruction set in use.
const ImportanceMath& importance_math();

}  // namespace vr::cpu
