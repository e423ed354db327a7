// Sixteen bytes at a time between global memory and a thread; elements one by one where a row is not aligned or ends.
#pragma once

#include "cuda/machine.h"

namespace vr::cuda {

template <typename T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

// kCount adjacent elements, moved by one instruction.
template <typename T, int kCount = kVector<T>>
struct alignas(sizeof(T) * kCount) Pack {
  T at[kCount];
};

template <typename P, typename T>
VR_DEVICE bool is_aligned(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % alignof(P) == 0;
}

// How many of the `width` elements from `first` on are there, at most a vector.
template <typename T>
VR_DEVICE int valid_elements(int width, int first) {
  const int left = width - first;
  return left < 0 ? 0 : left < kVector<T> ? left : kVector<T>;
}

// Global to shared memory, zeros after `valid` elements. Complete once the thread has waited for its copies.
template <typename T>
VR_DEVICE void copy_vector(T* shared, const T* global, int valid) {
  if (valid > 0 && is_aligned<Pack<T>>(global)) {
    copy_async(shared, global, valid * static_cast<int>(sizeof(T)));
    return;
  }
  Pack<T> pack{};
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) {
    if (i < valid) pack.at[i] = global[i];
  }
  *reinterpret_cast<Pack<T>*>(shared) = pack;
}

// How many of `count` things there are from `first` on.
VR_DEVICE int64_t remaining(int64_t count, int64_t first) { return count > first ? count - first : 0; }

// Sends kRows x kColumns numbers of a matrix to shared memory, where its rows stand kStride apart; zeros beyond the
// `rows` and `columns` that there are. All threads of a block share the work.
template <typename T, int kRows, int kColumns, int kStride>
VR_DEVICE void copy_matrix(const T* source, int64_t stride, int64_t rows, int64_t columns, T* target) {
  constexpr int kVectors = kColumns / kVector<T>;
  static_assert(kRows * kVectors % kThreads == 0, "threads share the matrix evenly");
  const int width = columns < kColumns ? static_cast<int>(columns) : kColumns;
#pragma unroll
  for (int i = 0; i < kRows * kVectors; i += kThreads) {
    const int row = (i + thread_index()) / kVectors, first = (i + thread_index()) % kVectors * kVector<T>;
    const int valid = row < rows ? valid_elements<T>(width, first) : 0;
    copy_vector(target + row * kStride + first, valid > 0 ? source + row * stride + first : nullptr, valid);
  }
}

// Shared to global memory.
template <typename T>
VR_DEVICE void store_vector(T* global, const T* shared, int valid) {
  const Pack<T> pack = *reinterpret_cast<const Pack<T>*>(shared);
  if (valid == kVector<T> && is_aligned<Pack<T>>(global)) {
    *reinterpret_cast<Pack<T>*>(global) = pack;
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector<T>; ++i) {
    if (i < valid) global[i] = pack.at[i];
  }
}

// Elements from global memory as float32, zeros after `valid` of them.
template <typename Source, int kCount>
VR_DEVICE void read_as_float(const Source* global, int valid, float (&values)[kCount]) {
  using Whole = Pack<Source, kCount>;
  Whole pack{};
  if (valid == kCount && is_aligned<Whole>(global)) {
    pack = *reinterpret_cast<const Whole*>(global);
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i < valid) pack.at[i] = global[i];
    }
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) values[i] = to_float(pack.at[i]);
}

// Features of any dtype that may be staged as T: only float32 takes dtypes other than its own.
template <typename T>
VR_DEVICE void read_features(DType dtype, const char* row, int64_t channel, int valid, float (&values)[kVector<T>]) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (dtype == DType::bfloat16) return read_as_float(reinterpret_cast<const bfloat16*>(row) + channel, valid, values);
    if (dtype == DType::float16) return read_as_float(reinterpret_cast<const float16*>(row) + channel, valid, values);
  }
  read_as_float(reinterpret_cast<const T*>(row) + channel, valid, values);
}

}  // namespace vr::cuda
