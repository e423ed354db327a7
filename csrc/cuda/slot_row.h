// One number a slot of a window, for one head, spread over a warp: lane l has slots l and l + 32. In float32
// throughout.
#pragma once

#include "cuda/reduce.h"

namespace vr::cuda {

template <int kCapacity>
struct SlotRow {
  static constexpr int kPerLane = (kCapacity + kWarpSize - 1) / kWarpSize;

  float at[kPerLane] = {};

  static VR_DEVICE int slot(int i) { return lane_index() + i * kWarpSize; }
};

// Turns scores, -inf where a slot is absent, into probabilities, and returns their log-sum-exp. A row without a finite
// or NaN score (no slot present, or all scores -inf) becomes zeros.
template <int kCapacity>
VR_DEVICE float softmax(SlotRow<kCapacity>& row) {
  float largest = -INFINITY, alive = 0.0f;
  for (float score : row.at) {
    largest = fmaxf(largest, score);
    if (score != -INFINITY) alive = 1.0f;
  }
  largest = warp_max(largest);
  if (warp_max(alive) == 0.0f) {
    for (float& score : row.at) score = 0.0f;
    return -INFINITY;
  }
  float sum = 0.0f;
  for (float& score : row.at) {
    score = score == -INFINITY ? 0.0f : expf(score - largest);
    sum += score;
  }
  sum = warp_sum(sum);
  for (float& score : row.at) score /= sum;
  return largest + logf(sum);
}

}  // namespace vr::cuda
