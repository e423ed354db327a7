#pragma once

#include <pybind11/pybind11.h>

namespace vr {

// Adds the CUDA kernels of csrc/cuda to a module. The struct LocalAttention is that of vr_kernels._C.
void bind_cuda(pybind11::module_& m);

}  // namespace vr
