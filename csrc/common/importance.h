// Importance as plain structs: what crosses from Python to a native backend. Knows nothing of torch.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace vr {

// weights[s][h][r][n] = softmax_n(scale * query[s][h][r] . key[s][n]) or, without softmax, the scaled scores: of R rows
// that score the tokens of their own sequence s. A token that key_mask hides has weight 0.
struct AttentionImportance {
  int64_t sequences = 0, rows = 0;
  int64_t tokens = 0;  // of every sequence, or of all together where `bounds` packs them
  int64_t heads = 0, kv_heads = 1, width = 0;
  const int64_t* bounds = nullptr;  // (sequences + 1): sequence s holds tokens bounds[s] up to bounds[s + 1]
  const float* query = nullptr;     // (sequences, heads, rows, width)
  const void* key = nullptr;
  int64_t key_stride_sequence = 0, key_stride_token = 0, key_stride_head = 0, key_stride_channel = 0;
  DType key_dtype = DType::float32;
  const bool* key_mask = nullptr;  // (sequences, tokens)
  float scale = 1.0f;
  bool softmax = true;
  float* weights = nullptr;  // (sequences, heads, rows, tokens), or packed (heads, rows, tokens)
  int threads = 1;
};

// A block of rows of attention scores, with all columns that any of them sees: row i sees columns up to first_row + i.
struct ReceivedBlock {
  float* scores = nullptr;  // (heads, rows, columns)
  int64_t heads = 0, rows = 0, columns = 0, first_row = 0;
  const float* lse = nullptr;  // (heads, rows), heads lse_stride apart; null: the scores' own
  int64_t lse_stride = 0;
  int threads = 1;
};

}  // namespace vr
