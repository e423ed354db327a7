// Two heads are taken together: what is read of a feature serves both.
#pragma once

#include "cuda/products.h"
#include "cuda/query_tile.h"

namespace vr::cuda {

constexpr int kHeads = 2;

inline int pair_count(const Problem& problem) { return (problem.heads + kHeads - 1) / kHeads; }

// sum[head][i] of the dot products of this lane's rows, Sums::row(0) and row(2), over the columns that it has: features
// are sixteen rows of shared memory.
template <typename T, int kTiles>
VR_DEVICE void add_dots(float (&sum)[kHeads][2], const TileSums (&rows)[kHeads][kTiles], const T* features,
                        int stride) {
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    const TileSums f = read_tile(features + i * kTile, stride);
#pragma unroll
    for (int head = 0; head < kHeads; ++head) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sum[head][j / 2] += rows[head][i].left.sum[j] * f.left.sum[j];
        sum[head][j / 2] += rows[head][i].right.sum[j] * f.right.sum[j];
      }
    }
  }
}

// pooled[head] += a[head] features for sixteen rows; a is (heads, kQueries) numbers in shared memory, one a row.
template <int kQueries, typename T, int kTiles>
VR_DEVICE void add_pooled(TileSums (&pooled)[kHeads][kTiles], const float* a, const T* features, int stride) {
  float weight[kHeads][2];
#pragma unroll
  for (int head = 0; head < kHeads; ++head) {
    weight[head][0] = a[head * kQueries + Sums::row(0)];
    weight[head][1] = a[head * kQueries + Sums::row(2)];
  }
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    const TileSums f = read_tile(features + i * kTile, stride);
#pragma unroll
    for (int head = 0; head < kHeads; ++head) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        pooled[head][i].left.sum[j] += weight[head][j / 2] * f.left.sum[j];
        pooled[head][i].right.sum[j] += weight[head][j / 2] * f.right.sum[j];
      }
    }
  }
}

// The weights of two heads and some queries, as add_pooled takes them slot after slot: a row for each thread, zeros
// where there is no such query or head.
template <int kQueries>
VR_DEVICE void stage_weights(const Problem& problem, const Rows& a, int64_t first_query, int first_head,
                             float* staged) {
  constexpr int kRows = kHeads * kQueries;
  static_assert(kRows <= kThreads, "a row for each thread");
  const int row = thread_index();
  if (row >= kRows) return;
  const int64_t query = first_query + row % kQueries;
  const int head = first_head + row / kQueries;
  const bool exists = query < problem.windows && head < problem.heads;
  const float* source = exists ? row_of<const float>(a, query, head) : nullptr;
  for (int slot = 0; slot < problem.slots; ++slot) staged[slot * kRows + row] = exists ? source[slot] : 0.0f;
}

}  // namespace vr::cuda
