// Compiled with -march=x86-64-v4 -mavx512bf16 -mamx-tile -mamx-bf16.
#if defined(__x86_64__)

#include "window_math_amx.h"

#include <immintrin.h>

namespace vr::cpu::amx {
namespace {

// One tile multiplication adds to a (heads, 16) tile of float32 the product of a (heads, pairs) and a (pairs, 16) tile
// of pairs of bfloat16. Scores pair up channels; pooling pairs up slots.
//
// Tile registers: 0-3 sums, 4 queries, 5 features of dot, 6 weights, 7 features of mix.
constexpr int64_t kTileRows = 16;
constexpr int64_t kTileSlots = 16;     // of the scores that one tile holds
constexpr int64_t kTileMixSlots = 32;  // that one multiplication adds up
constexpr int64_t kTileChannels = 32;  // that one multiplication adds up
constexpr int64_t kRowBytes = 64;

static_assert(kChannelUnit % kTileChannels == 0, "feature rows must be whole tiles");

// Channels that are packed at once: few enough for the first-level cache, where every tile of heads then reads them.
constexpr int64_t kDotChunk = 512, kMixChunk = 256;

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int64_t tile_rows, int64_t bytes) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
};

// gcc's tile loads do not say what they read: nothing else keeps the stores of a pack in front of them.
inline void finish_stores() { __asm__ volatile("" : : : "memory"); }

inline int64_t parts_of(int64_t count, int64_t largest) { return (count + largest - 1) / largest; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t heads_of_tile(int64_t heads) { return parts_of(heads, parts_of(heads, kTileRows)); }

// Calls body(first head, heads, done): all tiles have the same number of heads, so the last one may have to step back
// over `done` heads of its predecessor.
template <typename Body>
inline void for_head_tiles(int64_t heads, const Body& body) {
  const int64_t tile_heads = heads_of_tile(heads);
  for (int64_t done = 0; done < heads; done += tile_heads) {
    const int64_t first = smaller(done, heads - tile_heads);
    body(first, tile_heads, done - first);
  }
}

// Slot pairs in a tile of mix: those that there are, or a full tile where there is more than one.
inline int64_t pairs_of_tile(int64_t slots) { return slots > kTileMixSlots ? kTileMixSlots / 2 : parts_of(slots, 2); }

// Pairs of channels of up to 16 rows, (row, pair), become (pair, row); absent rows are zeros.
inline void transpose(const bfloat16* const* rows, int64_t count, int64_t channel, bfloat16* target) {
  for (int64_t quarter = 0; quarter < 4; ++quarter) {
    __m512i lanes[4];  // 128-bit lane l of lanes[i]: four pairs of row 4 l + i
    for (int64_t i = 0; i < 4; ++i) {
      const auto part = [&](int64_t row) {
        if (row >= count) return _mm_setzero_si128();
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[row] + channel + quarter * 8));
      };
      lanes[i] = _mm512_castsi128_si512(part(i));
      lanes[i] = _mm512_inserti32x4(lanes[i], part(i + 4), 1);
      lanes[i] = _mm512_inserti32x4(lanes[i], part(i + 8), 2);
      lanes[i] = _mm512_inserti32x4(lanes[i], part(i + 12), 3);
    }
    const __m512i low01 = _mm512_unpacklo_epi32(lanes[0], lanes[1]), low23 = _mm512_unpacklo_epi32(lanes[2], lanes[3]);
    const __m512i high01 = _mm512_unpackhi_epi32(lanes[0], lanes[1]),
                  high23 = _mm512_unpackhi_epi32(lanes[2], lanes[3]);
    bfloat16* row = target + quarter * 4 * 32;
    _mm512_store_si512(row, _mm512_unpacklo_epi64(low01, low23));
    _mm512_store_si512(row + 32, _mm512_unpackhi_epi64(low01, low23));
    _mm512_store_si512(row + 64, _mm512_unpacklo_epi64(high01, high23));
    _mm512_store_si512(row + 96, _mm512_unpackhi_epi64(high01, high23));
  }
}

