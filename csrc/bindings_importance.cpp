#include "bindings.h"
#include "common/importance.h"
#include "cpu/importance.h"

namespace py = pybind11;

namespace vr {
namespace {

using KeyStrides = std::tuple<int64_t, int64_t, int64_t, int64_t>;  // of sequence, token, head and channel

void attention_importance(int64_t sequences, int64_t rows, int64_t tokens, int64_t heads, int64_t kv_heads,
                          int64_t width, uintptr_t bounds, uintptr_t query, uintptr_t key,
                          const KeyStrides& key_strides, int key_dtype, uintptr_t key_mask, float scale, bool softmax,
                          uintptr_t weights, int threads) {
  AttentionImportance problem;
  problem.sequences = sequences;
  problem.rows = rows;
  problem.tokens = tokens;
  problem.heads = heads;
  problem.kv_heads = kv_heads;
  problem.width = width;
  problem.bounds = reinterpret_cast<const int64_t*>(bounds);
  problem.query = reinterpret_cast<const float*>(query);
  problem.key = reinterpret_cast<const void*>(key);
  std::tie(problem.key_stride_sequence, problem.key_stride_token, problem.key_stride_head, problem.key_stride_channel) =
      key_strides;
  problem.key_dtype = from_code(key_dtype, DType::float16, "key_dtype");
  problem.key_mask = reinterpret_cast<const bool*>(key_mask);
  problem.scale = scale;
  problem.softmax = softmax;
  problem.weights = reinterpret_cast<float*>(weights);
  problem.threads = threads;
  const py::gil_scoped_release released;
  cpu::attention_importance(problem);
}

ReceivedBlock to_block(uintptr_t scores, int64_t heads, int64_t rows, int64_t columns, int64_t first_row, uintptr_t lse,
                       int64_t lse_stride, int threads) {
  return {reinterpret_cast<float*>(scores),    heads,      rows,   columns, first_row,
          reinterpret_cast<const float*>(lse), lse_stride, threads};
}

void received_forward(uintptr_t scores, int64_t heads, int64_t rows, int64_t columns, int64_t first_row, uintptr_t lse,
                      int64_t lse_stride, int threads, uintptr_t received, int64_t received_stride) {
  const ReceivedBlock block = to_block(scores, heads, rows, columns, first_row, lse, lse_stride, threads);
  const py::gil_scoped_release released;
  cpu::received_forward(block, reinterpret_cast<float*>(received), received_stride);
}

void received_backward(uintptr_t scores, int64_t heads, int64_t rows, int64_t columns, int64_t first_row, uintptr_t lse,
                       int64_t lse_stride, int threads, uintptr_t grad, int64_t grad_stride, uintptr_t total) {
  const ReceivedBlock block = to_block(scores, heads, rows, columns, first_row, lse, lse_stride, threads);
  const py::gil_scoped_release released;
  cpu::received_backward(block, reinterpret_cast<const float*>(grad), grad_stride, reinterpret_cast<float*>(total));
}

}  // namespace

void bind_importance(py::module_& m) {
  m.def("attention_importance", &attention_importance, py::kw_only(), py::arg("sequences"), py::arg("rows"),
        py::arg("tokens"), py::arg("heads"), py::arg("kv_heads"), py::arg("width"), py::arg("bounds"), py::arg("query"),
        py::arg("key"), py::arg("key_strides"), py::arg("key_dtype"), py::arg("key_mask"), py::arg("scale"),
        py::arg("softmax"), py::arg("weights"), py::arg("threads"));
  m.def("received_forward", &received_forward, py::kw_only(), py::arg("scores"), py::arg("heads"), py::arg("rows"),
        py::arg("columns"), py::arg("first_row"), py::arg("lse"), py::arg("lse_stride"), py::arg("threads"),
        py::arg("received"), py::arg("received_stride"));
  m.def("received_backward", &received_backward, py::kw_only(), py::arg("scores"), py::arg("heads"), py::arg("rows"),
        py::arg("columns"), py::arg("first_row"), py::arg("lse"), py::arg("lse_stride"), py::arg("threads"),
        py::arg("grad"), py::arg("grad_stride"), py::arg("total"));
}

}  // namespace vr
