// What a block keeps in shared memory, and where. The host computes it once a launch; the kernel takes it as an
// argument.
#pragma once

#include <algorithm>

#include "cuda/chunks.h"
#include "cuda/tile.h"

namespace vr::cuda {

// Channels pass through shared memory in chunks of 256 bytes a row. Rows stand 16 bytes further apart than that, so
// that the eight rows which a matrix load reads at once lie in different banks.
template <typename T>
struct ChunkShape {
  static constexpr int kChannels = 256 / static_cast<int>(sizeof(T));
  static constexpr int kStride = kChannels + kVector<T>;
  static constexpr int kVectors = kChannels / kVector<T>;   // of one row
  static constexpr int kWarpChannels = kChannels / kWarps;  // each warp computes with its own part of a chunk
  static_assert(kWarpChannels % kTile == 0, "a warp takes whole tiles");
};

// Chunks are on their way while earlier ones are computed with: this many, and the one at hand.
constexpr int kAhead = 2, kStages = kAhead + 1;

template <typename T, int kCapacity>  // kCapacity: slots that there is room for
struct Weights {
  static constexpr int kStride = kCapacity + kVector<T>;
};

// Offsets in bytes, each aligned to 16.
struct SharedLayout {
  int ring_chunks;  // chunks of features that are kept
  int features;     // (ring_chunks, slots, chunk stride) T
  int heads;        // (kStages, 16, chunk stride) T: rows of heads; then partial scores; then rows of the output
  int zeros;        // (chunk stride,) T
  int weights[2];   // (16, weight stride) T: of the keys, of the values
  int rows;         // (slots,) int64: feature rows, -1 where absent
  int addresses;    // (key levels + value levels, slots): where the channels of a row begin, null where it is absent
  int statistics;   // (key levels, slots)
  int bytes;
};

// Most chunks that any operand has.
template <typename T>
int most_chunks(const Problem& problem) {
  constexpr int kChannels = ChunkShape<T>::kChannels;
  return std::max(chunk_count<kChannels>(problem.keys), chunk_count<kChannels>(problem.values));
}

// The layout with as many chunks of features as fit in `bytes_wanted`. It takes more where the fewest do not fit: up to
// 89 KB for float32 windows of 64 slots, which every device has.
template <typename T, int kCapacity>
SharedLayout shared_layout(const Problem& problem, int bytes_wanted) {
  SharedLayout layout{};
  const auto take = [&layout](int count, size_t size) {
    const int offset = layout.bytes;
    layout.bytes += (count * static_cast<int>(size) + 15) / 16 * 16;
    return offset;
  };
  constexpr int kStride = ChunkShape<T>::kStride;
  const int head_bytes = kStages * kTile * kStride * static_cast<int>(sizeof(T));
  const int partial_bytes = kWarps * kTile * kCapacity * static_cast<int>(sizeof(float));
  layout.heads = take(std::max(head_bytes, partial_bytes), 1);
  layout.zeros = take(kStride, sizeof(T));
  for (int& offset : layout.weights) offset = take(kTile * Weights<T, kCapacity>::kStride, sizeof(T));
  layout.rows = take(problem.slots, sizeof(int64_t));
  layout.addresses = take((problem.keys.count + problem.values.count) * problem.slots, sizeof(const char*));
  layout.statistics = take(problem.keys.count * problem.slots, sizeof(RowStatistics));

  const int chunk_bytes = problem.slots * kStride * static_cast<int>(sizeof(T));
  const int chunks = most_chunks<T>(problem), least = std::min(chunks, kStages);
  const int fitting = chunk_bytes == 0 ? chunks : (bytes_wanted - layout.bytes) / chunk_bytes;
  layout.ring_chunks = std::clamp(fitting, least, chunks);
  layout.features = take(layout.ring_chunks, chunk_bytes);
  return layout;
}

}  // namespace vr::cuda
