// The one source of every TokenMath table. A file includes it inside an unnamed namespace, after choosing kLanes, the
// floats in a register. No template or inline function of std may be used here: the linker keeps one instance of it for
// the whole library, and could keep the one with AVX-512 instructions.

#include "convert.inl"
#include "lanes.inl"

// sum_i a[i] b[i] c[i] in the order of four registers; c may be null.
inline float sum_of_products(const float* a, const float* b, const float* c, int64_t count) {
  Vector sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) {
      const int64_t at = i + j * kLanes;
      Vector product = load_vector(a + at) * load_vector(b + at);
      if (c != nullptr) product *= load_vector(c + at);
      sums[j] += product;
    }
  }
  const Vector sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  float total = 0.0f;
  for (int j = 0; j < kLanes; ++j) total += sum[j];
  for (; i < count; ++i) total += c == nullptr ? a[i] * b[i] : a[i] * b[i] * c[i];
  return total;
}

float inverse_rms(const float* row, int64_t count, float eps) {
  const float mean_square = sum_of_products(row, row, nullptr, count) / static_cast<float>(count);
  return 1.0f / __builtin_sqrtf(mean_square + eps);
}

void scale(float inverse_rms, const float* weight, int64_t count, float* row) {
  for (int64_t i = 0; i < count; ++i) row[i] = row[i] * inverse_rms * weight[i];
}

// y = w z with z = r x, r = (mean x^2 + eps)^(-1/2):  dx = r (w dy - z mean(w dy z)),  dw = dy z
void scale_gradient(const float* row, float inverse_rms, const float* weight, int64_t count, float* grad,
                    float* grad_weight) {
  const float mean = inverse_rms * (sum_of_products(row, grad, weight, count) / static_cast<float>(count));
  if (grad_weight != nullptr) {
    for (int64_t i = 0; i < count; ++i) grad_weight[i] += grad[i] * (row[i] * inverse_rms);
  }
  for (int64_t i = 0; i < count; ++i) {
    grad[i] = inverse_rms * (grad[i] * weight[i] - row[i] * inverse_rms * mean);
  }
}

void keep_larger(const float* row, int32_t number, int64_t count, float* best, int32_t* best_row) {
  for (int64_t i = 0; i < count; ++i) {
    const float x = row[i], y = best[i];
    const bool wins = (x > y) | ((x != x) & (y == y));
    best[i] = wins ? x : y;
    best_row[i] = wins ? number : best_row[i];
  }
}

void add_residual(const float* update, int64_t count, float* row) {
  for (int64_t i = 0; i < count; ++i) row[i] -= 0.0f - update[i];
}
