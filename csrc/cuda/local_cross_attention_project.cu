// out_nh = W_h sum_k a_nhk f_nk
#include "cuda/head_pair.h"
#include "cuda/local_cross_attention_launch.h"

namespace vr::cuda {
namespace {

// Sixteen queries a warp: what it pools it alone multiplies, and the sums of the output stay in its registers.
template <typename T>
struct ProjectShape {
  static constexpr int kQueries = kWarps * kTile;
  static constexpr int kChannels = 32;  // of a chunk
  static constexpr int kTiles = kChannels / kTile;
  static constexpr int kWidth = 256 / static_cast<int>(sizeof(T));  // of the output: up to 128 sums a thread
  static constexpr int kWidthTiles = kWidth / kTile;
  using Features = QueryTile<T, kQueries, kChannels>;
  static constexpr int kStages = 2;                               // one is computed with, one is on its way
  static constexpr int kWeightSize = kWidth * Features::kStride;  // of one head
};

// Which part of the work a block does, and its shared memory: offsets in bytes; the features stand first.
struct ProjectPlan {
  int64_t query_tiles;
  int width_blocks, slots_at_once, slot_groups;
  int matrices, pooled, weights, bytes;
};

// The steps of one block: a chunk's slots, group after group, then the next chunk's. With the first group comes the
// chunk of W.
template <typename T>
class ProjectSteps {
  using Shape = ProjectShape<T>;

 public:
  VR_DEVICE ProjectSteps(const Problem& problem, const Norm& norm, const Projection& buffers, const ProjectPlan& plan,
                         int64_t first_query, int first_head, int64_t first_width)
      : problem_(problem),
        buffers_(buffers),
        plan_(plan),
        tile_(problem, norm, first_query),
        first_head_(first_head),
        first_width_(first_width),
        count_(chunk_count<Shape::kChannels>(problem.keys) * plan.slot_groups) {
    begin(0);
  }

  VR_DEVICE int count() const { return count_; }
  VR_DEVICE Chunk chunk(int step) const { return chunk_at<Shape::kChannels>(problem_.keys, step / plan_.slot_groups); }
  VR_DEVICE int first_slot(int step) const { return step % plan_.slot_groups * plan_.slots_at_once; }
  VR_DEVICE int slots(int step) const {
    const int left = problem_.slots - first_slot(step);
    return left < plan_.slots_at_once ? left : plan_.slots_at_once;
  }
  VR_DEVICE bool ends_chunk(int step) const { return (step + 1) % plan_.slot_groups == 0; }

  VR_DEVICE T* features(int step) const {
    return reinterpret_cast<T*>(shared_memory()) +
           step % Shape::kStages * plan_.slots_at_once * Shape::Features::kSlotSize;
  }

  VR_DEVICE T* weight(int step, int head) const {
    const int chunk = step / plan_.slot_groups;
    return reinterpret_cast<T*>(shared_memory() + plan_.matrices) +
           (chunk % Shape::kStages * kHeads + head) * Shape::kWeightSize;
  }

  // All threads find the step's numbers in shared memory, and the next step's are sent for.
  VR_DEVICE void arrive(int step) {
    wait_copies<0>();
    tile_.normalize(chunk(step), first_slot(step), slots(step), features(step));
    sync_block();
    begin(step + 1);
  }

 private:
  VR_DEVICE void begin(int step) {
    if (step >= count_) return;
    const Chunk chunk = this->chunk(step);
    tile_.copy(chunk, first_slot(step), slots(step), features(step));
    for (int head = 0; head < kHeads && first_slot(step) == 0; ++head) {
      const bool exists = first_head_ + head < problem_.heads;
      copy_matrix<T, Shape::kWidth, Shape::kChannels, Shape::Features::kStride>(
          row_of<const T>(buffers_.weight, first_head_ + head, first_width_) + chunk.column,
          buffers_.weight.stride_head, exists ? remaining(buffers_.width, first_width_) : 0, chunk.channels,
          weight(step, head));
    }
    commit_copies();
  }

