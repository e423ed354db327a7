#pragma once

#include <type_traits>

#include "feature_rows.h"
#include "scratch.h"
#include "stage.h"

namespace vr::cpu {

constexpr int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// The rows of one operand, for one window after another. Rows that already are what the arithmetic reads stay where
// they are; the others are copied: converted, normalised, levels joined, channels padded with zeros. Absent slots are
// rows of zeros.
template <typename T>
class StagedRows {
 public:
  StagedRows(const LocalAttention& problem, Operand operand, const WindowMath& math, Scratch& scratch);

  int64_t channels() const { return channels_; }
  int64_t padded_channels() const { return padded_channels_; }

  // Turns to another window; `rows` must outlive it.
  void open(const int64_t* rows, int64_t kv_head);

  // Reads the rows the first time that it is called in a window.
  FeatureRows<T> rows();

 private:
  static constexpr DType kDType = std::is_same_v<T, float> ? DType::float32 : DType::bfloat16;

  bool can_stay() const;
  void point_at_levels();
  void copy_rows();

  const LocalAttention& problem_;
  const Operand operand_;
  const WindowMath& math_;
  int64_t channels_, padded_channels_;
  bool copies_;
  int64_t segment_count_;
  Segment<T>* segments_;
  const T** pointers_;   // (segments, slots)
  T* zeros_;             // (padded channels)
  T* copied_ = nullptr;  // (slots, padded channels)
  float* float_row_ = nullptr;
  const int64_t* rows_ = nullptr;
  int64_t kv_head_ = 0;
  bool ready_ = false;
};

extern template class StagedRows<float>;
extern template class StagedRows<bfloat16>;

}  // namespace vr::cpu
