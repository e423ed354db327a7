#include "bindings.h"
#include "cpu/index.h"
#include "cpu/tokens.h"

namespace py = pybind11;

namespace vr {
namespace {

template <typename T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

TokenRows make_tokens(uintptr_t stream, int64_t stride_sample, int64_t stride_row, int64_t batch, int64_t length,
                      int64_t width, int dtype, uintptr_t rows, int64_t images, int64_t tokens,
                      uintptr_t sample_of_image, uintptr_t norm_weight, float norm_eps, int threads) {
  TokenRows made;
  made.stream = pointer<const void>(stream);
  made.stride_sample = stride_sample;
  made.stride_row = stride_row;
  made.batch = batch;
  made.length = length;
  made.width = width;
  made.dtype = from_code(dtype, DType::float16, "dtype");
  made.rows = pointer<const int64_t>(rows);
  made.images = images;
  made.tokens = tokens;
  made.sample_of_image = pointer<const int64_t>(sample_of_image);
  made.norm_weight = pointer<const float>(norm_weight);
  made.norm_eps = norm_eps;
  made.threads = threads;
  return made;
}

}  // namespace

void bind_tokens(py::module_& m) {
  py::class_<TokenRows>(m, "TokenRows", "Rows of a stream; csrc/common/tokens.h says what each field is.")
      .def(py::init(&make_tokens), py::kw_only(), py::arg("stream"), py::arg("stride_sample"), py::arg("stride_row"),
           py::arg("batch"), py::arg("length"), py::arg("width"), py::arg("dtype"), py::arg("rows") = 0,
           py::arg("images") = 0, py::arg("tokens") = 0, py::arg("sample_of_image") = 0, py::arg("norm_weight") = 0,
           py::arg("norm_eps") = 0.0f, py::arg("threads"));
  m.attr("TOKEN_ROWS_PER_PART") = kRowsPerPart;
  m.def(
      "index_fits",
      [](uintptr_t index, int64_t count, bool is_64bit, int64_t low, int64_t high, bool distinct) {
        return cpu::index_fits({pointer<const void>(index), count, is_64bit}, low, high, distinct);
      },
      py::arg("index"), py::arg("count"), py::arg("is_64bit"), py::arg("low"), py::arg("high"), py::arg("distinct"));
  m.def(
      "text_guide",
      [](const TokenRows& tokens, uintptr_t mask, uintptr_t guide, uintptr_t text_row) {
        const TextGuide buffers{pointer<const bool>(mask), pointer<void>(guide), pointer<int64_t>(text_row)};
        const py::gil_scoped_release released;
        cpu::text_guide(tokens, buffers);
      },
      py::arg("tokens"), py::arg("mask"), py::arg("guide"), py::arg("text_row"));
  m.def(
      "gather_tokens",
      [](const TokenRows& tokens, uintptr_t guide, uintptr_t out, uintptr_t inverse_rms) {
        const GatherTokens buffers{pointer<const void>(guide), pointer<void>(out), pointer<float>(inverse_rms)};
        const py::gil_scoped_release released;
        cpu::gather_tokens(tokens, buffers);
      },
      py::arg("tokens"), py::arg("guide"), py::arg("out"), py::arg("inverse_rms"));
  m.def(
      "gather_tokens_backward",
      [](const TokenRows& tokens, uintptr_t grad_out, uintptr_t inverse_rms, uintptr_t text_row, uintptr_t grad_guide,
         uintptr_t grad_stream, uintptr_t grad_weight) {
        const GatherTokensBackward buffers{pointer<const void>(grad_out),    pointer<const float>(inverse_rms),
                                           pointer<const int64_t>(text_row), pointer<float>(grad_guide),
                                           pointer<void>(grad_stream),       pointer<float>(grad_weight)};
        const py::gil_scoped_release released;
        cpu::gather_tokens_backward(tokens, buffers);
      },
      py::arg("tokens"), py::arg("grad_out"), py::arg("inverse_rms"), py::arg("text_row"), py::arg("grad_guide"),
      py::arg("grad_stream"), py::arg("grad_weight"));
  m.def(
      "scatter_add_tokens",
      [](const TokenRows& tokens, uintptr_t update, uintptr_t out) {
        const ScatterAddTokens buffers{pointer<const void>(update), pointer<void>(out)};
        const py::gil_scoped_release released;
        cpu::scatter_add_tokens(tokens, buffers);
      },
      py::arg("tokens"), py::arg("update"), py::arg("out"));
}

}  // namespace vr
