// Vision tokens in the stream of a language model as plain structs: what crosses from Python to every native backend.
// Knows nothing of torch.
//
// The stream is (batch, length, width); its row b * length + t stands at (b, t). Each of `images` images names `tokens`
// of its rows. Where text guides it, the guide comes behind them: the maximum over the text of the image's sample.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace vr {

struct TokenRows {
  const void* stream = nullptr;  // unit inner stride; strides count elements
  int64_t stride_sample = 0, stride_row = 0;
  int64_t batch = 0, length = 0, width = 0;
  DType dtype = DType::float32;

  const int64_t* rows = nullptr;  // (images, tokens), contiguous; a number that is no row of the stream is padding
  int64_t images = 0, tokens = 0;
  const int64_t* sample_of_image = nullptr;  // (images); null: image i belongs to sample i

  const float* norm_weight = nullptr;  // (width); null: no norm
  float norm_eps = 0.0f;
  int threads = 1;

  int64_t row_count() const { return batch * length; }

  const void* row(int64_t number) const {
    const int64_t offset = number / length * stride_sample + number % length * stride_row;
    return static_cast<const char*>(stream) + offset * size_of(dtype);
  }

  // Of the stream, or null for padding.
  const void* row_of(int64_t image, int64_t token) const {
    const int64_t number = rows[image * tokens + token];
    return number >= 0 && number < row_count() ? row(number) : nullptr;
  }

  // Or -1 where the number given is none.
  int64_t sample_of(int64_t image) const {
    const int64_t sample = sample_of_image == nullptr ? image : sample_of_image[image];
    return sample >= 0 && sample < batch ? sample : -1;
  }
};

// Buffers are contiguous, in the stream's dtype unless another is named. Null pointers mean absent.

// guide: largest number of each channel over the rows that the mask marks, zeros without any; text_row: where it
// stands.
struct TextGuide {
  const bool* mask;   // (batch, length)
  void* guide;        // (batch, width)
  int64_t* text_row;  // (batch, width), lowest of equal ones, -1 without text
};

struct GatherTokens {
  const void* guide;   // (batch, width)
  void* out;           // (images, tokens, or with a guide tokens + 1, width)
  float* inverse_rms;  // as out without the width, 0 for padding; where there is a norm
};

struct GatherTokensBackward {
  const void* grad_out;      // as out
  const float* inverse_rms;  // as GatherTokens left it
  const int64_t* text_row;   // as TextGuide left it; null without a guide
  float* grad_guide;         // (images, width), working memory; null without a guide
  void* grad_stream;         // (batch, length, width), zeros: added to
  float* grad_weight;        // (parts of kRowsPerPart rows of out, width): the sum of each part
};

constexpr int64_t kRowsPerPart = 32;

struct ScatterAddTokens {
  const void* update;  // (images, tokens, width)
  void* out;           // (batch, length, width): the stream, update added to the rows named
};

}  // namespace vr
