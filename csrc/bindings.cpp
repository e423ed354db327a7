// The module vr_kernels._C.
#include "bindings.h"

#include <array>

#include "cpu/isa.h"

#if defined(VR_KERNELS_CUDA)
#include "cuda/probe.h"
#endif

namespace py = pybind11;

namespace vr {
namespace {

py::dict cpu_features() {
  py::dict features;
  py::list available;
  for (cpu::Isa isa : cpu::available_isas()) available.append(cpu::name_of(isa));
  features["isa"] = cpu::name_of(cpu::current_isa());
  features["available"] = available;
  for (const cpu::CpuFeature& feature : cpu::cpu_features()) features[feature.name] = feature.present;
  return features;
}

py::dict build_info() {
  py::dict info;
  info["version"] = VR_KERNELS_VERSION;
#if defined(__clang__)
  info["compiler"] = "clang " __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = "gcc " __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
#if defined(_OPENMP)
  info["openmp"] = true;
#else
  info["openmp"] = false;
#endif
#if defined(VR_KERNELS_SANITIZER)
  info["sanitizer"] = true;
#else
  info["sanitizer"] = false;
#endif
#if defined(VR_KERNELS_CUDA)
  info["cuda"] = true;
  info["cuda_architectures"] = py::str(VR_KERNELS_CUDA_ARCHITECTURES).attr("split")(", ");
  info["cuda_compiler"] = VR_KERNELS_CUDA_COMPILER;
#else
  info["cuda"] = false;
  info["cuda_architectures"] = py::list();
  info["cuda_compiler"] = "";
#endif
  return info;
}

#if defined(VR_KERNELS_CUDA)
std::string cuda_probe() {
  std::array<char, 256> message{};
  const int status = cuda::probe(message.data(), message.size());
  if (status != 0) throw std::runtime_error(message.data());
  return message.data();
}
#endif

}  // namespace
}  // namespace vr

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native kernels of vr_kernels. What may be passed is checked in Python, not here.";
  vr::cpu::set_isa_from_environment();
  vr::bind_local_attention(m);
  vr::bind_deformable_attention(m);
  vr::bind_importance(m);
  vr::bind_tokens(m);
  vr::bind_patches(m);
  m.def("cpu_features", &vr::cpu_features, "The instruction sets of this processor, and the one in use.");
  m.def("isa", [] { return vr::cpu::name_of(vr::cpu::current_isa()); }, "The instruction set in use.");
  m.def("set_isa", &vr::cpu::set_isa, py::arg("name"), "Uses a lower instruction set, or returns to a higher one.");
  m.def("build_info", &vr::build_info, "What this module was built with and for.");
#if defined(VR_KERNELS_CUDA)
  vr::bind_cuda(m);
  m.def("cuda_probe", &vr::cuda_probe, "Launches one trivial kernel; raises RuntimeError with the driver's words.");
#endif
}
