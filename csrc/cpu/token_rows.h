// What the kernels on token rows share.
#pragma once

#include "../common/tokens.h"

namespace vr::cpu {

// Throws std::invalid_argument for sizes that contradict.
void validate(const TokenRows& tokens);

// How many threads are worth waking for so many elements.
int threads_for(const TokenRows& tokens, int64_t elements);

// Row `number` of a contiguous buffer of rows of the stream's width and dtype.
inline void* row_at(const TokenRows& tokens, void* buffer, int64_t number) {
  return static_cast<char*>(buffer) + number * tokens.width * size_of(tokens.dtype);
}

inline const void* row_at(const TokenRows& tokens, const void* buffer, int64_t number) {
  return static_cast<const char*>(buffer) + number * tokens.width * size_of(tokens.dtype);
}

}  // namespace vr::cpu
