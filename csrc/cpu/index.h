// Numbers of rows and of samples, looked at before a kernel reads what they name.
#pragma once

#include <cstdint>

namespace vr::cpu {

struct Index {
  const void* data = nullptr;  // contiguous
  int64_t count = 0;
  bool is_64bit = true;  // else 32
};

// Whether each number is in [low, high) and, where they must be distinct, no number from 0 on stands twice.
bool index_fits(const Index& index, int64_t low, int64_t high, bool distinct);

}  // namespace vr::cpu
