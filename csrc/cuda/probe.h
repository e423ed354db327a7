#pragma once

#include <cstddef>

namespace vr::cuda {

// Runs one trivial kernel on the current device. Returns 0 or the number of the CUDA error, and writes into `message`,
// of `size` bytes, the sentence for people: which device answered, or why none can.
int probe(char* message, size_t size);

}  // namespace vr::cuda
