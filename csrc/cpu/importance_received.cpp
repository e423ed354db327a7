#include <algorithm>
#include <stdexcept>
#include <vector>

#include "importance.h"
#include "importance_math.h"
#include "parallel.h"

namespace vr::cpu {
namespace {

// A chunk's sums stay in the first-level cache while rows pass by. A few rows are summed apart, then added to the rest
// in double: of equal weights, as a query of zero gives, each sum of a long row of sums would round the same way.
constexpr int64_t kChunk = 256, kSummedApart = 8;

void validate(const ReceivedBlock& block) {
  if (block.heads < 0 || block.rows < 0 || block.columns < 0 || block.first_row < 0 || block.threads <= 0) {
    throw std::invalid_argument("ReceivedBlock: a size is negative, or there is no thread");
  }
}

int64_t visible(const ReceivedBlock& block, int64_t row) { return std::min(block.columns, block.first_row + row + 1); }

float* scores_of(const ReceivedBlock& block, int64_t head, int64_t row) {
  return block.scores + (head * block.rows + row) * block.columns;
}

float lse_of(const ReceivedBlock& block, int64_t head, int64_t row) { return block.lse[head * block.lse_stride + row]; }

// Calls body(head, row); each row is one thread's.
template <typename Body>
void for_each_row(const ReceivedBlock& block, const Body& body) {
  const int64_t rows = block.heads * block.rows;
  parallel(block.threads, [&](int thread, int threads) {
    for (int64_t i = rows * thread / threads; i < rows * (thread + 1) / threads; ++i) {
      body(i / block.rows, i % block.rows);
    }
  });
}

// Turns scores into exp(score - largest) and returns the factor that makes weights of these. Not exp(score - lse):
// large scores leave no digits for the logarithm of their sum.
float exponentiate(const ImportanceMath& math, float* row, int64_t count) {
  const float most = math.largest(row, count);
  return static_cast<float>(1.0 / math.exp_and_sum(row, count, most));
}

}  // namespace

void received_forward(const ReceivedBlock& block, float* received, int64_t stride) {
  validate(block);
  const ImportanceMath& math = importance_math();
  const bool given_lse = block.lse != nullptr;
  std::vector<float> factors(given_lse ? 0 : block.heads * block.rows);
  if (!given_lse) {
    for_each_row(block, [&](int64_t head, int64_t row) {
      factors[head * block.rows + row] = exponentiate(math, scores_of(block, head, row), visible(block, row));
    });
  }
  const int64_t chunks = (block.columns + kChunk - 1) / kChunk, tasks = block.heads * chunks;
  parallel(block.threads, [&](int thread, int threads) {
    for (int64_t task = tasks * thread / threads; task < tasks * (thread + 1) / threads; ++task) {
      const int64_t head = task / chunks, first = task % chunks * kChunk;
      const int64_t width = std::min(kChunk, block.columns - first);
      double sums[kChunk] = {};
      for (int64_t i = 0; i < block.rows; i += kSummedApart) {
        float apart[kChunk] = {};
        for (int64_t row = i; row < std::min(i + kSummedApart, block.rows); ++row) {
          const int64_t count = std::min(width, visible(block, row) - first);
          if (count <= 0) continue;
          const float* scores = scores_of(block, head, row) + first;
          if (given_lse) {
            math.add_exp(scores, count, lse_of(block, head, row), apart);
          } else {
            math.add_scaled(scores, count, factors[head * block.rows + row], apart);
          }
        }
        for (int64_t j = 0; j < width; ++j) sums[j] += apart[j];
      }
      float* out = received + head * stride + first;
      for (int64_t j = 0; j < width; ++j) out[j] += static_cast<float>(sums[j]);
    }
  });
}

void received_backward(const ReceivedBlock& block, const float* grad, int64_t stride, float* total) {
  validate(block);
  const ImportanceMath& math = importance_math();
  const bool given_lse = block.lse != nullptr;
  for_each_row(block, [&](int64_t head, int64_t row) {
    float* scores = scores_of(block, head, row);
    const int64_t count = visible(block, row);
    const float* grads = grad + head * stride;
    float factor = 1.0f;
    if (given_lse) {
      math.exp_and_sum(scores, count, lse_of(block, head, row));
    } else {
      factor = exponentiate(math, scores, count);
    }
    const float sum = static_cast<float>(factor * math.product_sum(scores, grads, count));
    math.multiply_by_difference(scores, count, factor, grads, given_lse ? 0.0f : sum);
    std::fill(scores + count, scores + block.columns, 0.0f);
    total[head * block.rows + row] = sum;
  });
}

}  // namespace vr::cpu
