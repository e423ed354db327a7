// Compiled for -march=x86-64-v3: 16 registers of 8 floats hold the tiles and their operands.
#if defined(__x86_64__)

#include <immintrin.h>

#include "window_math.h"

namespace vr::cpu {
namespace {

constexpr int kLanes = 8;
constexpr int kDotHeads = 3, kDotSlots = 3, kMixHeads = 4;

#include "window_math.inl"

}  // namespace

const WindowMath kAvx2Math = {load, store, normalize, add, dot_rows, mix_rows};

}  // namespace vr::cpu

#endif
