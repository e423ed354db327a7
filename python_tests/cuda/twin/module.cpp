// The module _twin: the CUDA kernels' own source, bound as in vr_kernels._C, and run on the CPU by threads.h.
#include "bindings.h"
#include "cuda/launch.h"

PYBIND11_MODULE(_twin, m) {
  pybind11::module_::import("vr_kernels._C");  // knows the struct LocalAttention
  vr::bind_cuda(m);
  m.def("set_order", [](uint32_t seed) { vr::twin::order.seed(seed); }, "Draws the order of threads and blocks.");
  m.def("set_shared_memory", [](int bytes) { vr::twin::shared_bytes_per_block = bytes; }, "What a block may take.");
}
