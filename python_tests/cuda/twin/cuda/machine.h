// The words of csrc/cuda/machine.h for a CPU: what a GPU's instructions do by their description, written a second time.
#pragma once

#include <cmath>
#include <cstring>

#include "cuda/block.h"
#include "threads.h"

#define VR_DEVICE inline
#define VR_HOST_AND_DEVICE inline
#define VR_KERNEL void
#define VR_KERNEL_SHARED_BY(blocks) void
#define VR_PARAMETER const

namespace vr::cuda {

VR_DEVICE int thread_index() { return twin::block().thread().index; }
VR_DEVICE int warp_index() { return thread_index() / kWarpSize; }
VR_DEVICE int lane_index() { return thread_index() % kWarpSize; }
VR_DEVICE int64_t block_index() { return twin::block().row; }
VR_DEVICE int64_t block_column() { return twin::block().column; }
VR_DEVICE unsigned char* shared_memory() { return twin::block().shared(); }

VR_DEVICE void sync_block() { twin::block().wait_for_block(); }

VR_DEVICE void sync_warp() {
  twin::block().wait_for_warp([](void* const*) {}, nullptr);
}

VR_DEVICE float shuffle_xor(float value, int mask) {
  struct Lane {
    float given, taken;
    int mask;
  } lane{value, 0.0f, mask};
  const auto combine = [](void* const* lanes) {
    for (int l = 0; l < kWarpSize; ++l) {
      Lane& lane = *static_cast<Lane*>(lanes[l]);
      lane.taken = static_cast<Lane*>(lanes[l ^ lane.mask])->given;
    }
  };
  twin::block().wait_for_warp(combine, &lane);
  return lane.taken;
}

// A copy happens as late as it may: when its thread waits for it. Until then its target is NaN.
VR_DEVICE void copy_async(void* shared, const void* global, int bytes) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    twin::fail("an asynchronous copy is not aligned");
  }
  if (bytes < 0 || bytes > 16) twin::fail("an asynchronous copy has not 0 to 16 bytes");
  std::memset(shared, 0xff, 16);
  twin::block().thread().open_copies.push_back({shared, global, bytes});
}

VR_DEVICE void commit_copies() {
  twin::Thread& thread = twin::block().thread();
  thread.committed_copies.push_back(std::move(thread.open_copies));
  thread.open_copies.clear();
}

template <int kPending>
VR_DEVICE void wait_copies() {
  auto& groups = twin::block().thread().committed_copies;
  while (groups.size() > kPending) {
    for (const twin::Copy& copy : groups.front()) {
      std::memset(copy.shared, 0, 16);
      std::memcpy(copy.shared, copy.global, copy.bytes);
    }
    groups.erase(groups.begin());
  }
}

// ldmatrix: lane l names row l % 8 of matrix l / 8.
template <bool kTransposed>
VR_DEVICE Matrices load_matrices_as(const void* row) {
  struct Lane {
    const uint16_t* row;
    Matrices loaded;
  } lane{static_cast<const uint16_t*>(row), {}};
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) twin::fail("a matrix row is not aligned");
  const auto combine = [](void* const* lanes) {
    for (int l = 0; l < kWarpSize; ++l) {
      for (int matrix = 0; matrix < 4; ++matrix) {
        uint32_t pair[2];
        for (int i = 0; i < 2; ++i) {
          const int row = kTransposed ? l % 4 * 2 + i : l / 4, column = kTransposed ? l / 4 : l % 4 * 2 + i;
          pair[i] = static_cast<Lane*>(lanes[matrix * 8 + row])->row[column];
        }
        static_cast<Lane*>(lanes[l])->loaded.pair[matrix] = pair[0] | pair[1] << 16;
      }
    }
  };
  twin::block().wait_for_warp(combine, &lane);
  return lane.loaded;
}

VR_DEVICE Matrices load_matrices(const void* row) { return load_matrices_as<false>(row); }
VR_DEVICE Matrices load_matrices_transposed(const void* row) { return load_matrices_as<true>(row); }

VR_DEVICE float to_float(float value) { return value; }

VR_DEVICE float to_float(bfloat16 value) {
  const uint32_t bits = uint32_t{value.bits} << 16;
  float result;
  std::memcpy(&result, &bits, sizeof(result));
  return result;
}

VR_DEVICE float to_float(float16 value) {
  _Float16 result;
  std::memcpy(&result, &value, sizeof(result));
  return result;
}

template <typename T>
VR_DEVICE T from_float(float value);

template <>
VR_DEVICE float from_float<float>(float value) {
  return value;
}

template <>
VR_DEVICE bfloat16 from_float<bfloat16>(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if (std::isnan(value)) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};  // to nearest, ties to even
}

template <>
VR_DEVICE float16 from_float<float16>(float value) {
  const _Float16 rounded = static_cast<_Float16>(value);
  float16 result;
  std::memcpy(&result, &rounded, sizeof(result));
  return result;
}

// mma.m16n8k16, with the places of the PTX manual: a lane has rows l / 4 and l / 4 + 8 of a and of the sums.
template <typename T>
VR_DEVICE void multiply_add(float (&sums)[4], const Matrices& a, uint32_t b_low, uint32_t b_high) {
  struct Lane {
    float* sums;
    Matrices a;
    uint32_t b[2];
  } lane{sums, a, {b_low, b_high}};
  const auto combine = [](void* const* lanes) {
    const auto number = [](uint32_t pair, int i) {
      return to_float(T{static_cast<uint16_t>(i == 0 ? pair & 0xffffu : pair >> 16)});
    };
    float a[16][16], b[16][8];
    for (int l = 0; l < kWarpSize; ++l) {
      const Lane& lane = *static_cast<const Lane*>(lanes[l]);
      for (int i = 0; i < 2; ++i) {
        const int column = l % 4 * 2 + i;
        a[l / 4][column] = number(lane.a.pair[0], i);
        a[l / 4 + 8][column] = number(lane.a.pair[1], i);
        a[l / 4][column + 8] = number(lane.a.pair[2], i);
        a[l / 4 + 8][column + 8] = number(lane.a.pair[3], i);
        b[column][l / 4] = number(lane.b[0], i);
        b[column + 8][l / 4] = number(lane.b[1], i);
      }
    }
    for (int l = 0; l < kWarpSize; ++l) {
      for (int i = 0; i < 4; ++i) {
        float& sum = static_cast<Lane*>(lanes[l])->sums[i];
        for (int k = 0; k < 16; ++k) sum += a[l / 4 + i / 2 * 8][k] * b[k][l % 4 * 2 + i % 2];
      }
    }
  };
  twin::block().wait_for_warp(combine, &lane);
}

}  // namespace vr::cuda
