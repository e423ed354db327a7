// The words in which the host speaks to CUDA; as with machine.h, the tests have others of the same names.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/error.h"
#include "cuda/local_attention.h"
#include "cuda/machine.h"

namespace vr::cuda {

// Makes a device current, and on leaving the one that was.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_));
    if (device != previous_) check(cudaSetDevice(device));
    moved_ = device != previous_;
  }
  ~DeviceGuard() {
    if (moved_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool moved_ = false;
};

// What one block may take of shared memory.
inline int shared_memory_of_block(int device) {
  int bytes = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

// So much shared memory for a block that two blocks share a multiprocessor: one computes while the other waits for
// memory.
inline int half_of_shared_memory(int device) {
  constexpr int kReservedPerBlock = 1024;
  int per_multiprocessor = 0;
  check(cudaDeviceGetAttribute(&per_multiprocessor, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  return std::min(shared_memory_of_block(device), per_multiprocessor / 2 - kReservedPerBlock);
}

inline int multiprocessors(int device) {
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

// Queues `rows` x `columns` blocks of kThreads; the device must be current.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), int64_t rows, int64_t columns, int shared_bytes, Stream stream,
            const Arguments&... arguments) {
  if (rows == 0 || columns == 0) return;
  constexpr int64_t kMostRows = 0x7fffffff, kMostColumns = 0xffff;
  if (rows > kMostRows || columns > kMostColumns) {
    throw std::invalid_argument("CUDA launches up to 2147483647 x 65535 blocks; this problem needs " +
                                std::to_string(rows) + " x " + std::to_string(columns));
  }
  // The device's most, not this launch's need: another thread may set it for the same kernel before this one launches.
  check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                             shared_memory_of_block(stream.device)));
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(columns));
  kernel<<<grid, kThreads, shared_bytes, static_cast<cudaStream_t>(stream.handle)>>>(arguments...);
  check(cudaGetLastError());
}

}  // namespace vr::cuda
