#include "bindings.h"
#include "cuda/local_attention.h"
#include "cuda/local_cross_attention.h"

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

// Addresses of the statistics, gamma and beta; 0 where absent.
using NormTuple = std::tuple<uintptr_t, uintptr_t, uintptr_t>;

cuda::Norm to_norm(const NormTuple& norm) {
  return {reinterpret_cast<const cuda::RowStatistics*>(std::get<0>(norm)),
          reinterpret_cast<const float*>(std::get<1>(norm)), reinterpret_cast<const float*>(std::get<2>(norm))};
}

void bind_fused(py::module_& m) {
  m.def(
      "cuda_local_cross_attention_statistics",
      [](const LocalAttention& features, uintptr_t statistics, const StreamTuple& stream) {
        const py::gil_scoped_release released;
        cuda::local_cross_attention_statistics(features, reinterpret_cast<cuda::RowStatistics*>(statistics),
                                               to_stream(stream));
      },
      py::arg("features"), py::arg("statistics"), py::arg("stream"));
  m.def(
      "cuda_local_cross_attention_scores",
      [](const LocalAttention& features, const NormTuple& norm, const RowsTuple& x, const RowsTuple& weight,
         int64_t width, const RowsTuple& scores, int64_t parts, int64_t part_stride, const StreamTuple& stream) {
        const cuda::Scores buffers{to_rows(x), to_rows(weight), width, to_rows(scores), parts, part_stride};
        const py::gil_scoped_release released;
        cuda::local_cross_attention_scores(features, to_norm(norm), buffers, to_stream(stream));
      },
      py::arg("features"), py::arg("norm"), py::arg("x"), py::arg("weight"), py::arg("width"), py::arg("scores"),
      py::arg("parts"), py::arg("part_stride"), py::arg("stream"));
  m.def(
      "cuda_local_cross_attention_project",
      [](const LocalAttention& features, const NormTuple& norm, const RowsTuple& a, const RowsTuple& weight,
         int64_t width, const RowsTuple& out, const StreamTuple& stream) {
        const cuda::Projection buffers{to_rows(a), to_rows(weight), width, to_rows(out)};
        const py::gil_scoped_release released;
        cuda::local_cross_attention_project(features, to_norm(norm), buffers, to_stream(stream));
      },
      py::arg("features"), py::arg("norm"), py::arg("a"), py::arg("weight"), py::arg("width"), py::arg("out"),
      py::arg("stream"));
  m.def(
      "cuda_local_cross_attention_outer",
      [](const LocalAttention& features, const NormTuple& norm, const RowsTuple& x, const RowsTuple& a, int64_t width,
         uintptr_t factors, const RowsTuple& out, const StreamTuple& stream) {
        const cuda::Outer buffers{to_rows(x), to_rows(a), width, reinterpret_cast<const float*>(factors), to_rows(out)};
        const py::gil_scoped_release released;
        cuda::local_cross_attention_outer(features, to_norm(norm), buffers, to_stream(stream));
      },
      py::arg("features"), py::arg("norm"), py::arg("x"), py::arg("a"), py::arg("width"), py::arg("factors"),
      py::arg("out"), py::arg("stream"));
}

}  // namespace

void bind_cuda(py::module_& m) {
  bind_fused(m);
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
