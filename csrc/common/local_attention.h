// Windowed attention as plain structs: what crosses from Python to every native backend. Knows nothing of torch.
//
// Each window n has its own query per head and its own K slots of feature rows:
//     s_j = scale * query . key_j + bias_j      p = softmax(s) over the present slots
//     out = sum_j p_j saliency_j value_j
#pragma once

#include <cstdint>
#include <vector>

#include "dtype.h"

namespace vr {

// One feature level, addressed (batch, row, column, head, channel). Strides count elements.
struct Level {
  const void* data;
  int64_t stride_batch, stride_row, stride_column, stride_head, stride_channel;
  int64_t channels;
};

// A (windows, heads, width) buffer with unit inner stride; strides count elements, a null data pointer means absent.
struct Rows {
  void* data = nullptr;
  int64_t stride_window = 0, stride_head = 0;
};

enum class NormGroups { none = 0, all = 1, level = 2 };

struct LocalAttention {
  int64_t windows = 0;
  int64_t first_window = 0;  // number of window 0 in the whole problem: places it on the grid, offsets nothing else
  int64_t heads = 0, kv_heads = 1;
  int64_t slots = 0;  // K, the feature rows of a window

  // Feature row m stands at (b, y, x) with m = (b * height + y) * width + x; the indexed form has height = width = 1.
  int64_t batch = 0, height = 1, width = 1;

  // Grid form: windows row-major over (batch, n_h, n_w), slots row-major inside a window. Zero in the indexed form.
  int64_t window_height = 0, window_width = 0;

  // Indexed form: feature row of each (window, slot), contiguous. A number that is no row is an absent slot.
  const void* index = nullptr;
  bool index_is_64bit = false;

  // The channel-wise concatenation of the levels is the key (value). No values: the values are the keys.
  std::vector<Level> keys, values;
  DType query_dtype = DType::float32, feature_dtype = DType::float32;
  float scale = 1.0f;

  const float* attention_bias = nullptr;  // (slots,) contiguous per window and head
  int64_t bias_stride_window = 0, bias_stride_head = 0;
  const float* saliency = nullptr;  // (feature rows,)

  // LayerNorm of the keys, over all channels or per level; of the values only when they are the keys.
  NormGroups norm_groups = NormGroups::none;
  float norm_eps = 1e-6f;
  const float* norm_weight = nullptr;  // (channels,)
  const float* norm_bias = nullptr;    // (channels,); only with a weight

  int threads = 1;

  bool is_grid() const { return window_height > 0; }
  bool shares_values() const { return values.empty(); }
  const std::vector<Level>& value_levels() const { return values.empty() ? keys : values; }
  int64_t heads_per_kv_head() const { return heads / kv_heads; }
  int64_t feature_rows() const { return batch * height * width; }
};

inline int64_t total_channels(const std::vector<Level>& levels) {
  int64_t channels = 0;
  for (const Level& level : levels) channels += level.channels;
  return channels;
}

// A row without a present key gives out = 0, attention = 0, lse = -inf. `out` may be `query` where values are the keys.
struct LocalAttentionForward {
  Rows query, out;      // query dtype
  Rows attention, lse;  // float32, or absent
};

// With t_j = grad_out . value_j + value_constant and dp_j = saliency_j t_j + grad_attention_j:
//     grad_scores_j = p_j (dp_j - sum_i p_i dp_i + grad_lse)     grad_query = scale * sum_j grad_scores_j key_j
//     pooled = sum_j p_j saliency_j value_j                      grad_saliency_j += sum_heads p_j t_j
struct LocalAttentionBackward {
  Rows grad_out;                   // query dtype
  Rows attention;                  // float32
  Rows grad_attention, grad_lse;   // float32, or absent
  Rows value_constant;             // float32, or absent: what the value bias adds to every t_j
  Rows grad_scores;                // float32
  Rows grad_query, pooled;         // query dtype, or absent
  float* grad_saliency = nullptr;  // (windows, slots), or absent
};

// Adds to grad_key and grad_value, (feature rows, kv heads, channels):
//     grad_key[m] += scale * grad_scores_j query     grad_value[m] += p_j saliency_j grad_out
// where values are the keys, both into grad_key. Under LayerNorm these are gradients of the normalised rows.
struct LocalAttentionFeatureGradient {
  Rows query, grad_out;         // query dtype
  Rows attention, grad_scores;  // float32
  float* grad_key = nullptr;
  float* grad_value = nullptr;
};

}  // namespace vr
