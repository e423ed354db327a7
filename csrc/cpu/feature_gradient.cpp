#include <algorithm>

#include "local_attention.h"
#include "parallel.h"
#include "validate.h"
#include "window_engine.h"

namespace vr::cpu {
namespace {

// A thread owns a slice of the channels of one kv head and walks all windows in order: windows may share feature rows,
// and no sum then depends on the number of threads.
struct Slice {
  int64_t kv_head, first_channel, channels;
};

// One of the two gradients, and the terms that go into it.
struct Gradient {
  float* data;  // (feature rows, kv heads, channels)
  int64_t channels;
  bool has_key_term, has_value_term;
};

std::vector<Gradient> gradients_of(const LocalAttention& problem, const LocalAttentionFeatureGradient& buffers) {
  const int64_t key_channels = total_channels(problem.keys), value_channels = total_channels(problem.values);
  if (problem.shares_values()) return {{buffers.grad_key, key_channels, true, true}};
  return {{buffers.grad_key, key_channels, true, false}, {buffers.grad_value, value_channels, false, true}};
}

// Equal slices, at least one a thread where there are channels enough.
std::vector<Slice> slices_of(const LocalAttention& problem, const Gradient& gradient) {
  const int64_t slices_of_head = (problem.threads + problem.kv_heads - 1) / problem.kv_heads;
  const int64_t width = round_up((gradient.channels + slices_of_head - 1) / slices_of_head, kChannelUnit);
  std::vector<Slice> slices;
  for (int64_t kv_head = 0; kv_head < problem.kv_heads; ++kv_head) {
    for (int64_t c = 0; c < gradient.channels; c += width) {
      slices.push_back({kv_head, c, std::min(width, gradient.channels - c)});
    }
  }
  return slices;
}

// The head rows of one window, all terms below one another, and how much of each goes to each slot.
class SliceTerms {
 public:
  SliceTerms(const LocalAttention& problem, const Slice& slice, Scratch& scratch)
      : problem_(problem),
        slice_(slice),
        math_(window_math()),
        most_terms_(2 * problem.heads_per_kv_head()),
        row_width_(round_up(slice.channels, kChannelUnit)),
        weights_(scratch.take<float>(problem.slots * most_terms_)),
        head_rows_(scratch.take<float>(most_terms_ * row_width_)),
        pointers_(scratch.take<const float*>(most_terms_)),
        sums_(scratch.take<float>(problem.slots * row_width_)) {
    std::fill_n(head_rows_, most_terms_ * row_width_, 0.0f);
    for (int64_t i = 0; i < most_terms_; ++i) pointers_[i] = head_rows_ + i * row_width_;
  }

  void clear() { terms_ = 0; }

  // slot_scale(j) multiplies the weight of slot j.
  template <typename SlotScale>
  void add(const Rows& heads, const Rows& weights, int64_t window, const SlotScale& slot_scale) {
    const int64_t group = problem_.heads_per_kv_head();
    for (int64_t h = slice_.kv_head * group; h < (slice_.kv_head + 1) * group; ++h, ++terms_) {
      const int64_t offset = window * heads.stride_window + h * heads.stride_head + slice_.first_channel;
      const char* row = static_cast<const char*>(heads.data) + offset * size_of(problem_.query_dtype);
      math_.load(problem_.query_dtype, row, 1, slice_.channels, head_rows_ + terms_ * row_width_);
      const float* weight =
          static_cast<const float*>(weights.data) + window * weights.stride_window + h * weights.stride_head;
      for (int64_t j = 0; j < problem_.slots; ++j) weights_[j * most_terms_ + terms_] = weight[j] * slot_scale(j);
    }
  }

  // Adds to each slot's row of the gradient what its terms make.
  void accumulate(const int64_t* rows, const Gradient& gradient) {
    const Segment<float> segment{pointers_, row_width_};
    math_.mix_rows(weights_, most_terms_, problem_.slots, {&segment, 1}, terms_, sums_, row_width_, nullptr, 0);
    for (int64_t j = 0; j < problem_.slots; ++j) {
      if (rows[j] < 0) continue;
      const int64_t row = rows[j] * problem_.kv_heads + slice_.kv_head;
      math_.add(sums_ + j * row_width_, slice_.channels,
                gradient.data + row * gradient.channels + slice_.first_channel);
    }
  }

 private:
  const LocalAttention& problem_;
  const Slice& slice_;
  const WindowMath& math_;
  const int64_t most_terms_, row_width_;
  float* weights_;    // (slots, terms)
  float* head_rows_;  // (terms, row width)
  const float** pointers_;
  float* sums_;  // (slots, row width)
  int64_t terms_ = 0;
};

void accumulate(const LocalAttention& problem, const LocalAttentionFeatureGradient& buffers, const Gradient& gradient,
                const Slice& slice) {
  Scratch scratch;
  SliceTerms terms(problem, slice, scratch);
  int64_t* rows = scratch.take<int64_t>(problem.slots);
  for (int64_t n = 0; n < problem.windows; ++n) {
    find_rows(problem, n, rows);
    terms.clear();
    if (gradient.has_key_term) {
      terms.add(buffers.query, buffers.grad_scores, n, [&](int64_t) { return problem.scale; });
    }
    if (gradient.has_value_term) {
      terms.add(buffers.grad_out, buffers.attention, n, [&](int64_t j) { return saliency_of(problem, rows[j]); });
    }
    terms.accumulate(rows, gradient);
  }
}

}  // namespace

void local_attention_feature_gradient(const LocalAttention& problem, const LocalAttentionFeatureGradient& buffers) {
  validate(problem);
  for (const Gradient& gradient : gradients_of(problem, buffers)) {
    if (gradient.data == nullptr) continue;
    const std::vector<Slice> slices = slices_of(problem, gradient);
    const int64_t count = static_cast<int64_t>(slices.size());
    parallel(static_cast<int>(std::min<int64_t>(problem.threads, count)), [&](int thread, int threads) {
      for (int64_t i = count * thread / threads; i < count * (thread + 1) / threads; ++i) {
        accumulate(problem, buffers, gradient, slices[i]);
      }
    });
  }
}

}  // namespace vr::cpu
