// out_hdc = sum_n x_nhd sum_k a_nhk f_nkc
#include "cuda/head_pair.h"
#include "cuda/local_cross_attention_launch.h"

namespace vr::cuda {
namespace {

// A block has all queries for its part of the output, so that no sum depends on which block runs first. Its warps share
// 32 queries by 32 channels while they pool, and the rows of the output while they multiply.
template <typename T>
struct OuterShape {
  static constexpr int kQueries = 32, kChannels = 32, kTiles = kChannels / kTile;
  static constexpr int kWidth = 256 / static_cast<int>(sizeof(T));  // rows of the output: up to 64 sums a thread
  static constexpr int kWarpTiles = kWidth / kWarps / kTile;        // of the output's rows
  using Features = QueryTile<T, kQueries, kChannels>;
  static constexpr int kStages = 2;  // one is computed with, one is on its way
  static constexpr int kXStride = kWidth + kVector<T>;
  static constexpr int kXSize = kQueries * kXStride;  // of one head
  static_assert(kWarps == (kQueries / kTile) * (kChannels / kTile), "a tile of what is pooled for each warp");
  static_assert(kWidth % (kWarps * kTile) == 0, "whole tiles of rows for each warp");
};

// Which part of the work a block does, and its shared memory: offsets in bytes; the features stand first.
struct OuterPlan {
  int chunks, width_blocks, slots_at_once, slot_groups;
  int x, pooled, weights, bytes;
};

// The steps of one block: a tile of queries, the groups of its slots one after another, then the next tile. With the
// first group come the tile's rows of x.
template <typename T>
class OuterSteps {
  using Shape = OuterShape<T>;
  using Features = typename Shape::Features;

 public:
  VR_DEVICE OuterSteps(const Problem& problem, const Norm& norm, const Outer& buffers, const OuterPlan& plan,
                       const Chunk& chunk, int first_head, int64_t first_width)
      : problem_(problem),
        norm_(norm),
        buffers_(buffers),
        plan_(plan),
        chunk_(chunk),
        first_head_(first_head),
        first_width_(first_width),
        count_((problem.windows + Shape::kQueries - 1) / Shape::kQueries * plan.slot_groups) {
    begin(0);
  }

  VR_DEVICE int64_t count() const { return count_; }
  VR_DEVICE int64_t first_query(int64_t step) const { return step / plan_.slot_groups * Shape::kQueries; }
  VR_DEVICE int first_slot(int64_t step) const {
    return static_cast<int>(step % plan_.slot_groups) * plan_.slots_at_once;
  }
  VR_DEVICE int slots(int64_t step) const {
    const int left = problem_.slots - first_slot(step);
    return left < plan_.slots_at_once ? left : plan_.slots_at_once;
  }
  VR_DEVICE bool ends_tile(int64_t step) const { return (step + 1) % plan_.slot_groups == 0; }

  VR_DEVICE T* features(int64_t step) const {
    return reinterpret_cast<T*>(shared_memory()) + step % Shape::kStages * plan_.slots_at_once * Features::kSlotSize;
  }

  VR_DEVICE T* x(int64_t step, int head) const {
    const int64_t tile = step / plan_.slot_groups;
    return reinterpret_cast<T*>(shared_memory() + plan_.x) + (tile % Shape::kStages * kHeads + head) * Shape::kXSize;
  }

  // All threads find the step's numbers in shared memory, and the next step's are sent for.
  VR_DEVICE void arrive(int64_t step) {
    wait_copies<0>();
    Features(problem_, norm_, first_query(step)).normalize(chunk_, first_slot(step), slots(step), features(step));
    sync_block();
    begin(step + 1);
  }

 private:
  VR_DEVICE void begin(int64_t step) {
    if (step >= count_) return;
    const int64_t query = first_query(step);
    Features(problem_, norm_, query).copy(chunk_, first_slot(step), slots(step), features(step));
    for (int head = 0; head < kHeads && first_slot(step) == 0; ++head) {
      const bool exists = first_head_ + head < problem_.heads;
      copy_matrix<T, Shape::kQueries, Shape::kWidth, Shape::kXStride>(
          row_of<const T>(buffers_.x, query, first_head_ + head) + first_width_, buffers_.x.stride_window,
          exists ? remaining(problem_.windows, query) : 0, remaining(buffers_.width, first_width_), x(step, head));
    }
    commit_copies();
  }

