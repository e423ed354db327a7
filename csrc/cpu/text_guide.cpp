#include <algorithm>

#include "parallel.h"
#include "scratch.h"
#include "token_math.h"
#include "token_rows.h"
#include "tokens.h"

namespace vr::cpu {
namespace {

// Channels that one thread takes at once: their maxima and the numbers of their rows stay in the first-level cache.
constexpr int64_t kSlice = 512;

void slice_of_guide(const TokenRows& tokens, const TextGuide& buffers, int64_t sample, int64_t first) {
  const int64_t count = std::min(kSlice, tokens.width - first);
  const TokenMath& math = token_math();
  Scratch scratch;
  float* best = scratch.take<float>(kSlice);
  float* row = scratch.take<float>(kSlice);
  int32_t* best_row = scratch.take<int32_t>(kSlice);
  const bool* mask = buffers.mask + sample * tokens.length;
  bool has_text = false;
  for (int64_t t = 0; t < tokens.length; ++t) {
    if (!mask[t]) continue;
    const char* source = static_cast<const char*>(tokens.row(sample * tokens.length + t));
    math.load(tokens.dtype, source + first * size_of(tokens.dtype), 1, count, has_text ? row : best);
    if (has_text) {
      math.keep_larger(row, static_cast<int32_t>(t), count, best, best_row);
    } else {
      std::fill_n(best_row, count, static_cast<int32_t>(t));
    }
    has_text = true;
  }
  if (!has_text) {
    std::fill_n(best, count, 0.0f);
    std::fill_n(best_row, count, -1);
  }
  char* guide = static_cast<char*>(row_at(tokens, buffers.guide, sample));
  math.store(tokens.dtype, best, count, guide + first * size_of(tokens.dtype));
  std::copy_n(best_row, count, buffers.text_row + sample * tokens.width + first);
}

}  // namespace

void text_guide(const TokenRows& tokens, const TextGuide& buffers) {
  validate(tokens);
  const int64_t slices = (tokens.width + kSlice - 1) / kSlice, count = tokens.batch * slices;
  const int64_t text_rows = std::count(buffers.mask, buffers.mask + tokens.row_count(), true);
  parallel(threads_for(tokens, text_rows * tokens.width), [&](int thread, int threads) {
    for (int64_t i = count * thread / threads; i < count * (thread + 1) / threads; ++i) {
      slice_of_guide(tokens, buffers, i / slices, i % slices * kSlice);
    }
  });
}

}  // namespace vr::cpu
