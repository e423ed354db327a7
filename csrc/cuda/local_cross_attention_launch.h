// What the launches of the fused products share.
#pragma once

#include "cuda/launch.h"
#include "cuda/local_cross_attention.h"
#include "cuda/problem.h"

namespace vr::cuda {

// Calls run(number) with a number of the type that features, queries and weights have.
template <typename Run>
void with_dtype(const Problem& problem, const Run& run) {
  require(problem.query_dtype == problem.feature_dtype, "queries and features must share one dtype");
  with_number(problem.feature_dtype, run);
}

inline int64_t steps_of(int64_t count, int64_t step) { return (count + step - 1) / step; }

// `count` cut into the fewest steps of at most `most`, of nearly equal size: at least 1.
inline int even_step(int64_t count, int64_t most) {
  const int64_t steps = std::max<int64_t>(1, steps_of(count, std::max<int64_t>(1, most)));
  return static_cast<int>(std::max<int64_t>(1, steps_of(count, steps)));
}

}  // namespace vr::cuda
