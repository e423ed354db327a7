// Compiled for -march=x86-64-v3.
#if defined(__x86_64__)

#include "importance_math.h"

namespace vr::cpu {
namespace {

constexpr int kLanes = 8;

#include "importance_math.inl"

}  // namespace

const ImportanceMath kAvx2Importance = {dot_heads,  largest, exp_and_sum, divide,
                                        add_scaled, add_exp, product_sum, multiply_by_difference};

}  // namespace vr::cpu

#endif