  const Problem& problem_;
  const Norm& norm_;
  const Outer& buffers_;
  const OuterPlan& plan_;
  Chunk chunk_;
  int first_head_;
  int64_t first_width_, count_;
};

template <typename T>
VR_DEVICE void write_out(TileSums (&out)[OuterShape<T>::kTiles], const Outer& buffers, const Chunk& chunk, int head,
                         int64_t first_row) {
  const float factor = buffers.factors == nullptr ? 1.0f : buffers.factors[head];
#pragma unroll
  for (int i = 0; i < OuterShape<T>::kTiles; ++i) {
    for_each(out[i], [&](int row, int column, float& sum) {
      const int channel = i * kTile + column;
      if (first_row + row >= buffers.width || channel >= chunk.channels) return;
      row_of<T>(buffers.out, head, first_row + row)[chunk.column + channel] = from_float<T>(factor * sum);
    });
  }
}

// One block: some rows of two heads' output, for a chunk of channels. A tile of queries is pooled into shared memory,
// rounded to T, and multiplied at once.
template <typename T>
VR_KERNEL_SHARED_BY(2)
outer_kernel(VR_PARAMETER Problem problem, VR_PARAMETER Norm norm, VR_PARAMETER Outer buffers,
             VR_PARAMETER OuterPlan plan) {
  using Shape = OuterShape<T>;
  using Features = typename Shape::Features;
  constexpr int kStride = Features::kStride, kPooledSize = Shape::kQueries * kStride;
  const Chunk chunk = chunk_at<Shape::kChannels>(problem.keys, static_cast<int>(block_index() % plan.chunks));
  const int64_t first_width = block_index() / plan.chunks % plan.width_blocks * Shape::kWidth;
  const int first_head = static_cast<int>(block_index() / plan.chunks / plan.width_blocks) * kHeads;
  const int pool_row = warp_index() / Shape::kTiles * kTile, pool_column = warp_index() % Shape::kTiles * kTile;
  const int out_row = warp_index() * Shape::kWarpTiles * kTile;
  T* pooled = reinterpret_cast<T*>(shared_memory() + plan.pooled);            // (heads, queries, kStride)
  float* weights = reinterpret_cast<float*>(shared_memory() + plan.weights);  // (slots, heads, queries)

  OuterSteps<T> steps(problem, norm, buffers, plan, chunk, first_head, first_width);
  TileSums out[kHeads][Shape::kWarpTiles][Shape::kTiles], sums[kHeads][1];
  for (int64_t step = 0; step < steps.count(); ++step) {
    steps.arrive(step);
    if (steps.first_slot(step) == 0) {
      stage_weights<Shape::kQueries>(problem, buffers.a, steps.first_query(step), first_head, weights);
      sync_block();
    }
    const T* features = steps.features(step) + pool_row * kStride + pool_column;
    const float* a = weights + steps.first_slot(step) * kHeads * Shape::kQueries + pool_row;
    for (int i = 0; i < steps.slots(step); ++i) {
      add_pooled<Shape::kQueries>(sums, a + i * kHeads * Shape::kQueries, features + i * Features::kSlotSize, kStride);
    }
    if (!steps.ends_tile(step)) continue;
#pragma unroll
    for (int head = 0; head < kHeads; ++head) {
      write_tile(pooled + head * kPooledSize + pool_row * kStride + pool_column, kStride, sums[head][0]);
      sums[head][0] = {};
    }
    sync_block();
#pragma unroll
    for (int head = 0; head < kHeads; ++head) {
#pragma unroll
      for (int query = 0; query < Shape::kQueries; query += kTile) {
#pragma unroll
        for (int i = 0; i < Shape::kWarpTiles; ++i) {
          const T* x = steps.x(step, head) + query * Shape::kXStride + out_row + i * kTile;
          add_products(out[head][i], StagedMatrix<T, Adjacent::lines>{x, Shape::kXStride},
                       StagedMatrix<T, Adjacent::lines>{pooled + head * kPooledSize + query * kStride, kStride});
        }
      }
    }
  }
#pragma unroll
  for (int head = 0; head < kHeads; ++head) {
    if (first_head + head >= problem.heads) continue;
#pragma unroll
    for (int i = 0; i < Shape::kWarpTiles; ++i) {
      write_out<T>(out[head][i], buffers, chunk, first_head + head, first_width + out_row + i * kTile);
    }
  }
}

template <typename T>
void launch_outer(const Problem& problem, const Norm& norm, const Outer& buffers, Stream stream) {
  using Shape = OuterShape<T>;
  constexpr int kNumber = static_cast<int>(sizeof(T)),
                kSlotBytes = Shape::kStages * Shape::Features::kSlotSize * kNumber;
  constexpr int kXBytes = Shape::kStages * kHeads * Shape::kXSize * kNumber;
  constexpr int kPooledBytes = kHeads * Shape::kQueries * Shape::Features::kStride * kNumber;
  const int weight_bytes = problem.slots * kHeads * Shape::kQueries * static_cast<int>(sizeof(float));
  const int fixed_bytes = kXBytes + kPooledBytes + weight_bytes;
  OuterPlan plan{};
  plan.chunks = chunk_count<Shape::kChannels>(problem.keys);
  plan.width_blocks = static_cast<int>(steps_of(buffers.width, Shape::kWidth));
  // Two blocks share a multiprocessor where they can: one computes while the other waits for memory.
  plan.slots_at_once = even_step(problem.slots, (half_of_shared_memory(stream.device) - fixed_bytes) / kSlotBytes);
  plan.slot_groups = static_cast<int>(steps_of(problem.slots, plan.slots_at_once));
  plan.x = plan.slots_at_once * kSlotBytes;
  plan.pooled = plan.x + kXBytes;
  plan.weights = plan.pooled + kPooledBytes;
  plan.bytes = plan.slots_at_once * kSlotBytes + fixed_bytes;
  launch(outer_kernel<T>, int64_t{plan.chunks} * plan.width_blocks * pair_count(problem), 1, plan.bytes, stream,
         problem, norm, buffers, plan);
}

}  // namespace

void local_cross_attention_outer(const LocalAttention& features, const Norm& norm, const Outer& buffers,
                                 Stream stream) {
  const Problem problem = to_problem(features);
  const DeviceGuard guard(stream.device);
  with_dtype(problem, [&](auto number) { launch_outer<decltype(number)>(problem, norm, buffers, stream); });
}

}  // namespace vr::cuda
