// Compiled for the compiler's default instruction set.
#include "sample_math.h"

#if defined(__F16C__)  // the whole library is being compiled for a newer processor
#include <immintrin.h>
#endif

namespace vr::cpu {
namespace {

constexpr int kLanes = 4;

#include "sample_math.inl"

}  // namespace

const SampleMath kBaselineSampleMath = {load, store, mix, dot, spread};

}  // namespace vr::cpu
