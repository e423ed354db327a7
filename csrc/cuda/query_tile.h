// Some queries next to each other, and the way of their windows' feature rows into shared memory: each thread brings
// its share of the rows of one query, whose place on the grid it works out once.
#pragma once

#include "cuda/chunks.h"
#include "cuda/local_cross_attention.h"
#include "cuda/vectors.h"

namespace vr::cuda {

template <typename T, int kTileQueries, int kChunkChannels>
class QueryTile {
 public:
  static constexpr int kQueries = kTileQueries, kChannels = kChunkChannels;
  static constexpr int kStride = kChannels + kVector<T>;  // rows read at once lie in different banks
  static constexpr int kSlotSize = kQueries * kStride;    // the rows of one slot, query after query

  VR_DEVICE QueryTile(const Problem& problem, const Norm& norm, int64_t first)
      : problem_(problem), norm_(norm), window_(first + thread_query()) {
    if (problem.window_height == 0) return;
    const int64_t across = problem.width / problem.window_width, down = problem.height / problem.window_height;
    const int64_t number = problem.first_window + window_;
    image_ = number / (down * across);
    top_ = number / across % down * problem.window_height;
    left_ = number % across * problem.window_width;
  }

  // Sends a chunk of `count` slots' rows on its way to (count, kQueries, kStride) numbers; zeros where there is no row.
  VR_DEVICE void copy(const Chunk& chunk, int first_slot, int count, T* target) const {
    for_each_vector(chunk, first_slot, count, target, [&](const Place& place, int first, int valid, T* vector) {
      copy_vector(vector, valid > 0 ? place.channels + chunk.channel + first : nullptr, valid);
    });
  }

  // Normalises what copy() has brought, once this thread's copies have arrived and before others read them.
  VR_DEVICE void normalize(const Chunk& chunk, int first_slot, int count, T* target) const {
    if (norm_.statistics == nullptr) return;
    for_each_vector(chunk, first_slot, count, target, [&](const Place& place, int, int valid, T* vector) {
      if (valid == 0) return;
      const RowStatistics row = norm_.statistics[place.row * problem_.keys.count + chunk.level];
      Pack<T>& pack = *reinterpret_cast<Pack<T>*>(vector);
#pragma unroll
      for (int e = 0; e < kVector<T>; ++e) {
        if (e < valid) pack.at[e] = from_float<T>((to_float(pack.at[e]) - row.mean) * row.inverse_deviation);
      }
    });
  }

 private:
  static constexpr int kThreadsPerQuery = kThreads / kQueries, kVectors = kChannels / kVector<T>;
  static_assert(kThreads % kQueries == 0 && kVectors % kThreadsPerQuery == 0, "threads share the rows evenly");

  struct Place {
    int64_t row;        // -1: none
    const T* channels;  // of the chunk's level
  };

  static VR_DEVICE int thread_query() { return thread_index() / kThreadsPerQuery; }

  VR_DEVICE Place place_of(const Level& level, int slot) const {
    const T* data = static_cast<const T*>(level.data);
    if (window_ >= problem_.windows) return {-1, nullptr};
    if (problem_.window_height == 0) {
      const int64_t row = row_of_slot(problem_, window_, slot);
      return {row, row < 0 ? nullptr : data + row * level.stride_batch};
    }
    const int across = static_cast<int>(problem_.window_width);
    const int64_t y = top_ + slot / across, x = left_ + slot % across;
    return {(image_ * problem_.height + y) * problem_.width + x,
            data + image_ * level.stride_batch + y * level.stride_row + x * level.stride_column};
  }

  // Neighbouring threads take neighbouring vectors.
  template <typename Body>
  VR_DEVICE void for_each_vector(const Chunk& chunk, int first_slot, int count, T* target, const Body& body) const {
    for (int slot = 0; slot < count; ++slot) {
      const Place place = place_of(problem_.keys.level[chunk.level], first_slot + slot);
      T* row = target + slot * kSlotSize + thread_query() * kStride;
#pragma unroll
      for (int i = 0; i < kVectors; i += kThreadsPerQuery) {
        const int first = (i + thread_index() % kThreadsPerQuery) * kVector<T>;
        body(place, first, place.row < 0 ? 0 : valid_elements<T>(chunk.channels, first), row + first);
      }
    }
  }

  const Problem& problem_;
  const Norm& norm_;
  int64_t window_, image_ = 0, top_ = 0, left_ = 0;
};

}  // namespace vr::cuda