// Adds to 16 scores of each head of a tile, but for the first `done`, the products over one packed chunk.
inline void dot_chunk(const bfloat16* queries, int64_t query_stride, int64_t heads, int64_t done, const bfloat16* pack,
                      int64_t channels, float* scores, int64_t score_stride) {
  const int64_t query_bytes = query_stride * static_cast<int64_t>(sizeof(bfloat16));
  alignas(64) float sums[4][kTileRows][16];
// A multiplication waits long for the one before it on the same sums: four sums take turns.
#define VR_MULTIPLY(sum, channel)                           \
  _tile_loadd(4, queries + (channel), query_bytes);         \
  _tile_loadd(5, pack + (channel) * kTileSlots, kRowBytes); \
  _tile_dpbf16ps(sum, 4, 5)
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  int64_t c = 0;
  for (; c + 4 * kTileChannels <= channels; c += 4 * kTileChannels) {
    VR_MULTIPLY(0, c);
    VR_MULTIPLY(1, c + kTileChannels);
    VR_MULTIPLY(2, c + 2 * kTileChannels);
    VR_MULTIPLY(3, c + 3 * kTileChannels);
  }
  for (; c < channels; c += kTileChannels) {
    VR_MULTIPLY(0, c);
  }
#undef VR_MULTIPLY
  _tile_stored(0, sums[0], kRowBytes);
  _tile_stored(1, sums[1], kRowBytes);
  _tile_stored(2, sums[2], kRowBytes);
  _tile_stored(3, sums[3], kRowBytes);
  for (int64_t g = done; g < heads; ++g) {
    const __m512 left = _mm512_add_ps(_mm512_load_ps(sums[0][g]), _mm512_load_ps(sums[1][g]));
    const __m512 right = _mm512_add_ps(_mm512_load_ps(sums[2][g]), _mm512_load_ps(sums[3][g]));
    float* score = scores + g * score_stride;
    _mm512_storeu_ps(score, _mm512_add_ps(_mm512_loadu_ps(score), _mm512_add_ps(left, right)));
  }
}

// Order of the pack of mix: (32 channels, slot tile, half, slot pair, 16 channels of the half, slot of the pair)
inline void pack_for_mix(const bfloat16* const* rows, int64_t slots, int64_t first_channel, int64_t channels,
                         bfloat16* pack) {
  // Takes the first 16 channels of two rows in turn; 16 more, the others.
  alignas(64) static constexpr bfloat16 kInTurn[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                       8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i left = _mm512_load_si512(kInTurn), right = _mm512_add_epi16(left, _mm512_set1_epi16(16));
  const auto load_row = [&](int64_t k, int64_t c) {
    return k < slots ? _mm512_loadu_si512(rows[k] + first_channel + c) : _mm512_setzero_si512();
  };
  const int64_t pairs = pairs_of_tile(slots);
  for (int64_t c = 0; c < channels; c += kTileChannels) {
    for (int64_t k = 0; k < slots; k += kTileMixSlots) {
      for (int64_t pair = 0; pair < pairs; ++pair) {
        const __m512i first = load_row(k + 2 * pair, c), second = load_row(k + 2 * pair + 1, c);
        _mm512_store_si512(pack + pair * 32, _mm512_permutex2var_epi16(first, left, second));
        _mm512_store_si512(pack + (pairs + pair) * 32, _mm512_permutex2var_epi16(first, right, second));
      }
      pack += 2 * pairs * 32;
    }
  }
}

// One packed chunk of out for one tile of heads.
inline void mix_chunk(const bfloat16* weights, int64_t weight_stride, int64_t heads, const bfloat16* pack,
                      int64_t slots, int64_t channels, bfloat16* out, int64_t out_stride) {
  const int64_t weight_bytes = weight_stride * static_cast<int64_t>(sizeof(bfloat16));
  const int64_t half = pairs_of_tile(slots) * 32;
  for (int64_t c = 0; c < channels; c += kTileChannels) {
    alignas(64) float sums[kTileRows][kTileChannels];
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t k = 0; k < slots; k += kTileMixSlots) {
      _tile_loadd(6, weights + k, weight_bytes);
      _tile_loadd(7, pack, kRowBytes);
      _tile_dpbf16ps(0, 6, 7);
      _tile_loadd(7, pack + half, kRowBytes);
      _tile_dpbf16ps(1, 6, 7);
      pack += 2 * half;
    }
    _tile_stored(0, sums[0], 2 * kRowBytes);
    _tile_stored(1, sums[0] + 16, 2 * kRowBytes);
    for (int64_t g = 0; g < heads; ++g) {
      const __m512bh row = _mm512_cvtne2ps_pbh(_mm512_load_ps(sums[g] + 16), _mm512_load_ps(sums[g]));
      _mm512_storeu_si512(out + g * out_stride + c, reinterpret_cast<__m512i>(row));
    }
  }
}

}  // namespace

