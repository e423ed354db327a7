// The float32 arithmetic of one row of the stream, as a table of functions: one table per instruction set.
#pragma once

#include "../common/dtype.h"

namespace vr::cpu {

struct TokenMath {
  // Reads `count` elements, `stride` elements apart, as float32.
  void (*load)(DType dtype, const void* source, int64_t stride, int64_t count, float* target);

  // Writes contiguous elements, rounded to nearest even.
  void (*store)(DType dtype, const float* source, int64_t count, void* target);

  // 1 / sqrt(mean of the squares + eps)
  float (*inverse_rms)(const float* row, int64_t count, float eps);

  // row[i] *= inverse_rms * weight[i]
  void (*scale)(float inverse_rms, const float* weight, int64_t count, float* row);

  // The gradient of the normalised row, grad, becomes that of the row itself; grad_weight, unless null, adds its own.
  void (*scale_gradient)(const float* row, float inverse_rms, const float* weight, int64_t count, float* grad,
                         float* grad_weight);

  // Where row[i] exceeds best[i], or is the first NaN, it takes its place, and `number` that of best_row[i].
  void (*keep_larger)(const float* row, int32_t number, int64_t count, float* best, int32_t* best_row);

  // row[i] + update[i] into row, but for a zero's sign: adding zero leaves every bit.
  void (*add_residual)(const float* update, int64_t count, float* row);
};

extern const TokenMath kBaselineTokenMath;
#if defined(__x86_64__)
extern const TokenMath kAvx2TokenMath;
extern const TokenMath kAvx512TokenMath;
#endif

// Of the instruction set in use.
const TokenMath& token_math();

}  // namespace vr::cpu
