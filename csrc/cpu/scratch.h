#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

namespace vr::cpu {

// Working memory of one thread for one call: the n-th piece taken is the n-th buffer that the thread keeps from call to
// call, grown where it is too small. Fresh pages would cost more than the arithmetic done on them. A thread has one
// Scratch at a time.
class Scratch {
 public:
  // Uninitialised, on cache lines of its own.
  template <typename T>
  T* take(int64_t count) {
    return static_cast<T*>(next_buffer(static_cast<size_t>(count) * sizeof(T)));
  }

 private:
  static constexpr std::align_val_t kAlignment{64};

  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, kAlignment); }
  };

  struct Buffer {
    std::unique_ptr<void, Free> memory;
    size_t size = 0;
  };

  void* next_buffer(size_t size) {
    thread_local std::vector<Buffer> buffers;
    if (taken_ == buffers.size()) buffers.emplace_back();
    Buffer& buffer = buffers[taken_++];
    if (buffer.size < size) {
      buffer.memory.reset(::operator new(size, kAlignment));
      buffer.size = size;
    }
    return buffer.memory.get();
  }

  size_t taken_ = 0;
};

}  // namespace vr::cpu
