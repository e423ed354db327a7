// Windowed attention on CUDA: queued on the caller's stream, nothing allocated. Each function throws
// std::invalid_argument for a problem beyond the kernels' limits, and std::runtime_error, in words, where CUDA refuses.
#pragma once

#include <cstdint>

#include "common/local_attention.h"

namespace vr::cuda {

constexpr int kMaxSlots = 64, kMaxLevels = 8;

struct Stream {
  int device;
  void* handle;  // a cudaStream_t
};

// LayerNorm's statistics of one feature row, over one level or over all.
struct RowStatistics {
  float mean, inverse_deviation;
};

void local_attention_forward(const LocalAttention& problem, const LocalAttentionForward& buffers, Stream stream);

// Windows run in any order, so that none may add to what another adds to: instead of the sum over the heads,
// buffers.grad_saliency, its terms p_j t_j go to slot_products (windows, heads, slots), float32, or absent.
void local_attention_backward(const LocalAttention& problem, const LocalAttentionBackward& buffers, Rows slot_products,
                              Stream stream);

// Who reads a feature row of the indexed form: the numbers window * slots + slot in readers[first[row]], ...,
// readers[first[row + 1] - 1]. The grid form, where every row has one reader, needs none of this.
struct Readers {
  const int64_t* readers = nullptr;
  const int64_t* first = nullptr;  // (feature rows + 1,)
};

void local_attention_feature_gradient(const LocalAttention& problem, const LocalAttentionFeatureGradient& buffers,
                                      Readers readers, Stream stream);

}  // namespace vr::cuda
