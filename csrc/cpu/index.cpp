#include "index.h"

#include <algorithm>
#include <vector>

namespace vr::cpu {
namespace {

template <typename Number>
bool within(const Number* numbers, int64_t count, int64_t low, int64_t high) {
  bool outside = false;  // no early end: the loop is vectorised, and faults are rare
  for (int64_t i = 0; i < count; ++i) outside |= (numbers[i] < low) | (numbers[i] >= high);
  return !outside;
}

// Numbers below `high`.
template <typename Number>
bool all_distinct(const Number* numbers, int64_t count, int64_t high) {
  std::vector<bool> named(std::max<int64_t>(high, 0));
  for (int64_t i = 0; i < count; ++i) {
    if (numbers[i] < 0) continue;
    if (named[numbers[i]]) return false;
    named[numbers[i]] = true;
  }
  return true;
}

template <typename Number>
bool fits(const void* data, int64_t count, int64_t low, int64_t high, bool distinct) {
  const Number* numbers = static_cast<const Number*>(data);
  return within(numbers, count, low, high) && (!distinct || all_distinct(numbers, count, high));
}

}  // namespace

bool index_fits(const Index& index, int64_t low, int64_t high, bool distinct) {
  const auto check = index.is_64bit ? fits<int64_t> : fits<int32_t>;
  return check(index.data, index.count, low, high, distinct);
}

}  // namespace vr::cpu
