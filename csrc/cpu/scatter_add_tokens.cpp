#include <algorithm>
#include <vector>

#include "parallel.h"
#include "scratch.h"
#include "token_math.h"
#include "token_rows.h"
#include "tokens.h"

namespace vr::cpu {

void scatter_add_tokens(const TokenRows& tokens, const ScatterAddTokens& buffers) {
  validate(tokens);
  const TokenMath& math = token_math();
  const int64_t count = tokens.row_count(), row_bytes = tokens.width * size_of(tokens.dtype);
  // Turned round, so that the whole stream is written once and in its order: which update each row gets, -1 for none.
  std::vector<int64_t> update_of(count, -1);
  for (int64_t i = 0; i < tokens.images * tokens.tokens; ++i) {
    const int64_t row = tokens.rows[i];
    if (row >= 0 && row < count) update_of[row] = i;
  }
  parallel(threads_for(tokens, count * tokens.width), [&](int thread, int threads) {
    Scratch scratch;
    float* row = scratch.take<float>(tokens.width);
    float* update = scratch.take<float>(tokens.width);
    for (int64_t i = count * thread / threads; i < count * (thread + 1) / threads; ++i) {
      const void* source = tokens.row(i);
      char* target = static_cast<char*>(row_at(tokens, buffers.out, i));
      if (update_of[i] < 0) {
        std::copy_n(static_cast<const char*>(source), row_bytes, target);
        continue;
      }
      math.load(tokens.dtype, source, 1, tokens.width, row);
      math.load(tokens.dtype, row_at(tokens, buffers.update, update_of[i]), 1, tokens.width, update);
      math.add_residual(update, tokens.width, row);
      math.store(tokens.dtype, row, tokens.width, target);
    }
  });
}

}  // namespace vr::cpu
