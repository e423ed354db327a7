// LayerNorm's statistics of a feature row, by one warp.
#pragma once

#include "cuda/problem.h"
#include "cuda/reduce.h"
#include "cuda/vectors.h"

namespace vr::cuda {

// sum_c term(x_c) over some levels of a row, the same in every lane; address(level) is where its channels begin.
template <typename T, typename Address, typename Term>
VR_DEVICE float sum_row(const Problem& problem, int first_level, int end_level, const Address& address,
                        const Term& term) {
  float sum = 0.0f;
  for (int level = first_level; level < end_level; ++level) {
    const int channels = static_cast<int>(problem.keys.level[level].channels);
    const char* row = address(level);
    for (int c = lane_index() * kVector<T>; c < channels; c += kWarpSize * kVector<T>) {
      const int valid = valid_elements<T>(channels, c);
      float values[kVector<T>];
      read_features<T>(problem.feature_dtype, row, c, valid, values);
#pragma unroll
      for (int i = 0; i < kVector<T>; ++i) sum += i < valid ? term(values[i]) : 0.0f;
    }
  }
  return warp_sum(sum);
}

// Two passes: the variance of a row whose mean is large would not survive the difference of two large sums.
template <typename T, typename Address>
VR_DEVICE RowStatistics measure_levels(const Problem& problem, int first_level, int end_level, const Address& address) {
  int64_t channels = 0;
  for (int level = first_level; level < end_level; ++level) channels += problem.keys.level[level].channels;
  const float scale = 1.0f / static_cast<float>(channels);
  const float mean = scale * sum_row<T>(problem, first_level, end_level, address, [](float x) { return x; });
  const float variance =
      scale * sum_row<T>(problem, first_level, end_level, address, [mean](float x) { return (x - mean) * (x - mean); });
  return {mean, 1.0f / sqrtf(variance + problem.norm_eps)};
}

// Calls keep(level, statistics) for each level of a row; levels of one group share their statistics.
template <typename T, typename Address, typename Keep>
VR_DEVICE void measure_row(const Problem& problem, const Address& address, const Keep& keep) {
  const int levels = problem.keys.count, group = problem.norm_groups == NormGroups::all ? levels : 1;
  for (int first = 0; first < levels; first += group) {
    const RowStatistics statistics = measure_levels<T>(problem, first, first + group, address);
    for (int level = first; level < first + group; ++level) keep(level, statistics);
  }
}

}  // namespace vr::cuda
