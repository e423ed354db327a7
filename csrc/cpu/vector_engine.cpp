#include "vector_engine.h"

#include <algorithm>

namespace vr::cpu {

VectorEngine::VectorEngine(const LocalAttention& problem, const WindowMath& math, Scratch& scratch)
    : problem_(problem), math_(math), keys_(problem, Operand::keys, math, scratch) {
  if (!problem.shares_values()) values_.emplace(problem, Operand::values, math, scratch);
  const int64_t widest = std::max(keys_.padded_channels(), staged(Operand::values).padded_channels());
  head_rows_ = scratch.take<float>(problem.heads_per_kv_head() * widest);
}

void VectorEngine::open(const int64_t* rows, int64_t kv_head) {
  keys_.open(rows, kv_head);
  if (values_) values_->open(rows, kv_head);
}

bool VectorEngine::used_in_place(const StagedRows<float>& features) const {
  return problem_.query_dtype == DType::float32 && features.channels() == features.padded_channels();
}

void VectorEngine::dot(Operand operand, HeadRows queries, float* scores) {
  StagedRows<float>& features = staged(operand);
  const int64_t heads = problem_.heads_per_kv_head();
  const float* rows = static_cast<const float*>(queries.data);
  int64_t stride = queries.stride;
  if (!used_in_place(features)) {
    stride = features.padded_channels();
    for (int64_t g = 0; g < heads; ++g) {
      float* row = head_rows_ + g * stride;
      const char* query = static_cast<const char*>(queries.data) + g * queries.stride * size_of(problem_.query_dtype);
      math_.load(problem_.query_dtype, query, 1, features.channels(), row);
      std::fill(row + features.channels(), row + stride, 0.0f);
    }
    rows = head_rows_;
  }
  math_.dot_rows(rows, stride, heads, features.rows(), problem_.slots, scores, padded_slots(problem_));
}

void VectorEngine::mix(Operand operand, const float* weights, HeadRows out, HeadRows upcoming) {
  StagedRows<float>& features = staged(operand);
  const int64_t heads = problem_.heads_per_kv_head();
  const bool in_place = used_in_place(features);
  float* rows = in_place ? static_cast<float*>(out.data) : head_rows_;
  const int64_t stride = in_place ? out.stride : features.padded_channels();
  math_.mix_rows(weights, padded_slots(problem_), heads, features.rows(), problem_.slots, rows, stride,
                 in_place ? static_cast<const float*>(upcoming.data) : nullptr, upcoming.stride);
  if (in_place) return;
  for (int64_t g = 0; g < heads; ++g) {
    char* target = static_cast<char*>(out.data) + g * out.stride * size_of(problem_.query_dtype);
    math_.store(problem_.query_dtype, rows + g * stride, features.channels(), target);
  }
}

}  // namespace vr::cpu
