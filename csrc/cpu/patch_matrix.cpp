#include "patch_matrix.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "parallel.h"

namespace vr::cpu {
namespace {

enum class Direction { gather, scatter };

// Channels that are moved together: their k * k rows and their place in the matrix stay in the L1 cache for k up to 5.
constexpr int64_t kChannelBlock = 64;

template <Direction kDirection, typename T>
void move(T& feature, T& entry) {
  if constexpr (kDirection == Direction::gather) {
    entry = feature;
  } else {
    feature = entry;
  }
}

// One patch of one level; kArea is k * k where it is known at compile time, 0 where it is not.
template <Direction kDirection, int kArea, typename T>
void move_patch(const PatchLevel& level, int64_t kernel, T* corner, T* row) {
  const int64_t area = kArea > 0 ? kArea : kernel * kernel;
  if (area == 1 && level.stride_channel == 1) {
    const size_t bytes = static_cast<size_t>(level.channels) * sizeof(T);
    kDirection == Direction::gather ? std::memcpy(row, corner, bytes) : std::memcpy(corner, row, bytes);
    return;
  }
  for (int64_t from = 0; from < level.channels; from += kChannelBlock) {
    const int64_t to = std::min(from + kChannelBlock, level.channels);
    for (int64_t place = 0; place < area; ++place) {
      T* feature = corner + place / kernel * level.stride_row + place % kernel * level.stride_column;
      if (level.stride_channel == 1) {
        for (int64_t c = from; c < to; ++c) move<kDirection>(feature[c], row[c * area + place]);
      } else {
        for (int64_t c = from; c < to; ++c) move<kDirection>(feature[c * level.stride_channel], row[c * area + place]);
      }
    }
  }
}

template <Direction kDirection, int kArea, typename T>
void move_row(const PatchMatrix& matrix, int64_t patch, T* row) {
  const int64_t j = patch % matrix.patches_across, i = patch / matrix.patches_across % matrix.patches_down;
  const int64_t image = patch / (matrix.patches_across * matrix.patches_down);
  for (const PatchLevel& level : matrix.levels) {
    T* corner = static_cast<T*>(level.data) + image * level.stride_batch +
                matrix.kernel * (i * level.stride_row + j * level.stride_column);
    move_patch<kDirection, kArea>(level, matrix.kernel, corner, row);
    row += level.channels * matrix.kernel * matrix.kernel;
  }
}

template <Direction kDirection, typename T>
void move_rows(const PatchMatrix& matrix) {
  int64_t width = 0;
  for (const PatchLevel& level : matrix.levels) width += level.channels * matrix.kernel * matrix.kernel;
  constexpr int64_t kWorthAThread = 1 << 15;  // elements: some ten microseconds, as long as a thread takes to wake
  const int64_t worth = matrix.count * width / kWorthAThread;
  const int limit = static_cast<int>(std::clamp<int64_t>(worth, 1, matrix.threads));
  parallel(limit, [&](int thread, int threads) {
    const int64_t to = matrix.count * (thread + 1) / threads;
    for (int64_t n = matrix.count * thread / threads; n < to; ++n) {
      T* row = static_cast<T*>(matrix.rows) + n * width;
      if (matrix.kernel == 2) {
        move_row<kDirection, 4>(matrix, matrix.first + n, row);
      } else {
        move_row<kDirection, 0>(matrix, matrix.first + n, row);
      }
    }
  });
}

template <Direction kDirection>
void run(const PatchMatrix& matrix) {
  if (matrix.kernel < 1 || matrix.patches_down < 1 || matrix.patches_across < 1 || matrix.threads < 1) {
    throw std::invalid_argument("PatchMatrix: kernel, patches and threads must be positive");
  }
  switch (matrix.item_bytes) {
    case 2:
      return move_rows<kDirection, uint16_t>(matrix);
    case 4:
      return move_rows<kDirection, uint32_t>(matrix);
    default:
      throw std::invalid_argument("PatchMatrix: item_bytes must be 2 or 4");
  }
}

}  // namespace

void gather_patches(const PatchMatrix& matrix) { run<Direction::gather>(matrix); }

void scatter_patches(const PatchMatrix& matrix) { run<Direction::scatter>(matrix); }

}  // namespace vr::cpu
