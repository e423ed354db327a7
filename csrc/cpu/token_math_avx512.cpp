// Compiled for -march=x86-64-v4.
#if defined(__x86_64__)

#include <immintrin.h>

#include "token_math.h"

namespace vr::cpu {
namespace {

constexpr int kLanes = 16;

#include "token_math.inl"

}  // namespace

const TokenMath kAvx512TokenMath = {load, store, inverse_rms, scale, scale_gradient, keep_larger, add_residual};

}  // namespace vr::cpu

#endif
