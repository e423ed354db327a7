// The one source of every WindowMath table. A file includes it inside an unnamed namespace, after choosing its tiles:
//     kLanes                  floats in a register
//     kDotHeads, kDotSlots    register tile of dot_rows
//     kMixHeads               register tile of mix_rows, two registers wide
// No template or inline function of std may be used here: the linker keeps one instance of it for the whole library,
// and could keep the one with AVX-512 instructions.

#include "convert.inl"
#include "lanes.inl"

static_assert(kChannelUnit % (2 * kLanes) == 0, "a padded row must be a whole number of mix tiles");

// gcc would otherwise load a vector anew for each of a few multiplications, and loads are what limits a tile.
inline Vector in_register(Vector vector) {
#if defined(__x86_64__)
  __asm__("" : "+v"(vector));
#endif
  return vector;
}

void add(const float* source, int64_t count, float* target) {
  for (int64_t i = 0; i < count; ++i) target[i] += source[i];
}

// sum_i term(row[i]), where term takes a register of elements as well as a single one.
template <typename Term>
inline float sum_terms(const float* row, int64_t count, Term term) {
  Vector sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= count; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) sums[j] += term(load_vector(row + i + j * kLanes));
  }
  float total = Lanes<kLanes>::sum((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; i < count; ++i) total += term(row[i]);
  return total;
}

// Two passes: the variance of a row whose mean is large would not survive the difference of two large sums.
void normalize(float* row, int64_t count, float eps, const float* weight, const float* bias) {
  const float scale = 1.0f / static_cast<float>(count);
  const float mean = scale * sum_terms(row, count, [](auto x) { return x; });
  const float variance = scale * sum_terms(row, count, [mean](auto x) { return (x - mean) * (x - mean); });
  const float inverse_deviation = 1.0f / __builtin_sqrtf(variance + eps);
  if (weight == nullptr) {
    for (int64_t i = 0; i < count; ++i) row[i] = (row[i] - mean) * inverse_deviation;
  } else if (bias == nullptr) {
    for (int64_t i = 0; i < count; ++i) row[i] = (row[i] - mean) * inverse_deviation * weight[i];
  } else {
    for (int64_t i = 0; i < count; ++i) row[i] = (row[i] - mean) * inverse_deviation * weight[i] + bias[i];
  }
}

// A chunk of the rows of a block of heads and slots fits the first-level cache, where every tile of the block reads it;
// the block's partial sums wait in memory meanwhile.
constexpr int64_t kChunk = 256;
constexpr int64_t kBlockHeads = 8, kBlockSlots = 16;

template <int kHeads, int kSlots>
void dot_tile(const float* queries, int64_t query_stride, const float* const* rows, int64_t first_channel,
              int64_t channels, Vector* sums) {
  Vector sum[kHeads][kSlots];
  for (int g = 0; g < kHeads; ++g) {
    for (int k = 0; k < kSlots; ++k) sum[g][k] = sums[g * kBlockSlots + k];
  }
  for (int64_t c = 0; c < channels; c += kLanes) {
    Vector row[kSlots];
    for (int k = 0; k < kSlots; ++k) row[k] = in_register(load_vector(rows[k] + first_channel + c));
    for (int g = 0; g < kHeads; ++g) {
      const Vector query = in_register(load_vector(queries + g * query_stride + c));
      for (int k = 0; k < kSlots; ++k) sum[g][k] += query * row[k];
    }
  }
  for (int g = 0; g < kHeads; ++g) {
    for (int k = 0; k < kSlots; ++k) sums[g * kBlockSlots + k] = sum[g][k];
  }
}

// The tile of the given size, at most kHeads x kSlots.
template <int kHeads, int kSlots, typename... Arguments>
inline void dot_tile_of(int64_t heads, int64_t slots, Arguments... arguments) {
  if constexpr (kHeads > 1) {
    if (heads < kHeads) return dot_tile_of<kHeads - 1, kSlots>(heads, slots, arguments...);
  }
  if constexpr (kSlots > 1) {
    if (slots < kSlots) return dot_tile_of<kHeads, kSlots - 1>(heads, slots, arguments...);
  }
  dot_tile<kHeads, kSlots>(arguments...);
}

// Where part `part` of `parts` nearly equal parts begins: 9 slots make tiles of 3 + 3 + 3, not of 4 + 4 + 1.
inline int64_t part_begin(int64_t count, int64_t part, int64_t parts) { return count * part / parts; }

inline int64_t parts_of(int64_t count, int64_t largest) { return (count + largest - 1) / largest; }

