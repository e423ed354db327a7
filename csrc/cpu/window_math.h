// The float32 arithmetic of one window, as a table of functions: one table per instruction set.
#pragma once

#include "../common/dtype.h"
#include "feature_rows.h"

namespace vr::cpu {

struct WindowMath {
  // Reads `count` elements, `stride` elements apart, as float32.
  void (*load)(DType dtype, const void* source, int64_t stride, int64_t count, float* target);

  // Writes contiguous elements, rounded to nearest even.
  void (*store)(DType dtype, const float* source, int64_t count, void* target);

  // LayerNorm in place; weight and bias are both given or both null.
  void (*normalize)(float* row, int64_t count, float eps, const float* weight, const float* bias);

  // target[i] += source[i]
  void (*add)(const float* source, int64_t count, float* target);

  // scores[g][k] = sum_c queries[g][c] features[k][c]
  void (*dot_rows)(const float* queries, int64_t query_stride, int64_t heads, FeatureRows<float> features,
                   int64_t slots, float* scores, int64_t score_stride);

  // out[g][c] = sum_k weights[g][k] features[k][c]. Meanwhile fetches into the cache the rows, as many and as wide as
  // out's, that are read next; null fetches none.
  void (*mix_rows)(const float* weights, int64_t weight_stride, int64_t heads, FeatureRows<float> features,
                   int64_t slots, float* out, int64_t out_stride, const float* upcoming, int64_t upcoming_stride);
};

extern const WindowMath kBaselineMath;
#if defined(__x86_64__)
extern const WindowMath kAvx2Math;
extern const WindowMath kAvx512Math;
#endif

}  // namespace vr::cpu
