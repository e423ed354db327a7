// Compiled for the compiler's default instruction set.
#include "importance_math.h"

namespace vr::cpu {
namespace {

constexpr int kLanes = 4;

#include "importance_math.inl"

}  // namespace

const ImportanceMath kBaselineImportance = {dot_heads,  largest, exp_and_sum, divide,
                                            add_scaled, add_exp, product_sum, multiply_by_difference};

}  // namespace vr::cpu
