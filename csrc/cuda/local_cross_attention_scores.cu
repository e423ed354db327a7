// scores_nhk = sum_c (x_nh W_h)_c f_nkc
#include "cuda/head_pair.h"
#include "cuda/local_cross_attention_launch.h"

namespace vr::cuda {
namespace {

// Sixteen queries a warp, so that a warp has all channels of its u, and no sum crosses warps.
template <typename T>
struct ScoresShape {
  static constexpr int kQueries = kWarps * kTile;
  static constexpr int kChannels = 128 / static_cast<int>(sizeof(T));  // of a chunk
  static constexpr int kTiles = kChannels / kTile;
  static constexpr int kTerms = 64 / static_cast<int>(sizeof(T));  // of x W at a time
  static constexpr int kTermStride = kTerms + kVector<T>;
  using Features = QueryTile<T, kQueries, kChannels>;
  static constexpr int kAhead = 2, kStages = kAhead + 1;
  static constexpr int kMostStagedSlots = 8;  // whose scores wait to be written: so two blocks of 3x3 slots fit an H100
  static constexpr int kXSize = kQueries * kTermStride;
  static constexpr int kStageSize = kXSize + kTerms * Features::kStride;  // x and W
  static_assert(kTerms % kTile == 0 && kChannels % kTile == 0, "whole tiles");
};

// Which part of the work a block does: of the queries, the slots, the channels and the heads.
struct ScoresPlan {
  int64_t query_tiles;
  int slots_at_once, slot_groups, staged_slots, pairs_at_once;
  int stages, scores, bytes;  // of shared memory, behind the features: offsets in bytes
};

// x W for sixteen queries of each warp, head after head. Its terms come through a ring that goes on while a warp is
// busy with other things.
template <typename T>
class ProjectedQueries {
  using Shape = ScoresShape<T>;

 public:
  VR_DEVICE ProjectedQueries(const Problem& problem, const Scores& buffers, T* stages, int64_t first_query,
                             const Chunk& chunk, int first_head, int heads)
      : buffers_(buffers),
        stages_(stages),
        first_query_(first_query),
        queries_(remaining(problem.windows, first_query)),
        chunk_(chunk),
        first_head_(first_head),
        pieces_(static_cast<int>((buffers.width + Shape::kTerms - 1) / Shape::kTerms)),
        steps_(heads * pieces_) {
    for (int step = 0; step < Shape::kAhead; ++step) begin(step);
  }

  // u (16, channels) of the next head.
  VR_DEVICE void next(TileSums (&u)[Shape::kTiles]) {
    for (int piece = 0; piece < pieces_; ++piece, ++step_) {
      wait_copies<Shape::kAhead - 1>();
      sync_block();
      begin(step_ + Shape::kAhead);  // where the previous step's terms were, which all threads are done with
      const T* x = stage(step_) + warp_index() * kTile * Shape::kTermStride;
      const T* weight = stage(step_) + Shape::kXSize;
#pragma unroll
      for (int term = 0; term < Shape::kTerms; term += kTile) {
        add_products(
            u, StagedMatrix<T, Adjacent::terms>{x + term, Shape::kTermStride},
            StagedMatrix<T, Adjacent::lines>{weight + term * Shape::Features::kStride, Shape::Features::kStride});
      }
    }
  }

 private:
  VR_DEVICE T* stage(int step) const { return stages_ + step % Shape::kStages * Shape::kStageSize; }

  VR_DEVICE void begin(int step) {
    if (step < steps_) {
      const int head = first_head_ + step / pieces_, first = step % pieces_ * Shape::kTerms;
      const int64_t terms = remaining(buffers_.width, first);
      copy_matrix<T, Shape::kQueries, Shape::kTerms, Shape::kTermStride>(
          row_of<const T>(buffers_.x, first_query_, head) + first, buffers_.x.stride_window, queries_, terms,
          stage(step));
      copy_matrix<T, Shape::kTerms, Shape::kChannels, Shape::Features::kStride>(
          row_of<const T>(buffers_.weight, head, first) + chunk_.column, buffers_.weight.stride_head, terms,
          chunk_.channels, stage(step) + Shape::kXSize);
    }
    commit_copies();
  }

