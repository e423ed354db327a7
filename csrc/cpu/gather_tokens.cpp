#include <algorithm>

#include "parallel.h"
#include "scratch.h"
#include "token_math.h"
#include "token_rows.h"
#include "tokens.h"

namespace vr::cpu {

void gather_tokens(const TokenRows& tokens, const GatherTokens& buffers) {
  validate(tokens);
  const TokenMath& math = token_math();
  const int64_t rows_per_image = tokens.tokens + (buffers.guide != nullptr);
  const int64_t count = tokens.images * rows_per_image, row_bytes = tokens.width * size_of(tokens.dtype);
  const auto source_of = [&](int64_t image, int64_t token) -> const void* {
    if (token < tokens.tokens) return tokens.row_of(image, token);
    const int64_t sample = tokens.sample_of(image);
    return sample < 0 ? nullptr : row_at(tokens, buffers.guide, sample);
  };
  parallel(threads_for(tokens, count * tokens.width), [&](int thread, int threads) {
    Scratch scratch;
    float* row = scratch.take<float>(tokens.width);
    for (int64_t i = count * thread / threads; i < count * (thread + 1) / threads; ++i) {
      const void* source = source_of(i / rows_per_image, i % rows_per_image);
      char* target = static_cast<char*>(row_at(tokens, buffers.out, i));
      if (source == nullptr) {
        std::fill_n(target, row_bytes, 0);
      } else if (tokens.norm_weight == nullptr) {
        std::copy_n(static_cast<const char*>(source), row_bytes, target);
      } else {
        math.load(tokens.dtype, source, 1, tokens.width, row);
        buffers.inverse_rms[i] = math.inverse_rms(row, tokens.width, tokens.norm_eps);
        math.scale(buffers.inverse_rms[i], tokens.norm_weight, tokens.width, row);
        math.store(tokens.dtype, row, tokens.width, target);
        continue;
      }
      if (buffers.inverse_rms != nullptr) buffers.inverse_rms[i] = 0.0f;
    }
  });
}

}  // namespace vr::cpu
