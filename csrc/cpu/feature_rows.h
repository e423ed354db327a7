// The feature rows of one window as the arithmetic reads them.
#pragma once

#include <cstdint>

namespace vr::cpu {

using bfloat16 = uint16_t;  // its bits

// Every row that arithmetic reads has a multiple of this many channels, so that no inner loop has a tail.
constexpr int64_t kChannelUnit = 32;

// One level of a window's features: rows[k] points at the channels of slot k.
template <typename T>
struct Segment {
  const T* const* rows;
  int64_t channels;
};

// The levels one after another; together they are as wide as a query.
template <typename T>
struct FeatureRows {
  const Segment<T>* segments;
  int64_t count;
};

}  // namespace vr::cpu
