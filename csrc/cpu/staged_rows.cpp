#include "staged_rows.h"

#include <algorithm>

namespace vr::cpu {

template <typename T>
StagedRows<T>::StagedRows(const LocalAttention& problem, Operand operand, const WindowMath& math, Scratch& scratch)
    : problem_(problem),
      operand_(operand),
      math_(math),
      channels_(total_channels(levels_of(problem, operand))),
      padded_channels_(round_up(channels_, kChannelUnit)),
      copies_(!can_stay()),
      segment_count_(copies_ ? 1 : static_cast<int64_t>(levels_of(problem, operand).size())),
      segments_(scratch.take<Segment<T>>(segment_count_)),
      pointers_(scratch.take<const T*>(segment_count_ * problem.slots)),
      zeros_(scratch.take<T>(padded_channels_)) {
  for (int64_t i = 0; i < segment_count_; ++i) {
    segments_[i] = {pointers_ + i * problem.slots,
                    copies_ ? padded_channels_ : levels_of(problem, operand)[i].channels};
  }
  std::fill_n(zeros_, padded_channels_, T{0});
  if (copies_) {
    copied_ = scratch.take<T>(problem.slots * padded_channels_);
    float_row_ = scratch.take<float>(padded_channels_);
  }
}

template <typename T>
bool StagedRows<T>::can_stay() const {
  const std::vector<Level>& levels = levels_of(problem_, operand_);
  return problem_.feature_dtype == kDType && !is_normalized(problem_, operand_) &&
         std::all_of(levels.begin(), levels.end(), [](const Level& level) {
           return level.stride_channel == 1 && level.channels % kChannelUnit == 0;
         });
}

template <typename T>
void StagedRows<T>::open(const int64_t* rows, int64_t kv_head) {
  rows_ = rows;
  kv_head_ = kv_head;
  ready_ = false;
}

template <typename T>
FeatureRows<T> StagedRows<T>::rows() {
  if (!ready_ && copies_) copy_rows();
  if (!ready_ && !copies_) point_at_levels();
  ready_ = true;
  return {segments_, segment_count_};
}

template <typename T>
void StagedRows<T>::point_at_levels() {
  const T** pointer = pointers_;
  for (const Level& level : levels_of(problem_, operand_)) {
    for (int64_t j = 0; j < problem_.slots; ++j) {
      *pointer++ = rows_[j] < 0 ? zeros_ : static_cast<const T*>(row_address(problem_, level, rows_[j], kv_head_));
    }
  }
}

template <typename T>
void StagedRows<T>::copy_rows() {
  for (int64_t j = 0; j < problem_.slots; ++j) {
    T* copy = copied_ + j * padded_channels_;
    pointers_[j] = rows_[j] < 0 ? zeros_ : copy;
    if (rows_[j] < 0) continue;
    if constexpr (std::is_same_v<T, float>) {
      read_row(problem_, operand_, rows_[j], kv_head_, math_, copy);
    } else {
      read_row(problem_, operand_, rows_[j], kv_head_, math_, float_row_);
      math_.store(kDType, float_row_, channels_, copy);
    }
    std::fill(copy + channels_, copy + padded_channels_, T{0});
  }
}

template class StagedRows<float>;
template class StagedRows<bfloat16>;

}  // namespace vr::cpu
