#pragma once

#include <cstdint>

namespace vr {

// The numbers are the codes that Python passes.
enum class DType { float32 = 0, bfloat16 = 1, float16 = 2 };

constexpr int64_t size_of(DType dtype) { return dtype == DType::float32 ? 4 : 2; }

}  // namespace vr
