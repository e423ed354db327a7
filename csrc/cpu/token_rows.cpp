#include "token_rows.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "isa.h"
#include "token_math.h"

namespace vr::cpu {
namespace {

void require(bool condition, const char* words) {
  if (!condition) throw std::invalid_argument(std::string("TokenRows: ") + words);
}

}  // namespace

void validate(const TokenRows& tokens) {
  require(tokens.batch >= 0 && tokens.length >= 0 && tokens.images >= 0 && tokens.tokens >= 0, "a size is negative");
  require(tokens.width > 0, "width must be positive");
  require(tokens.threads > 0, "threads must be positive");
  require(tokens.length <= std::numeric_limits<int32_t>::max(), "length must fit 32 bits");
  require(tokens.stream != nullptr || tokens.row_count() == 0, "the stream has no data");
  require(tokens.rows != nullptr || tokens.images * tokens.tokens == 0, "there are tokens and no rows");
}

int threads_for(const TokenRows& tokens, int64_t elements) {
  constexpr int64_t kWorthAThread = 1 << 15;  // some ten microseconds, as long as a thread takes to wake
  return static_cast<int>(std::clamp<int64_t>(elements / kWorthAThread, 1, tokens.threads));
}

const TokenMath& token_math() {
#if defined(__x86_64__)
  if (current_isa() >= Isa::avx512) return kAvx512TokenMath;
  if (current_isa() == Isa::avx2) return kAvx2TokenMath;
#endif
  return kBaselineTokenMath;
}

}  // namespace vr::cpu
