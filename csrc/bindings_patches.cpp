#include <vector>

#include "bindings.h"
#include "cpu/patch_matrix.h"

namespace py = pybind11;

namespace vr {
namespace {

// Address, strides of batch, row, column and channel, number of channels.
using LevelTuple = std::tuple<uintptr_t, int64_t, int64_t, int64_t, int64_t, int64_t>;

template <void (*kMove)(const cpu::PatchMatrix&)>
void move_patches(const std::vector<LevelTuple>& levels, std::tuple<int64_t, int64_t> patches, int64_t kernel,
                  int64_t first, int64_t count, uintptr_t rows, int64_t item_bytes, int threads) {
  cpu::PatchMatrix matrix{};
  for (const auto& [data, batch, row, column, channel, channels] : levels) {
    matrix.levels.push_back({reinterpret_cast<void*>(data), batch, row, column, channel, channels});
  }
  std::tie(matrix.patches_down, matrix.patches_across) = patches;
  matrix.kernel = kernel;
  matrix.first = first;
  matrix.count = count;
  matrix.item_bytes = item_bytes;
  matrix.rows = reinterpret_cast<void*>(rows);
  matrix.threads = threads;
  const py::gil_scoped_release released;
  kMove(matrix);
}

template <void (*kMove)(const cpu::PatchMatrix&)>
void define(py::module_& m, const char* name, const char* doc) {
  m.def(name, &move_patches<kMove>, doc, py::kw_only(), py::arg("levels"), py::arg("patches"), py::arg("kernel"),
        py::arg("first"), py::arg("count"), py::arg("rows"), py::arg("item_bytes"), py::arg("threads"));
}

}  // namespace

void bind_patches(py::module_& m) {
  define<cpu::gather_patches>(m, "gather_patches", "Patches of the levels into rows; csrc/cpu/patch_matrix.h.");
  define<cpu::scatter_patches>(m, "scatter_patches", "Rows back into the patches of the levels.");
}

}  // namespace vr
