// Multi-scale deformable attention (Deformable DETR, Eq. 3): every head of every query mixes bilinear samples of its
// own channels, at its own places in every level.
#pragma once

#include <cstdint>
#include <vector>

#include "../common/dtype.h"

namespace vr::cpu {

// A level (batch, height, width, heads, channels); strides count elements, channels are contiguous.
struct SampledLevel {
  const void* value;
  float* gradient;  // the same sizes, contiguous, to be added to; null: not wanted
  int64_t height, width;
  int64_t stride_batch, stride_row, stride_column, stride_head;
};

struct DeformableAttention {
  int64_t batch, queries, heads, channels, points;
  std::vector<SampledLevel> levels;
  DType dtype;             // of the values, the output and its gradient
  const float* locations;  // (batch, queries, heads, levels, points, 2): x and y, 0 to 1 over a level
  const float* weights;    // (batch, queries, heads, levels, points)
  int threads;
};

// out is (batch, queries, heads, channels), contiguous, as grad_out is.
void deformable_attention_forward(const DeformableAttention& problem, void* out);

// Adds to the levels' gradients; writes the others, which have the shapes of locations and weights. Either may be null.
// A thread owns whole heads of images, so that each sum runs in one order.
void deformable_attention_backward(const DeformableAttention& problem, const void* grad_out, float* grad_locations,
                                   float* grad_weights);

}  // namespace vr::cpu
