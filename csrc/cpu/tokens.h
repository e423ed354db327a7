// Rows of the stream on the CPU. Each function throws std::invalid_argument for sizes that contradict. Results do not
// depend on the number of threads.
#pragma once

#include "../common/tokens.h"

namespace vr::cpu {

void text_guide(const TokenRows& tokens, const TextGuide& buffers);
void gather_tokens(const TokenRows& tokens, const GatherTokens& buffers);
void gather_tokens_backward(const TokenRows& tokens, const GatherTokensBackward& buffers);
void scatter_add_tokens(const TokenRows& tokens, const ScatterAddTokens& buffers);

}  // namespace vr::cpu
