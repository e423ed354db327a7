#pragma once

#include "../common/local_attention.h"

namespace vr::cpu {

// Throws std::invalid_argument where the sizes contradict one another. What a caller may pass is checked in Python;
// this keeps a mistake there from becoming a wild read.
void validate(const LocalAttention& problem);

}  // namespace vr::cpu
