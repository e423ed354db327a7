#include "importance.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "importance_math.h"
#include "isa.h"
#include "parallel.h"
#include "scratch.h"
#include "window_engine.h"

namespace vr::cpu {

const ImportanceMath& importance_math() {
#if defined(__x86_64__)
  if (current_isa() >= Isa::avx512) return kAvx512Importance;
  if (current_isa() == Isa::avx2) return kAvx2Importance;
#endif
  return kBaselineImportance;
}

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kBlockTokens = 16;

void require(bool condition, const char* words) {
  if (!condition) throw std::invalid_argument(std::string("AttentionImportance: ") + words);
}

void validate(const AttentionImportance& problem) {
  require(problem.sequences >= 0 && problem.tokens >= 0, "a size is negative");
  require(problem.rows > 0 && problem.heads > 0 && problem.kv_heads > 0 && problem.width > 0, "a size is not positive");
  require(problem.heads % problem.kv_heads == 0, "kv_heads must divide heads");
  require(problem.threads > 0, "threads must be positive");
  require(problem.bounds == nullptr || problem.key_mask == nullptr, "packed tokens have no mask");
  if (problem.bounds == nullptr) return;
  require(problem.bounds[0] == 0 && problem.bounds[problem.sequences] == problem.tokens, "bounds must be the tokens'");
  require(std::is_sorted(problem.bounds, problem.bounds + problem.sequences + 1), "bounds must not decrease");
}

// Where the tokens and the weights of one sequence stand.
struct Sequence {
  int64_t tokens;
  const char* key;
  const float* query;
  const bool* mask;
  float* weights;  // of head 0, row 0; rows are problem.tokens apart
};

Sequence sequence_of(const AttentionImportance& problem, int64_t s) {
  const int64_t queries = problem.heads * problem.rows;
  const bool packed = problem.bounds != nullptr;
  const int64_t first = packed ? problem.bounds[s] : 0;
  const int64_t key = s * problem.key_stride_sequence + first * problem.key_stride_token;
  return {packed ? problem.bounds[s + 1] - first : problem.tokens,
          static_cast<const char*>(problem.key) + key * size_of(problem.key_dtype),
          problem.query + s * queries * problem.width,
          problem.key_mask == nullptr ? nullptr : problem.key_mask + s * problem.tokens,
          problem.weights + (packed ? first : s * queries * problem.tokens)};
}

// One token's keys as the arithmetic takes them: where they are, or as float32 in `staging`.
struct Keys {
  DType dtype;
  const void* data;
  int64_t stride;
};

Keys load_keys(const AttentionImportance& problem, const char* key, float* staging) {
  const DType dtype = problem.key_dtype;
  if (problem.key_stride_channel == 1 && dtype != DType::float16) return {dtype, key, problem.key_stride_head};
  for (int64_t k = 0; k < problem.kv_heads; ++k) {
    window_math().load(dtype, key + k * problem.key_stride_head * size_of(dtype), problem.key_stride_channel,
                       problem.width, staging + k * problem.width);
  }
  return {DType::float32, staging, problem.width};
}

// The scaled scores of at most kBlockTokens tokens; `scores` gathers them, lest each go to a cache line of its own.
void score_tokens(const AttentionImportance& problem, const ImportanceMath& math, const Sequence& sequence,
                  int64_t begin, int64_t end, float* staging, float* scores) {
  const int64_t queries = problem.heads * problem.rows;
  const float hidden = problem.softmax ? -kInfinity : 0.0f;
  for (int64_t n = begin; n < end; ++n) {
    float* column = scores + (n - begin);
    if (sequence.mask != nullptr && !sequence.mask[n]) {
      for (int64_t q = 0; q < queries; ++q) column[q * kBlockTokens] = hidden;
      continue;
    }
    const Keys keys =
        load_keys(problem, sequence.key + n * problem.key_stride_token * size_of(problem.key_dtype), staging);
    math.dot_heads(sequence.query, queries / problem.kv_heads, keys.dtype, keys.data, keys.stride, problem.kv_heads,
                   problem.width, column, kBlockTokens);
    for (int64_t q = 0; q < queries; ++q) column[q * kBlockTokens] *= problem.scale;
  }
  for (int64_t q = 0; q < queries; ++q) {
    std::copy_n(scores + q * kBlockTokens, end - begin, sequence.weights + q * problem.tokens + begin);
  }
}

// A row without anything to attend to becomes zero; one with a NaN becomes NaN.
void softmax_in_place(const ImportanceMath& math, float* row, int64_t count) {
  const float most = math.largest(row, count);
  if (most == -kInfinity && std::none_of(row, row + count, [](float x) { return std::isnan(x); })) {
    std::fill_n(row, count, 0.0f);
    return;
  }
  const double sum = math.exp_and_sum(row, count, most);
  math.divide(row, count, static_cast<float>(sum));
}

int threads_for(int threads, int64_t multiplications) {
  constexpr int64_t kWorthAThread = 1 << 16;
  return static_cast<int>(std::clamp<int64_t>(multiplications / kWorthAThread, 1, threads));
}

}  // namespace

void attention_importance(const AttentionImportance& problem) {
  validate(problem);
  const ImportanceMath& math = importance_math();
  const int64_t queries = problem.heads * problem.rows;
  std::vector<int64_t> first_block(problem.sequences + 1);  // of each sequence
  for (int64_t s = 0; s < problem.sequences; ++s) {
    const int64_t tokens = sequence_of(problem, s).tokens;
    first_block[s + 1] = first_block[s] + (tokens + kBlockTokens - 1) / kBlockTokens;
  }
  const int64_t blocks = first_block.back();
  const int most_threads = threads_for(problem.threads, blocks * kBlockTokens * queries * problem.width);

  parallel(most_threads, [&](int thread, int threads) {
    Scratch scratch;
    float* staging = scratch.take<float>(problem.kv_heads * problem.width);
    float* scores = scratch.take<float>(queries * kBlockTokens);
    const int64_t end = blocks * (thread + 1) / threads;
    for (int64_t block = blocks * thread / threads; block < end; ++block) {
      const int64_t s = std::upper_bound(first_block.begin(), first_block.end(), block) - first_block.begin() - 1;
      const Sequence sequence = sequence_of(problem, s);
      const int64_t begin = (block - first_block[s]) * kBlockTokens;
      score_tokens(problem, math, sequence, begin, std::min(begin + kBlockTokens, sequence.tokens), staging, scores);
    }
  });
  if (!problem.softmax) return;
  parallel(most_threads, [&](int thread, int threads) {
    const int64_t rows = problem.sequences * queries;
    for (int64_t i = rows * thread / threads; i < rows * (thread + 1) / threads; ++i) {
      const Sequence sequence = sequence_of(problem, i / queries);
      softmax_in_place(math, sequence.weights + i % queries * problem.tokens, sequence.tokens);
    }
  });
}

}  // namespace vr::cpu
