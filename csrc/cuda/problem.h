// The problem as kernels take it, and where the rows of a window stand.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/local_attention.h"
#include "cuda/machine.h"

namespace vr::cuda {

struct Levels {
  Level level[kMaxLevels];
  int count;
};

// LocalAttention without its vectors. Where the values are the keys, `values` repeats them.
struct Problem {
  int64_t windows, first_window;
  int heads, kv_heads, slots;
  int64_t feature_rows, height, width, window_height, window_width;
  const void* index;
  bool index_is_64bit, shares_values;
  Levels keys, values;
  DType query_dtype, feature_dtype;
  float scale;
  const float* attention_bias;
  int64_t bias_stride_window, bias_stride_head;
  const float* saliency;
  NormGroups norm_groups;
  float norm_eps;
  const float* norm_weight;
  const float* norm_bias;
};

inline void require(bool condition, const std::string& words) {
  if (!condition) throw std::invalid_argument("CUDA local attention: " + words);
}

inline Levels to_levels(const std::vector<Level>& levels) {
  require(levels.size() <= kMaxLevels,
          std::to_string(levels.size()) + " levels; the kernels take up to " + std::to_string(kMaxLevels));
  Levels result{};
  for (const Level& level : levels) {
    require(level.stride_channel == 1 || level.channels <= 1, "a level's channels must be adjacent in memory");
    result.level[result.count++] = level;
  }
  return result;
}

inline Problem to_problem(const LocalAttention& p) {
  require(p.slots <= kMaxSlots,
          "windows of " + std::to_string(p.slots) + " keys; the kernels take up to " + std::to_string(kMaxSlots));
  require(p.query_dtype == p.feature_dtype || p.query_dtype == DType::float32,
          "queries must have the features' dtype or float32");
  Problem problem{};
  problem.windows = p.windows;
  problem.first_window = p.first_window;
  problem.heads = static_cast<int>(p.heads);
  problem.kv_heads = static_cast<int>(p.kv_heads);
  problem.slots = static_cast<int>(p.slots);
  problem.feature_rows = p.feature_rows();
  problem.height = p.height;
  problem.width = p.width;
  problem.window_height = p.window_height;
  problem.window_width = p.window_width;
  problem.index = p.index;
  problem.index_is_64bit = p.index_is_64bit;
  problem.shares_values = p.shares_values();
  problem.keys = to_levels(p.keys);
  problem.values = to_levels(p.value_levels());
  problem.query_dtype = p.query_dtype;
  problem.feature_dtype = p.feature_dtype;
  problem.scale = p.scale;
  problem.attention_bias = p.attention_bias;
  problem.bias_stride_window = p.bias_stride_window;
  problem.bias_stride_head = p.bias_stride_head;
  problem.saliency = p.saliency;
  problem.norm_groups = p.norm_groups;
  problem.norm_eps = p.norm_eps;
  problem.norm_weight = p.norm_weight;
  problem.norm_bias = p.norm_bias;
  return problem;
}

// Calls run(number) with a number of the type that a dtype names.
template <typename Run>
void with_number(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::float32:
      return run(float{});
    case DType::bfloat16:
      return run(bfloat16{});
    case DType::float16:
      return run(float16{});
  }
}

// The feature row of a window's slot; -1 where the slot is absent.
VR_DEVICE int64_t row_of_slot(const Problem& problem, int64_t window, int slot) {
  if (problem.window_height > 0) {
    const int64_t windows_down = problem.height / problem.window_height;
    const int64_t windows_across = problem.width / problem.window_width;
    const int64_t number = problem.first_window + window;
    const int64_t image = number / (windows_down * windows_across);
    const int64_t y = number / windows_across % windows_down * problem.window_height + slot / problem.window_width;
    const int64_t x = number % windows_across * problem.window_width + slot % problem.window_width;
    return (image * problem.height + y) * problem.width + x;
  }
  const int64_t i = window * problem.slots + slot;
  const int64_t row = problem.index_is_64bit ? static_cast<const int64_t*>(problem.index)[i]
                                             : static_cast<const int32_t*>(problem.index)[i];
  return row >= 0 && row < problem.feature_rows ? row : -1;
}

// The first channel of a feature row in one level.
VR_DEVICE const char* row_address(const Problem& problem, const Level& level, int64_t row, int kv_head) {
  const int64_t x = row % problem.width, y = row / problem.width % problem.height;
  const int64_t image = row / (problem.width * problem.height);
  const int64_t offset =
      image * level.stride_batch + y * level.stride_row + x * level.stride_column + kv_head * level.stride_head;
  const int64_t size = problem.feature_dtype == DType::float32 ? 4 : 2;
  return static_cast<const char*>(level.data) + offset * size;
}

// The row of one window and head; null where the buffer is absent.
template <typename T>
VR_DEVICE T* row_of(const Rows& buffer, int64_t window, int64_t head) {
  if (buffer.data == nullptr) return nullptr;
  return static_cast<T*>(buffer.data) + window * buffer.stride_window + head * buffer.stride_head;
}

}  // namespace vr::cuda
