// Windowed attention on the CPU. Each function throws std::invalid_argument for a problem whose sizes contradict.
#pragma once

#include "../common/local_attention.h"

namespace vr::cpu {

void local_attention_forward(const LocalAttention& problem, const LocalAttentionForward& buffers);
void local_attention_backward(const LocalAttention& problem, const LocalAttentionBackward& buffers);
void local_attention_feature_gradient(const LocalAttention& problem, const LocalAttentionFeatureGradient& buffers);

}  // namespace vr::cpu
