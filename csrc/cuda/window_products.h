// The two products that windowed attention is made of, for the heads of one window that share their feature rows.
#pragma once

#include "cuda/products.h"
#include "cuda/window_rows.h"

namespace vr::cuda {

// Up to 16 heads, from `first` on: the rows of a tile.
struct HeadTile {
  int first, count;
};

template <typename T, int kCapacity>
class WindowProducts {
  using Shape = ChunkShape<T>;
  static constexpr int kWeightStride = Weights<T, kCapacity>::kStride;

 public:
  VR_DEVICE WindowProducts(const Problem& problem, const SharedLayout& layout, int64_t window, int kv_head)
      : rows_(problem, layout, window, kv_head),
        window_(window),
        slots_(problem.slots),
        ring_chunks_(layout.ring_chunks),
        heads_(reinterpret_cast<T*>(shared_memory() + layout.heads)),
        partial_(reinterpret_cast<float*>(shared_memory() + layout.heads)),
        weights_{reinterpret_cast<T*>(shared_memory() + layout.weights[0]),
                 reinterpret_cast<T*>(shared_memory() + layout.weights[1])} {}

  VR_DEVICE const WindowRows<T>& rows() const { return rows_; }

  // heads . features, to be asked for by score().
  VR_DEVICE void dot(Operand operand, const Rows& heads, HeadTile tile) {
    TileSums sums[kCapacity / kTile];
    const int warp_channel = warp_index() * Shape::kWarpChannels;
    sync_block();  // the first heads go where another warp may still read the last tile's scores
    pass(
        operand, [&](const Chunk& chunk, int stage) { stage_heads(heads, tile, chunk, stage); },
        [&](const Chunk& chunk, const FeatureChunk<T>& features, int stage) {
          for (int c = warp_channel; c < warp_channel + Shape::kWarpChannels && c < chunk.channels; c += kTile) {
#pragma unroll
            for (int i = 0; i < kCapacity / kTile; ++i) {
              if (i * kTile < slots_) {
                add_dot(sums[i], head_stage(stage), Shape::kStride, features, i * kTile, c);
              }
            }
          }
        });
#pragma unroll
    for (int i = 0; i < kCapacity / kTile; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float* partial = partial_ + (warp_index() * kTile + Sums::row(j)) * kCapacity + i * kTile + Sums::column(j);
        partial[0] = sums[i].left.sum[j];
        partial[8] = sums[i].right.sum[j];
      }
    }
    sync_block();
  }

  // Of one row of the tile, until mix() or the next dot(). The warps' shares are added in a fixed order.
  VR_DEVICE float score(int row, int slot) const {
    float sum = 0.0f;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sum += partial_[(warp * kTile + row) * kCapacity + slot];
    return sum;
  }

  // What mix() multiplies the slots' features by; beyond the last slot it must be zero.
  VR_DEVICE void set_weight(Operand operand, int row, int slot, float weight) {
    weights_[static_cast<int>(operand)][row * kWeightStride + slot] = from_float<T>(weight);
  }

  // out = sum_k weights[k] features[k]
  VR_DEVICE void mix(Operand operand, const Rows& out, HeadTile tile) {
    const T* weights = weights_[static_cast<int>(operand)];
    const int warp_channel = warp_index() * Shape::kWarpChannels;
    pass(
        operand, [](const Chunk&, int) {},
        [&](const Chunk& chunk, const FeatureChunk<T>& features, int) {
          if (warp_channel >= chunk.channels) return;
          TileSums sums[Shape::kWarpChannels / kTile];
#pragma unroll
          for (int k = 0; k < kCapacity; k += kTile) {
            if (k >= slots_) break;
#pragma unroll
            for (int i = 0; i < Shape::kWarpChannels / kTile; ++i) {
              add_mix(sums[i], weights, kWeightStride, features, k, warp_channel + i * kTile);
            }
          }
          store(sums, warp_channel, chunk, out, tile);
        });
  }

 private:
  VR_DEVICE T* head_stage(int stage) const { return heads_ + stage * kTile * Shape::kStride; }

  // Takes the operand's chunks one after another: issue(chunk, stage) sends what else is needed on its way, body(chunk,
  // features, stage) finds both arrived. Each pass goes the other way than the last one, so that it begins with the
  // chunks that are still in the ring: where all of them fit, features are read once.
  template <typename Issue, typename Body>
  VR_DEVICE void pass(Operand operand, Issue issue, Body body) {
    if (rows_.source(operand) != resident_) resident_begin_ = resident_end_ = 0;
    resident_ = rows_.source(operand);
    const int count = rows_.chunks(operand);
    const auto number_at = [&](int step) { return ascending_ ? step : count - 1 - step; };
    const auto begin = [&](int step) {
      if (step < count) {
        const int number = number_at(step);
        issue(rows_.chunk(operand, number), step % kStages);
        if (number < resident_begin_ || number >= resident_end_) rows_.stage(operand, number);
      }
      commit_copies();
    };
    for (int step = 0; step < kAhead; ++step) begin(step);
    for (int step = 0; step < count; ++step) {
      wait_copies<kAhead - 1>();
      sync_block();
      begin(step + kAhead);  // where the previous step's chunk was, which all threads are done with
      const int number = number_at(step);
      body(rows_.chunk(operand, number), rows_.staged(number), step % kStages);
    }
    sync_block();
    resident_begin_ = ascending_ && count > ring_chunks_ ? count - ring_chunks_ : 0;
    resident_end_ = !ascending_ && count > ring_chunks_ ? ring_chunks_ : count;
    ascending_ = !ascending_;
  }

  VR_DEVICE void stage_heads(const Rows& heads, HeadTile tile, const Chunk& chunk, int stage) {
    for (int i = thread_index(); i < tile.count * Shape::kVectors; i += kThreads) {
      const int row = i / Shape::kVectors, first = i % Shape::kVectors * kVector<T>;
      const int valid = valid_elements<T>(chunk.channels, first);
      const T* source = row_of<const T>(heads, window_, tile.first + row) + chunk.column;
      copy_vector(head_stage(stage) + row * Shape::kStride + first, valid > 0 ? source + first : nullptr, valid);
    }
  }

  // Through shared memory, where a lane finds the neighbours of a vector; each warp keeps to its own channels.
  VR_DEVICE void store(const TileSums (&sums)[Shape::kWarpChannels / kTile], int warp_channel, const Chunk& chunk,
                       const Rows& out, HeadTile tile) {
#pragma unroll
    for (int i = 0; i < Shape::kWarpChannels / kTile; ++i) {
      write_tile(heads_ + warp_channel + i * kTile, Shape::kStride, sums[i]);
    }
    sync_warp();
    constexpr int kWarpVectors = Shape::kWarpChannels / kVector<T>;
    for (int i = lane_index(); i < tile.count * kWarpVectors; i += kWarpSize) {
      const int row = i / kWarpVectors, first = warp_channel + i % kWarpVectors * kVector<T>;
      const int valid = valid_elements<T>(chunk.channels, first);
      if (valid == 0) continue;
      T* target = row_of<T>(out, window_, tile.first + row) + chunk.column + first;
      store_vector(target, heads_ + row * Shape::kStride + first, valid);
    }
  }

  WindowRows<T> rows_;
  int64_t window_;
  int slots_, ring_chunks_;
  T* heads_;
  float* partial_;
  T* weights_[2];
  Operand resident_ = Operand::keys;  // whose chunks are in the ring, and which of them
  int resident_begin_ = 0, resident_end_ = 0;
  bool ascending_ = true;
};

}  // namespace vr::cuda
