// What every machine that runs the kernels agrees on: the shape of a block, and types that its instructions take.
#pragma once

#include <cstdint>

#include "common/dtype.h"

namespace vr::cuda {

constexpr int kWarpSize = 32, kWarps = 4, kThreads = kWarps * kWarpSize;

// The 16-bit numbers are their bits.
struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

// Four 8x8 matrices of 16-bit numbers, spread over a warp: two numbers of each a lane.
struct Matrices {
  uint32_t pair[4];
};

}  // namespace vr::cuda
