// Where the feature rows of a window are, and how one is read.
#pragma once

#include "../common/local_attention.h"
#include "window_math.h"

namespace vr::cpu {

enum class Operand { keys = 0, values = 1 };

// The feature row of each slot of a window; -1 where the slot is absent.
void find_rows(const LocalAttention& problem, int64_t window, int64_t* rows);

inline const std::vector<Level>& levels_of(const LocalAttention& problem, Operand operand) {
  return operand == Operand::keys ? problem.keys : problem.value_levels();
}

// The address of the first channel of one feature row in one level.
const void* row_address(const LocalAttention& problem, const Level& level, int64_t row, int64_t kv_head);

inline bool is_normalized(const LocalAttention& problem, Operand operand) {
  return problem.norm_groups != NormGroups::none && (operand == Operand::keys || problem.shares_values());
}

// One feature row, all levels, normalised where the operand is.
void read_row(const LocalAttention& problem, Operand operand, int64_t row, int64_t kv_head, const WindowMath& math,
              float* target);

// One where there is no saliency, or the slot is absent.
inline float saliency_of(const LocalAttention& problem, int64_t row) {
  return problem.saliency == nullptr || row < 0 ? 1.0f : problem.saliency[row];
}

}  // namespace vr::cpu
