#include "stage.h"

namespace vr::cpu {
namespace {

void find_grid_rows(const LocalAttention& problem, int64_t window, int64_t* rows) {
  const int64_t windows_down = problem.height / problem.window_height;
  const int64_t windows_across = problem.width / problem.window_width;
  const int64_t number = problem.first_window + window;
  const int64_t image = number / (windows_down * windows_across);
  const int64_t top = number / windows_across % windows_down * problem.window_height;
  const int64_t left = number % windows_across * problem.window_width;
  for (int64_t y = top; y < top + problem.window_height; ++y) {
    for (int64_t x = left; x < left + problem.window_width; ++x) {
      *rows++ = (image * problem.height + y) * problem.width + x;
    }
  }
}

template <typename Index>
void find_indexed_rows(const LocalAttention& problem, int64_t window, int64_t* rows) {
  const Index* index = static_cast<const Index*>(problem.index) + window * problem.slots;
  const int64_t count = problem.feature_rows();
  for (int64_t j = 0; j < problem.slots; ++j) rows[j] = index[j] >= 0 && index[j] < count ? index[j] : -1;
}

void normalize_row(const LocalAttention& problem, Operand operand, const WindowMath& math, float* row) {
  const auto normalize = [&](int64_t first, int64_t channels) {
    const float* weight = problem.norm_weight == nullptr ? nullptr : problem.norm_weight + first;
    const float* bias = problem.norm_bias == nullptr ? nullptr : problem.norm_bias + first;
    math.normalize(row + first, channels, problem.norm_eps, weight, bias);
  };
  const std::vector<Level>& levels = levels_of(problem, operand);
  if (problem.norm_groups == NormGroups::all) return normalize(0, total_channels(levels));
  int64_t first = 0;
  for (const Level& level : levels) {
    normalize(first, level.channels);
    first += level.channels;
  }
}

}  // namespace

void find_rows(const LocalAttention& problem, int64_t window, int64_t* rows) {
  if (problem.is_grid()) return find_grid_rows(problem, window, rows);
  if (problem.index_is_64bit) return find_indexed_rows<int64_t>(problem, window, rows);
  find_indexed_rows<int32_t>(problem, window, rows);
}

const void* row_address(const LocalAttention& problem, const Level& level, int64_t row, int64_t kv_head) {
  const int64_t x = row % problem.width, y = row / problem.width % problem.height;
  const int64_t image = row / (problem.width * problem.height);
  const int64_t offset =
      image * level.stride_batch + y * level.stride_row + x * level.stride_column + kv_head * level.stride_head;
  return static_cast<const char*>(level.data) + offset * size_of(problem.feature_dtype);
}

void read_row(const LocalAttention& problem, Operand operand, int64_t row, int64_t kv_head, const WindowMath& math,
              float* target) {
  float* position = target;
  for (const Level& level : levels_of(problem, operand)) {
    math.load(problem.feature_dtype, row_address(problem, level, row, kv_head), level.stride_channel, level.channels,
              position);
    position += level.channels;
  }
  if (is_normalized(problem, operand)) normalize_row(problem, operand, math, target);
}

}  // namespace vr::cpu
