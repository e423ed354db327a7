#include "local_attention.h"

#include <algorithm>

#include "parallel.h"
#include "softmax.h"
#include "validate.h"
#include "window_engine.h"

namespace vr::cpu {
namespace {

// One window and the heads that share one kv head.
struct Group {
  int64_t window, first_head, heads;
  const int64_t* rows;  // the feature row of each slot

  // Null where the buffer is absent.
  template <typename T>
  T* row(const Rows& buffer, int64_t g) const {
    if (buffer.data == nullptr) return nullptr;
    return static_cast<T*>(buffer.data) + window * buffer.stride_window + (first_head + g) * buffer.stride_head;
  }

  HeadRows head_rows(const Rows& buffer, DType dtype) const {
    const int64_t offset = window * buffer.stride_window + first_head * buffer.stride_head;
    return {static_cast<char*>(buffer.data) + offset * size_of(dtype), buffer.stride_head};
  }
};

// What a pass keeps of one group: three (heads, padded slots) matrices whose padding is zero, and stays so.
struct GroupScratch {
  int64_t stride;
  float* scores;
  float* key_weights;
  float* value_weights;

  GroupScratch(const LocalAttention& problem, Scratch& scratch) : stride(padded_slots(problem)) {
    const int64_t count = problem.heads_per_kv_head() * stride;
    for (float** matrix : {&scores, &key_weights, &value_weights}) {
      *matrix = scratch.take<float>(count);
      std::fill_n(*matrix, count, 0.0f);
    }
  }
};

// The group that the same thread takes next; past the last one, that one again.
Group next_group(const LocalAttention& problem, Group group) {
  group.first_head += group.heads;
  if (group.first_head == problem.heads) {
    group.first_head = 0;
    group.window = std::min(group.window + 1, problem.windows - 1);
  }
  return group;
}

// Calls body(engine, group, the next group, group scratch); a window's groups are one thread's, and follow one another.
template <typename Body>
void for_each_group(const LocalAttention& problem, const Body& body) {
  if (problem.windows == 0) return;
  const int64_t most_threads = std::min<int64_t>(problem.threads, problem.windows);
  parallel(static_cast<int>(most_threads), [&](int thread, int threads) {
    Scratch scratch;
    const auto engine = make_window_engine(problem, scratch);
    int64_t* rows = scratch.take<int64_t>(problem.slots);
    GroupScratch group_scratch(problem, scratch);
    const int64_t heads = problem.heads_per_kv_head();
    for (int64_t n = problem.windows * thread / threads; n < problem.windows * (thread + 1) / threads; ++n) {
      find_rows(problem, n, rows);
      for (int64_t kv_head = 0; kv_head < problem.kv_heads; ++kv_head) {
        engine->open(rows, kv_head);
        const Group group{n, kv_head * heads, heads, rows};
        body(*engine, group, next_group(problem, group), group_scratch);
      }
    }
  });
}

void scale_and_bias(const LocalAttention& problem, const Group& group, int64_t g, float* scores) {
  for (int64_t j = 0; j < problem.slots; ++j) scores[j] *= problem.scale;
  if (problem.attention_bias == nullptr) return;
  const float* bias = problem.attention_bias + group.window * problem.bias_stride_window +
                      (group.first_head + g) * problem.bias_stride_head;
  for (int64_t j = 0; j < problem.slots; ++j) scores[j] += bias[j];
}

// From the products grad_out . value_j in scratch.scores: the gradient of one head's scores, and the weights with which
// keys make the gradient of its query, and values its pooled feature.
void score_gradient(const LocalAttention& problem, const LocalAttentionBackward& buffers, const Group& group, int64_t g,
                    const GroupScratch& scratch) {
  float* grads = scratch.scores + g * scratch.stride;
  float* key_weights = scratch.key_weights + g * scratch.stride;
  float* value_weights = scratch.value_weights + g * scratch.stride;
  const float* attention = group.row<const float>(buffers.attention, g);
  const float* grad_attention = group.row<const float>(buffers.grad_attention, g);
  const float* grad_lse = group.row<const float>(buffers.grad_lse, g);
  const float* constant = group.row<const float>(buffers.value_constant, g);
  float* grad_saliency =
      buffers.grad_saliency == nullptr ? nullptr : buffers.grad_saliency + group.window * problem.slots;
  for (int64_t j = 0; j < problem.slots; ++j) {
    const bool present = group.rows[j] >= 0;
    const float saliency = saliency_of(problem, group.rows[j]);
    value_weights[j] = present ? saliency * attention[j] : 0.0f;
    if (!present) continue;
    if (constant != nullptr) grads[j] += *constant;
    if (grad_saliency != nullptr) grad_saliency[j] += attention[j] * grads[j];
    grads[j] *= saliency;
    if (grad_attention != nullptr) grads[j] += grad_attention[j];
  }
  float* grad_scores = group.row<float>(buffers.grad_scores, g);
  softmax_gradient(attention, grads, grad_lse == nullptr ? 0.0f : *grad_lse, group.rows, problem.slots, grad_scores);
  for (int64_t j = 0; j < problem.slots; ++j) key_weights[j] = problem.scale * grad_scores[j];
}

}  // namespace

void local_attention_forward(const LocalAttention& problem, const LocalAttentionForward& buffers) {
  validate(problem);
  for_each_group(problem, [&](WindowEngine& engine, const Group& group, const Group& next, GroupScratch& scratch) {
    engine.dot(Operand::keys, group.head_rows(buffers.query, problem.query_dtype), scratch.scores);
    for (int64_t g = 0; g < group.heads; ++g) {
      float* scores = scratch.scores + g * scratch.stride;
      float* weights = scratch.value_weights + g * scratch.stride;
      scale_and_bias(problem, group, g, scores);
      const float lse = softmax(scores, group.rows, problem.slots, weights);
      if (float* row = group.row<float>(buffers.lse, g)) *row = lse;
      if (float* row = group.row<float>(buffers.attention, g)) std::copy_n(weights, problem.slots, row);
      for (int64_t j = 0; j < problem.slots; ++j) weights[j] *= saliency_of(problem, group.rows[j]);
    }
    engine.mix(Operand::values, scratch.value_weights, group.head_rows(buffers.out, problem.query_dtype),
               next.head_rows(buffers.query, problem.query_dtype));
  });
}

void local_attention_backward(const LocalAttention& problem, const LocalAttentionBackward& buffers) {
  validate(problem);
  for_each_group(problem, [&](WindowEngine& engine, const Group& group, const Group& next, GroupScratch& scratch) {
    const DType dtype = problem.query_dtype;
    const HeadRows upcoming = next.head_rows(buffers.grad_out, dtype);
    engine.dot(Operand::values, group.head_rows(buffers.grad_out, dtype), scratch.scores);
    for (int64_t g = 0; g < group.heads; ++g) score_gradient(problem, buffers, group, g, scratch);
    if (buffers.grad_query.data != nullptr) {
      engine.mix(Operand::keys, scratch.key_weights, group.head_rows(buffers.grad_query, dtype), upcoming);
    }
    if (buffers.pooled.data != nullptr) {
      engine.mix(Operand::values, scratch.value_weights, group.head_rows(buffers.pooled, dtype), upcoming);
    }
  });
}

}  // namespace vr::cpu
