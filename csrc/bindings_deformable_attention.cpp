#include <vector>

#include "bindings.h"
#include "cpu/deformable_attention.h"

namespace py = pybind11;

namespace vr {
namespace {

// Address of the values and of their gradient, height, width, strides of batch, row, column and head.
using LevelTuple = std::tuple<uintptr_t, uintptr_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

cpu::DeformableAttention make_problem(int64_t batch, int64_t queries, int64_t heads, int64_t channels, int64_t points,
                                      const std::vector<LevelTuple>& levels, int dtype, uintptr_t locations,
                                      uintptr_t weights, int threads) {
  cpu::DeformableAttention problem{};
  problem.batch = batch;
  problem.queries = queries;
  problem.heads = heads;
  problem.channels = channels;
  problem.points = points;
  for (const auto& [value, gradient, height, width, stride_batch, stride_row, stride_column, stride_head] : levels) {
    problem.levels.push_back({reinterpret_cast<const void*>(value), reinterpret_cast<float*>(gradient), height, width,
                              stride_batch, stride_row, stride_column, stride_head});
  }
  problem.dtype = from_code(dtype, DType::float16, "dtype");
  problem.locations = reinterpret_cast<const float*>(locations);
  problem.weights = reinterpret_cast<const float*>(weights);
  problem.threads = threads;
  return problem;
}

}  // namespace

void bind_deformable_attention(py::module_& m) {
  py::class_<cpu::DeformableAttention>(m, "DeformableAttention",
                                       "One problem; csrc/cpu/deformable_attention.h says what each field is.")
      .def(py::init(&make_problem), py::kw_only(), py::arg("batch"), py::arg("queries"), py::arg("heads"),
           py::arg("channels"), py::arg("points"), py::arg("levels"), py::arg("dtype"), py::arg("locations"),
           py::arg("weights"), py::arg("threads"));
  m.def(
      "deformable_attention_forward",
      [](const cpu::DeformableAttention& problem, uintptr_t out) {
        const py::gil_scoped_release released;
        cpu::deformable_attention_forward(problem, reinterpret_cast<void*>(out));
      },
      py::arg("problem"), py::arg("out"));
  m.def(
      "deformable_attention_backward",
      [](const cpu::DeformableAttention& problem, uintptr_t grad_out, uintptr_t grad_locations,
         uintptr_t grad_weights) {
        const py::gil_scoped_release released;
        cpu::deformable_attention_backward(problem, reinterpret_cast<const void*>(grad_out),
                                           reinterpret_cast<float*>(grad_locations),
                                           reinterpret_cast<float*>(grad_weights));
      },
      py::arg("problem"), py::arg("grad_out"), py::arg("grad_locations"), py::arg("grad_weights"));
}

}  // namespace vr
