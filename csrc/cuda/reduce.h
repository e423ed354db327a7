// Sums and maxima over a warp, the same in every lane.
#pragma once

#include <cmath>

#include "cuda/machine.h"

namespace vr::cuda {

VR_DEVICE float warp_sum(float value) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

// NaN is passed over.
VR_DEVICE float warp_max(float value) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) value = fmaxf(value, shuffle_xor(value, mask));
  return value;
}

}  // namespace vr::cuda
