#include "softmax.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace vr::cpu {

// Sums are double: an error of theirs would be common to all slots, and could not average out in what is pooled.

float softmax(const float* scores, const int64_t* rows, int64_t slots, float* probabilities) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  float largest = -kInfinity;  // or NaN, once there was one
  for (int64_t j = 0; j < slots; ++j) {
    if (rows[j] >= 0 && !std::isnan(largest) && !(scores[j] <= largest)) largest = scores[j];
  }
  if (largest == -kInfinity) {
    std::fill_n(probabilities, slots, 0.0f);
    return -kInfinity;
  }
  double sum = 0.0;
  for (int64_t j = 0; j < slots; ++j) {
    probabilities[j] = rows[j] < 0 ? 0.0f : std::exp(scores[j] - largest);
    sum += probabilities[j];
  }
  const float divisor = static_cast<float>(sum);
  for (int64_t j = 0; j < slots; ++j) {
    if (rows[j] >= 0) probabilities[j] /= divisor;
  }
  return std::isinf(largest) ? largest : largest + static_cast<float>(std::log(sum));
}

void softmax_gradient(const float* probabilities, const float* grad_probabilities, float grad_lse, const int64_t* rows,
                      int64_t slots, float* grad_scores) {
  // Rounded probabilities add up to one only nearly, and what is left over would multiply what all keys have in common.
  double total = 0.0, mean = 0.0;
  for (int64_t j = 0; j < slots; ++j) {
    if (rows[j] < 0) continue;
    total += probabilities[j];
    mean += static_cast<double>(probabilities[j]) * grad_probabilities[j];
  }
  if (total > 0.0) mean /= total;
  for (int64_t j = 0; j < slots; ++j) {
    grad_scores[j] =
        rows[j] < 0 ? 0.0f : probabilities[j] * (grad_probabilities[j] - static_cast<float>(mean) + grad_lse);
  }
}

}  // namespace vr::cpu
