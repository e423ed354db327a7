#pragma once

#include <optional>

#include "staged_rows.h"
#include "window_engine.h"

namespace vr::cpu {

// Serves bfloat16 queries on bfloat16 features with the processor's matrix tiles.
class TileEngine final : public WindowEngine {
 public:
  static bool serves(const LocalAttention& problem);

  TileEngine(const LocalAttention& problem, const WindowMath& math, Scratch& scratch);
  ~TileEngine() override;

  void open(const int64_t* rows, int64_t kv_head) override;
  void dot(Operand operand, HeadRows queries, float* scores) override;
  void mix(Operand operand, const float* weights, HeadRows out, HeadRows upcoming) override;

 private:
  StagedRows<bfloat16>& staged(Operand operand) { return operand == Operand::values && values_ ? *values_ : keys_; }

  const LocalAttention& problem_;
  const WindowMath& math_;
  StagedRows<bfloat16> keys_;
  std::optional<StagedRows<bfloat16>> values_;  // only where the values are not the keys
  bfloat16* head_rows_;                         // (heads of a kv head, padded channels)
  bfloat16* weights_;                           // (heads of a kv head, padded slots)
  bfloat16* mix_pack_;
};

}  // namespace vr::cpu
