#include "bindings.h"
#include "cuda/local_attention.h"

namespace py = pybind11;

namespace vr {
namespace {

using StreamTuple = std::tuple<int, uintptr_t>;
using ReadersTuple = std::tuple<uintptr_t, uintptr_t>;

cuda::Stream to_stream(const StreamTuple& stream) {
  return {std::get<0>(stream), reinterpret_cast<void*>(std::get<1>(stream))};
}

cuda::Readers to_readers(const ReadersTuple& readers) {
  return {reinterpret_cast<const int64_t*>(std::get<0>(readers)),
          reinterpret_cast<const int64_t*>(std::get<1>(readers))};
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def(
      "cuda_local_attention_forward",
      [](const LocalAttention& problem, const RowsTuple& query, const RowsTuple& out, const RowsTuple& attention,
         const RowsTuple& lse, const StreamTuple& stream) {
        const LocalAttentionForward buffers{to_rows(query), to_rows(out), to_rows(attention), to_rows(lse)};
        const py::gil_scoped_release released;
        cuda::local_attention_forward(problem, buffers, to_stream(stream));
      },
      py::arg("problem"), py::arg("query"), py::arg("out"), py::arg("attention"), py::arg("lse"), py::arg("stream"));
  m.def(
      "cuda_local_attention_backward",
      [](const LocalAttention& problem, const RowsTuple& grad_out, const RowsTuple& attention,
         const RowsTuple& grad_attention, const RowsTuple& grad_lse, const RowsTuple& value_constant,
         const RowsTuple& grad_scores, const RowsTuple& grad_query, const RowsTuple& pooled,
         const RowsTuple& slot_products, const StreamTuple& stream) {
        LocalAttentionBackward buffers;
        buffers.grad_out = to_rows(grad_out);
        buffers.attention = to_rows(attention);
        buffers.grad_attention = to_rows(grad_attention);
        buffers.grad_lse = to_rows(grad_lse);
        buffers.value_constant = to_rows(value_constant);
        buffers.grad_scores = to_rows(grad_scores);
        buffers.grad_query = to_rows(grad_query);
        buffers.pooled = to_rows(pooled);
        const py::gil_scoped_release released;
        cuda::local_attention_backward(problem, buffers, to_rows(slot_products), to_stream(stream));
      },
      py::arg("problem"), py::arg("grad_out"), py::arg("attention"), py::arg("grad_attention"), py::arg("grad_lse"),
      py::arg("value_constant"), py::arg("grad_scores"), py::arg("grad_query"), py::arg("pooled"),
      py::arg("slot_products"), py::arg("stream"));
  m.def(
      "cuda_local_attention_feature_gradient",
      [](const LocalAttention& problem, const RowsTuple& query, const RowsTuple& grad_out, const RowsTuple& attention,
         const RowsTuple& grad_scores, uintptr_t grad_key, uintptr_t grad_value, const ReadersTuple& readers,
         const StreamTuple& stream) {
        const LocalAttentionFeatureGradient buffers{to_rows(query),
                                                    to_rows(grad_out),
                                                    to_rows(attention),
                                                    to_rows(grad_scores),
                                                    reinterpret_cast<float*>(grad_key),
                                                    reinterpret_cast<float*>(grad_value)};
        const py::gil_scoped_release released;
        cuda::local_attention_feature_gradient(problem, buffers, to_readers(readers), to_stream(stream));
      },
      py::arg("problem"), py::arg("query"), py::arg("grad_out"), py::arg("attention"), py::arg("grad_scores"),
      py::arg("grad_key"), py::arg("grad_value"), py::arg("readers"), py::arg("stream"));
}

}  // namespace vr