  const Problem& problem_;
  const Projection& buffers_;
  const ProjectPlan& plan_;
  typename Shape::Features tile_;
  int first_head_;
  int64_t first_width_;
  int count_;
};

// The weights of a block's queries: (slots, heads, queries), and of each head and query what belongs to all of its
// slots. Each thread stages one row.
template <typename T>
struct ProjectWeights {
  using Shape = ProjectShape<T>;
  static_assert(kHeads * Shape::kQueries == kThreads, "a row for each thread");

  float* a;
  float* powers;
  float* totals;

  static constexpr int bytes(int slots) { return (slots + 2) * kThreads * static_cast<int>(sizeof(float)); }

  VR_DEVICE ProjectWeights(const Problem& problem, float* memory)
      : a(memory), powers(memory + problem.slots * kThreads), totals(powers + kThreads) {}

  // Divides the row by a power of two, so that its absolute sum is at most 1, and what it pools at most the largest
  // feature: in float16 a loss scale would carry that out of range.
  VR_DEVICE void stage(const Problem& problem, const Rows& source, int64_t first_query, int first_head) {
    stage_weights<Shape::kQueries>(problem, source, first_query, first_head, a);
    float* row = a + thread_index();
    float size = 0.0f, total = 0.0f;
    for (int slot = 0; slot < problem.slots; ++slot) size += fabsf(row[slot * kThreads]);
    int exponent = 0;
    if (size < INFINITY) frexpf(size, &exponent);
    constexpr int kLeast = -100, kMost = 126;  // of these, the power and its inverse are normal numbers
    exponent = exponent < kLeast ? kLeast : exponent > kMost ? kMost : exponent;
    for (int slot = 0; slot < problem.slots; ++slot) {
      row[slot * kThreads] *= ldexpf(1.0f, -exponent);
      total += row[slot * kThreads];
    }
    powers[thread_index()] = ldexpf(1.0f, exponent);
    totals[thread_index()] = total;
    sync_block();
  }
};

// g of one head -> shared memory, rounded to T: gamma times what is pooled, and beta times the sum of the weights. Then
// the next chunk can be pooled.
template <typename T>
VR_DEVICE void write_pooled(TileSums (&pooled)[ProjectShape<T>::kTiles], const Norm& norm, const Chunk& chunk,
                            const float* totals, T* target) {
#pragma unroll
  for (int i = 0; i < ProjectShape<T>::kTiles; ++i) {
    if (norm.gamma != nullptr || norm.beta != nullptr) {
      for_each(pooled[i], [&](int row, int column, float& value) {
        const int channel = chunk.column + i * kTile + column;
        if (i * kTile + column >= chunk.channels) return;
        if (norm.gamma != nullptr) value *= norm.gamma[channel];
        if (norm.beta != nullptr) value += totals[row] * norm.beta[channel];
      });
    }
    write_tile(target + i * kTile, ProjectShape<T>::Features::kStride, pooled[i]);
    pooled[i] = {};
  }
}

template <typename T>
VR_DEVICE void write_out(TileSums (&out)[ProjectShape<T>::kWidthTiles], const Problem& problem,
                         const Projection& buffers, const float* powers, int64_t first_query, int head,
                         int64_t first_width) {
  if (head >= problem.heads) return;
#pragma unroll
  for (int i = 0; i < ProjectShape<T>::kWidthTiles; ++i) {
    for_each(out[i], [&](int row, int column, float& sum) {
      const int64_t query = first_query + row, at = first_width + i * kTile + column;
      if (query >= problem.windows || at >= buffers.width) return;
      row_of<T>(buffers.out, query, head)[at] = from_float<T>(powers[row] * sum);
    });
  }
}

// One block: the outputs of 64 queries for two heads. The features pass once, in chunks: pooled in registers, rounded
// to shared memory, multiplied at once.
template <typename T>
VR_KERNEL_SHARED_BY(2)
project_kernel(VR_PARAMETER Problem problem, VR_PARAMETER Norm norm, VR_PARAMETER Projection buffers,
               VR_PARAMETER ProjectPlan plan) {
  using Shape = ProjectShape<T>;
  using Features = typename Shape::Features;
  const int64_t first_query = block_index() % plan.query_tiles * Shape::kQueries;
  const int64_t first_width = block_index() / plan.query_tiles % plan.width_blocks * Shape::kWidth;
  const int first_head = static_cast<int>(block_index() / plan.query_tiles / plan.width_blocks) * kHeads;
  const int warp_row = warp_index() * kTile;
  T* scratch = reinterpret_cast<T*>(shared_memory() + plan.pooled) + warp_row * Features::kStride;
  ProjectWeights<T> weights(problem, reinterpret_cast<float*>(shared_memory() + plan.weights));
  weights.stage(problem, buffers.a, first_query, first_head);

  ProjectSteps<T> steps(problem, norm, buffers, plan, first_query, first_head, first_width);
  TileSums out[kHeads][Shape::kWidthTiles], pooled[kHeads][Shape::kTiles];
  for (int step = 0; step < steps.count(); ++step) {
    steps.arrive(step);
    const T* features = steps.features(step) + warp_row * Features::kStride;
    const float* a = weights.a + steps.first_slot(step) * kThreads + warp_row;
    for (int i = 0; i < steps.slots(step); ++i) {
      add_pooled<Shape::kQueries>(pooled, a + i * kThreads, features + i * Features::kSlotSize, Features::kStride);
    }
    if (!steps.ends_chunk(step)) continue;
#pragma unroll
    for (int head = 0; head < kHeads; ++head) {
      const float* totals = weights.totals + head * Shape::kQueries + warp_row;
      write_pooled<T>(pooled[head], norm, steps.chunk(step), totals, scratch);
      sync_warp();
#pragma unroll
      for (int term = 0; term < Shape::kChannels; term += kTile) {
        add_products(out[head], StagedMatrix<T, Adjacent::terms>{scratch + term, Features::kStride},
                     StagedMatrix<T, Adjacent::terms>{steps.weight(step, head) + term, Features::kStride});
      }
      sync_warp();
    }
  }
#pragma unroll
  for (int head = 0; head < kHeads; ++head) {
    const float* powers = weights.powers + head * Shape::kQueries + warp_row;
    write_out<T>(out[head], problem, buffers, powers, first_query + warp_row, first_head + head, first_width);
  }
}

template <typename T>
void launch_project(const Problem& problem, const Norm& norm, const Projection& buffers, Stream stream) {
  using Shape = ProjectShape<T>;
  constexpr int kNumber = static_cast<int>(sizeof(T)),
                kSlotBytes = Shape::kStages * Shape::Features::kSlotSize * kNumber;
  constexpr int kMatrixBytes = Shape::kStages * kHeads * Shape::kWeightSize * kNumber;
  constexpr int kPooledBytes = Shape::kQueries * Shape::Features::kStride * kNumber;
  const int fixed_bytes = kMatrixBytes + kPooledBytes + ProjectWeights<T>::bytes(problem.slots);
  ProjectPlan plan{};
  plan.query_tiles = steps_of(problem.windows, Shape::kQueries);
  plan.width_blocks = static_cast<int>(steps_of(buffers.width, Shape::kWidth));
  // Two blocks share a multiprocessor where they can: one computes while the other waits for memory.
  plan.slots_at_once = even_step(problem.slots, (half_of_shared_memory(stream.device) - fixed_bytes) / kSlotBytes);
  plan.slot_groups = static_cast<int>(steps_of(problem.slots, plan.slots_at_once));
  plan.matrices = plan.slots_at_once * kSlotBytes;
  plan.pooled = plan.matrices + kMatrixBytes;
  plan.weights = plan.pooled + kPooledBytes;
  plan.bytes = plan.slots_at_once * kSlotBytes + fixed_bytes;
  launch(project_kernel<T>, plan.query_tiles * plan.width_blocks * pair_count(problem), 1, plan.bytes, stream, problem,
         norm, buffers, plan);
}

}  // namespace

void local_cross_attention_project(const LocalAttention& features, const Norm& norm, const Projection& buffers,
                                   Stream stream) {
  const Problem problem = to_problem(features);
  const DeviceGuard guard(stream.device);
  with_dtype(problem, [&](auto number) { launch_project<decltype(number)>(problem, norm, buffers, stream); });
}

}  // namespace vr::cuda
