// Compiled for the compiler's default instruction set.
#include "token_math.h"

#if defined(__F16C__)  // the whole library is being compiled for a newer processor
#include <immintrin.h>
#endif

namespace vr::cpu {
namespace {

constexpr int kLanes = 4;

#include "token_math.inl"

}  // namespace

const TokenMath kBaselineTokenMath = {load, store, inverse_rms, scale, scale_gradient, keep_larger, add_residual};

}  // namespace vr::cpu
