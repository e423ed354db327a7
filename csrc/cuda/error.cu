#include <stdexcept>

#include "cuda/error.h"

namespace vr::cuda {
namespace {

std::string version_name(int version) {
  return "CUDA " + std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// The runtime reports a missing and an old driver as one error, and they call for different remedies.
std::string driver_problem() {
  int version = 0;
  cudaDriverGetVersion(&version);
  if (version == 0) return "no CUDA driver is installed";
  return "the driver supports " + version_name(version) + ", this build needs " + version_name(CUDART_VERSION);
}

std::string sentence(cudaError_t error) {
  switch (error) {
    case cudaErrorInsufficientDriver:
      return driver_problem();
    case cudaErrorNoDevice:
      return "no CUDA device is visible";
    case cudaErrorNoKernelImageForDevice:
      return "this build has code for " VR_KERNELS_CUDA_ARCHITECTURES ", the device is " + device_architecture();
    default:
      return cudaGetErrorString(error);
  }
}

}  // namespace

std::string device_architecture() {
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return "sm_" + std::to_string(major) + std::to_string(minor);
}

std::string explanation(cudaError_t error) {
  return sentence(error) + " (" + cudaGetErrorName(error) + ", " + std::to_string(error) + ")";
}

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forgets it, or the next launch that succeeds would be told of it
  throw std::runtime_error(explanation(error));
}

}  // namespace vr::cuda
