// What the files of Python bindings share. Only numbers cross: pointers, sizes, strides and dtype codes as integers.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>

#include "common/local_attention.h"

namespace vr {

// Address, and the strides of windows and heads.
using RowsTuple = std::tuple<uintptr_t, int64_t, int64_t>;

inline Rows to_rows(const RowsTuple& rows) {
  return {reinterpret_cast<void*>(std::get<0>(rows)), std::get<1>(rows), std::get<2>(rows)};
}

// `last` is the largest code of the enumeration.
template <typename Enum>
Enum from_code(int code, Enum last, const char* what) {
  if (code < 0 || code > static_cast<int>(last)) {
    throw std::invalid_argument(std::string(what) + " is " + std::to_string(code) + "; it may be 0 to " +
                                std::to_string(static_cast<int>(last)));
  }
  return static_cast<Enum>(code);
}

// Each adds one operator's kernels to the module.
void bind_local_attention(pybind11::module_& m);
void bind_deformable_attention(pybind11::module_& m);
void bind_importance(pybind11::module_& m);
void bind_tokens(pybind11::module_& m);
void bind_patches(pybind11::module_& m);
void bind_cuda(pybind11::module_& m);  // csrc/cuda, on the same struct LocalAttention

}  // namespace vr
