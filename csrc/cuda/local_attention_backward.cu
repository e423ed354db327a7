#include "cuda/slot_row.h"
#include "cuda/window_launch.h"
#include "cuda/window_products.h"

namespace vr::cuda {
namespace {

// From the products t_j = grad_out . value_j to the gradient of one head's scores, and the weights with which keys make
// the gradient of its query, and values its pooled feature.
template <typename T, int kCapacity>
VR_DEVICE void score_gradient(const Problem& problem, const LocalAttentionBackward& buffers, const Rows& slot_products,
                              WindowProducts<T, kCapacity>& products, int64_t window, int64_t head, int row) {
  using Row = SlotRow<kCapacity>;
  const WindowRows<T>& rows = products.rows();
  const float* attention = row_of<const float>(buffers.attention, window, head);
  const float* grad_attention = row_of<const float>(buffers.grad_attention, window, head);
  const float* grad_lse = row_of<const float>(buffers.grad_lse, window, head);
  const float* constant = row_of<const float>(buffers.value_constant, window, head);
  float* slot_product = row_of<float>(slot_products, window, head);
  float* grad_scores = row_of<float>(buffers.grad_scores, window, head);

  Row p, dp;
  float mean = 0.0f;
#pragma unroll
  for (int i = 0; i < Row::kPerLane; ++i) {
    const int slot = Row::slot(i);
    const bool present = rows.is_present(slot);
    if (present) {
      const float t = products.score(row, slot) + (constant == nullptr ? 0.0f : *constant);
      p.at[i] = attention[slot];
      dp.at[i] = rows.saliency(slot) * t + (grad_attention == nullptr ? 0.0f : grad_attention[slot]);
      mean += p.at[i] * dp.at[i];
      if (slot_product != nullptr) slot_product[slot] = p.at[i] * t;
    } else if (slot < problem.slots && slot_product != nullptr) {
      slot_product[slot] = 0.0f;
    }
  }
  mean = warp_sum(mean);
  const float shift = grad_lse == nullptr ? 0.0f : *grad_lse;
#pragma unroll
  for (int i = 0; i < Row::kPerLane; ++i) {
    const int slot = Row::slot(i);
    const bool present = rows.is_present(slot);
    const float grad = present ? p.at[i] * (dp.at[i] - mean + shift) : 0.0f;
    if (slot < problem.slots) grad_scores[slot] = grad;
    if (slot >= kCapacity) continue;
    products.set_weight(Operand::keys, row, slot, problem.scale * grad);
    products.set_weight(Operand::values, row, slot, present ? rows.saliency(slot) * p.at[i] : 0.0f);
  }
}

// One block: the heads of one window that share a kv head, 16 at a time.
template <typename T, int kCapacity>
VR_KERNEL backward_kernel(VR_PARAMETER Problem problem, VR_PARAMETER LocalAttentionBackward buffers,
                          VR_PARAMETER Rows slot_products, VR_PARAMETER SharedLayout layout) {
  const int64_t window = block_index() / problem.kv_heads;
  const int kv_head = static_cast<int>(block_index() % problem.kv_heads);
  const int group = problem.heads / problem.kv_heads;
  WindowProducts<T, kCapacity> products(problem, layout, window, kv_head);
  for (int first = 0; first < group; first += kTile) {
    const HeadTile tile{kv_head * group + first, group - first < kTile ? group - first : kTile};
    products.dot(Operand::values, buffers.grad_out, tile);
    for (int row = warp_index(); row < tile.count; row += kWarps) {
      score_gradient(problem, buffers, slot_products, products, window, tile.first + row, row);
    }
    if (buffers.grad_query.data != nullptr) products.mix(Operand::keys, buffers.grad_query, tile);
    if (buffers.pooled.data != nullptr) products.mix(Operand::values, buffers.pooled, tile);
  }
}

}  // namespace

void local_attention_backward(const LocalAttention& arguments, const LocalAttentionBackward& buffers,
                              Rows slot_products, Stream stream) {
  const Problem problem = to_problem(arguments);
  const DeviceGuard guard(stream.device);
  with_window_shape(problem, stream.device, [&](auto shape, const SharedLayout& layout) {
    using Shape = decltype(shape);
    launch(backward_kernel<typename Shape::Number, Shape::kSlots>, problem.windows * problem.kv_heads, 1, layout.bytes,
           stream, problem, buffers, slot_products, layout);
  });
}

}  // namespace vr::cuda
