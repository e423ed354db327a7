// Compiled for -march=x86-64-v4: 32 registers of 16 floats hold the tiles and their operands.
#if defined(__x86_64__)

#include <immintrin.h>

#include "window_math.h"

namespace vr::cpu {
namespace {

constexpr int kLanes = 16;
constexpr int kDotHeads = 4, kDotSlots = 4, kMixHeads = 8;

#include "window_math.inl"

}  // namespace

const WindowMath kAvx512Math = {load, store, normalize, add, dot_rows, mix_rows};

}  // namespace vr::cpu

#endif
