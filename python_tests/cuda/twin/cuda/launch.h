// The words of csrc/cuda/launch.h for a CPU: blocks one after another, in an order drawn from a seed.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "cuda/local_attention.h"
#include "cuda/machine.h"

namespace vr::twin {

inline std::mt19937 order;
inline int shared_bytes_per_block = 0;

}  // namespace vr::twin

namespace vr::cuda {

struct DeviceGuard {
  explicit DeviceGuard(int) {}
};

inline int shared_memory_of_block(int) { return twin::shared_bytes_per_block; }
inline int half_of_shared_memory(int) { return twin::shared_bytes_per_block; }
inline int multiprocessors(int) { return 4; }

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t rows, int64_t columns, int shared_bytes, Stream,
            const Arguments&... arguments) {
  constexpr int kSmallestDevice = 99 * 1024;  // sm_86, sm_89 and sm_120
  if (shared_bytes > std::max(twin::shared_bytes_per_block, kSmallestDevice)) twin::fail("too much shared memory");
  std::vector<int64_t> blocks(rows * columns);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::shuffle(blocks.begin(), blocks.end(), twin::order);
  for (int64_t number : blocks) {
    twin::Block block(shared_bytes);
    block.row = number % rows;
    block.column = number / rows;
    block.run([&] { kernel(arguments...); }, twin::order);
  }
}

}  // namespace vr::cuda
