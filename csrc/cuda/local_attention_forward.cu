#include "cuda/slot_row.h"
#include "cuda/window_launch.h"
#include "cuda/window_products.h"

namespace vr::cuda {
namespace {

// From the products query . key_j to the weights of the values, for one head; attention and lse on the way.
template <typename T, int kCapacity>
VR_DEVICE void attend(const Problem& problem, const LocalAttentionForward& buffers,
                      WindowProducts<T, kCapacity>& products, int64_t window, int64_t head, int row) {
  using Row = SlotRow<kCapacity>;
  const WindowRows<T>& rows = products.rows();
  const float* bias = problem.attention_bias == nullptr ? nullptr
                                                        : problem.attention_bias + window * problem.bias_stride_window +
                                                              head * problem.bias_stride_head;
  Row scores;
#pragma unroll
  for (int i = 0; i < Row::kPerLane; ++i) {
    const int slot = Row::slot(i);
    scores.at[i] = -INFINITY;
    if (rows.is_present(slot)) {
      scores.at[i] = products.score(row, slot) * problem.scale + (bias == nullptr ? 0.0f : bias[slot]);
    }
  }
  const float log_sum_exp = softmax(scores);
  float* lse = row_of<float>(buffers.lse, window, head);
  if (lse != nullptr && lane_index() == 0) *lse = log_sum_exp;
  float* attention = row_of<float>(buffers.attention, window, head);
#pragma unroll
  for (int i = 0; i < Row::kPerLane; ++i) {
    const int slot = Row::slot(i);
    if (slot < problem.slots && attention != nullptr) attention[slot] = scores.at[i];
    if (slot >= kCapacity) continue;
    products.set_weight(Operand::values, row, slot, rows.is_present(slot) ? scores.at[i] * rows.saliency(slot) : 0.0f);
  }
}

// One block: the heads of one window that share a kv head, 16 at a time. All scores of 16 heads are computed before any
// of their outputs is written, so that the output may stand where the queries stood.
template <typename T, int kCapacity>
VR_KERNEL forward_kernel(VR_PARAMETER Problem problem, VR_PARAMETER LocalAttentionForward buffers,
                         VR_PARAMETER SharedLayout layout) {
  const int64_t window = block_index() / problem.kv_heads;
  const int kv_head = static_cast<int>(block_index() % problem.kv_heads);
  const int group = problem.heads / problem.kv_heads;
  WindowProducts<T, kCapacity> products(problem, layout, window, kv_head);
  for (int first = 0; first < group; first += kTile) {
    const HeadTile tile{kv_head * group + first, group - first < kTile ? group - first : kTile};
    products.dot(Operand::keys, buffers.query, tile);
    for (int row = warp_index(); row < tile.count; row += kWarps) {
      attend(problem, buffers, products, window, tile.first + row, row);
    }
    products.mix(Operand::values, buffers.out, tile);
  }
}

}  // namespace

void local_attention_forward(const LocalAttention& arguments, const LocalAttentionForward& buffers, Stream stream) {
  const Problem problem = to_problem(arguments);
  const DeviceGuard guard(stream.device);
  with_window_shape(problem, stream.device, [&](auto shape, const SharedLayout& layout) {
    using Shape = decltype(shape);
    launch(forward_kernel<typename Shape::Number, Shape::kSlots>, problem.windows * problem.kv_heads, 1, layout.bytes,
           stream, problem, buffers, layout);
  });
}

}  // namespace vr::cuda