void configure(int64_t heads, int64_t slots) {
  const int64_t tile_heads = heads_of_tile(heads), pairs = pairs_of_tile(slots);
  TileConfig config;
  for (int sum = 0; sum < 4; ++sum) config.set(sum, tile_heads, kRowBytes);
  config.set(4, tile_heads, kRowBytes);
  config.set(5, kTileChannels / 2, kRowBytes);
  config.set(6, tile_heads, pairs * 4);
  config.set(7, pairs, kRowBytes);
  // gcc 12 declares that the intrinsic reads eight bytes, and would drop the stores to the others.
  __asm__ volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

void release() { _tile_release(); }

void dot_rows(const bfloat16* queries, int64_t query_stride, int64_t heads, FeatureRows<bfloat16> features,
              int64_t slots, float* scores, int64_t score_stride) {
  for (int64_t k = 0; k < slots; k += kTileSlots) {
    for (int64_t g = 0; g < heads; ++g) _mm512_storeu_ps(scores + g * score_stride + k, _mm512_setzero_ps());
    const bfloat16* segment_queries = queries;
    for (int64_t i = 0; i < features.count; ++i) {
      const Segment<bfloat16>& segment = features.segments[i];
      for (int64_t c = 0; c < segment.channels; c += kDotChunk) {
        const int64_t channels = smaller(kDotChunk, segment.channels - c);
        alignas(64) bfloat16 pack[kDotChunk * kTileSlots];  // (32 channels, channel pair, slot, channel of the pair)
        for (int64_t j = 0; j < channels; j += kTileChannels) {
          transpose(segment.rows + k, smaller(slots - k, kTileSlots), c + j, pack + j * kTileSlots);
        }
        finish_stores();
        for_head_tiles(heads, [&](int64_t g, int64_t tile_heads, int64_t done) {
          dot_chunk(segment_queries + g * query_stride + c, query_stride, tile_heads, done, pack, channels,
                    scores + g * score_stride + k, score_stride);
        });
      }
      segment_queries += segment.channels;
    }
  }
}

void mix_rows(const bfloat16* weights, int64_t weight_stride, int64_t heads, FeatureRows<bfloat16> features,
              int64_t slots, bfloat16* out, int64_t out_stride, bfloat16* pack) {
  for (int64_t i = 0; i < features.count; ++i) {
    const Segment<bfloat16>& segment = features.segments[i];
    for (int64_t c = 0; c < segment.channels; c += kMixChunk) {
      const int64_t channels = smaller(kMixChunk, segment.channels - c);
      pack_for_mix(segment.rows, slots, c, channels, pack);
      finish_stores();
      for_head_tiles(heads, [&](int64_t g, int64_t tile_heads, int64_t) {
        mix_chunk(weights + g * weight_stride, weight_stride, tile_heads, pack, slots, channels,
                  out + g * out_stride + c, out_stride);
      });
    }
    out += segment.channels;
  }
}

int64_t mix_pack_size(int64_t slots) { return parts_of(slots, kTileMixSlots) * pairs_of_tile(slots) * 2 * kMixChunk; }

}  // namespace vr::cpu::amx

#endif
