// The softmax of one head over the slots of one window, and its gradient. A negative row is an absent slot: probability
// zero.
#pragma once

#include <cstdint>

namespace vr::cpu {

// Returns the log-sum-exp. Where no slot is present, or all scores are -inf, probabilities are zero and it is -inf.
float softmax(const float* scores, const int64_t* rows, int64_t slots, float* probabilities);

// grad_scores = p (grad_p - sum p grad_p + grad_lse)
void softmax_gradient(const float* probabilities, const float* grad_probabilities, float grad_lse, const int64_t* rows,
                      int64_t slots, float* grad_scores);

}  // namespace vr::cpu
