#pragma once

#include <optional>

#include "staged_rows.h"
#include "window_engine.h"

namespace vr::cpu {

// Serves every dtype: features and queries become float32 unless they can be read where they are.
class VectorEngine final : public WindowEngine {
 public:
  VectorEngine(const LocalAttention& problem, const WindowMath& math, Scratch& scratch);

  void open(const int64_t* rows, int64_t kv_head) override;
  void dot(Operand operand, HeadRows queries, float* scores) override;
  void mix(Operand operand, const float* weights, HeadRows out, HeadRows upcoming) override;

 private:
  StagedRows<float>& staged(Operand operand) { return operand == Operand::values && values_ ? *values_ : keys_; }
  bool used_in_place(const StagedRows<float>& features) const;

  const LocalAttention& problem_;
  const WindowMath& math_;
  StagedRows<float> keys_;
  std::optional<StagedRows<float>> values_;  // only where the values are not the keys
  float* head_rows_;                         // (heads of a kv head, padded channels)
};

}  // namespace vr::cpu
