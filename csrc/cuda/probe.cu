#include <cuda_runtime.h>

#include <cstdio>
#include <string>

#include "cuda/probe.h"

namespace vr::cuda {
namespace {

constexpr int kAnswer = 42;

__global__ void write_answer(int* answer) { *answer = kAnswer; }

// The answer is read back, because a launch that succeeds has only been queued.
cudaError_t run_kernel() {
  int* device_answer = nullptr;
  cudaError_t error = cudaMalloc(&device_answer, sizeof(int));
  if (error != cudaSuccess) return error;

  int answer = 0;
  write_answer<<<1, 1>>>(device_answer);
  error = cudaGetLastError();
  if (error == cudaSuccess) error = cudaMemcpy(&answer, device_answer, sizeof(int), cudaMemcpyDeviceToHost);
  cudaFree(device_answer);
  if (error == cudaSuccess && answer != kAnswer) return cudaErrorUnknown;
  return error;
}

std::string device_architecture() {
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  return "sm_" + std::to_string(major) + std::to_string(minor);
}

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

std::string explanation(cudaError_t error) {
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

int probe(char* message, size_t size) {
  const cudaError_t error = run_kernel();
  if (error == cudaSuccess) {
    std::snprintf(message, size, "the device, %s, runs this build's kernels", device_architecture().c_str());
  } else {
    std::snprintf(message, size, "%s (%s, %d)", explanation(error).c_str(), cudaGetErrorName(error), error);
  }
  return error;
}

}  // namespace vr::cuda
