// The arithmetic of one warp: 16 rows by 16 columns of sums, over 16 terms at a time. 16-bit numbers go through the
// matrix instruction, float32 ones through ordinary multiply-adds, with the sums in the same places.
#pragma once

#include "cuda/vectors.h"

namespace vr::cuda {

constexpr int kTile = 16;

// 16 rows by 8 columns; sum[i] is that of row(i), column(i).
struct Sums {
  float sum[4] = {};

  static VR_DEVICE int row(int i) { return lane_index() / 4 + i / 2 * 8; }
  static VR_DEVICE int column(int i) { return lane_index() % 4 * 2 + i % 2; }
};

// Columns 0 to 7 and 8 to 15.
struct TileSums {
  Sums left, right;
};

// A staged chunk of channels: a row of shared memory for each slot, and zeros for those that pad the slots to whole
// tiles.
template <typename T>
struct FeatureChunk {
  const T* rows;
  const T* zeros;
  int slots, stride;

  VR_DEVICE const T* row(int slot) const { return slot < slots ? rows + slot * stride : zeros; }
};

// sums[head][slot] += sum_c heads[head][c] features[first_slot + slot][c] over 16 channels.
template <typename T>
VR_DEVICE void add_dot(TileSums& sums, const T* heads, int head_stride, const FeatureChunk<T>& features, int first_slot,
                       int channel) {
  const int lane = lane_index();
  const Matrices a = load_matrices(heads + lane % 16 * head_stride + channel + lane / 16 * 8);
  const Matrices b = load_matrices(features.row(first_slot + lane / 16 * 8 + lane % 8) + channel + lane / 8 % 2 * 8);
  multiply_add<T>(sums.left.sum, a, b.pair[0], b.pair[1]);
  multiply_add<T>(sums.right.sum, a, b.pair[2], b.pair[3]);
}

// Four terms by themselves, before they join a long sum: a quarter of the roundings at the size of the whole.
VR_DEVICE float dot(const Pack<float>& a, const Pack<float>& b) {
  float sum = a.at[0] * b.at[0];
#pragma unroll
  for (int i = 1; i < 4; ++i) sum += a.at[i] * b.at[i];
  return sum;
}

template <>
VR_DEVICE void add_dot<float>(TileSums& sums, const float* heads, int head_stride, const FeatureChunk<float>& features,
                              int first_slot, int channel) {
  using Four = Pack<float>;
#pragma unroll
  for (int c = channel; c < channel + kTile; c += 4) {
    Four head[2], left[2], right[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int slot = first_slot + Sums::column(i);
      head[i] = *reinterpret_cast<const Four*>(heads + Sums::row(2 * i) * head_stride + c);
      left[i] = *reinterpret_cast<const Four*>(features.row(slot) + c);
      right[i] = *reinterpret_cast<const Four*>(features.row(slot + 8) + c);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      sums.left.sum[i] += dot(head[i / 2], left[i % 2]);
      sums.right.sum[i] += dot(head[i / 2], right[i % 2]);
    }
  }
}

// sums[head][c] += sum_k weights[head][first_slot + k] features[first_slot + k][channel + c] over 16 slots.
template <typename T>
VR_DEVICE void add_mix(TileSums& sums, const T* weights, int weight_stride, const FeatureChunk<T>& features,
                       int first_slot, int channel) {
  const int lane = lane_index();
  const Matrices a = load_matrices(weights + lane % 16 * weight_stride + first_slot + lane / 16 * 8);
  const Matrices b = load_matrices_transposed(features.row(first_slot + lane % 16) + channel + lane / 16 * 8);
  multiply_add<T>(sums.left.sum, a, b.pair[0], b.pair[1]);
  multiply_add<T>(sums.right.sum, a, b.pair[2], b.pair[3]);
}

template <>
VR_DEVICE void add_mix<float>(TileSums& sums, const float* weights, int weight_stride,
                              const FeatureChunk<float>& features, int first_slot, int channel) {
  using Two = Pack<float, 2>;
#pragma unroll 4
  for (int slot = first_slot; slot < first_slot + kTile; ++slot) {
    const float* row = features.row(slot) + channel + Sums::column(0);
    const Two left = *reinterpret_cast<const Two*>(row), right = *reinterpret_cast<const Two*>(row + 8);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float weight = weights[Sums::row(i) * weight_stride + slot];
      sums.left.sum[i] += weight * left.at[i % 2];
      sums.right.sum[i] += weight * right.at[i % 2];
    }
  }
}

}  // namespace vr::cuda
