// The feature rows of one window and kv head: where they stand, LayerNorm's statistics of them, and their way into
// shared memory, chunk by chunk.
#pragma once

#include "cuda/chunks.h"
#include "cuda/row_statistics.h"
#include "cuda/shared_layout.h"

namespace vr::cuda {

enum class Operand { keys, values };

template <typename T>
class WindowRows {
  using Shape = ChunkShape<T>;

 public:
  VR_DEVICE WindowRows(const Problem& problem, const SharedLayout& layout, int64_t window, int kv_head)
      : problem_(problem), ring_chunks_(layout.ring_chunks) {
    unsigned char* memory = shared_memory();
    ring_ = reinterpret_cast<T*>(memory + layout.features);
    zeros_ = reinterpret_cast<T*>(memory + layout.zeros);
    rows_ = reinterpret_cast<int64_t*>(memory + layout.rows);
    addresses_ = reinterpret_cast<const char**>(memory + layout.addresses);
    statistics_ = reinterpret_cast<RowStatistics*>(memory + layout.statistics);
    for (int i = thread_index(); i < Shape::kStride; i += kThreads) zeros_[i] = from_float<T>(0.0f);
    find(window, kv_head);
    if (problem.norm_groups != NormGroups::none) measure();
  }

  VR_DEVICE bool is_present(int slot) const { return slot < problem_.slots && rows_[slot] >= 0; }

  VR_DEVICE float saliency(int slot) const {
    return problem_.saliency == nullptr ? 1.0f : problem_.saliency[rows_[slot]];
  }

  VR_DEVICE int chunks(Operand operand) const { return chunk_count<Shape::kChannels>(levels_of(operand)); }

  VR_DEVICE Chunk chunk(Operand operand, int number) const {
    return chunk_at<Shape::kChannels>(levels_of(operand), number);
  }

  // The operand that is read: values that are the keys are read as keys.
  VR_DEVICE Operand source(Operand operand) const { return problem_.shares_values ? Operand::keys : operand; }

  // Sends a chunk of every slot's row to its place in the ring: complete once every thread has waited for its copies,
  // and all have met at a barrier.
  VR_DEVICE void stage(Operand operand, int number) {
    const Chunk chunk = this->chunk(operand, number);
    const bool normalized = problem_.norm_groups != NormGroups::none && source(operand) == Operand::keys;
    const bool converted = normalized || sizeof(T) != (problem_.feature_dtype == DType::float32 ? 4 : 2);
    T* target = ring_place(number);
    for (int i = thread_index(); i < problem_.slots * Shape::kVectors; i += kThreads) {
      const int slot = i / Shape::kVectors, first = i % Shape::kVectors * kVector<T>;
      const char* row = address(operand, chunk.level, slot);
      const int valid = row == nullptr ? 0 : valid_elements<T>(chunk.channels, first);
      T* vector = target + slot * Shape::kStride + first;
      if (converted && valid > 0) {
        convert(chunk, slot, row, first, valid, normalized, vector);
      } else {
        copy_vector(vector, valid > 0 ? reinterpret_cast<const T*>(row) + chunk.channel + first : nullptr, valid);
      }
    }
  }

  VR_DEVICE FeatureChunk<T> staged(int number) const {
    return {ring_place(number), zeros_, problem_.slots, Shape::kStride};
  }

 private:
  VR_DEVICE const Levels& levels_of(Operand operand) const {
    return source(operand) == Operand::keys ? problem_.keys : problem_.values;
  }

  VR_DEVICE const char* address(Operand operand, int level, int slot) const {
    const int first_level = source(operand) == Operand::keys ? 0 : problem_.keys.count;
    return addresses_[(first_level + level) * problem_.slots + slot];
  }

  VR_DEVICE T* ring_place(int number) const { return ring_ + number % ring_chunks_ * problem_.slots * Shape::kStride; }

  VR_DEVICE void find(int64_t window, int kv_head) {
    for (int slot = thread_index(); slot < problem_.slots; slot += kThreads) {
      rows_[slot] = row_of_slot(problem_, window, slot);
    }
    sync_block();
    const int levels = problem_.keys.count + problem_.values.count;
    for (int i = thread_index(); i < levels * problem_.slots; i += kThreads) {
      const int level = i / problem_.slots, slot = i % problem_.slots;
      const Level& source =
          level < problem_.keys.count ? problem_.keys.level[level] : problem_.values.level[level - problem_.keys.count];
      addresses_[i] = rows_[slot] < 0 ? nullptr : row_address(problem_, source, rows_[slot], kv_head);
    }
    sync_block();
  }

  VR_DEVICE void measure() {
    for (int slot = warp_index(); slot < problem_.slots; slot += kWarps) {
      if (rows_[slot] < 0) continue;
      measure_row<T>(
          problem_, [&](int level) { return address(Operand::keys, level, slot); },
          [&](int level, const RowStatistics& measured) { statistics_[level * problem_.slots + slot] = measured; });
    }
    sync_block();
  }

  VR_DEVICE void convert(const Chunk& chunk, int slot, const char* row, int first, int valid, bool normalized,
                         T* target) const {
    float values[kVector<T>];
    read_features<T>(problem_.feature_dtype, row, chunk.channel + first, valid, values);
    Pack<T> pack;
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      if (normalized && i < valid) {
        const RowStatistics statistics = statistics_[chunk.level * problem_.slots + slot];
        const int column = chunk.column + first + i;
        values[i] = (values[i] - statistics.mean) * statistics.inverse_deviation;
        if (problem_.norm_weight != nullptr) values[i] *= problem_.norm_weight[column];
        if (problem_.norm_bias != nullptr) values[i] += problem_.norm_bias[column];
      }
      pack.at[i] = from_float<T>(values[i]);
    }
    *reinterpret_cast<Pack<T>*>(target) = pack;
  }

  const Problem& problem_;
  int ring_chunks_;
  T* ring_;
  T* zeros_;
  int64_t* rows_;
  const char** addresses_;
  RowStatistics* statistics_;
};

}  // namespace vr::cuda
