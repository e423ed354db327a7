// The arithmetic of one window on bfloat16 rows in the processor's matrix tiles; sums are float32.
#pragma once

#include <cstdint>

#include "feature_rows.h"

namespace vr::cpu::amx {

// Sets this thread's tiles up for windows of so many heads and slots; release() gives the tile registers back.
void configure(int64_t heads, int64_t slots);
void release();

// scores[g][k] = sum_c queries[g][c] features[k][c]; writes score rows in whole tiles of 16.
void dot_rows(const bfloat16* queries, int64_t query_stride, int64_t heads, FeatureRows<bfloat16> features,
              int64_t slots, float* scores, int64_t score_stride);

// out[g][c] = sum_k weights[g][k] features[k][c]; reads weight rows in whole tiles of 32, zero beyond the last slot.
// `pack` is working memory of mix_pack_size elements.
void mix_rows(const bfloat16* weights, int64_t weight_stride, int64_t heads, FeatureRows<bfloat16> features,
              int64_t slots, bfloat16* out, int64_t out_stride, bfloat16* pack);
int64_t mix_pack_size(int64_t slots);

}  // namespace vr::cpu::amx
