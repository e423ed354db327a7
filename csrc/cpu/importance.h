// Importance without attention maps, on the CPU. Each function throws std::invalid_argument for sizes that contradict.
#pragma once

#include "../common/importance.h"

namespace vr::cpu {

// Reads the keys once. Overwrites every weight.
void attention_importance(const AttentionImportance& problem);

// received[head][j] += sum_i exp(scores[head][i][j] - lse[head][i]), heads `stride` apart. Spoils the scores.
void received_forward(const ReceivedBlock& block, float* received, int64_t stride);

// With p = exp(scores - lse) and t[head][i] = sum_j p grad[head][j], which goes to `total` (heads, rows): turns the
// scores into p (grad - t), or into p grad where lse is given. grad's heads are `stride` apart.
void received_backward(const ReceivedBlock& block, const float* grad, int64_t stride, float* total);

}  // namespace vr::cpu
