#include <algorithm>

#include "parallel.h"
#include "scratch.h"
#include "token_math.h"
#include "token_rows.h"
#include "tokens.h"

namespace vr::cpu {
namespace {

// One thread's working memory, and what it does with one row of `out`.
class RowGradient {
 public:
  RowGradient(const TokenRows& tokens, const GatherTokensBackward& buffers)
      : tokens_(tokens),
        buffers_(buffers),
        math_(token_math()),
        rows_per_image_(tokens.tokens + (buffers.text_row != nullptr)),
        row_(scratch_.take<float>(tokens.width)),
        grad_(scratch_.take<float>(tokens.width)) {}

  // grad_weight, unless null, is added to.
  void run(int64_t number, float* grad_weight) {
    const int64_t image = number / rows_per_image_, token = number % rows_per_image_;
    if (token < tokens_.tokens) {
      const void* source = tokens_.row_of(image, token);
      if (source == nullptr) return;
      math_.load(tokens_.dtype, source, 1, tokens_.width, row_);
      differentiate(number, grad_weight);
      if (buffers_.grad_stream == nullptr) return;
      const int64_t row = tokens_.rows[image * tokens_.tokens + token];
      math_.store(tokens_.dtype, grad_, tokens_.width, row_at(tokens_, buffers_.grad_stream, row));
    } else {
      float* grad_guide = buffers_.grad_guide + image * tokens_.width;
      if (!read_guide(tokens_.sample_of(image))) {
        std::fill_n(grad_guide, tokens_.width, 0.0f);
        return;
      }
      differentiate(number, grad_weight);
      std::copy_n(grad_, tokens_.width, grad_guide);
    }
  }

 private:
  bool read_guide(int64_t sample) {
    if (sample < 0) return false;
    const int64_t* text_row = buffers_.text_row + sample * tokens_.width;
    if (text_row[0] < 0) return false;  // without text all channels are -1
    for (int64_t c = 0; c < tokens_.width; ++c) {
      const char* source = static_cast<const char*>(tokens_.row(sample * tokens_.length + text_row[c]));
      math_.load(tokens_.dtype, source + c * size_of(tokens_.dtype), 1, 1, row_ + c);
    }
    return true;
  }

  // row_ is the row as the stream has it; afterwards grad_ is its gradient.
  void differentiate(int64_t number, float* grad_weight) {
    math_.load(tokens_.dtype, row_at(tokens_, buffers_.grad_out, number), 1, tokens_.width, grad_);
    if (tokens_.norm_weight == nullptr) return;
    math_.scale_gradient(row_, buffers_.inverse_rms[number], tokens_.norm_weight, tokens_.width, grad_, grad_weight);
  }

  const TokenRows& tokens_;
  const GatherTokensBackward& buffers_;
  const TokenMath& math_;
  const int64_t rows_per_image_;
  Scratch scratch_;
  float* row_;
  float* grad_;
};

// The images' gradients of one sample's guide, summed in their order, at the rows that its channels came from.
void add_guide(const TokenRows& tokens, const GatherTokensBackward& buffers, int64_t sample) {
  const int64_t* text_row = buffers.text_row + sample * tokens.width;
  if (text_row[0] < 0) return;
  const TokenMath& math = token_math();
  Scratch scratch;
  float* sum = scratch.take<float>(tokens.width);
  std::fill_n(sum, tokens.width, 0.0f);
  for (int64_t image = 0; image < tokens.images; ++image) {
    if (tokens.sample_of(image) != sample) continue;
    const float* grad = buffers.grad_guide + image * tokens.width;
    for (int64_t c = 0; c < tokens.width; ++c) sum[c] += grad[c];
  }
  for (int64_t c = 0; c < tokens.width; ++c) {
    const int64_t row = sample * tokens.length + text_row[c];
    char* target = static_cast<char*>(row_at(tokens, buffers.grad_stream, row)) + c * size_of(tokens.dtype);
    float value;
    math.load(tokens.dtype, target, 1, 1, &value);
    value += sum[c];
    math.store(tokens.dtype, &value, 1, target);
  }
}

}  // namespace

void gather_tokens_backward(const TokenRows& tokens, const GatherTokensBackward& buffers) {
  validate(tokens);
  const int64_t count = tokens.images * (tokens.tokens + (buffers.text_row != nullptr));
  const int64_t parts = (count + kRowsPerPart - 1) / kRowsPerPart;
  parallel(threads_for(tokens, count * tokens.width), [&](int thread, int threads) {
    RowGradient gradient(tokens, buffers);
    for (int64_t part = parts * thread / threads; part < parts * (thread + 1) / threads; ++part) {
      float* grad_weight = buffers.grad_weight == nullptr ? nullptr : buffers.grad_weight + part * tokens.width;
      if (grad_weight != nullptr) std::fill_n(grad_weight, tokens.width, 0.0f);
      for (int64_t i = part * kRowsPerPart; i < std::min(count, (part + 1) * kRowsPerPart); ++i) {
        gradient.run(i, grad_weight);
      }
    }
  });
  if (buffers.text_row == nullptr || buffers.grad_stream == nullptr) return;
  parallel(threads_for(tokens, tokens.images * tokens.width), [&](int thread, int threads) {
    for (int64_t b = tokens.batch * thread / threads; b < tokens.batch * (thread + 1) / threads; ++b) {
      add_guide(tokens, buffers, b);
    }
  });
}

}  // namespace vr::cpu