  const Scores& buffers_;
  T* stages_;
  int64_t first_query_, queries_;
  Chunk chunk_;
  int first_head_, pieces_, steps_, step_ = 0;
};

// gamma u, in the places of a tile's sums.
template <typename T>
VR_DEVICE void scale_channels(TileSums (&u)[ScoresShape<T>::kTiles], const float* gamma, const Chunk& chunk) {
  if (gamma == nullptr) return;
#pragma unroll
  for (int i = 0; i < ScoresShape<T>::kTiles; ++i) {
    for_each(u[i], [&](int, int column, float& value) {
      const int channel = i * kTile + column;
      if (channel < chunk.channels) value *= gamma[chunk.column + channel];
    });
  }
}

// The dots of two heads' u with the slots' rows -> (heads, 16, slots) of this warp's shared memory.
template <typename T>
VR_DEVICE void dot_slots(const TileSums (&u)[kHeads][ScoresShape<T>::kTiles], const T* features, int slots,
                         float* scores) {
  using Features = typename ScoresShape<T>::Features;
  const T* rows = features + warp_index() * kTile * Features::kStride;
  for (int slot = 0; slot < slots; ++slot) {
    float sum[kHeads][2] = {};
    add_dots(sum, u, rows + slot * Features::kSlotSize, Features::kStride);
#pragma unroll
    for (int head = 0; head < kHeads; ++head) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // Four lanes share a row.
        float total = sum[head][i] + shuffle_xor(sum[head][i], 1);
        total += shuffle_xor(total, 2);
        if (lane_index() % 4 == 0) scores[(head * kTile + Sums::row(2 * i)) * slots + slot] = total;
      }
    }
  }
}

// From shared memory to where they are summed: neighbouring lanes have neighbouring slots.
VR_DEVICE void add_scores(const Rows& target, const float* scores, int64_t first_query, int64_t queries, int first_head,
                          int heads, int first_slot, int slots, bool is_first) {
  for (int i = lane_index(); i < heads * kTile * slots; i += kWarpSize) {
    const int row = i / slots % kTile, head = i / slots / kTile;
    if (row >= queries) continue;
    float* score = row_of<float>(target, first_query + row, first_head + head) + first_slot + i % slots;
    *score = is_first ? scores[i] : *score + scores[i];
  }
}

// One block: some slots of 64 queries, for some channels and heads. A chunk of the features is read once, and stays
// while all the heads pass.
template <typename T>
VR_KERNEL_SHARED_BY(2)
scores_kernel(VR_PARAMETER Problem problem, VR_PARAMETER Norm norm, VR_PARAMETER Scores buffers,
              VR_PARAMETER ScoresPlan plan) {
  using Shape = ScoresShape<T>;
  const int64_t first_query = block_index() % plan.query_tiles * Shape::kQueries;
  const int slot_group = static_cast<int>(block_index() / plan.query_tiles % plan.slot_groups);
  const int64_t part = block_index() / plan.query_tiles / plan.slot_groups;
  const int first_slot = slot_group * plan.slots_at_once;
  const int slots = first_slot + plan.slots_at_once < problem.slots ? plan.slots_at_once : problem.slots - first_slot;
  const int begin_head = static_cast<int>(block_column()) * plan.pairs_at_once * kHeads;
  const int end_head = begin_head + plan.pairs_at_once * kHeads < problem.heads
                           ? begin_head + plan.pairs_at_once * kHeads
                           : problem.heads;
  T* features = reinterpret_cast<T*>(shared_memory());
  T* stages = reinterpret_cast<T*>(shared_memory() + plan.stages);
  float* warp_scores =
      reinterpret_cast<float*>(shared_memory() + plan.scores) + warp_index() * kHeads * kTile * plan.staged_slots;
  Rows target = buffers.scores;
  target.data = static_cast<float*>(target.data) + part * buffers.part_stride;

  const typename Shape::Features tile(problem, norm, first_query);
  const int64_t warp_query = first_query + warp_index() * kTile;
  const int64_t chunks = chunk_count<Shape::kChannels>(problem.keys);
  const int begin_chunk = static_cast<int>(part * chunks / buffers.parts);
  const int end_chunk = static_cast<int>((part + 1) * chunks / buffers.parts);
  for (int number = begin_chunk; number < end_chunk; ++number) {
    const Chunk chunk = chunk_at<Shape::kChannels>(problem.keys, number);
    sync_block();  // all are done with the previous chunk
    tile.copy(chunk, first_slot, slots, features);
    commit_copies();
    wait_copies<0>();
    tile.normalize(chunk, first_slot, slots, features);
    ProjectedQueries<T> projected(problem, buffers, stages, first_query, chunk, begin_head, end_head - begin_head);
    for (int head = begin_head; head < end_head; head += kHeads) {
      const int heads = end_head - head < kHeads ? 1 : kHeads;
      TileSums u[kHeads][Shape::kTiles];
#pragma unroll
      for (int i = 0; i < kHeads; ++i) {
        if (i >= heads) continue;
        projected.next(u[i]);
        scale_channels<T>(u[i], norm.gamma, chunk);
      }
      for (int slot = 0; slot < slots; slot += plan.staged_slots) {
        const int staged = slots - slot < plan.staged_slots ? slots - slot : plan.staged_slots;
        dot_slots(u, features + slot * Shape::Features::kSlotSize, staged, warp_scores);
        sync_warp();
        add_scores(target, warp_scores, warp_query, remaining(problem.windows, warp_query), head, heads,
                   first_slot + slot, staged, number == begin_chunk);
        sync_warp();
      }
    }
  }
}

