#include <vector>

#include "bindings.h"
#include "cpu/local_attention.h"

namespace py = pybind11;

namespace vr {
namespace {

using LevelTuple = std::tuple<uintptr_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

std::vector<Level> to_levels(const std::vector<LevelTuple>& tuples) {
  std::vector<Level> levels;
  for (const auto& [data, batch, row, column, head, channel, channels] : tuples) {
    levels.push_back({reinterpret_cast<const void*>(data), batch, row, column, head, channel, channels});
  }
  return levels;
}

std::vector<LevelTuple> to_tuples(const std::vector<Level>& levels) {
  std::vector<LevelTuple> tuples;
  for (const Level& level : levels) {
    tuples.emplace_back(reinterpret_cast<uintptr_t>(level.data), level.stride_batch, level.stride_row,
                        level.stride_column, level.stride_head, level.stride_channel, level.channels);
  }
  return tuples;
}

using Problem = py::class_<LocalAttention>;

template <typename T>
void bind_pointer(Problem& problem, const char* name, T* LocalAttention::* field) {
  problem.def_property(
      name, [field](const LocalAttention& p) { return reinterpret_cast<uintptr_t>(p.*field); },
      [field](LocalAttention& p, uintptr_t address) { p.*field = reinterpret_cast<T*>(address); });
}

void bind_levels(Problem& problem, const char* name, std::vector<Level> LocalAttention::* field) {
  problem.def_property(
      name, [field](const LocalAttention& p) { return to_tuples(p.*field); },
      [field](LocalAttention& p, const std::vector<LevelTuple>& tuples) { p.*field = to_levels(tuples); });
}

template <typename Enum>
void bind_code(Problem& problem, const char* name, Enum LocalAttention::* field, Enum last) {
  problem.def_property(
      name, [field](const LocalAttention& p) { return static_cast<int>(p.*field); },
      [field, last, name](LocalAttention& p, int code) { p.*field = from_code(code, last, name); });
}

LocalAttention make_problem(int64_t windows, int64_t first_window, int64_t heads, int64_t kv_heads, int64_t slots,
                            int64_t batch, int64_t height, int64_t width, int64_t window_height, int64_t window_width,
                            uintptr_t index, bool index_is_64bit, const std::vector<LevelTuple>& keys,
                            const std::vector<LevelTuple>& values, int query_dtype, int feature_dtype, float scale,
                            uintptr_t attention_bias, int64_t bias_stride_window, int64_t bias_stride_head,
                            uintptr_t saliency, int norm_groups, float norm_eps, uintptr_t norm_weight,
                            uintptr_t norm_bias, int threads) {
  LocalAttention problem;
  problem.windows = windows;
  problem.first_window = first_window;
  problem.heads = heads;
  problem.kv_heads = kv_heads;
  problem.slots = slots;
  problem.batch = batch;
  problem.height = height;
  problem.width = width;
  problem.window_height = window_height;
  problem.window_width = window_width;
  problem.index = reinterpret_cast<const void*>(index);
  problem.index_is_64bit = index_is_64bit;
  problem.keys = to_levels(keys);
  problem.values = to_levels(values);
  problem.query_dtype = from_code(query_dtype, DType::float16, "query_dtype");
  problem.feature_dtype = from_code(feature_dtype, DType::float16, "feature_dtype");
  problem.scale = scale;
  problem.attention_bias = reinterpret_cast<const float*>(attention_bias);
  problem.bias_stride_window = bias_stride_window;
  problem.bias_stride_head = bias_stride_head;
  problem.saliency = reinterpret_cast<const float*>(saliency);
  problem.norm_groups = from_code(norm_groups, NormGroups::level, "norm_groups");
  problem.norm_eps = norm_eps;
  problem.norm_weight = reinterpret_cast<const float*>(norm_weight);
  problem.norm_bias = reinterpret_cast<const float*>(norm_bias);
  problem.threads = threads;
  return problem;
}

void bind_problem(py::module_& m) {
  Problem problem(m, "LocalAttention",
                  "One windowed attention problem; csrc/common/local_attention.h says what each field is.");
  problem.def_readwrite("windows", &LocalAttention::windows)
      .def_readwrite("first_window", &LocalAttention::first_window)
      .def_readwrite("heads", &LocalAttention::heads)
      .def_readwrite("kv_heads", &LocalAttention::kv_heads)
      .def_readwrite("slots", &LocalAttention::slots)
      .def_readwrite("batch", &LocalAttention::batch)
      .def_readwrite("height", &LocalAttention::height)
      .def_readwrite("width", &LocalAttention::width)
      .def_readwrite("window_height", &LocalAttention::window_height)
      .def_readwrite("window_width", &LocalAttention::window_width)
      .def_readwrite("index_is_64bit", &LocalAttention::index_is_64bit)
      .def_readwrite("scale", &LocalAttention::scale)
      .def_readwrite("bias_stride_window", &LocalAttention::bias_stride_window)
      .def_readwrite("bias_stride_head", &LocalAttention::bias_stride_head)
      .def_readwrite("norm_eps", &LocalAttention::norm_eps)
      .def_readwrite("threads", &LocalAttention::threads);
  bind_pointer(problem, "index", &LocalAttention::index);
  bind_pointer(problem, "attention_bias", &LocalAttention::attention_bias);
  bind_pointer(problem, "saliency", &LocalAttention::saliency);
  bind_pointer(problem, "norm_weight", &LocalAttention::norm_weight);
  bind_pointer(problem, "norm_bias", &LocalAttention::norm_bias);
  bind_levels(problem, "keys", &LocalAttention::keys);
  bind_levels(problem, "values", &LocalAttention::values);
  bind_code(problem, "query_dtype", &LocalAttention::query_dtype, DType::float16);
  bind_code(problem, "feature_dtype", &LocalAttention::feature_dtype, DType::float16);
  bind_code(problem, "norm_groups", &LocalAttention::norm_groups, NormGroups::level);
  problem.def(py::init(&make_problem), py::kw_only(), py::arg("windows"), py::arg("first_window") = 0, py::arg("heads"),
              py::arg("kv_heads") = 1, py::arg("slots"), py::arg("batch"), py::arg("height") = 1, py::arg("width") = 1,
              py::arg("window_height") = 0, py::arg("window_width") = 0, py::arg("index") = 0,
              py::arg("index_is_64bit") = false, py::arg("keys"), py::arg("values") = std::vector<LevelTuple>(),
              py::arg("query_dtype"), py::arg("feature_dtype"), py::arg("scale"), py::arg("attention_bias") = 0,
              py::arg("bias_stride_window") = 0, py::arg("bias_stride_head") = 0, py::arg("saliency") = 0,
              py::arg("norm_groups") = 0, py::arg("norm_eps") = 1e-6f, py::arg("norm_weight") = 0,
              py::arg("norm_bias") = 0, py::arg("threads"));
}

}  // namespace

void bind_local_attention(py::module_& m) {
  bind_problem(m);
  m.def(
      "local_attention_forward",
      [](const LocalAttention& problem, const RowsTuple& query, const RowsTuple& out, const RowsTuple& attention,
         const RowsTuple& lse) {
        const LocalAttentionForward buffers{to_rows(query), to_rows(out), to_rows(attention), to_rows(lse)};
        const py::gil_scoped_release released;
        cpu::local_attention_forward(problem, buffers);
      },
      py::arg("problem"), py::arg("query"), py::arg("out"), py::arg("attention"), py::arg("lse"));
  m.def(
      "local_attention_backward",
      [](const LocalAttention& problem, const RowsTuple& grad_out, const RowsTuple& attention,
         const RowsTuple& grad_attention, const RowsTuple& grad_lse, const RowsTuple& value_constant,
         const RowsTuple& grad_scores, const RowsTuple& grad_query, const RowsTuple& pooled, uintptr_t grad_saliency) {
        LocalAttentionBackward buffers;
        buffers.grad_out = to_rows(grad_out);
        buffers.attention = to_rows(attention);
        buffers.grad_attention = to_rows(grad_attention);
        buffers.grad_lse = to_rows(grad_lse);
        buffers.value_constant = to_rows(value_constant);
        buffers.grad_scores = to_rows(grad_scores);
        buffers.grad_query = to_rows(grad_query);
        buffers.pooled = to_rows(pooled);
        buffers.grad_saliency = reinterpret_cast<float*>(grad_saliency);
        const py::gil_scoped_release released;
        cpu::local_attention_backward(problem, buffers);
      },
      py::arg("problem"), py::arg("grad_out"), py::arg("attention"), py::arg("grad_attention"), py::arg("grad_lse"),
      py::arg("value_constant"), py::arg("grad_scores"), py::arg("grad_query"), py::arg("pooled"),
      py::arg("grad_saliency"));
  m.def(
      "local_attention_feature_gradient",
      [](const LocalAttention& problem, const RowsTuple& query, const RowsTuple& grad_out, const RowsTuple& attention,
         const RowsTuple& grad_scores, uintptr_t grad_key, uintptr_t grad_value) {
        const LocalAttentionFeatureGradient buffers{to_rows(query),
                                                    to_rows(grad_out),
                                                    to_rows(attention),
                                                    to_rows(grad_scores),
                                                    reinterpret_cast<float*>(grad_key),
                                                    reinterpret_cast<float*>(grad_value)};
        const py::gil_scoped_release released;
        cpu::local_attention_feature_gradient(problem, buffers);
      },
      py::arg("problem"), py::arg("query"), py::arg("grad_out"), py::arg("attention"), py::arg("grad_scores"),
      py::arg("grad_key"), py::arg("grad_value"));
}

}  // namespace vr
