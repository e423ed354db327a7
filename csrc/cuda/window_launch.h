// How the forward and the backward kernel are launched: one block for each window and kv head, on grid x, which alone
// passes 65,535.
#pragma once

#include "cuda/launch.h"
#include "cuda/shared_layout.h"

namespace vr::cuda {

// Where windows are small, fewer registers hold their scores.
constexpr int kSmallWindow = 16;

template <typename T, int kCapacity>
struct WindowKernelShape {
  using Number = T;
  static constexpr int kSlots = kCapacity;
};

// Calls run(shape, layout) with the element type that queries have, and room for the window's slots.
template <typename Run>
void with_window_shape(const Problem& problem, int device, const Run& run) {
  with_number(problem.query_dtype, [&](auto number) {
    using T = decltype(number);
    const int wanted = half_of_shared_memory(device);
    if (problem.slots <= kSmallWindow) {
      run(WindowKernelShape<T, kSmallWindow>{}, shared_layout<T, kSmallWindow>(problem, wanted));
    } else {
      run(WindowKernelShape<T, kMaxSlots>{}, shared_layout<T, kMaxSlots>(problem, wanted));
    }
  });
}

}  // namespace vr::cuda
