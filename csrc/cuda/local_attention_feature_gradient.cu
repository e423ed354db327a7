// The gradient of the feature rows: each is the sum, over the heads that read it, of head rows times one weight each.
// In float32 on every dtype: it moves several bytes for each multiply-add, so that the matrix instruction would gain
// nothing.
#include "cuda/launch.h"
#include "cuda/problem.h"

namespace vr::cuda {
namespace {

constexpr int kSlotTile = 16, kHeadTile = 16;
constexpr int kChannelsPerThread = 2, kBlockChannels = kChannelsPerThread * kThreads;

// gradient[m] += sum over windows n, slots j that read m, and heads h, of weight_nhj head_rows_nh
struct Term {
  Rows head_rows, weights;
  float scale;
  bool has_saliency;  // the slots' saliency is a factor of the weight
};

struct Gradient {
  float* data;  // (feature rows, kv heads, channels)
  int64_t channels;
  Term terms[2];
  int term_count;
};

VR_DEVICE float weight(const Problem& problem, const Term& term, int64_t window, int head, int slot, int64_t row) {
  const float saliency = term.has_saliency ? problem.saliency[row] : 1.0f;
  return term.scale * saliency * row_of<const float>(term.weights, window, head)[slot];
}

// A thread's channels: far enough apart that neighbouring threads read neighbouring channels.
VR_DEVICE int64_t channel_of(int i) { return block_column() * kBlockChannels + i * kThreads + thread_index(); }

template <typename T>
VR_DEVICE void read_channels(const Gradient& gradient, const Term& term, int64_t window, int head,
                             float (&values)[kChannelsPerThread]) {
  const T* head_row = row_of<const T>(term.head_rows, window, head);
#pragma unroll
  for (int i = 0; i < kChannelsPerThread; ++i) {
    values[i] = channel_of(i) < gradient.channels ? to_float(head_row[channel_of(i)]) : 0.0f;
  }
}

VR_DEVICE void add_to_row(const Problem& problem, const Gradient& gradient, int64_t row, int kv_head,
                          const float (&sums)[kChannelsPerThread]) {
  float* target = gradient.data + (row * problem.kv_heads + kv_head) * gradient.channels;
#pragma unroll
  for (int i = 0; i < kChannelsPerThread; ++i) {
    if (channel_of(i) < gradient.channels) target[channel_of(i)] += sums[i];
  }
}

// The grid form, where a row has one reader. One block: some channels of a window's rows, for one kv head; head rows
// are read once for 16 slots.
template <typename T>
VR_KERNEL disjoint_kernel(VR_PARAMETER Problem problem, VR_PARAMETER Gradient gradient) {
  float* weights = reinterpret_cast<float*>(shared_memory());  // (heads of a tile, slots of a tile)
  const int64_t window = block_index() / problem.kv_heads;
  const int kv_head = static_cast<int>(block_index() % problem.kv_heads);
  const int group = problem.heads / problem.kv_heads;
  for (int first_slot = 0; first_slot < problem.slots; first_slot += kSlotTile) {
    float sums[kSlotTile][kChannelsPerThread] = {};
    for (int t = 0; t < gradient.term_count; ++t) {
      const Term& term = gradient.terms[t];
      for (int first_head = 0; first_head < group; first_head += kHeadTile) {
        sync_block();
        for (int i = thread_index(); i < kHeadTile * kSlotTile; i += kThreads) {
          const int g = first_head + i / kSlotTile, slot = first_slot + i % kSlotTile;
          const bool exists = g < group && slot < problem.slots;
          weights[i] =
              exists ? weight(problem, term, window, kv_head * group + g, slot, row_of_slot(problem, window, slot))
                     : 0.0f;
        }
        sync_block();
        for (int g = 0; g < kHeadTile && first_head + g < group; ++g) {
          float values[kChannelsPerThread];
          read_channels<T>(gradient, term, window, kv_head * group + first_head + g, values);
#pragma unroll
          for (int j = 0; j < kSlotTile; ++j) {
#pragma unroll
            for (int i = 0; i < kChannelsPerThread; ++i) sums[j][i] += weights[g * kSlotTile + j] * values[i];
          }
        }
      }
    }
#pragma unroll
    for (int j = 0; j < kSlotTile; ++j) {
      const int slot = first_slot + j;
      if (slot < problem.slots) add_to_row(problem, gradient, row_of_slot(problem, window, slot), kv_head, sums[j]);
    }
  }
}

// The indexed form, where windows may share rows. One block: some channels of one row, for one kv head; its readers are
// taken in order, so that no sum depends on which block runs first.
template <typename T>
VR_KERNEL overlapping_kernel(VR_PARAMETER Problem problem, VR_PARAMETER Gradient gradient,
                             VR_PARAMETER Readers readers) {
  const int64_t row = block_index() / problem.kv_heads;
  const int kv_head = static_cast<int>(block_index() % problem.kv_heads);
  const int group = problem.heads / problem.kv_heads;
  const int64_t end = readers.first[row + 1];
  float sums[kChannelsPerThread] = {};
  for (int64_t i = readers.first[row]; i < end; ++i) {
    const int64_t window = readers.readers[i] / problem.slots;
    const int slot = static_cast<int>(readers.readers[i] % problem.slots);
    for (int t = 0; t < gradient.term_count; ++t) {
      const Term& term = gradient.terms[t];
      for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        const float factor = weight(problem, term, window, head, slot, row);
        float values[kChannelsPerThread];
        read_channels<T>(gradient, term, window, head, values);
#pragma unroll
        for (int c = 0; c < kChannelsPerThread; ++c) sums[c] += factor * values[c];
      }
    }
  }
  add_to_row(problem, gradient, row, kv_head, sums);
}

template <typename T>
void add_gradient(const Problem& problem, const Gradient& gradient, Readers readers, Stream stream) {
  const int64_t columns = (gradient.channels + kBlockChannels - 1) / kBlockChannels;
  if (problem.window_height > 0) {
    constexpr int kSharedBytes = kHeadTile * kSlotTile * static_cast<int>(sizeof(float));
    launch(disjoint_kernel<T>, problem.windows * problem.kv_heads, columns, kSharedBytes, stream, problem, gradient);
  } else {
    launch(overlapping_kernel<T>, problem.feature_rows * problem.kv_heads, columns, 0, stream, problem, gradient,
           readers);
  }
}

}  // namespace

void local_attention_feature_gradient(const LocalAttention& arguments, const LocalAttentionFeatureGradient& buffers,
                                      Readers readers, Stream stream) {
  const Problem problem = to_problem(arguments);
  const Term key_term{buffers.query, buffers.grad_scores, problem.scale, false};
  const Term value_term{buffers.grad_out, buffers.attention, 1.0f, problem.saliency != nullptr};
  const int64_t key_channels = total_channels(arguments.keys), value_channels = total_channels(arguments.values);
  const DeviceGuard guard(stream.device);
  const auto add = [&](const Gradient& gradient) {
    if (gradient.data == nullptr) return;
    with_number(problem.query_dtype,
                [&](auto number) { add_gradient<decltype(number)>(problem, gradient, readers, stream); });
  };
  if (problem.shares_values) return add({buffers.grad_key, key_channels, {key_term, value_term}, 2});
  add({buffers.grad_key, key_channels, {key_term}, 1});
  add({buffers.grad_value, value_channels, {value_term}, 1});
}

}  // namespace vr::cuda
