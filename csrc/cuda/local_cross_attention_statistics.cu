// LayerNorm's statistics of the features, once for all passes over them.
#include "cuda/local_cross_attention_launch.h"
#include "cuda/row_statistics.h"

namespace vr::cuda {
namespace {

// One warp: one feature row, read twice, the second time from the cache.
template <typename T>
VR_KERNEL statistics_kernel(VR_PARAMETER Problem problem, RowStatistics* statistics) {
  const int64_t row = block_index() * kWarps + warp_index();
  if (row >= problem.feature_rows) return;
  measure_row<T>(
      problem, [&](int level) { return row_address(problem, problem.keys.level[level], row, 0); },
      [&](int level, const RowStatistics& measured) {
        if (lane_index() == 0) statistics[row * problem.keys.count + level] = measured;
      });
}

}  // namespace

void local_cross_attention_statistics(const LocalAttention& features, RowStatistics* statistics, Stream stream) {
  const Problem problem = to_problem(features);
  const DeviceGuard guard(stream.device);
  with_dtype(problem, [&](auto number) {
    launch(statistics_kernel<decltype(number)>, steps_of(problem.feature_rows, kWarps), 1, 0, stream, problem,
           statistics);
  });
}

}  // namespace vr::cuda