template <typename T>
void launch_scores(const Problem& problem, const Norm& norm, const Scores& buffers, Stream stream) {
  using Shape = ScoresShape<T>;
  const int chunks = chunk_count<Shape::kChannels>(problem.keys);
  require(buffers.parts >= 1 && buffers.parts <= chunks, std::to_string(chunks) +
                                                             " chunks of channels cannot be divided into " +
                                                             std::to_string(buffers.parts) + " parts");
  ScoresPlan plan{};
  const int stage_bytes = Shape::kStages * Shape::kStageSize * static_cast<int>(sizeof(T));
  const int slot_bytes = Shape::Features::kSlotSize * static_cast<int>(sizeof(T));
  const int score_bytes = kWarps * kHeads * kTile * static_cast<int>(sizeof(float));  // of a slot that is staged
  const int bytes_left = shared_memory_of_block(stream.device) - stage_bytes - Shape::kMostStagedSlots * score_bytes;
  // The queries are projected again for each group of slots: one group if the device's shared memory has room.
  plan.slots_at_once = even_step(problem.slots, bytes_left / slot_bytes);
  plan.slot_groups = static_cast<int>(steps_of(problem.slots, plan.slots_at_once));
  plan.staged_slots = even_step(plan.slots_at_once, Shape::kMostStagedSlots);
  plan.stages = plan.slots_at_once * slot_bytes;
  plan.scores = plan.stages + stage_bytes;
  plan.bytes = plan.scores + plan.staged_slots * score_bytes;
  plan.query_tiles = steps_of(problem.windows, Shape::kQueries);
  const int64_t rows = plan.query_tiles * plan.slot_groups * buffers.parts;
  // All heads in one block read a feature once. Fewer where there would be too few blocks for the device.
  const int pairs = pair_count(problem);
  const int64_t columns =
      std::clamp<int64_t>(2 * multiprocessors(stream.device) / std::max<int64_t>(rows, 1), 1, pairs);
  plan.pairs_at_once = even_step(pairs, steps_of(pairs, columns));
  launch(scores_kernel<T>, rows, steps_of(pairs, plan.pairs_at_once), plan.bytes, stream, problem, norm, buffers, plan);
}

}  // namespace

void local_cross_attention_scores(const LocalAttention& features, const Norm& norm, const Scores& buffers,
                                  Stream stream) {
  const Problem problem = to_problem(features);
  if (problem.slots == 0) return;
  const DeviceGuard guard(stream.device);
  with_dtype(problem, [&](auto number) { launch_scores<decltype(number)>(problem, norm, buffers, stream); });
}

}  // namespace vr::cuda
