#include "tile_engine.h"

#if defined(__x86_64__)

#include <algorithm>

#include "window_math_amx.h"

namespace vr::cpu {

bool TileEngine::serves(const LocalAttention& problem) {
  if (problem.query_dtype != DType::bfloat16 || problem.feature_dtype != DType::bfloat16) return false;
  // Packing costs the same for one head as for many, and nearly the same for one slot as for four. On a Sapphire Rapids
  // tiles win from 8 heads on at K = 2 and 4, from 3 at K = 9, from 2 at K = 16.
  return problem.slots > 0 && problem.heads_per_kv_head() * std::max<int64_t>(problem.slots, 4) > 24;
}

TileEngine::TileEngine(const LocalAttention& problem, const WindowMath& math, Scratch& scratch)
    : problem_(problem), math_(math), keys_(problem, Operand::keys, math, scratch) {
  if (!problem.shares_values()) values_.emplace(problem, Operand::values, math, scratch);
  const int64_t widest = std::max(keys_.padded_channels(), staged(Operand::values).padded_channels());
  head_rows_ = scratch.take<bfloat16>(problem.heads_per_kv_head() * widest);
  weights_ = scratch.take<bfloat16>(problem.heads_per_kv_head() * padded_slots(problem));
  mix_pack_ = scratch.take<bfloat16>(amx::mix_pack_size(problem.slots));
  amx::configure(problem.heads_per_kv_head(), problem.slots);
}

TileEngine::~TileEngine() { amx::release(); }

void TileEngine::open(const int64_t* rows, int64_t kv_head) {
  keys_.open(rows, kv_head);
  if (values_) values_->open(rows, kv_head);
}

void TileEngine::dot(Operand operand, HeadRows queries, float* scores) {
  StagedRows<bfloat16>& features = staged(operand);
  const int64_t heads = problem_.heads_per_kv_head();
  const bfloat16* rows = static_cast<const bfloat16*>(queries.data);
  int64_t stride = queries.stride;
  if (features.channels() != features.padded_channels()) {
    stride = features.padded_channels();
    for (int64_t g = 0; g < heads; ++g) {
      bfloat16* row = head_rows_ + g * stride;
      std::copy_n(rows + g * queries.stride, features.channels(), row);
      std::fill(row + features.channels(), row + stride, bfloat16{0});
    }
    rows = head_rows_;
  }
  amx::dot_rows(rows, stride, heads, features.rows(), problem_.slots, scores, padded_slots(problem_));
}

void TileEngine::mix(Operand operand, const float* weights, HeadRows out, HeadRows /*upcoming*/) {
  StagedRows<bfloat16>& features = staged(operand);
  const int64_t heads = problem_.heads_per_kv_head(), weight_stride = padded_slots(problem_);
  math_.store(DType::bfloat16, weights, heads * weight_stride, weights_);
  bfloat16* target = static_cast<bfloat16*>(out.data);
  const bool in_place = features.channels() == features.padded_channels();
  bfloat16* rows = in_place ? target : head_rows_;
  const int64_t stride = in_place ? out.stride : features.padded_channels();
  amx::mix_rows(weights_, weight_stride, heads, features.rows(), problem_.slots, rows, stride, mix_pack_);
  if (in_place) return;
  for (int64_t g = 0; g < heads; ++g) std::copy_n(rows + g * stride, features.channels(), target + g * out.stride);
}

}  // namespace vr::cpu

#endif