void dot_block(const float* queries, int64_t query_stride, int64_t heads, const float* const* rows, int64_t slots,
               int64_t first_channel, int64_t channels, Vector* sums) {
  const int64_t head_parts = parts_of(heads, kDotHeads), slot_parts = parts_of(slots, kDotSlots);
  for (int64_t i = 0; i < head_parts; ++i) {
    const int64_t g = part_begin(heads, i, head_parts), tile_heads = part_begin(heads, i + 1, head_parts) - g;
    for (int64_t j = 0; j < slot_parts; ++j) {
      const int64_t k = part_begin(slots, j, slot_parts), tile_slots = part_begin(slots, j + 1, slot_parts) - k;
      dot_tile_of<kDotHeads, kDotSlots>(tile_heads, tile_slots, queries + g * query_stride, query_stride, rows + k,
                                        first_channel, channels, sums + g * kBlockSlots + k);
    }
  }
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

void dot_rows(const float* queries, int64_t query_stride, int64_t heads, FeatureRows<float> features, int64_t slots,
              float* scores, int64_t score_stride) {
  for (int64_t g = 0; g < heads; g += kBlockHeads) {
    const int64_t block_heads = smaller(kBlockHeads, heads - g);
    for (int64_t k = 0; k < slots; k += kBlockSlots) {
      const int64_t block_slots = smaller(kBlockSlots, slots - k);
      Vector sums[kBlockHeads * kBlockSlots] = {};
      const float* block_queries = queries + g * query_stride;
      for (int64_t i = 0; i < features.count; ++i) {
        const Segment<float>& segment = features.segments[i];
        for (int64_t c = 0; c < segment.channels; c += kChunk) {
          dot_block(block_queries + c, query_stride, block_heads, segment.rows + k, block_slots, c,
                    smaller(kChunk, segment.channels - c), sums);
        }
        block_queries += segment.channels;
      }
      for (int64_t i = 0; i < block_heads; ++i) {
        for (int64_t j = 0; j < block_slots; ++j) {
          scores[(g + i) * score_stride + k + j] = Lanes<kLanes>::sum(sums[i * kBlockSlots + j]);
        }
      }
    }
  }
}

template <int kHeads>
void mix_tile(const float* weights, int64_t weight_stride, const float* const* rows, int64_t slots, int64_t channel,
              float* out, int64_t out_stride) {
  // Without the pragmas gcc keeps the sums in memory.
  Vector sum[kHeads][2];
#pragma GCC unroll 8
  for (int g = 0; g < kHeads; ++g) sum[g][0] = sum[g][1] = Vector{};
  for (int64_t k = 0; k < slots; ++k) {
    const Vector left = load_vector(rows[k] + channel), right = load_vector(rows[k] + channel + kLanes);
#pragma GCC unroll 8
    for (int g = 0; g < kHeads; ++g) {
      const float weight = weights[g * weight_stride + k];
      sum[g][0] += weight * left;
      sum[g][1] += weight * right;
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < kHeads; ++g) {
    store_vector(out + g * out_stride, sum[g][0]);
    store_vector(out + g * out_stride + kLanes, sum[g][1]);
  }
}

template <int kHeads, typename... Arguments>
inline void mix_tile_of(int64_t heads, Arguments... arguments) {
  if constexpr (kHeads > 1) {
    if (heads < kHeads) return mix_tile_of<kHeads - 1>(heads, arguments...);
  }
  mix_tile<kHeads>(arguments...);
}

// Two registers' worth of each row.
inline void prefetch(const float* rows, int64_t stride, int64_t count) {
  constexpr int64_t kCacheLine = 64 / sizeof(float);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t c = 0; c < 2 * kLanes; c += kCacheLine) __builtin_prefetch(rows + i * stride + c, 0, 2);
  }
}

void mix_rows(const float* weights, int64_t weight_stride, int64_t heads, FeatureRows<float> features, int64_t slots,
              float* out, int64_t out_stride, const float* upcoming, int64_t upcoming_stride) {
  const int64_t parts = parts_of(heads, kMixHeads);
  for (int64_t s = 0; s < features.count; ++s) {
    const Segment<float>& segment = features.segments[s];
    for (int64_t c = 0; c < segment.channels; c += 2 * kLanes) {
      if (upcoming != nullptr) prefetch(upcoming + c, upcoming_stride, heads);
      for (int64_t i = 0; i < parts; ++i) {
        const int64_t g = part_begin(heads, i, parts), tile_heads = part_begin(heads, i + 1, parts) - g;
        mix_tile_of<kMixHeads>(tile_heads, weights + g * weight_stride, weight_stride, segment.rows, slots, c,
                               out + g * out_stride + c, out_stride);
      }
    }
    out += segment.channels;
    if (upcoming != nullptr) upcoming += segment.channels;
  }
}
