// The matrix that a strided convolution multiplies with its weight: a row for each k x k patch of a grid, and in it the
// levels one after another, each ordered (channel, y, x) as a flattened Conv2d weight is.
#pragma once

#include <cstdint>
#include <vector>

namespace vr::cpu {

// Features (batch, row, column, channel); strides count elements.
struct PatchLevel {
  void* data;
  int64_t stride_batch, stride_row, stride_column, stride_channel;
  int64_t channels;
};

// Rows first to first + count of the matrix; patch number (b * patches_down + i) * patches_across + j.
struct PatchMatrix {
  std::vector<PatchLevel> levels;
  int64_t patches_down, patches_across;
  int64_t kernel;  // k
  int64_t first, count;
  int64_t item_bytes;  // 2 or 4: elements are moved, never read as numbers
  void* rows;          // (count, sum of channels * k * k), contiguous
  int threads;
};

// levels -> rows
void gather_patches(const PatchMatrix& matrix);

// rows -> levels. Patches do not overlap: every feature is written once.
void scatter_patches(const PatchMatrix& matrix);

}  // namespace vr::cpu
