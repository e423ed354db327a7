// Local cross-attention fused with its projections: the three products that its forward and backward pass are made of.
// What is inside them, the C numbers of u or g for each query and head, lives in registers and shared memory alone.
// Queued on the caller's stream, nothing allocated; errors as in local_attention.h.
//
// `features` describes windows and levels. Its query dtype is the features', kv_heads is 1, the keys are the features;
// what concerns the softmax, and its norm, are not read.
#pragma once

#include "cuda/local_attention.h"

namespace vr::cuda {

// f = gamma (f - mean) inverse_deviation + beta. What is normalised is rounded to the features' dtype, as stock PyTorch
// rounds it; gamma and beta join u and g in float32. Each may be absent.
struct Norm {
  const RowStatistics* statistics = nullptr;  // (feature rows, levels)
  const float* gamma = nullptr;               // (channels,)
  const float* beta = nullptr;                // (channels,)
};

// statistics = mean and 1 / sqrt(variance + norm_eps) of every feature row, as `features` groups its levels.
void local_cross_attention_statistics(const LocalAttention& features, RowStatistics* statistics, Stream stream);

// scores_nhk = sum_c (x_nh W_h)_c f_nkc; zero where a slot is absent. The channels are divided into `parts`, and each
// sums into its own (windows, heads, slots), `part_stride` numbers apart: added in order, they are the scores.
// Without beta, which would add the same to all slots of a query.
struct Scores {
  Rows x;       // (windows, heads, width)
  Rows weight;  // (heads, width, channels)
  int64_t width;
  Rows scores;  // (windows, heads, slots) float32
  int64_t parts, part_stride;
};
void local_cross_attention_scores(const LocalAttention& features, const Norm& norm, const Scores& buffers,
                                  Stream stream);

// out_nh = W_h sum_k a_nhk f_nk
struct Projection {
  Rows a;       // (windows, heads, slots) float32, zero where a slot is absent
  Rows weight;  // (heads, width, channels)
  int64_t width;
  Rows out;  // (windows, heads, width)
};
void local_cross_attention_project(const LocalAttention& features, const Norm& norm, const Projection& buffers,
                                   Stream stream);

// out_hdc = sum_n x_nhd sum_k a_nhk f_nkc. Without gamma and beta: their gradients can be had of this sum.
struct Outer {
  Rows x;  // (windows, heads, width)
  Rows a;  // (windows, heads, slots) float32, zero where a slot is absent
  int64_t width;
  const float* factors = nullptr;  // (heads,), of the output: what a was divided by to suit the dtype; or absent
  Rows out;                        // (heads, width, channels)
};
void local_cross_attention_outer(const LocalAttention& features, const Norm& norm, const Outer& buffers, Stream stream);

}  // namespace vr::cuda
