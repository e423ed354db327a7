// Compiled for -march=x86-64-v4.
#if defined(__x86_64__)

#include <immintrin.h>

#include "sample_math.h"

namespace vr::cpu {
namespace {

constexpr int kLanes = 16;

#include "sample_math.inl"

}  // namespace

const SampleMath kAvx512SampleMath = {load, store, mix, dot, spread};

}  // namespace vr::cpu

#endif
